//! The CPUs that a further process of a container may run on, with the guest's numbers.

use oci_spec::runtime::Process;
use rustix::thread::CpuSet;

use crate::error::Error;

/// The specification's `process.execCPUAffinity`.
///
/// The initial list applies before a process enters its cgroup. Here a process starts in the container's cgroup, so the
/// initial list applies only if there is no final one. The kernel would retain it then, too.
#[derive(Clone, Debug)]
pub(crate) struct Affinity {
    list: String,
    cpus: CpuSet,
}

impl Affinity {
    /// Checks the lists; `None` without any.
    pub(crate) fn new(process: &Process) -> Result<Option<Self>, Error> {
        let Some(affinity) = process.exec_cpu_affinity() else { return Ok(None) };
        let lists = [affinity.cpu_affinity_final(), affinity.initial()];
        let lists = lists.map(|list| list.as_deref().filter(|list| !list.is_empty()));
        let parsed = lists.map(|list| list.map(Self::parse).transpose());
        let [last, initial] = parsed;
        Ok(last?.or(initial?))
    }

    fn parse(list: &str) -> Result<Self, Error> {
        let mut cpus = CpuSet::new();
        for range in list.split(',') {
            let (first, last) = range.split_once('-').unwrap_or((range, range));
            let number = |text: &str| text.trim().parse().ok().filter(|cpu| *cpu < CpuSet::MAX_CPU);
            match (number(first), number(last)) {
                (Some(first), Some(last)) if first <= last => (first..=last).for_each(|cpu| cpus.set(cpu)),
                _ => return Err(Error::invalid("process.execCPUAffinity", format!("{list:?} is not a list of CPUs"))),
            }
        }
        Ok(Self { list: list.into(), cpus })
    }

    /// Restricts the caller to these CPUs.
    pub(crate) fn apply(&self) -> Result<(), Error> {
        rustix::thread::sched_setaffinity(None, &self.cpus).map_err(Error::at(format!("bind to CPUs {}", self.list)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_list_consists_of_numbers_and_ranges() {
        let cpus = Affinity::parse("0-2,7").unwrap().cpus;
        assert_eq!((0..9).filter(|cpu| cpus.is_set(*cpu)).collect::<Vec<_>>(), [0, 1, 2, 7]);
        for list in ["x", "3-1", "1,,2", "99999"] {
            assert!(Affinity::parse(list).unwrap_err().to_string().starts_with("process.execCPUAffinity"), "{list}");
        }
    }

    #[test]
    fn the_final_list_overrides_the_initial_one() {
        let process = |json: &str| {
            let mut process = serde_json::to_value(Process::default()).unwrap();
            process["execCPUAffinity"] = serde_json::from_str(json).unwrap();
            Affinity::new(&serde_json::from_value(process).unwrap()).unwrap().map(|affinity| affinity.list)
        };
        assert_eq!(process(r#"{"initial": "0", "final": "1"}"#).as_deref(), Some("1"));
        assert_eq!(process(r#"{"initial": "0"}"#).as_deref(), Some("0"));
        assert_eq!(process("{}"), None);
    }
}
