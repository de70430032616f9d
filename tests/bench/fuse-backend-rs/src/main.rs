//! Drives vmrt's FUSE server and fuse-backend-rs's passthrough file system with the same requests, in turn, in one
//! process, and prints the median time of each request and the ratio.
//!
//! ```text
//! fuse-backend-rs-bench [DIRECTORY [ROUNDS]]
//! ```

mod peer;
mod requests;
mod vmrt_server;

use std::collections::BTreeMap;
use std::path::Path;

use requests::Session;

/// A FUSE server under measurement.
trait Backend {
    /// The name in the table.
    fn name(&self) -> &'static str;

    /// The names to look up from node 1 to the root of the directory.
    fn root_path(&self) -> &'static [&'static str];

    /// Serves a request with room for a reply of 16 bytes and `room` bytes of data in pages. Returns the nanoseconds
    /// it took; the reply is in `reply`.
    fn call(&mut self, request: &[u8], room: usize, reply: &mut Vec<u8>) -> u64;
}

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let mut args = std::env::args().skip(1);
    let parent = args.next().unwrap_or_else(|| std::env::temp_dir().to_string_lossy().into_owned());
    let rounds: usize = args.next().map_or(Ok(30), |text| text.parse())?;
    let directory = tempfile::tempdir_in(Path::new(&parent))?;
    requests::prepare(directory.path())?;
    let mut sessions: Vec<Session> = vec![
        Session::begin(Box::new(vmrt_server::VmrtServer::new(directory.path())?)),
        Session::begin(Box::new(peer::Peer::new(directory.path())?)),
    ];
    let mut samples: BTreeMap<(usize, usize), Vec<f64>> = BTreeMap::new();
    for round in 0..=rounds {
        for (index, session) in sessions.iter_mut().enumerate() {
            for (step, mean) in session.round().into_iter().enumerate() {
                // The first round warms up.
                if round > 0 {
                    samples.entry((step, index)).or_default().push(mean);
                }
            }
        }
    }
    print_table(&sessions, &mut samples);
    Ok(())
}

fn print_table(sessions: &[Session], samples: &mut BTreeMap<(usize, usize), Vec<f64>>) {
    println!("| request | {} (µs) | {} (µs) | ratio |", sessions[0].name(), sessions[1].name());
    println!("|---|---|---|---|");
    for (step, title) in requests::TITLES.iter().enumerate() {
        let [ours, peer] = [0, 1].map(|index| median(samples.entry((step, index)).or_default()) / 1e3);
        println!("| {title} | {ours:.2} | {peer:.2} | {:.2} |", peer / ours);
    }
}

fn median(samples: &mut [f64]) -> f64 {
    samples.sort_by(f64::total_cmp);
    samples[samples.len() / 2]
}
