//! Histories that can be, and one for each way in which one cannot.

use std::collections::BTreeMap;

use super::super::history::{Action, Event, Operation, Outcome, Sort, Stretch};
use super::*;

fn op(key: &str, action: Action, outcome: Outcome, began: Moment, ended: Moment) -> Operation {
    Operation { key: key.to_owned(), action, outcome, began, ended }
}

fn create(key: &str, value: &str, revision: u64, at: Moment) -> Operation {
    op(key, Action::Create { value: value.to_owned() }, Outcome::Written(revision), at, at + 5)
}

fn replace(key: &str, value: &str, expected: u64, revision: u64, at: Moment) -> Operation {
    let action = Action::Replace { value: value.to_owned(), expected: Some(expected) };
    op(key, action, Outcome::Written(revision), at, at + 5)
}

fn delete(key: &str, expected: u64, at: Moment) -> Operation {
    op(key, Action::Delete { expected: Some(expected) }, Outcome::Deleted, at, at + 5)
}

fn get(key: &str, revision: u64, value: &str, at: Moment) -> Operation {
    op(key, Action::Get, Outcome::Read((revision, value.to_owned())), at, at + 5)
}

fn list(revision: u64, items: &[(&str, u64, &str)], at: Moment) -> Operation {
    let items: BTreeMap<_, _> =
        items.iter().map(|(key, r, value)| ((*key).to_owned(), (*r, (*value).to_owned()))).collect();
    op("", Action::List, Outcome::Listed { revision, items }, at, at + 5)
}

fn refused(action: Action, outcome: Outcome, at: Moment) -> Operation {
    op("a", action, outcome, at, at + 5)
}

fn event(revision: u64, sort: Sort, key: &str, value: &str, seen: Moment) -> Event {
    Event { revision, sort, key: key.to_owned(), value: value.to_owned(), seen }
}

fn watch(reached: u64, events: &[Event]) -> Stretch {
    Stretch { of: "w".to_owned(), after: 1, reached, events: events.to_vec() }
}

/// a is created at 2, replaced at 4 and deleted at 6; b is created at 5.
fn operations() -> Vec<Operation> {
    vec![
        create("a", "1", 2, 10),
        get("a", 2, "1", 20),
        replace("a", "2", 2, 4, 30),
        create("b", "3", 5, 32),
        list(5, &[("a", 4, "2"), ("b", 5, "3")], 40),
        delete("a", 4, 50),
        list(7, &[("b", 5, "3")], 60),
    ]
}

fn events() -> Vec<Event> {
    vec![
        event(2, Sort::Added, "a", "1", 13),
        event(4, Sort::Modified, "a", "2", 34),
        event(5, Sort::Added, "b", "3", 60),
        event(6, Sort::Deleted, "a", "2", 61),
    ]
}

#[track_caller]
fn check_rules(operations: &[Operation], events: &[Event], expected: &[&str]) {
    let violations = check(operations, &[watch(8, events)]);
    let rules: Vec<&str> = violations.iter().map(|violation| violation.rule).collect();
    assert_eq!(rules, expected, "{violations:#?}");
}

/// The history above with something else in place of one operation, or more.
#[track_caller]
fn check_with(change: impl FnOnce(&mut Vec<Operation>, &mut Vec<Event>), expected: &[&str]) {
    let (mut operations, mut events) = (operations(), events());
    change(&mut operations, &mut events);
    check_rules(&operations, &events, expected);
}

#[test]
fn what_happened_in_turn_is_fine() {
    check_rules(&operations(), &events(), &[]);
}

#[test]
fn a_write_without_an_answer_may_have_been_done_or_not() {
    let unknown = |value: &str| {
        let action = Action::Replace { value: value.to_owned(), expected: Some(5) };
        op("b", action, Outcome::Unknown("connection reset".to_owned()), 70, 90)
    };
    check_with(|operations, _| operations.push(unknown("4")), &[]);
    check_with(
        |operations, events| {
            operations.push(unknown("4"));
            events.push(event(8, Sort::Modified, "b", "4", 120));
        },
        &[],
    );
}

