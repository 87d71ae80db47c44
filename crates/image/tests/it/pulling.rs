//! Names, mirrors, authentication, faults of registries.

use std::sync::Mutex;
use std::time::Duration;

use expect_test::{Expect, expect};
use image::access::{Access, Source, Verdict, verdict};
use image::credentials::{Credentials, from_docker_config_json, offered};
use image::pull::{NoProgress, Progress, ProgressEvent, PullCause};
use image::reference::Reference;
use serde_json::json;
use testkit::images::{BuiltImage, Compression, Layer, index, oci_archive};
use testkit::registry::{Auth, FaultKind, Registry};

use crate::fixture::{Fixture, small};

/// The message with the registry's address and digests made constant.
async fn failure(fixture: &Fixture, name: &str, expected: Expect) {
    let error = fixture.pull(name).await.unwrap_err();
    let message = error.to_string().replace(&fixture.registry.address().to_string(), "REGISTRY");
    let mut shown = String::new();
    let mut rest = message.as_str();
    while let Some((before, after)) = rest.split_once("sha256:") {
        shown.push_str(before);
        shown.push_str("sha256:…");
        rest = &after[64.min(after.len())..];
    }
    expected.assert_eq(&format!("{}: {shown}{rest}", error.code()));
    fixture.wait_until_clean().await;
}

#[tokio::test]
async fn a_pulled_image_has_its_configuration_and_files() {
    let fixture = Fixture::new();
    let lower = Layer::new().dir("etc", 0o755).file("etc/a", 0o644, b"lower").finish();
    let upper = Layer::new().owner(7, 8).file("etc/a", 0o4755, b"upper").finish();
    let config = json!({"User": "7", "Env": ["A=b"], "Entrypoint": ["/run"], "Volumes": {"/config": {}}});
    for compression in [Compression::None, Compression::Gzip, Compression::Zstd] {
        let built = BuiltImage::new(config.clone(), &[lower.clone(), upper.clone()], compression);
        fixture.registry.add("app", "1", &built);
        let image = fixture.pull("app:1").await.unwrap();
        assert_eq!(image.id.to_string(), built.config.digest);
        assert_eq!(image.repo_tags, [fixture.name("app:1").to_string()]);
        assert!(image.repo_digests.contains(&format!("{}@{}", fixture.name("app").name(), built.manifest.digest)));
        assert_eq!((image.config.user.as_str(), &image.config.env[..]), ("7", &["A=b".to_owned()][..]));
        assert_eq!(image.config.volumes, ["/config"]);
        assert_eq!(std::fs::read_to_string(image.layers[0].join("etc/a")).unwrap(), "upper");
        assert_eq!(std::fs::read_to_string(image.layers[1].join("etc/a")).unwrap(), "lower");
        assert!(image.size > 0);
    }
}

#[tokio::test]
async fn a_second_pull_asks_for_the_digest_alone() {
    let fixture = Fixture::new();
    fixture.registry.add("app", "1", &small("one"));
    let first = fixture.pull("app:1").await.unwrap();
    let before = fixture.registry.requests().len();
    assert_eq!(fixture.pull("app:1").await.unwrap(), first);
    assert_eq!(fixture.registry.requests()[before..], ["HEAD /v2/app/manifests/1 200"]);
}

#[tokio::test]
async fn a_tag_moves_and_a_digest_stays() {
    let fixture = Fixture::new();
    let (old, new) = (small("old"), small("new"));
    fixture.registry.add("app", "1", &old);
    let first = fixture.pull("app:1").await.unwrap();
    fixture.registry.add("app", "1", &new);
    let second = fixture.pull("app:1").await.unwrap();
    assert_ne!(first.id, second.id);
    assert_eq!(fixture.store.get(&fixture.name("app:1").to_string()), Some(second));
    let pinned = fixture.pull(&format!("app@{}", old.manifest.digest)).await.unwrap();
    assert_eq!(pinned.id, first.id);
    assert!(pinned.repo_tags.is_empty());
}

