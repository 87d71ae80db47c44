//! Clients of the API under a steady mixed load, and watchers: they write down what they did and saw.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use serde_json::{Value, json};

use super::dice::Dice;
use super::history::{Action, Event, Moment, Operation, Outcome, Sort, Stretch, Version};
use crate::web::{Answer, Api, KeptAlive};

/// Where the objects of the load live.
pub const NAMESPACE: &str = "torture";
const COLLECTION: &str = "/api/v1/namespaces/torture/configmaps";
/// All objects of the load carry this label, with the round as its value.
const ROUND: &str = "round";
/// How long a request may take: main may be stopped, and the machine may be busy.
pub const REQUEST: Duration = Duration::from_secs(30);
/// How long a client waits before it connects anew.
const AGAIN: Duration = Duration::from_millis(20);

/// What the threads of one round share.
#[derive(Clone)]
pub struct Round {
    pub api: Api,
    pub seed: u64,
    pub number: u64,
    /// When the run began.
    pub began: Instant,
    pub stop: Arc<AtomicBool>,
    /// Everything that was done.
    pub operations: Arc<Mutex<Vec<Operation>>>,
}

impl Round {
    pub fn new(api: &Api, seed: u64, number: u64, began: Instant) -> Self {
        let api = api.with_patience(REQUEST);
        Self { api, seed, number, began, stop: Arc::default(), operations: Arc::default() }
    }

    pub fn is_over(&self) -> bool {
        self.stop.load(Ordering::Relaxed)
    }

    fn now(&self) -> Moment {
        u64::try_from(self.began.elapsed().as_micros()).expect("a run is shorter than an age")
    }

    fn selector(&self) -> String {
        format!("labelSelector={ROUND}%3D{}", self.number)
    }

    /// Sleeps, but not beyond the end of the round.
    pub fn rest(&self, time: Duration) {
        let end = Instant::now() + time;
        while Instant::now() < end && !self.is_over() {
            std::thread::sleep(time.min(Duration::from_millis(20)));
        }
    }
}

/// A client with one connection, which it makes anew when it breaks.
pub struct Client {
    round: Round,
    connection: Option<KeptAlive>,
}

impl Client {
    pub fn new(round: &Round) -> Self {
        Self { round: round.clone(), connection: None }
    }

    /// Does something and writes it down.
    pub fn run(&mut self, key: &str, action: Action) -> Outcome {
        let began = self.round.now();
        let answer = self.send(key, &action);
        let ended = self.round.now();
        let outcome = match answer {
            Ok(answer) => judge(&action, &answer),
            Err(error) => {
                self.connection = None;
                Outcome::Unknown(format!("{error:#}"))
            }
        };
        let operation = Operation { key: key.to_owned(), action, outcome: outcome.clone(), began, ended };
        self.round.operations.lock().unwrap_or_else(PoisonError::into_inner).push(operation);
        if matches!(outcome, Outcome::Unknown(_)) {
            std::thread::sleep(AGAIN);
        }
        outcome
    }

    fn send(&mut self, key: &str, action: &Action) -> Result<Answer> {
        let path = format!("{COLLECTION}/{key}");
        let body = |value: &str, expected: Option<u64>| {
            let mut object = json!({
                "apiVersion": "v1", "kind": "ConfigMap",
                "metadata": {"name": key, "labels": {ROUND: self.round.number.to_string()}}, "data": {"value": value},
            });
            if let Some(expected) = expected {
                object["metadata"]["resourceVersion"] = expected.to_string().into();
            }
            object.to_string()
        };
        let (method, path, body) = match action {
            Action::Create { value } => ("POST", COLLECTION.to_owned(), Some(body(value, None))),
            Action::Get => ("GET", path, None),
            Action::List => ("GET", format!("{COLLECTION}?{}", self.round.selector()), None),
            Action::Replace { value, expected } => ("PUT", path, Some(body(value, *expected))),
            Action::Delete { expected } => {
                let preconditions = expected.map(|expected| json!({"resourceVersion": expected.to_string()}));
                let options = json!({"apiVersion": "v1", "kind": "DeleteOptions", "preconditions": preconditions});
                ("DELETE", path, Some(options.to_string()))
            }
        };
        let connection = match &mut self.connection {
            Some(connection) => connection,
            None => self.connection.insert(self.round.api.open()?),
        };
        connection.ask(method, &path, "application/json", body.as_deref())
    }
}

