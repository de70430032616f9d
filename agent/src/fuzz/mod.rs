//! The targets of fuzzing that this crate has, and what the targets of all crates share.
//!
//! A target takes any bytes, and panics only if the code has a defect.

// The name server is a part of the agent's program, which no other crate can use.
#[path = "../bin/vmrt-agent/network/name_server/dns.rs"]
mod dns;

use std::path::{Path, PathBuf};

use crate::frame::{self, FrameError};
use crate::{Call, ContainerRequest, Request};

/// The bytes of frames: each line of `data` is the body of one. A line that starts with a zero byte is not: the rest of it is sent as it
/// is. So an input remains a sequence of frames when the length of a body changes.
pub fn frames(data: &[u8]) -> impl Iterator<Item = Vec<u8>> {
    data.split(|byte| *byte == b'\n').map(|line| match line.strip_prefix(b"\0") {
        Some(raw) => raw.to_vec(),
        None => [&u32::try_from(line.len()).unwrap_or(u32::MAX).to_le_bytes()[..], line].concat(),
    })
}

/// Frames of the VMM, as the agent reads them. Bytes arrive in pieces.
pub fn agent_requests(data: &[u8]) {
    take_requests(data);
}

/// Returns the number of requests before the first frame that is none.
fn take_requests(data: &[u8]) -> usize {
    let (mut received, mut count) = (Vec::new(), 0);
    for bytes in frames(data) {
        for piece in bytes.chunks(1000) {
            received.extend_from_slice(piece);
            if decode_all(&mut received, &mut count).is_err() {
                return count;
            }
            assert!(received.len() <= frame::HEADER_LEN + frame::MAX_BODY as usize, "{} bytes wait", received.len());
        }
    }
    count
}

/// Takes and counts all complete requests. The same request is read from what is written of it.
fn decode_all(received: &mut Vec<u8>, count: &mut usize) -> Result<(), FrameError> {
    while let Some(call) = frame::decode::<Call>(received)? {
        *count += 1;
        if let Request::Container(request) = &call.request {
            assert!(!step(request).is_empty());
        }
        let mut bytes = frame::encode(&call)?;
        let again: Call = frame::decode(&mut bytes)?.expect("a whole frame");
        assert_eq!((again.id, format!("{again:?}").len()), (call.id, format!("{call:?}").len()));
    }
    Ok(())
}

fn step(request: &ContainerRequest) -> String {
    let process = request.process();
    format!("{request} {}", process.container)
}

/// A query of a container, then the answer of the host's name server after a zero-terminated length: as the agent's name server reads them.
pub fn dns(data: &[u8]) {
    let Some((split, rest)) = data.split_first() else { return };
    let (query, received) = rest.split_at(usize::from(*split).min(rest.len()));
    let size = dns::max_size(query);
    assert!(size >= 512);
    let Some(answer) = dns::complete_answer(received) else { return };
    let datagram = dns::fit(size, answer);
    assert!(datagram.len() <= size, "a datagram of {} bytes is larger than {size}", datagram.len());
    if answer.len() <= size {
        assert_eq!(datagram, answer);
    }
}

/// The inputs of a target that are in the source tree.
fn corpus(name: &str) -> PathBuf {
    Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/../fuzz/corpus")).join(name)
}

/// A committed input, for a test that its target still reads it as what it was written for.
///
/// # Panics
/// There is none of this name.
#[must_use]
pub fn committed(target: &str, name: &str) -> Vec<u8> {
    let path = corpus(target).join(name);
    std::fs::read(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

/// Runs a target over the inputs of `fuzz/corpus/NAME`.
///
/// # Panics
/// The target does, or there is no input.
pub fn run_corpus(name: &str, target: fn(&[u8])) {
    let directory = corpus(name);
    let entries = std::fs::read_dir(&directory).unwrap_or_else(|error| panic!("{}: {error}", directory.display()));
    let mut count = 0;
    for entry in entries {
        let path = entry.expect("the directory is readable").path();
        // The test's output names the input that a failure is about.
        println!("{}", path.display());
        target(&std::fs::read(&path).expect("the input is readable"));
        count += 1;
    }
    assert!(count > 0, "{} has no input", directory.display());
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_committed_inputs_find_no_defect() {
        run_corpus("agent_requests", agent_requests);
        run_corpus("dns", dns);
    }

    #[test]
    fn every_line_of_committed_requests_is_a_request() {
        for name in ["container", "create", "requests"] {
            let data = committed("agent_requests", name);
            assert_eq!(take_requests(&data), frames(&data).count(), "{name}");
        }
    }

    #[test]
    fn a_committed_answer_is_truncated() {
        let data = committed("dns", "truncated");
        let (query, received) = data[1..].split_at(usize::from(data[0]));
        assert!(dns::max_size(query) < dns::complete_answer(received).expect("an answer").len());
    }

    /// The names in a folder of `fuzz/`, without the extension.
    fn names(folder: &str) -> std::collections::BTreeSet<String> {
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../fuzz").join(folder);
        let entries = std::fs::read_dir(path).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap());
        entries.map(|name| name.trim_end_matches(".rs").to_owned()).collect()
    }

    #[test]
    fn every_target_has_inputs_a_program_and_a_description() {
        let readme = include_str!("../../../fuzz/README.md");
        let manifest = include_str!("../../../fuzz/Cargo.toml");
        let targets = names("fuzz_targets");
        assert_eq!(targets, names("corpus"));
        for target in &targets {
            assert!(readme.contains(&format!("| `{target}` |")), "fuzz/README.md does not describe {target}");
            assert!(
                manifest.contains(&format!("\"fuzz_targets/{target}.rs\"")),
                "fuzz/Cargo.toml does not have {target}"
            );
        }
    }

    #[test]
    fn a_line_is_a_frame_and_a_line_with_a_zero_byte_is_raw() {
        let frames: Vec<_> = frames(b"{}\n\0raw\n").collect();
        assert_eq!(frames, [&b"\x02\0\0\0{}"[..], b"raw", &[0; 4]]);
    }
}