#[tokio::test]
async fn mirrors_are_asked_first_and_the_registry_last() {
    let primary = Registry::start().unwrap();
    let (mirror, own) = (Registry::start().unwrap(), primary.address());
    let yaml = format!(
        "mirrors:\n  \"{own}\":\n    endpoint: [\"http://{}\"]\n    rewrite: {{\"^(.*)$\": \"cache/$1\"}}\n",
        mirror.address()
    );
    let fixture = Fixture::with(primary, &yaml);
    mirror.add("cache/a", "latest", &small("mirrored"));
    fixture.registry.add("b", "latest", &small("original"));
    fixture.pull("a").await.unwrap();
    assert!(fixture.registry.requests().is_empty());
    assert_eq!(mirror.requests()[0], format!("HEAD /v2/cache/a/manifests/latest?ns={own} 200"));
    fixture.pull("b").await.unwrap();
    assert_eq!(fixture.registry.requests()[0], "HEAD /v2/b/manifests/latest 200");
    // A mirror that serves other bytes than it should is passed over.
    let both = small("both");
    mirror.add("cache/c", "latest", &both);
    fixture.registry.add("c", "latest", &both);
    mirror.fault("/blobs/", FaultKind::Corrupt, 100);
    fixture.pull("c").await.unwrap();
}