/// What an answer says of what was done.
fn judge(action: &Action, answer: &Answer) -> Outcome {
    let body: Value = serde_json::from_str(&answer.body).unwrap_or_default();
    let understood = match (answer.status, action) {
        (200 | 201, Action::Create { .. } | Action::Replace { .. }) => {
            version(&body).map(|(revision, _)| Outcome::Written(revision))
        }
        (200, Action::Get) => version(&body).map(Outcome::Read),
        (200, Action::List) => listed(&body),
        (200, Action::Delete { .. }) => Some(Outcome::Deleted),
        (404, Action::Get | Action::Replace { .. } | Action::Delete { .. }) => Some(Outcome::Absent),
        (409, Action::Create { .. }) if body["reason"] == "AlreadyExists" => Some(Outcome::Exists),
        (409, Action::Replace { .. } | Action::Delete { .. }) if body["reason"] == "Conflict" => {
            Some(Outcome::Conflict)
        }
        _ => None,
    };
    understood.unwrap_or_else(|| Outcome::Unknown(format!("{}: {}", answer.status, body["message"])))
}

fn version(object: &Value) -> Option<Version> {
    let revision = object["metadata"]["resourceVersion"].as_str()?.parse().ok()?;
    Some((revision, object["data"]["value"].as_str()?.to_owned()))
}

fn listed(list: &Value) -> Option<Outcome> {
    let revision = list["metadata"]["resourceVersion"].as_str()?.parse().ok()?;
    let item = |item: &Value| Some((item["metadata"]["name"].as_str()?.to_owned(), version(item)?));
    let items: Option<BTreeMap<String, Version>> = list["items"].as_array()?.iter().map(item).collect();
    Some(Outcome::Listed { revision, items: items? })
}

/// How many clients write, and on how many objects.
const CLIENTS: u64 = 4;
const KEYS: u64 = 6;

/// Starts the clients that write.
pub fn start_clients(round: &Round) -> Vec<std::thread::JoinHandle<Result<()>>> {
    let client = |n| {
        let round = round.clone();
        std::thread::spawn(move || {
            write(&round, n);
            Ok(())
        })
    };
    (0..CLIENTS).map(client).collect()
}

/// One client: what it does is decided by the seed alone, what it expects by what it saw last.
fn write(round: &Round, n: u64) {
    let mut dice = Dice::of(round.seed, &format!("client {n}"), round.number);
    let mut client = Client::new(round);
    let mut seen: BTreeMap<String, u64> = BTreeMap::new();
    for turn in 0_u64.. {
        if round.is_over() {
            return;
        }
        let key = format!("o{}-{}", round.number, dice.roll(KEYS));
        let value = format!("{}.{n}.{turn}", round.number);
        let (sort, is_conditional) = (dice.roll(100), dice.roll(4) > 0);
        let pause = Duration::from_millis(dice.between(2, 20));
        let known = seen.get(&key).copied();
        let action = match sort {
            0..15 => Action::Create { value },
            15..50 => Action::Replace { value, expected: known.filter(|_| is_conditional) },
            50..60 if known.is_some() => Action::Delete { expected: known },
            50..90 => Action::Get,
            _ => Action::List,
        };
        match client.run(if action == Action::List { "" } else { &key }, action) {
            Outcome::Written(revision) | Outcome::Read((revision, _)) => drop(seen.insert(key, revision)),
            Outcome::Listed { items, .. } => seen = items.into_iter().map(|(key, (r, _))| (key, r)).collect(),
            Outcome::Deleted | Outcome::Absent => drop(seen.remove(&key)),
            Outcome::Exists | Outcome::Conflict | Outcome::Unknown(_) => {}
        }
        round.rest(pause);
    }
}

/// The last object of a round: who has seen it has seen everything.
pub fn fence(round: &Round) -> String {
    format!("fence-{}", round.number)
}

/// Starts the watchers; they end when they have seen the [`fence`], or at `give_up` after the end of the round.
pub fn start_watchers(
    round: &Round,
    watchers: u64,
    give_up: Duration,
) -> Vec<std::thread::JoinHandle<Result<Vec<Stretch>>>> {
    let watcher = |n| {
        let round = round.clone();
        std::thread::spawn(move || {
            Watcher { dice: Dice::of(round.seed, &format!("watch {n}"), round.number), round, n }.run(give_up)
        })
    };
    (0..watchers).map(watcher).collect()
}

struct Watcher {
    round: Round,
    dice: Dice,
    n: u64,
}

