//! Tests that `docs/threats.md` names tests that exist, and that every row has a test or says why there is none.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

/// The folders of tests. The names of the tests in a folder start at it.
const SOURCES: [&str; 6] =
    ["vmm/src", "runtime/src", "agent/src", "agent/src/bin/vmrt-agent", "tests/tests/shell", "tests/tests/engines"];

fn checkout() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("the crate is in the checkout")
}

fn source_files(directory: &Path) -> Vec<PathBuf> {
    let entries = fs::read_dir(directory).unwrap().map(|entry| entry.unwrap().path());
    entries.flat_map(|path| if path.is_dir() { source_files(&path) } else { vec![path] }).collect()
}

/// The path of the module in a file.
fn module(file: &Path) -> String {
    let path = file.with_extension("");
    let names: Vec<_> = path.iter().map(|name| name.to_str().unwrap()).collect();
    names.iter().filter(|name| **name != "mod").copied().collect::<Vec<_>>().join("::")
}

/// The tests of a file, whose attribute is `#[test]` or that a list of `libtest-mimic` names. Those in an indented block are in its
/// module `tests`.
fn tests_in(text: &str, module: &str) -> Vec<String> {
    let lines: Vec<_> = text.lines().collect();
    let mut names = Vec::new();
    for (index, line) in lines.iter().enumerate() {
        let inner = if line.starts_with(' ') { "::tests" } else { "" };
        let Some((name, _)) = line.trim_start().strip_prefix("fn ").and_then(|rest| rest.split_once('(')) else {
            continue;
        };
        let attributes = lines[..index].iter().rev().take_while(|line| line.trim_start().starts_with("#["));
        let is_test = attributes.into_iter().any(|line| line.trim() == "#[test]");
        if is_test || text.contains(&format!("(\"{name}\", {name})")) {
            names.push(format!("{module}{inner}::{name}"));
        }
    }
    names
}

fn all_tests() -> BTreeSet<String> {
    let of_folder = |folder: &&str| {
        let folder = checkout().join(folder);
        let files = source_files(&folder).into_iter().filter(|file| file.extension().is_some_and(|kind| kind == "rs"));
        let tests = files.map(move |file| {
            tests_in(&fs::read_to_string(&file).unwrap(), &module(file.strip_prefix(&folder).unwrap()))
        });
        tests.flatten().collect::<Vec<_>>()
    };
    SOURCES.iter().flat_map(of_folder).collect()
}

/// The names of tests in a line: all code with a module's path.
fn named_tests(line: &str) -> Vec<&str> {
    line.split('`').skip(1).step_by(2).filter(|code| code.contains("::")).collect()
}

#[test]
fn every_row_names_tests_that_exist_or_is_refuted() {
    let page = fs::read_to_string(checkout().join("docs/threats.md")).unwrap();
    let tests = all_tests();
    let rows: Vec<_> = page.lines().filter(|line| line.starts_with("| ") && !line.ends_with("| tests |")).collect();
    assert!(rows.len() > 35 && tests.len() > 800, "{} rows, {} tests", rows.len(), tests.len());
    for row in rows {
        let named = named_tests(row);
        assert!(!named.is_empty() || row.contains("| Refuted: "), "no test: {row}");
        let missing: Vec<_> = named.iter().filter(|name| !tests.contains(**name)).collect();
        assert!(missing.is_empty(), "docs/threats.md names tests that do not exist: {missing:?}");
    }
}

#[test]
fn tests_have_the_names_that_cargo_gives_them() {
    let text =
        "#[test]\nfn outer() {}\nfn helper() {}\nmod tests {\n    #[test]\n    #[cfg(x)]\n    fn inner() {}\n}\n";
    assert_eq!(tests_in(text, "a::b"), ["a::b::outer", "a::b::tests::inner"]);
    let list = "const TESTS: &[Test] = &[(\"one\", one)];\nfn one() {}\nfn two() {}\n";
    assert_eq!(tests_in(list, "c"), ["c::one"]);
    assert_eq!(module(Path::new("fs/tests/mod.rs")), "fs::tests");
}
