//! Laws of sets and of applying, on values that a generator makes of a seed.

use serde_json::{Value, json};

use super::tests::{SCHEMA, World, thing};
use super::*;

/// The generator of Steele, Lea and Flood (SplitMix64): small, and the same everywhere.
struct Random {
    state: u64,
    /// Whether lists and maps may be empty: who owns those loses them to whoever puts something in.
    empty: bool,
}

impl Random {
    fn below(&mut self, bound: u64) -> u64 {
        self.state = self.state.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.state;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        (z ^ (z >> 31)) % bound
    }

    fn some(&mut self, names: &str) -> Vec<String> {
        let some: Vec<String> = names.chars().filter(|_| self.below(2) == 0).map(String::from).collect();
        if some.is_empty() && !self.empty { vec![names[..1].to_owned()] } else { some }
    }

    fn text(&mut self) -> String {
        self.below(3).to_string()
    }

    fn map(&mut self, names: &str) -> Value {
        self.some(names).into_iter().map(|name| (name, Value::from(self.text()))).collect()
    }

    /// A specification of some of the fields; `names` are those that may stand in its maps and lists.
    fn spec(&mut self, names: &str) -> Value {
        let mut spec = json!({});
        if self.below(2) == 0 {
            spec["set"] = self.some(names).into();
        }
        if self.below(2) == 0 {
            spec["template"] = json!({"labels": self.map(names)});
        }
        if self.below(2) == 0 {
            let mut names = self.some(names);
            if self.below(2) == 0 {
                names.reverse();
            }
            let container = |name: String| {
                let mut container = json!({"name": name});
                if self.below(2) == 0 {
                    container["image"] = self.text().into();
                }
                if self.below(2) == 0 {
                    container["resources"] = json!({"limits": self.map("lm")});
                }
                if self.below(2) == 0 {
                    let env: Vec<Value> =
                        self.some("EF").into_iter().map(|name| json!({"name": name, "value": self.text()})).collect();
                    container["env"] = env.into();
                }
                container
            };
            spec["containers"] = names.into_iter().map(container).collect::<Vec<_>>().into();
        }
        spec
    }

    /// As [`Random::spec`], with the fields that are owned as a whole.
    fn whole(&mut self, names: &str) -> Value {
        let mut spec = self.spec(names);
        if self.below(2) == 0 {
            spec["replicas"] = self.below(3).into();
        }
        if self.below(2) == 0 {
            spec["args"] = self.some("xy").into();
        }
        if self.below(3) == 0 {
            spec["selector"] = json!({"matchLabels": self.map("ab")});
        }
        spec
    }
}

const ROUNDS: u64 = 400;

fn each(law: impl Fn(&mut Random)) {
    with(&[true, false], law);
}

fn with(empty: &[bool], law: impl Fn(&mut Random)) {
    for (seed, &empty) in (0..ROUNDS).flat_map(|seed| empty.iter().map(move |empty| (seed, empty))) {
        let random = &mut Random { state: seed, empty };
        let passed = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| law(random)));
        assert!(passed.is_ok(), "the law does not hold for seed {seed}");
    }
}

fn fields_of(world: &World) -> &Value {
    &world.live.as_ref().unwrap()["metadata"]["managedFields"]
}

#[test]
fn applying_the_same_twice_changes_nothing() {
    each(|random| {
        let mut world = World::new();
        world.update("creator", random.whole("abc"));
        world.try_apply("first", true, &thing(random.whole("abcd"))).unwrap();
        let config = thing(random.whole("abcd"));
        world.try_apply("second", true, &config).unwrap();
        let before = world.live.clone();
        assert_eq!(world.try_apply("second", false, &config), Ok(false));
        assert_eq!(world.live, before);
    });
}

#[test]
fn managers_of_disjoint_fields_never_conflict() {
    with(&[false], |random| {
        let mut world = World::new();
        for _ in 0..3 {
            world.apply("left", random.spec("abc")).unwrap();
            world.apply("right", random.spec("xyz")).unwrap();
        }
    });
}

