//! The duration of a start by an engine: `docker run --rm` of busybox `true` with vmrt and with runc.

use std::time::Instant;

use vmrt_tests::daemons::{Daemons, IMAGE, isolate};

use crate::report::{Benchmark, Entry, Report};
use crate::start::{WARM_UP, run};
use crate::{BenchError, Settings};

const RUNTIMES: [&str; 2] = ["vmrt", "runc"];

/// Measures and adds to `report`. Moves this thread into the daemons' network and mount namespace.
pub fn measure(settings: &Settings, report: &mut Report) -> Result<(), BenchError> {
    isolate();
    let daemons = Daemons::start(&settings.busybox.join("rootfs"));
    let samples = rounds(settings, &daemons);
    daemons.stop();
    let entries = RUNTIMES.iter().zip(samples?).map(|(runtime, samples)| Entry::new(runtime, samples)).collect();
    report.benchmarks.push(Benchmark { name: "docker run --rm of busybox true".into(), unit: "ms", entries });
    Ok(())
}

/// Runs half as many rounds as for other starts, because each takes several times as long.
fn rounds(settings: &Settings, daemons: &Daemons) -> Result<[Vec<f64>; RUNTIMES.len()], BenchError> {
    let mut samples = [const { Vec::new() }; RUNTIMES.len()];
    for round in 0..WARM_UP + settings.rounds.div_ceil(2) {
        for (runtime, samples) in RUNTIMES.iter().zip(&mut samples) {
            let begun = Instant::now();
            run(&mut daemons.docker_command(&["run", "--rm", "--runtime", runtime, IMAGE, "true"]))?;
            if round >= WARM_UP {
                samples.push(begun.elapsed().as_secs_f64() * 1e3);
            }
        }
    }
    Ok(samples)
}