/// Why a watch ended.
enum Ended {
    /// It may be resumed.
    Broken,
    /// Its place is gone: 410.
    Expired,
    Complete,
}

impl Watcher {
    fn run(mut self, give_up: Duration) -> Result<Vec<Stretch>> {
        let (mut stretches, mut client) = (Vec::<Stretch>::new(), Client::new(&self.round));
        let mut over_since = None;
        let mut resumable = false;
        loop {
            if self.round.is_over() && over_since.get_or_insert_with(Instant::now).elapsed() > give_up {
                anyhow::bail!("watch {} did not see the end of round {} within {give_up:?}", self.n, self.round.number);
            }
            if !resumable {
                let Outcome::Listed { revision, items } = client.run("", Action::List) else { continue };
                let of = format!("{}.{}", self.n, stretches.len());
                stretches.push(Stretch { of, after: revision, reached: revision, events: Vec::new() });
                resumable = true;
                if items.contains_key(&fence(&self.round)) {
                    return Ok(stretches);
                }
            }
            let stretch = stretches.last_mut().context("a list was read")?;
            match self.follow(stretch) {
                // What has no sense is told as what it is: the checker will see that something is missing.
                Ok(Ended::Broken) | Err(_) => std::thread::sleep(AGAIN),
                Ok(Ended::Expired) => resumable = false,
                Ok(Ended::Complete) => return Ok(stretches),
            }
        }
    }

    /// Watches from where the stretch has come to.
    fn follow(&mut self, stretch: &mut Stretch) -> Result<Ended> {
        let place = format!("watch=1&allowWatchBookmarks=true&resourceVersion={}", stretch.reached);
        let path = format!("{COLLECTION}?{}&{place}", self.round.selector());
        let mut events = match self.round.api.watch(&path)? {
            Ok(events) => events,
            Err(410) => return Ok(Ended::Expired),
            Err(_) => return Ok(Ended::Broken),
        };
        loop {
            // Now and then one stalls, so that what it is sent piles up.
            if self.dice.roll(200) == 0 {
                let stall = Duration::from_millis(self.dice.between(200, 2000));
                self.round.rest(stall);
            }
            let Some(event) = events.next()? else { return Ok(Ended::Broken) };
            let object = &event["object"];
            let sort = match event["type"].as_str() {
                Some("ADDED") => Sort::Added,
                Some("MODIFIED") => Sort::Modified,
                Some("DELETED") => Sort::Deleted,
                Some("BOOKMARK") => {
                    let revision = object["metadata"]["resourceVersion"].as_str().context("a bookmark")?.parse()?;
                    stretch.reached = stretch.reached.max(revision);
                    continue;
                }
                _ if object["code"] == 410 => return Ok(Ended::Expired),
                _ => return Ok(Ended::Broken),
            };
            let (revision, value) = version(object).with_context(|| format!("an event without a version: {event}"))?;
            let key = object["metadata"]["name"].as_str().unwrap_or_default().to_owned();
            let is_last = key == fence(&self.round);
            stretch.reached = stretch.reached.max(revision);
            stretch.events.push(Event { revision, sort, key, value, seen: self.round.now() });
            if is_last {
                return Ok(Ended::Complete);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn answer(status: u16, body: &Value) -> Answer {
        Answer { status, headers: Vec::new(), body: body.to_string() }
    }

    #[track_caller]
    fn check(action: Action, status: u16, body: Value, expected: Outcome) {
        assert_eq!(judge(&action, &answer(status, &body)), expected);
    }

    #[test]
    fn answers_say_what_was_done() {
        let object = json!({"metadata": {"name": "a", "resourceVersion": "7"}, "data": {"value": "x"}});
        let list = json!({"metadata": {"resourceVersion": "9"}, "items": [object]});
        let items = BTreeMap::from([("a".to_owned(), (7, "x".to_owned()))]);
        let replace = || Action::Replace { value: "x".to_owned(), expected: Some(3) };
        check(Action::Create { value: "x".to_owned() }, 201, object.clone(), Outcome::Written(7));
        check(Action::Get, 200, object, Outcome::Read((7, "x".to_owned())));
        check(Action::List, 200, list, Outcome::Listed { revision: 9, items });
        check(replace(), 409, json!({"reason": "Conflict"}), Outcome::Conflict);
        check(replace(), 404, json!({"reason": "NotFound"}), Outcome::Absent);
        let full = json!({"message": "no space"});
        check(replace(), 500, full, Outcome::Unknown("500: \"no space\"".to_owned()));
    }
}
