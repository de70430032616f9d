//! Tests the order of the modules of each crate, which the compiler does not check, and the paths in the architecture's page.
//!
//! A crate's root documents its modules as a numbered list, `1. [`name`], [`name`]: purpose`. A module may use modules of earlier rows
//! only.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

/// The roots of the crates whose modules have an order.
const ROOTS: [&str; 3] = ["runtime/src/lib.rs", "vmm/src/lib.rs", "agent/src/bin/vmrt-agent/main.rs"];

/// Folders that paths in the page may be relative to, besides the checkout.
const SOURCES: [&str; 4] = ["runtime/src", "runtime/src/sandbox", "vmm/src", "agent/src/bin/vmrt-agent"];

fn checkout() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("the crate is in the checkout")
}

/// The rows of the list in a crate root's documentation.
fn documented_rows(root: &str) -> Vec<BTreeSet<&str>> {
    let rows = root
        .lines()
        .filter_map(|line| line.strip_prefix("//! ")?.split_once(". "))
        .filter(|(number, _)| number.chars().all(|digit| digit.is_ascii_digit()));
    rows.map(|(_, row)| row.split(':').next().unwrap_or_default().split('`').skip(1).step_by(2).collect()).collect()
}

/// The modules of the crate's root that `source` uses, as `crate::a::b` or in a group `crate::{a, b::c}`.
fn used_modules(source: &str) -> BTreeSet<String> {
    let code = source.lines().map(|line| line.split("//").next().unwrap_or_default()).collect::<Vec<_>>().join("\n");
    let paths = code.split("crate::").skip(1);
    paths.flat_map(|path| path.strip_prefix('{').map_or_else(|| vec![first_name(path)], group_names)).collect()
}

fn first_name(path: &str) -> String {
    path.trim_start().chars().take_while(|letter| letter.is_alphanumeric() || *letter == '_').collect()
}

/// The first name of each item of a group, up to its closing brace.
fn group_names(group: &str) -> Vec<String> {
    let (mut items, mut depth) = (vec![String::new()], 0);
    for letter in group.chars() {
        match letter {
            '}' if depth == 0 => break,
            ',' if depth == 0 => items.push(String::new()),
            _ => {
                depth += i32::from(letter == '{') - i32::from(letter == '}');
                items.last_mut().expect("there is one from the start").push(letter);
            }
        }
    }
    items.iter().map(|item| first_name(item)).collect()
}

fn source_files(directory: &Path) -> Vec<PathBuf> {
    let entries = fs::read_dir(directory).unwrap().map(|entry| entry.unwrap().path());
    entries.flat_map(|path| if path.is_dir() { source_files(&path) } else { vec![path] }).collect()
}

/// Whether a source file, or a folder that it is in, has only tests.
fn is_test(path: &Path) -> bool {
    let mut names = path.iter().filter_map(|name| name.to_str());
    names.any(|name| ["tests", "tests.rs", "testing.rs"].contains(&name) || name.ends_with("_tests.rs"))
}

/// Uses of later modules, and modules without a row, of the crate with the given root. Tests may use everything.
fn violations(root: &Path) -> Vec<String> {
    let text = fs::read_to_string(root).unwrap();
    let rows = documented_rows(&text);
    let row_of = |module: &str| rows.iter().position(|row| row.contains(module));
    let directory = root.parent().unwrap();
    let mut violations = Vec::new();
    for file in source_files(directory) {
        let inside = file.strip_prefix(directory).unwrap();
        let name = inside.display().to_string();
        let module = name.split('/').next().unwrap_or_default().trim_end_matches(".rs").to_owned();
        if file == root || module == "bin" || is_test(inside) {
            continue;
        }
        let Some(own) = row_of(&module) else {
            violations.push(format!("{name}: `{module}` is not in the list of modules"));
            continue;
        };
        let source = fs::read_to_string(&file).unwrap();
        let later = used_modules(&source)
            .into_iter()
            .filter(|used| row_of(used).is_some_and(|row| row > own || row == own && *used != module));
        violations.extend(later.map(|used| format!("{name} uses `{used}`")));
    }
    violations.sort();
    violations
}

#[test]
fn modules_use_only_modules_of_earlier_rows() {
    for root in ROOTS {
        let root = checkout().join(root);
        assert!(documented_rows(&fs::read_to_string(&root).unwrap()).len() > 5, "{}", root.display());
        let violations = violations(&root);
        assert!(violations.is_empty(), "{}:\n{}", root.display(), violations.join("\n"));
    }
}

#[test]
fn violations_are_found() {
    let source = tempfile::tempdir().unwrap();
    let write = |path: &str, text: &str| {
        fs::create_dir_all(source.path().join(path).parent().unwrap()).unwrap();
        fs::write(source.path().join(path), text).unwrap();
    };
    write("lib.rs", "//! 1. [`low`], [`beside`]: a\n//! 2. [`high`]: b, crate::low\nuse crate::high::a;");
    write("stray.rs", "");
    write("beside.rs", "use crate::low::a;");
    write("high/mod.rs", "use crate::low::a;");
    write("low/mod.rs", "// See crate::high::a.\nuse crate::low::b;");
    write("low/group.rs", "use crate::{\n    low::{a, b},\n    high::{b, c},\n};");
    let expected =
        ["beside.rs uses `low`", "low/group.rs uses `high`", "stray.rs: `stray` is not in the list of modules"];
    assert_eq!(violations(&source.path().join("lib.rs")), expected);
}

#[test]
fn paths_in_the_architectures_page_exist() {
    let page = fs::read_to_string(checkout().join("docs/ARCHITECTURE.md")).unwrap();
    let is_path = |text: &&str| {
        (text.ends_with(".rs") || text.ends_with('/')) && !text.starts_with('/') && !text.contains([' ', '<'])
    };
    let places: Vec<_> = [""].into_iter().chain(SOURCES).map(|place| checkout().join(place)).collect();
    let (found, missing): (Vec<_>, Vec<_>) = page
        .split('`')
        .skip(1)
        .step_by(2)
        .filter(is_path)
        .partition(|path| places.iter().any(|place| place.join(path).exists()));
    assert!(missing.is_empty(), "docs/ARCHITECTURE.md names {missing:?}");
    assert!(found.len() > 50, "{} paths were found", found.len());
}