#[test]
fn the_order_of_disjoint_managers_does_not_matter() {
    with(&[false], |random| {
        let (left, right) = (random.spec("abc"), random.spec("xyz"));
        let mut worlds = [World::new(), World::new()];
        worlds[0].apply("left", left.clone()).unwrap();
        worlds[0].apply("right", right.clone()).unwrap();
        worlds[1].apply("right", right).unwrap();
        worlds[1].apply("left", left).unwrap();
        let of = SCHEMA.get("Thing").unwrap();
        let [a, b] = worlds.each_ref().map(|world| fields(of, &json!({"spec": world.spec()})));
        assert_eq!(a, b);
    });
}

#[test]
fn applying_nothing_returns_what_was_before() {
    with(&[false], |random| {
        let mut world = World::new();
        world.apply("base", random.whole("abc")).unwrap();
        let before = (world.spec().clone(), fields_of(&world).clone());
        // Only what base does not have, so that nothing is taken from it.
        world.apply("guest", random.spec("xyz")).unwrap();
        world.apply_nothing("guest");
        let of = SCHEMA.get("Thing").unwrap();
        let set = |spec: &Value| fields(of, &json!({"spec": spec}));
        let named = |set: &Set| atom::with_named(set, Some(atom::Atom::Struct(of)));
        // Structs that were made on the way are named by the type, and nobody's.
        assert_eq!(named(&set(world.spec())).difference(&named(&set(&before.0))), Set::EMPTY);
        assert_eq!(set(&before.0).difference(&set(world.spec())), Set::EMPTY);
        assert_eq!(*fields_of(&world), before.1);
    });
}

#[test]
fn everything_applied_is_there_and_owned() {
    each(|random| {
        let mut world = World::new();
        world.update("creator", random.whole("abc"));
        let config = thing(random.whole("abcd"));
        world.try_apply("me", true, &config).unwrap();
        let of = SCHEMA.get("Thing").unwrap();
        let object = world.live.as_ref().unwrap();
        let (wanted, there) = (fields(of, &config), fields(of, object));
        let owned = Managers::decode(fields_of(&world)).unwrap();
        let mine = owned.0.iter().find(|(identity, _)| identity.manager == "me").map(|(_, owned)| owned.set.clone());
        let mine = mine.unwrap_or_default();
        assert_eq!(wanted.difference(&NOBODYS), mine);
        // An empty list or map of the configuration leaves no trace where others have members.
        for path in mine.paths() {
            let empty = there.has(&path) || !there.intersection(&mine).has(&path);
            assert!(empty, "{}", set::shown(&path));
        }
    });
}

#[test]
fn updates_own_what_is_there() {
    with(&[false], |random| {
        let mut world = World::new();
        for _ in 0..8 {
            world.update(&random.below(3).to_string(), random.whole("abc"));
            let of = SCHEMA.get("Thing").unwrap();
            let there = Comparison::new(of, &json!({}), world.live.as_ref().unwrap());
            let there = there.added.union(there.modified);
            for (identity, owned) in Managers::decode(fields_of(&world)).unwrap().0 {
                assert_eq!(owned.set.difference(&there), Set::EMPTY, "{identity}");
            }
        }
    });
}

#[test]
fn sets_are_sets() {
    each(|random| {
        let of = SCHEMA.get("Thing").unwrap();
        let mut set = || fields(of, &thing(random.whole("abcd")));
        let (a, b, c) = (set(), set(), set());
        let union = |a: &Set, b: &Set| a.clone().union(b.clone());
        let difference = |a: &Set, b: &Set| a.clone().difference(b);
        assert_eq!(union(&a, &b), union(&b, &a));
        assert_eq!(a.intersection(&b), b.intersection(&a));
        assert_eq!(union(&union(&a, &b), &c), union(&a, &union(&b, &c)));
        assert_eq!(union(&difference(&a, &b), &a.intersection(&b)), a);
        assert_eq!(difference(&a, &b).intersection(&b), Set::EMPTY);
        assert_eq!(difference(&a, &a), Set::EMPTY);
        assert_eq!(union(&a.clone().without(&b), &a), a);
        assert_eq!(Set::from_json(&a.to_json()), Ok(a.clone()));
        assert!(a.paths().iter().all(|path| a.has(path)));
    });
}
