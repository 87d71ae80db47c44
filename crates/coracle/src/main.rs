//! The one binary: `coracle server` is a whole cluster, the other commands look at it and steer it.

mod admin;
mod bootstrap;
mod check;
mod clock;
mod cluster;
mod config;
mod edge_role;
mod kubeconfig;
mod kubelet;
mod node_dialer;
mod serve;
mod sockets;
mod stop;

use std::ffi::OsString;
use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::{Context, Result, bail};
use clap::{Parser, Subcommand, ValueEnum};

use crate::check::Level;
use crate::config::{Config, Settings};

#[derive(Parser)]
#[command(name = "coracle", version = server::server::VERSION, about = "Kubernetes for the rack in your cupboard")]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Run a cluster on this machine
    Server(Box<Settings>),
    /// List what is missing on this machine, or in the way
    Check {
        #[command(flatten)]
        settings: Box<Settings>,
        /// How to print it
        #[arg(short, long, value_enum, default_value_t = Output::Text)]
        output: Output,
    },
    /// Print the administrator's kubeconfig, or one for another user
    Kubeconfig {
        #[command(flatten)]
        settings: Box<Settings>,
        /// User named in the certificate
        #[arg(long, default_value = "kubernetes-admin")]
        user: String,
        /// Group of that user
        #[arg(long)]
        group: Option<String>,
    },
    /// Say what runs, with memory and addresses
    Status {
        #[command(flatten)]
        settings: Box<Settings>,
        /// How to print it
        #[arg(short, long, value_enum, default_value_t = Output::Text)]
        output: Output,
    },
    /// Stop the server; containers go on unless --all is given
    Stop {
        #[command(flatten)]
        settings: Box<Settings>,
        /// Also stop every container and remove links and rules
        #[arg(long)]
        all: bool,
    },
    /// Handle the node's images
    Image {
        #[command(subcommand)]
        command: ImageCommand,
    },
}

#[derive(Subcommand)]
enum ImageCommand {
    /// Import an OCI or docker archive; - reads standard input, as in `podman save IMAGE | coracle image import -`
    Import {
        #[command(flatten)]
        settings: Box<Settings>,
        file: PathBuf,
    },
    /// List images
    Ls {
        #[command(flatten)]
        settings: Box<Settings>,
    },
    /// Remove an image
    Rm {
        #[command(flatten)]
        settings: Box<Settings>,
        image: String,
    },
}

#[derive(Clone, Copy, ValueEnum)]
enum Output {
    Text,
    Json,
}

fn main() -> ExitCode {
    // Before a role gives up the file system.
    #[cfg(feature = "planted")]
    planted::load("/run/coracle-planted".as_ref());
    let arguments: Vec<OsString> = std::env::args_os().collect();
    // Roles and short-lived children of main; people never call them, and they must not pay for the command line's tables.
    match arguments.get(1).and_then(|argument| argument.to_str()) {
        Some("shim") => runtime::shim::main(&arguments[2..]),
        Some("unpack") => return image::unpack::main(&arguments[2..]),
        Some("edge") => {
            return edge_role::main().unwrap_or_else(|error| {
                eprintln!("coracle edge: {error:#}");
                ExitCode::FAILURE
            });
        }
        _ => {}
    }
    let cli = Cli::parse_from(arguments);
    match run(cli.command) {
        Ok(code) => code,
        Err(error) => {
            eprintln!("coracle: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(command: Command) -> Result<ExitCode> {
    match command {
        Command::Server(settings) => {
            let config = config::load(*settings)?;
            refuse_when_fatal(&config)?;
            serve::run(config)?;
        }
        Command::Check { settings, output } => return check_machine(&config::load(*settings)?, output),
        Command::Kubeconfig { settings, user, group } => {
            let config = config::load(*settings)?;
            print!("{}", kubeconfig::issue(&config, &user, group)?);
        }
        Command::Status { settings, output } => {
            let status = admin::status(&config::load(*settings)?)?;
            match output {
                Output::Text => print!("{}", status.render()),
                Output::Json => println!("{}", serde_json::to_string_pretty(&status)?),
            }
        }
        Command::Stop { settings, all } => stop::stop(&config::load(*settings)?, all)?,
        Command::Image { command } => image_command(command)?,
    }
    Ok(ExitCode::SUCCESS)
}

fn refuse_when_fatal(config: &Config) -> Result<()> {
    let mut findings = check::evaluate(&check::gather(config), config);
    findings.retain(|finding| finding.level != Level::Ok);
    // The edge of an earlier server of ours holds the ports of the ingress: it keeps serving while main is replaced.
    if admin::edge_pid(config).is_some() {
        let held = [config.http_port, config.https_port].map(|port| format!("port-{port}"));
        findings.retain(|finding| !held.contains(&finding.code));
    }
    if findings.iter().any(|finding| finding.level == Level::Fatal) {
        bail!("this machine cannot run a cluster yet:\n{}", check::render(&findings));
    }
    eprint!("{}", check::render(&findings));
    Ok(())
}

fn check_machine(config: &Config, output: Output) -> Result<ExitCode> {
    let findings = check::evaluate(&check::gather(config), config);
    match output {
        Output::Text => print!("{}", check::render(&findings)),
        Output::Json => println!("{}", serde_json::to_string_pretty(&findings)?),
    }
    Ok(match findings.iter().map(|finding| finding.level).max() {
        Some(Level::Fatal) => ExitCode::from(1),
        Some(Level::Warning) => ExitCode::from(2),
        Some(Level::Ok) | None => ExitCode::SUCCESS,
    })
}

fn image_command(command: ImageCommand) -> Result<()> {
    match command {
        ImageCommand::Import { settings, file } => {
            let archive: Box<dyn std::io::Read> = if file.as_os_str() == "-" {
                Box::new(std::io::stdin())
            } else {
                Box::new(std::fs::File::open(&file).with_context(|| format!("could not open {}", file.display()))?)
            };
            for name in admin::import_images(&config::load(*settings)?, archive)? {
                println!("{name}");
            }
        }
        ImageCommand::Ls { settings } => print!("{}", admin::list_images(&config::load(*settings)?)?),
        ImageCommand::Rm { settings, image } => admin::remove_image(&config::load(*settings)?, &image)?,
    }
    Ok(())
}