#[tokio::test]
async fn blocked_registries_and_local_names_are_never_asked() {
    let fixture = Fixture::with(Registry::start().unwrap(), "mirrors: {bad.example: {blocked: true}}");
    let pull = |name| {
        let reference = Reference::parse(name).unwrap();
        let store = fixture.store.clone();
        async move { store.pull(&reference, &[], &NoProgress).await.unwrap_err().to_string() }
    };
    expect![[
        r#"failed to pull and unpack image "bad.example/x:latest": registry bad.example is blocked in registries.yaml"#
    ]]
    .assert_eq(&pull("bad.example/x").await);
    expect![[r#"failed to pull and unpack image "localhost/x:latest": localhost/x:latest is not on this node, and names under localhost/ are never pulled: import it with `coracle image import`"#]]
        .assert_eq(&pull("localhost/x").await);
}

#[tokio::test]
async fn authentication_follows_the_challenge() {
    let fixture = Fixture::new();
    fixture.registry.add("app", "1", &small("secret"));
    let secret = |auth: &str| {
        let config = json!({"auths": {fixture.registry.address().to_string(): {"auth": auth}}});
        from_docker_config_json(config.to_string().as_bytes()).unwrap()
    };
    let (right, wrong) = (secret("bWU6c2VjcmV0"), secret("bWU6d3Jvbmc="));
    for auth in [Auth::Basic("me:secret".into()), Auth::Bearer(Some("me:secret".into()))] {
        fixture.registry.require(auth);
        assert!(matches!(fixture.pull("app:1").await.unwrap_err().cause, PullCause::Unauthorized { .. }));
        assert!(matches!(fixture.pull_as("app:1", &wrong).await.unwrap_err().cause, PullCause::Unauthorized { .. }));
        let both = [wrong.clone(), right.clone()].concat();
        let image = fixture.pull_as("app:1", &both).await.unwrap();
        fixture.store.remove(&image.id.to_string()).await.unwrap();
    }
    let identity = json!({"auths": {fixture.registry.address().to_string(): {"identitytoken": "me:secret"}}});
    fixture.pull_as("app:1", &from_docker_config_json(identity.to_string().as_bytes()).unwrap()).await.unwrap();
    fixture.registry.require(Auth::Bearer(None));
    fixture.pull("app:1").await.unwrap();
}

#[tokio::test]
async fn the_configured_identity_is_used_for_its_host() {
    let registry = Registry::start().unwrap();
    registry.require(Auth::Bearer(Some("me:secret".into())));
    registry.add("app", "1", &small("secret"));
    let yaml = format!("configs:\n  \"{}\": {{auth: {{username: me, password: secret}}}}\n", registry.address());
    let image = Fixture::with(registry, &yaml).pull("app:1").await.unwrap();
    assert!(image.accesses.values().all(|access| *access == Access::Everybody), "it is the node's");
}

/// A restart and another name change nothing about it.
#[tokio::test]
async fn whose_credentials_were_used_is_kept_with_the_image() {
    let mut fixture = Fixture::new();
    let (app, host) = (small("secret"), fixture.registry.address().to_string());
    fixture.registry.add("app", "1", &app);
    fixture.registry.add("free", "1", &app);
    let given = |name: &str, auth: &str| {
        let config = json!({"auths": {&host: {"auth": auth}}});
        let mut all = from_docker_config_json(config.to_string().as_bytes()).unwrap();
        let source = Source { namespace: "n".into(), name: name.into(), uid: "u".into() };
        all.iter_mut().for_each(|one| one.source = Some(source.clone()));
        all
    };
    let (wrong, right) = (given("wrong", "bWU6d3Jvbmc="), given("right", "bWU6c2VjcmV0"));
    let (name, free) = (fixture.name("app:1"), fixture.name("free:1"));
    let access = |fixture: &Fixture, name: &Reference, with: &[Credentials]| {
        let image = fixture.store.get(&name.to_string()).unwrap();
        verdict(&image.accesses, &name.name(), &offered(with, name))
    };
    fixture.registry.require(Auth::Basic("me:secret".into()));
    fixture.pull_as("app:1", &[wrong.clone(), right.clone()].concat()).await.unwrap();
    fixture.registry.require(Auth::None);
    fixture.pull("free:1").await.unwrap();
    for _ in 0..2 {
        assert_eq!(access(&fixture, &name, &wrong), Verdict::Ask);
        assert_eq!(access(&fixture, &name, &right), Verdict::Granted);
        assert_eq!(access(&fixture, &free, &[]), Verdict::Granted);
        fixture.reopen();
    }
    let other = given("other", "bWU6c2VjcmV0");
    let Verdict::GrantedTo(grant) = access(&fixture, &name, &other) else { panic!("the same credentials") };
    let id = fixture.store.get(&name.to_string()).unwrap().id.clone();
    fixture.store.grant(&id, &name, grant).await.unwrap();
    assert_eq!(access(&fixture, &name, &other), Verdict::Granted);
    fixture.pull("app:1").await.unwrap();
    assert_eq!(access(&fixture, &name, &[]), Verdict::Granted, "now anybody can have it");
}

/// An archive's name is for everybody, whoever pulls the same image under another before or afterwards.
#[tokio::test]
async fn an_imported_image_is_for_everybody() {
    let fixture = Fixture::new();
    let app = small("secret");
    fixture.registry.add("app", "1", &app);
    fixture.registry.require(Auth::Basic("me:secret".into()));
    let config = json!({"auths": {fixture.registry.address().to_string(): {"auth": "bWU6c2VjcmV0"}}});
    let mut given = from_docker_config_json(config.to_string().as_bytes()).unwrap();
    given[0].source = Some(Source { namespace: "n".into(), name: "s".into(), uid: "u".into() });
    let import = async |name: &str| fixture.store.import(&oci_archive(&[(name, &app)])[..]).await.unwrap();
    import("example.com/before:1").await;
    fixture.pull_as("app:1", &given).await.unwrap();
    let image = import("example.com/after:1").await.swap_remove(0);
    let name = fixture.name("app").name();
    let verdicts = ["example.com/before", "example.com/after", &name].map(|name| verdict(&image.accesses, name, &[]));
    assert_eq!(verdicts, [Verdict::Granted, Verdict::Granted, Verdict::Ask]);
}

#[tokio::test]
async fn failures_say_what_happened() {
    let fixture = Fixture::new();
    let image = small("x");
    fixture.registry.add("app", "1", &image);
    failure(&fixture, "app:2", expect![[r#"NotFound: failed to pull and unpack image "REGISTRY/app:2": failed to resolve reference "REGISTRY/app:2": REGISTRY/app:2: not found"#]]).await;
    fixture.registry.fault("/manifests/", FaultKind::Status(429), 1);
    failure(&fixture, "app:1", expect![[r#"ResourceExhausted: failed to pull and unpack image "REGISTRY/app:1": failed to resolve reference "REGISTRY/app:1": unexpected status from HEAD request to http://REGISTRY/v2/app/manifests/1: 429 Too Many Requests"#]]).await;
    fixture.registry.fault("/manifests/", FaultKind::Status(503), 1);
    failure(&fixture, "app:1", expect![[r#"Unavailable: failed to pull and unpack image "REGISTRY/app:1": failed to resolve reference "REGISTRY/app:1": unexpected status from HEAD request to http://REGISTRY/v2/app/manifests/1: 503 Service Unavailable"#]]).await;
    fixture.registry.require(Auth::Bearer(Some("me:secret".into())));
    failure(&fixture, "app:1", expect![[r#"PermissionDenied: failed to pull and unpack image "REGISTRY/app:1": failed to resolve reference "REGISTRY/app:1": failed to authorize: failed to fetch oauth token: unexpected status from GET request to http://REGISTRY/token: 401 Unauthorized"#]]).await;
    fixture.registry.require(Auth::None);
    fixture.registry.fault("/manifests/sha256", FaultKind::Corrupt, 1);
    failure(&fixture, "app:1", expect![[r#"Unknown: failed to pull and unpack image "REGISTRY/app:1": unexpected commit digest sha256:…, expected sha256:…: failed precondition"#]]).await;
    fixture.registry.fault(&image.layers[0].digest, FaultKind::Corrupt, 1);
    failure(&fixture, "app:1", expect![[r#"Unknown: failed to pull and unpack image "REGISTRY/app:1": unexpected commit digest sha256:…, expected sha256:…: failed precondition"#]]).await;
    fixture.registry.fault(&image.layers[0].digest, FaultKind::Append(vec![0; 9]), 1);
    let error = fixture.pull("app:1").await.unwrap_err().to_string();
    assert!(error.contains("is longer than the"), "{error}");
    fixture.registry.fault("/blobs/", FaultKind::Status(404), 1);
    let error = fixture.pull("app:1").await.unwrap_err().to_string();
    assert!(error.contains("failed to copy: content at"), "{error}");
    fixture.pull("app:1").await.unwrap();
}

#[tokio::test]
async fn nobody_answering_is_unavailable() {
    let fixture = Fixture::new();
    let address = {
        let gone = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        gone.local_addr().unwrap()
    };
    let fixture_less = Fixture::with(Registry::start().unwrap(), "");
    let reference = Reference::parse(&format!("{address}/x")).unwrap();
    let error = fixture_less.store.pull(&reference, &[], &NoProgress).await.unwrap_err();
    assert_eq!(error.code(), "Unavailable");
    assert!(
        error.to_string().contains(&format!(
            "failed to do request: Head \"http://{address}/v2/x/manifests/latest\": dial tcp {address}: "
        )),
        "{error}"
    );
    drop(fixture);
}

#[tokio::test]
async fn a_transfer_that_breaks_off_goes_on_where_it_was() {
    let fixture = Fixture::new();
    let content = "0123456789abcdef".repeat(20_000);
    let layer = Layer::new().file("big", 0o644, content.as_bytes()).finish();
    let image = BuiltImage::new(json!({}), &[layer], Compression::None);
    fixture.registry.add("app", "1", &image);
    fixture.registry.fault(&image.layers[0].digest, FaultKind::Truncate, 2);
    let pulled = fixture.pull("app:1").await.unwrap();
    assert_eq!(std::fs::read_to_string(pulled.layers[0].join("big")).unwrap(), content);
    let partial = fixture.registry.requests().iter().filter(|line| line.ends_with(" 206")).count();
    assert_eq!(partial, 2);
}

#[tokio::test]
async fn credentials_do_not_follow_a_redirect() {
    let fixture = Fixture::new();
    let storage = Registry::start().unwrap();
    let image = small("elsewhere");
    storage.add_blobs(&image);
    storage.require(Auth::None);
    fixture.registry.add("app", "1", &image);
    let to = format!("http://{}/v2/app/blobs/{}", storage.address(), image.layers[0].digest);
    fixture.registry.fault(&image.layers[0].digest, FaultKind::Redirect(to), 1);
    fixture.pull("app:1").await.unwrap();
    assert_eq!(storage.requests().len(), 1);
}

#[tokio::test]
async fn the_platform_of_this_machine_is_chosen() {
    let fixture = Fixture::new();
    let (other, own) = (small("other"), small("own"));
    let of = |name, image| ("linux", name, image);
    let list = index(&[of("s390x", &other), of(testkit::images::architecture(), &own)]);
    fixture.registry.add("parts", "1", &other);
    fixture.registry.add("parts", "2", &own);
    fixture.registry.add("app", "o", &other);
    fixture.registry.add("app", "n", &own);
    fixture.registry.add_manifest("app", "1", &list);
    let image = fixture.pull("app:1").await.unwrap();
    assert_eq!(image.id.to_string(), own.config.digest);
    assert_eq!(image.repo_digests, [format!("{}@{}", fixture.name("app").name(), list.digest)]);
    let foreign = BuiltImage::for_platform("linux", "s390x", json!({}), &[Layer::new().finish()], Compression::None);
    fixture.registry.add("app", "2", &foreign);
    fixture.registry.add_manifest("app", "3", &index(&[("linux", "s390x", &foreign)]));
    for tag in ["app:2", "app:3"] {
        let error = fixture.pull(tag).await.unwrap_err().to_string();
        assert!(error.contains("no match for platform in manifest: not found (wanted linux/"), "{error}");
        assert!(error.contains("the image offers linux/s390x"), "{error}");
    }
}

#[tokio::test]
async fn a_layer_is_fetched_once_by_pulls_at_the_same_time() {
    let fixture = Fixture::new();
    let shared = Layer::new().file("shared", 0o644, &vec![7; 300_000]).finish();
    for (tag, own) in [("a", "one"), ("b", "two"), ("c", "three")] {
        let layer = Layer::new().file("own", 0o644, own.as_bytes()).finish();
        fixture.registry.add("app", tag, &BuiltImage::new(json!({}), &[shared.clone(), layer], Compression::None));
    }
    let names = [fixture.name("app:a"), fixture.name("app:b"), fixture.name("app:c")];
    let pull = |name| fixture.store.pull(name, &[], &NoProgress);
    let (a, b, c) = tokio::join!(pull(&names[0]), pull(&names[1]), pull(&names[2]));
    assert_eq!(a.unwrap().layers[1], b.unwrap().layers[1]);
    c.unwrap();
    let digest = testkit::images::digest(&shared);
    assert_eq!(fixture.registry.requests().iter().filter(|line| line.contains(&digest)).count(), 1);
}

#[tokio::test]
async fn a_dropped_pull_leaves_nothing_behind() {
    let fixture = Fixture::new();
    fixture.registry.add("app", "1", &small("slow"));
    fixture.registry.fault(&small("slow").layers[0].digest, FaultKind::Stall(Duration::from_secs(2)), 1);
    let cut = tokio::time::timeout(Duration::from_millis(500), fixture.pull("app:1")).await;
    assert!(cut.is_err());
    fixture.wait_until_clean().await;
    assert!(fixture.store.list().is_empty());
    fixture.pull("app:1").await.unwrap();
}

#[tokio::test]
async fn progress_counts_what_must_come() {
    #[derive(Default)]
    struct Log(Mutex<Vec<String>>);
    impl Progress for Log {
        fn report(&self, event: ProgressEvent<'_>) {
            let line = match event {
                ProgressEvent::Resolved { layers, total_bytes } => format!("{layers} layers, {total_bytes} bytes"),
                ProgressEvent::Layer { received, size, .. } => format!("{received}/{size}"),
                ProgressEvent::LayerDone { .. } => "done".to_owned(),
            };
            self.0.lock().unwrap().push(line);
        }
    }
    let fixture = Fixture::new();
    let image = BuiltImage::new(json!({}), &[Layer::new().file("a", 0o644, b"a").finish()], Compression::None);
    fixture.registry.add("app", "1", &image);
    let log = Log::default();
    fixture.store.pull(&fixture.name("app:1"), &[], &log).await.unwrap();
    assert_eq!(*log.0.lock().unwrap(), ["1 layers, 2048 bytes", "2048/2048", "done"]);
}

#[test]
fn pulls_may_run_on_any_thread() {
    fn check(_: impl Send) {}
    fn pull(fixture: &'static Fixture, name: &'static Reference) {
        check(fixture.store.pull(name, &[], &NoProgress));
        check(fixture.store.import(&b""[..]));
        check(fixture.store.remove(""));
    }
    let _ = pull;
}
