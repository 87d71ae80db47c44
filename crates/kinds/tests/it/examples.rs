//! The manifests that are shipped with the project.

use std::path::Path;

use crate::{errors, kind_of, run};

#[test]
fn the_rack_has_neither_errors_nor_warnings() {
    let directory = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../examples/rack");
    let mut objects = 0;
    for entry in std::fs::read_dir(directory).expect("the examples are there") {
        let path = entry.expect("a directory can be listed").path();
        let text = std::fs::read_to_string(&path).expect("an example can be read");
        for document in api::yaml::parse_all(&text).expect("an example is YAML") {
            let kind = kind_of(&document.value);
            let made = run(&kind.strategy, document.value.clone(), None);
            assert_eq!(errors(made.clone()), "no errors", "{}", path.display());
            let made = made.expect("there were no errors");
            assert_eq!((kind.strategy.warnings)(&made, None), Vec::<String>::new(), "{}", path.display());
            // Defaults are complete: filling in once more changes nothing.
            let mut again = made.clone();
            (kind.strategy.default)(&mut again);
            assert_eq!(again, made);
            objects += 1;
        }
    }
    assert!(objects >= 8, "only {objects} objects");
}
