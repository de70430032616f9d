//! The duration of `exec` of busybox `true` in a running container, with vmrt and its peers.

use std::time::Instant;

use crate::report::{Benchmark, Entry, Report};
use crate::start::{Detached, WARM_UP, bundle_running, run};
use crate::{BenchError, Settings};

const PEERS: [&str; 3] = ["vmrt", "runc", "crun"];

/// Measures and adds to `report`.
pub fn measure(settings: &Settings, report: &mut Report) -> Result<(), BenchError> {
    let bundle = bundle_running(settings, "exec", &["sleep", "10000"], |_| ())?;
    let containers = PEERS.into_iter().map(|peer| Detached::start(peer, &bundle, "bench-exec"));
    let containers = containers.collect::<Result<Vec<_>, _>>()?;
    let mut samples = [const { Vec::new() }; PEERS.len()];
    for round in 0..WARM_UP + settings.rounds {
        for (container, samples) in containers.iter().zip(&mut samples) {
            let begun = Instant::now();
            run(&mut container.exec(&["true"]))?;
            if round >= WARM_UP {
                samples.push(begun.elapsed().as_secs_f64() * 1e3);
            }
        }
    }
    containers.into_iter().try_for_each(Detached::delete)?;
    let entries = PEERS.iter().zip(samples).map(|(peer, samples)| Entry::new(peer, samples)).collect();
    report.benchmarks.push(Benchmark { name: "exec of busybox true".into(), unit: "ms", entries });
    Ok(())
}