#[test]
fn an_acknowledged_write_that_nobody_sees_is_lost() {
    check_with(|operations, _| operations.push(create("c", "9", 8, 70)), &[LOST]);
    check_with(|_, events| drop(events.pop()), &[LOST, LINEARIZABLE]);
}

#[test]
fn a_revision_is_given_once() {
    check_with(|operations, _| operations.push(create("c", "9", 5, 70)), &[REVISIONS]);
    check_with(|operations, _| operations[1] = get("a", 2, "other", 20), &[REVISIONS]);
}

#[test]
fn revisions_follow_time() {
    // Acknowledged before revision 5 was asked for, yet behind it.
    check_with(
        |operations, events| {
            operations.push(create("c", "9", 8, 15));
            events.push(event(8, Sort::Added, "c", "9", 90));
        },
        &[LINEARIZABLE],
    );
}

#[test]
fn reads_are_not_stale() {
    check_with(|operations, _| operations.push(get("a", 2, "1", 70)), &[LINEARIZABLE]);
    check_with(|operations, _| operations.push(list(5, &[("a", 4, "2"), ("b", 5, "3")], 70)), &[LINEARIZABLE]);
    // Overlaps the write: either is right.
    check_with(|operations, _| operations.push(get("a", 2, "1", 33)), &[]);
}

#[test]
fn lists_are_one_revision() {
    check_with(|operations, _| operations[4] = list(5, &[("b", 5, "3")], 40), &[LINEARIZABLE]);
    check_with(|operations, _| operations[4] = list(5, &[("a", 2, "1"), ("b", 5, "3")], 40), &[LINEARIZABLE]);
    check_with(|operations, _| operations[6] = list(7, &[("a", 4, "2"), ("b", 5, "3")], 60), &[LINEARIZABLE]);
}

#[test]
fn a_condition_on_a_revision_is_kept() {
    check_with(
        |operations, events| {
            operations.push(replace("b", "9", 2, 8, 70));
            events.push(event(8, Sort::Modified, "b", "9", 90));
        },
        &[LINEARIZABLE],
    );
}

#[test]
fn a_deletion_deletes() {
    check_with(|operations, _| operations.push(delete("b", 5, 70)), &[LOST]);
    check_with(|operations, _| drop(operations.remove(5)), &[LINEARIZABLE]);
}

#[test]
fn refusals_have_a_reason() {
    let expected = |revision| Action::Replace { value: "9".to_owned(), expected: Some(revision) };
    let anew = || Action::Create { value: "9".to_owned() };
    for (action, outcome, right, wrong) in [
        (Action::Get, Outcome::Absent, 70, 40),
        (Action::Get, Outcome::Absent, 5, 20),
        (anew(), Outcome::Exists, 20, 70),
        (expected(2), Outcome::Conflict, 40, 20),
    ] {
        check_with(|operations, _| operations.push(refused(action.clone(), outcome.clone(), right)), &[]);
        check_with(|operations, _| operations.push(refused(action, outcome, wrong)), &[LINEARIZABLE]);
    }
}

#[test]
fn what_was_refused_is_not_done() {
    check_with(
        |operations, _| {
            operations[2].outcome = Outcome::Conflict;
        },
        &[LINEARIZABLE],
    );
}

#[test]
fn watches_tell_of_everything_once_and_in_order() {
    check_with(|_, events| events.insert(1, events[1].clone()), &[WATCHES]);
    check_with(|_, events| events.swap(0, 1), &[WATCHES]);
    check_with(|_, events| events[1].sort = Sort::Added, &[WATCHES]);
    let whole = watch(8, &events());
    let lossy = watch(8, &events()[1..]);
    let rules: Vec<_> = check(&operations(), &[whole, lossy]).into_iter().map(|v| v.rule).collect();
    assert_eq!(rules, [WATCHES]);
}

#[test]
fn between_two_watches_anything_may_have_happened() {
    let (first, second) = (watch(3, &events()[..1]), Stretch { after: 7, ..watch(8, &[]) });
    assert_eq!(check(&operations(), &[first, second]), []);
}
