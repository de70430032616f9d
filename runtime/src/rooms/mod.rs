//! Tests the order of the rooms, which the compiler does not check: a room uses only rooms before it.

use std::fs;
use std::path::{Path, PathBuf};

/// The rooms in the order of the list in `lib.rs`, and this test after them.
const ROOMS: [&str; 9] = ["base", "spec", "host", "files", "terminal", "sandbox", "cli", "commands", "rooms"];

/// Lists what breaks the order of `rooms` below the folder `source`: files outside of a room, and uses of a later room.
fn violations(source: &Path, rooms: &[&str]) -> Vec<String> {
    let mut violations = Vec::new();
    for file in source_files(source) {
        let relative = file.strip_prefix(source).expect("the file is below the source folder");
        let text = fs::read_to_string(&file).expect("a source file is text");
        let room = relative.iter().next().and_then(|first| first.to_str()).unwrap_or_default();
        match rooms.iter().position(|name| *name == room) {
            Some(index) => violations.extend(
                used_paths(&text)
                    .into_iter()
                    .filter(|path| rooms[index + 1..].contains(&path.split("::").next().unwrap_or_default()))
                    .map(|path| format!("{} uses crate::{path}", relative.display())),
            ),
            None if room == "bin" || room == "lib.rs" => {}
            None => violations.push(format!("{} is in no room", relative.display())),
        }
    }
    violations
}

/// Lists all Rust files below `folder`, sorted.
fn source_files(folder: &Path) -> Vec<PathBuf> {
    let mut files = Vec::new();
    for entry in fs::read_dir(folder).expect("the source folder can be listed").flatten() {
        match entry.path() {
            path if path.is_dir() => files.extend(source_files(&path)),
            path if path.extension().is_some_and(|extension| extension == "rs") => files.push(path),
            _ => {}
        }
    }
    files.sort();
    files
}

/// Extracts the paths after `crate::`, without comments. A group in braces gives one path for each of its members.
fn used_paths(text: &str) -> Vec<String> {
    let code: Vec<_> = text.lines().map(|line| line.split("//").next().unwrap_or_default()).collect();
    let code = code.join(" ");
    code.split("crate::").skip(1).flat_map(parse_paths).collect()
}

/// Parses the path at the start of `code`, or the paths of a group in braces.
fn parse_paths(code: &str) -> Vec<String> {
    let path = |text: &str| {
        text.trim_start().chars().take_while(|letter| letter.is_alphanumeric() || "_:".contains(*letter)).collect()
    };
    let Some(group) = code.strip_prefix('{') else { return vec![path(code)] };
    let (mut depth, mut paths) = (0, vec![String::new()]);
    for letter in group.chars() {
        match letter {
            '}' if depth == 0 => break,
            ',' if depth == 0 => paths.push(String::new()),
            letter => {
                depth += i32::from(letter == '{') - i32::from(letter == '}');
                paths.last_mut().expect("the list starts with one path").push(letter);
            }
        }
    }
    paths.iter().map(|text| path(text)).collect()
}

#[test]
fn rooms_use_only_rooms_before_them() {
    let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    let violations = violations(&source, &ROOMS);
    assert!(violations.is_empty(), "{}", violations.join("\n"));
}

#[test]
fn later_rooms_and_stray_files_are_violations() {
    let source = tempfile::tempdir().unwrap();
    let write = |path: &str, text: &str| {
        fs::create_dir_all(source.path().join(path).parent().unwrap()).unwrap();
        fs::write(source.path().join(path), text).unwrap();
    };
    write("lib.rs", "use crate::high::a;");
    write("stray.rs", "");
    write("high/mod.rs", "use crate::low::a;");
    write("low/mod.rs", "// See crate::high::a.\nuse crate::low::b;");
    write(
        "low/group.rs",
        "use crate::{\n    low::{a, b},\n    high::{b, c},\n};\nfn f() {\n    crate::high::a::f();\n}",
    );
    let expected = ["low/group.rs uses crate::high::", "low/group.rs uses crate::high::a::f", "stray.rs is in no room"];
    assert_eq!(violations(source.path(), &["low", "high"]), expected);
}
