//! The difference between two values, for people.
//!
//! Source: apimachinery `pkg/util/diff/diff.go`: a unified diff of indented JSON.

use serde_json::Value;

/// Lines of context around each change.
const CONTEXT: usize = 3;

#[derive(Clone, Copy, PartialEq)]
enum Line<'a> {
    Same(&'a str),
    Removed(&'a str),
    Added(&'a str),
}

pub fn unified(old: &Value, new: &Value) -> String {
    let pretty = |value: &Value| serde_json::to_string_pretty(value).unwrap_or_else(|error| error.to_string());
    let (old, new) = (pretty(old), pretty(new));
    let (old, new): (Vec<&str>, Vec<&str>) = (old.lines().collect(), new.lines().collect());
    hunks(&lines(&old, &new))
}

/// The shortest edit from one list of lines to the other, by common subsequences of the tails.
fn lines<'a>(old: &[&'a str], new: &[&'a str]) -> Vec<Line<'a>> {
    let width = new.len() + 1;
    let mut common = vec![0_u32; (old.len() + 1) * width];
    for i in (0..old.len()).rev() {
        for j in (0..new.len()).rev() {
            common[i * width + j] = if old[i] == new[j] {
                common[(i + 1) * width + j + 1] + 1
            } else {
                common[(i + 1) * width + j].max(common[i * width + j + 1])
            };
        }
    }
    let (mut i, mut j, mut out) = (0, 0, Vec::new());
    while i < old.len() || j < new.len() {
        if i < old.len() && j < new.len() && old[i] == new[j] {
            out.push(Line::Same(old[i]));
            (i, j) = (i + 1, j + 1);
        } else if i < old.len() && (j == new.len() || common[(i + 1) * width + j] >= common[i * width + j + 1]) {
            out.push(Line::Removed(old[i]));
            i += 1;
        } else {
            out.push(Line::Added(new[j]));
            j += 1;
        }
    }
    out
}

fn hunks(lines: &[Line<'_>]) -> String {
    let changed: Vec<usize> = (0..lines.len()).filter(|&i| !matches!(lines[i], Line::Same(_))).collect();
    let near = |i: usize| {
        let next = changed.partition_point(|&change| change < i);
        let after = changed.get(next).is_some_and(|&change| change - i <= CONTEXT);
        after || next.checked_sub(1).is_some_and(|before| i - changed[before] <= CONTEXT)
    };
    let mut out = String::new();
    let (mut old, mut new) = (1, 1);
    let mut i = 0;
    while i < lines.len() {
        let end = (i..lines.len()).find(|&j| !near(j)).unwrap_or(lines.len());
        let hunk = &lines[i..end];
        let olds = hunk.iter().filter(|line| !matches!(line, Line::Added(_))).count();
        let news = hunk.iter().filter(|line| !matches!(line, Line::Removed(_))).count();
        if hunk.is_empty() {
            (i, old, new) = (i + 1, old + 1, new + 1);
            continue;
        }
        out.push_str(&format!("@@ -{old},{olds} +{new},{news} @@\n"));
        for line in hunk {
            let (mark, text) = match line {
                Line::Same(text) => (' ', text),
                Line::Removed(text) => ('-', text),
                Line::Added(text) => ('+', text),
            };
            out.push(mark);
            out.push_str(text);
            out.push('\n');
        }
        (i, old, new) = (end, old + olds, new + news);
    }
    out
}

#[cfg(test)]
mod tests {
    use expect_test::expect;
    use serde_json::json;

    use super::*;

    #[test]
    fn shows_changes_with_context() {
        let old = json!({"a": 1, "b": 2, "c": 3, "d": 4, "e": 5, "f": 6});
        let new = json!({"a": 1, "b": 2, "c": 3, "d": 4, "e": 7, "f": 6});
        expect![[r#"
            @@ -3,6 +3,6 @@
               "b": 2,
               "c": 3,
               "d": 4,
            -  "e": 5,
            +  "e": 7,
               "f": 6
             }
        "#]]
        .assert_eq(&unified(&old, &new));
    }
}
