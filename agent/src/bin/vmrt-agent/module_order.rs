//! Checks that modules depend on each other only in the order that the documentation of `main.rs` lists.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

const ROOT: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/src/bin/vmrt-agent");

/// The modules that the documentation lists as `//! - `name`: purpose`, in order.
fn documented_order(main: &str) -> Vec<&str> {
    main.lines().filter_map(|line| line.strip_prefix("//! - `")?.split_once("`:")).map(|(name, _)| name).collect()
}

/// The modules of the crate root that `source` names, as `crate::a::b` or in a group `crate::{a, b::c}`.
fn used_modules(source: &str) -> BTreeSet<String> {
    let code: String =
        source.lines().map(|line| line.split("//").next().unwrap_or_default().to_owned() + "\n").collect();
    let mut used = BTreeSet::new();
    for path in code.split("crate::").skip(1) {
        match path.strip_prefix('{') {
            Some(group) => used.extend(top_level_items(group).iter().map(|item| first_name(item))),
            None => drop(used.insert(first_name(path))),
        }
    }
    used
}

fn first_name(path: &str) -> String {
    path.trim_start().chars().take_while(|letter| letter.is_alphanumeric() || *letter == '_').collect()
}

/// The items of a group up to its closing brace; nested groups stay part of their item.
fn top_level_items(group: &str) -> Vec<String> {
    let (mut items, mut depth) = (vec![String::new()], 0);
    for letter in group.chars() {
        match letter {
            '}' if depth == 0 => break,
            ',' if depth == 0 => items.push(String::new()),
            _ => {
                depth += i32::from(letter == '{') - i32::from(letter == '}');
                items.last_mut().unwrap().push(letter);
            }
        }
    }
    items
}

/// The later modules that a file of `module` uses.
fn violations(order: &[&str], module: &str, source: &str) -> Vec<String> {
    let place = |module: &str| order.iter().position(|name| *name == module);
    let own = place(module);
    used_modules(source).into_iter().filter(|used| place(used) > own).collect()
}

fn source_files(directory: &Path) -> Vec<PathBuf> {
    let entries = fs::read_dir(directory).unwrap().map(|entry| entry.unwrap().path());
    entries.flat_map(|path| if path.is_dir() { source_files(&path) } else { vec![path] }).collect()
}

#[test]
fn modules_use_only_modules_that_the_documentation_lists_before_them() {
    let root = Path::new(ROOT);
    let main = fs::read_to_string(root.join("main.rs")).unwrap();
    let order = documented_order(&main);
    let declared = main.lines().filter_map(|line| line.strip_prefix("mod ")?.strip_suffix(';'));
    let declared: BTreeSet<_> = declared.filter(|module| *module != "module_order").collect();
    assert_eq!(declared, order.iter().copied().collect(), "main.rs documents other modules than it declares");
    let mut found = Vec::new();
    for file in source_files(root) {
        let relative = file.strip_prefix(root).unwrap();
        let module = relative.components().next().unwrap().as_os_str().to_str().unwrap().trim_end_matches(".rs");
        if order.contains(&module) {
            let used = violations(&order, module, &fs::read_to_string(&file).unwrap());
            found.extend(used.into_iter().map(|used| format!("{} uses {used}", relative.display())));
        }
    }
    assert!(found.is_empty(), "against the order in main.rs: {found:#?}");
}

#[test]
fn a_use_of_a_later_module_is_found() {
    let order = documented_order("//! - `low`: first.\n//! - `middle`: second.\n//! - `high`: third.\n");
    assert_eq!(order, ["low", "middle", "high"]);
    let found = |source| violations(&order, "middle", source);
    assert_eq!(found("use crate::low::A;\nuse crate::middle::B;\n"), [""; 0]);
    assert_eq!(found("use crate::high::C;\n"), ["high"]);
    assert_eq!(found("use crate::{\n    low::{self, x},\n    high,\n};\n"), ["high"]);
    assert_eq!(found("fn f() { crate::high::g() } // crate::low\n"), ["high"]);
    assert_eq!(found("// crate::high\n"), [""; 0]);
}
