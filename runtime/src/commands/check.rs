//! `vmrt check`: reports whether this host can run virtual machines.

use std::fmt::Write as _;
use std::path::Path;

use vmm::machine::kvm::KvmError;
use vmm::probe::{self, Measurement, ProbeError, TURNS};

use super::output::print;
use crate::base::config::Config;
use crate::base::error_chain::chain;
use crate::commands::error::Error;
use crate::host::{cgroup, jail_layers};
use crate::sandbox::context::Context;

/// The result of the check.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
enum Verdict {
    Usable,
    Interpreted,
    Broken,
    Absent,
    Incomplete,
}

impl Verdict {
    fn text(self) -> &'static str {
        match self {
            Self::Usable => "usable: this host runs virtual machines on hardware",
            Self::Interpreted => {
                "present but interpreted: /dev/kvm opens, but no hardware runs the guest's kernel, so guests do not boot \
                 in reasonable time; use a host with hardware virtualization, or a virtual machine that has it nested"
            }
            Self::Broken => "present but not working: /dev/kvm exists, but does not run a test machine",
            Self::Absent => "absent: there is no /dev/kvm; load kvm_intel or kvm_amd, or enable virtualization",
            Self::Incomplete => "usable, but vmrt is not installed completely",
        }
    }
}

/// Prints a report. The exit status is 0 only if containers can run.
pub(crate) fn run(context: &Context) -> Result<u8, Error> {
    let config = context.config()?;
    let measured = probe::measure();
    let parts = parts(&config);
    let verdict = verdict(&measured, parts.iter().all(|(_, path)| path.is_file()));
    let mut report = Report::default();
    describe_kvm(&mut report, &measured);
    report.line("cgroups", cgroup::describe());
    for (name, is_present) in jail_layers::layers(context.caller) {
        report.line("jail", format_args!("{name}: {}", if is_present { "yes" } else { "no, this host lacks it" }));
    }
    for (name, path) in parts {
        let missing = if path.is_file() { "" } else { " (not found)" };
        report.line(name, format_args!("{}{missing}", path.display()));
    }
    report.line("verdict", format_args!("KVM is {}", verdict.text()));
    print(&report.0)?;
    Ok(u8::from(verdict != Verdict::Usable))
}

fn parts(config: &Config) -> [(&'static str, &Path); 3] {
    [("VMM", &config.vmm), ("kernel", &config.kernel), ("initramfs", &config.initramfs)]
}

fn verdict(measured: &Result<Measurement, ProbeError>, complete: bool) -> Verdict {
    match measured {
        Ok(measured) if !measured.is_usable() => Verdict::Interpreted,
        Ok(_) if !complete => Verdict::Incomplete,
        Ok(_) => Verdict::Usable,
        Err(ProbeError::Kvm(KvmError::Absent)) => Verdict::Absent,
        Err(ProbeError::TimeLimit) => Verdict::Interpreted,
        Err(_) => Verdict::Broken,
    }
}

fn describe_kvm(report: &mut Report, measured: &Result<Measurement, ProbeError>) {
    match measured {
        Err(error) => report.line("KVM", chain(error)),
        Ok(measured) => {
            report.line("KVM", "API version 12, with every capability that vmrt needs");
            let timer = if measured.tsc_deadline_timer { "yes" } else { "no; guests use a slower timer" };
            report.line("TSC deadline", timer);
            let (guest, host) = (measured.guest.as_secs_f64() * 1e3, measured.host.as_secs_f64() * 1e3);
            let times = guest / host.max(f64::EPSILON);
            let figures = format!("{guest:.3} ms, against {host:.3} ms on the host ({times:.1} times as long)");
            report.line("guest's kernel", format_args!("{TURNS} turns of a loop in supervisor mode take {figures}"));
        }
    }
}

#[derive(Default)]
struct Report(String);

impl Report {
    fn line(&mut self, name: &str, value: impl std::fmt::Display) {
        // Writing to a string does not fail.
        let _ = writeln!(self.0, "{name:<16}{value}");
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    fn measured(guest: u64) -> Result<Measurement, ProbeError> {
        let host = Duration::from_micros(70);
        Ok(Measurement { guest: Duration::from_micros(guest), host, tsc_deadline_timer: true })
    }

    #[test]
    fn the_verdict_is_usable_only_with_hardware_kvm_and_all_files() {
        assert_eq!(verdict(&measured(80), true), Verdict::Usable);
        assert_eq!(verdict(&measured(80), false), Verdict::Incomplete);
        assert_eq!(verdict(&measured(200_000), true), Verdict::Interpreted);
        assert_eq!(verdict(&Err(ProbeError::TimeLimit), true), Verdict::Interpreted);
        assert_eq!(verdict(&Err(KvmError::Absent.into()), true), Verdict::Absent);
        assert_eq!(verdict(&Err(KvmError::Denied.into()), true), Verdict::Broken);
    }

    #[test]
    fn a_report_contains_the_measured_times() {
        let mut report = Report::default();
        describe_kvm(&mut report, &measured(700));
        assert!(report.0.contains("take 0.700 ms, against 0.070 ms on the host (10.0 times as long)"), "{}", report.0);
    }
}
