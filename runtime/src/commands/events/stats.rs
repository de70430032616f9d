//! The resource usage of a container, in the format that runc prints on a host with cgroup v2.

use std::collections::BTreeMap;

use serde::Serialize;

/// Names and contents of a cgroup's files.
type Files = BTreeMap<String, String>;

/// The field `data` of an event.
#[derive(Debug, Serialize)]
pub(super) struct Stats {
    cpu: Cpu,
    cpuset: Cpuset,
    memory: Memory,
    pids: Pids,
    blkio: Blkio,
    hugetlb: BTreeMap<String, Hugetlb>,
    intel_rdt: IntelRdt,
    /// `null`: runc reports only interfaces that the runtime created itself.
    network_interfaces: Option<()>,
}

/// Times in nanoseconds.
#[derive(Debug, Serialize)]
struct Cpu {
    usage: CpuUsage,
    throttling: Throttling,
}

#[derive(Debug, Serialize)]
struct CpuUsage {
    #[serde(skip_serializing_if = "is_zero")]
    total: u64,
    kernel: u64,
    user: u64,
}

#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct Throttling {
    #[serde(skip_serializing_if = "is_zero")]
    periods: u64,
    #[serde(skip_serializing_if = "is_zero")]
    throttled_periods: u64,
    #[serde(skip_serializing_if = "is_zero")]
    throttled_time: u64,
}

/// cgroup v2 has none of these numbers; runc prints zeros.
#[derive(Debug, Default, Serialize)]
struct Cpuset {
    cpu_exclusive: u64,
    mem_hardwall: u64,
    mem_exclusive: u64,
    memory_migrate: u64,
    memory_spread_page: u64,
    memory_spread_slab: u64,
    memory_pressure: u64,
    sched_load_balance: u64,
    sched_relax_domain_level: i64,
}

/// Amounts in bytes.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct Memory {
    #[serde(skip_serializing_if = "is_zero")]
    cache: u64,
    usage: MemoryEntry,
    swap: MemoryEntry,
    kernel: MemoryEntry,
    #[serde(rename = "kernelTCP")]
    kernel_tcp: MemoryEntry,
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    raw: BTreeMap<String, u64>,
}

#[derive(Clone, Copy, Debug, Default, Serialize)]
struct MemoryEntry {
    limit: u64,
    #[serde(skip_serializing_if = "is_zero")]
    usage: u64,
    #[serde(skip_serializing_if = "is_zero")]
    max: u64,
    failcnt: u64,
}

#[derive(Debug, Serialize)]
struct Pids {
    #[serde(skip_serializing_if = "is_zero")]
    current: u64,
    #[serde(skip_serializing_if = "is_zero")]
    limit: u64,
}

#[derive(Debug, Default, Serialize)]
#[serde(rename_all = "camelCase")]
struct Blkio {
    #[serde(skip_serializing_if = "Vec::is_empty")]
    io_service_bytes_recursive: Vec<BlkioEntry>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    io_serviced_recursive: Vec<BlkioEntry>,
}

#[derive(Debug, Serialize)]
struct BlkioEntry {
    #[serde(skip_serializing_if = "is_zero")]
    major: u64,
    #[serde(skip_serializing_if = "is_zero")]
    minor: u64,
    op: &'static str,
    #[serde(skip_serializing_if = "is_zero")]
    value: u64,
}

#[derive(Debug, Serialize)]
struct Hugetlb {
    #[serde(skip_serializing_if = "is_zero")]
    usage: u64,
    failcnt: u64,
}

#[derive(Debug, Serialize)]
struct IntelRdt {}

impl Stats {
    pub(super) fn of(files: &Files) -> Self {
        Self {
            cpu: cpu(files),
            cpuset: Cpuset::default(),
            memory: memory(files),
            pids: Pids { current: number(files, "pids.current"), limit: limit(files, "pids.max").unwrap_or(0) },
            blkio: blkio(files),
            hugetlb: hugetlb(files),
            intel_rdt: IntelRdt {},
            network_interfaces: None,
        }
    }
}

fn cpu(files: &Files) -> Cpu {
    let stat = keyed(files, "cpu.stat");
    let get = |name| stat.get(name).copied().unwrap_or(0);
    let nanoseconds = |name| get(name).saturating_mul(1000);
    Cpu {
        usage: CpuUsage {
            total: nanoseconds("usage_usec"),
            kernel: nanoseconds("system_usec"),
            user: nanoseconds("user_usec"),
        },
        throttling: Throttling {
            periods: get("nr_periods"),
            throttled_periods: get("nr_throttled"),
            throttled_time: nanoseconds("throttled_usec"),
        },
    }
}

fn memory(files: &Files) -> Memory {
    let raw = keyed(files, "memory.stat");
    let usage = entry(files, "memory");
    let only_swap = entry(files, "memory.swap");
    // The sum of memory and swap, as in cgroup v1.
    let swap = MemoryEntry {
        usage: only_swap.usage.saturating_add(usage.usage),
        limit: only_swap.limit.saturating_add(usage.limit),
        ..only_swap
    };
    Memory {
        cache: raw.get("file").copied().unwrap_or(0),
        usage,
        swap,
        kernel: MemoryEntry::default(),
        kernel_tcp: MemoryEntry::default(),
        raw,
    }
}

fn entry(files: &Files, name: &str) -> MemoryEntry {
    let current = format!("{name}.current");
    if !files.contains_key(&current) {
        return MemoryEntry::default();
    }
    MemoryEntry {
        limit: limit(files, &format!("{name}.max")).unwrap_or(u64::MAX),
        usage: number(files, &current),
        max: number(files, &format!("{name}.peak")),
        failcnt: 0,
    }
}

/// Parses `io.stat`, with lines of `MAJOR:MINOR rbytes=N wbytes=N rios=N wios=N ...`.
fn blkio(files: &Files) -> Blkio {
    let mut blkio = Blkio::default();
    for line in files.get("io.stat").into_iter().flat_map(|content| content.lines()) {
        let Some((device, counts)) = line.split_once(' ') else { continue };
        let device = device.split_once(':').map(|(major, minor)| (major.parse(), minor.parse()));
        let Some((Ok(major), Ok(minor))) = device else { continue };
        for (name, value) in counts.split(' ').filter_map(|count| count.split_once('=')) {
            let (list, op) = match name {
                "rbytes" => (&mut blkio.io_service_bytes_recursive, "Read"),
                "wbytes" => (&mut blkio.io_service_bytes_recursive, "Write"),
                "rios" => (&mut blkio.io_serviced_recursive, "Read"),
                "wios" => (&mut blkio.io_serviced_recursive, "Write"),
                _ => continue,
            };
            list.push(BlkioEntry { major, minor, op, value: value.parse().unwrap_or(0) });
        }
    }
    blkio
}

/// Returns the use of huge pages for each page size, such as `2MB`.
fn hugetlb(files: &Files) -> BTreeMap<String, Hugetlb> {
    let size = |name: &str| {
        let size = name.strip_prefix("hugetlb.")?.strip_suffix(".current")?;
        (!size.contains('.')).then(|| size.to_owned())
    };
    let of = |size: String| {
        let failcnt = keyed(files, &format!("hugetlb.{size}.events")).get("max").copied().unwrap_or(0);
        let usage = number(files, &format!("hugetlb.{size}.current"));
        (size, Hugetlb { usage, failcnt })
    };
    files.keys().filter_map(|name| size(name)).map(of).collect()
}

/// Parses a file with lines of a name and a number.
fn keyed(files: &Files, file: &str) -> BTreeMap<String, u64> {
    let lines = files.get(file).into_iter().flat_map(|content| content.lines());
    let pairs = lines.filter_map(|line| line.split_once(' '));
    pairs.filter_map(|(name, value)| Some((name.to_owned(), value.parse().ok()?))).collect()
}

fn number(files: &Files, file: &str) -> u64 {
    files.get(file).and_then(|content| content.trim().parse().ok()).unwrap_or(0)
}

/// Parses a limit; `None` for `max`.
fn limit(files: &Files, file: &str) -> Option<u64> {
    files.get(file)?.trim().parse().ok()
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "serde requires this signature")]
fn is_zero(number: &u64) -> bool {
    *number == 0
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn stats(files: &[(&str, &str)]) -> serde_json::Value {
        let files = files.iter().map(|&(name, content)| (name.to_owned(), content.to_owned())).collect();
        serde_json::to_value(Stats::of(&files)).unwrap()
    }

    #[test]
    fn numbers_are_converted_as_by_runc() {
        let stats = stats(&[
            (
                "cpu.stat",
                "usage_usec 30\nuser_usec 20\nsystem_usec 10\nnr_periods 4\nnr_throttled 2\nthrottled_usec 7\n",
            ),
            ("memory.current", "4096\n"),
            ("memory.max", "8192\n"),
            ("memory.swap.current", "0\n"),
            ("memory.swap.max", "max\n"),
            ("memory.stat", "anon 100\nfile 200\n"),
            ("pids.current", "3\n"),
            ("pids.max", "max\n"),
            ("io.stat", "8:0 rbytes=5 wbytes=6 rios=1 wios=2 dbytes=0 dios=0\n"),
            ("hugetlb.2MB.current", "0\n"),
            ("hugetlb.2MB.rsvd.current", "0\n"),
        ]);
        assert_eq!(stats["cpu"]["usage"], json!({"total": 30_000, "kernel": 10_000, "user": 20_000}));
        assert_eq!(stats["cpu"]["throttling"], json!({"periods": 4, "throttledPeriods": 2, "throttledTime": 7000}));
        assert_eq!(stats["memory"]["usage"], json!({"limit": 8192, "usage": 4096, "failcnt": 0}));
        assert_eq!(stats["memory"]["swap"], json!({"limit": u64::MAX, "usage": 4096, "failcnt": 0}));
        assert_eq!(stats["memory"]["raw"], json!({"anon": 100, "file": 200}));
        assert_eq!((&stats["memory"]["cache"], &stats["pids"]), (&json!(200), &json!({"current": 3})));
        let bytes = json!([{"major": 8, "op": "Read", "value": 5}, {"major": 8, "op": "Write", "value": 6}]);
        assert_eq!(stats["blkio"]["ioServiceBytesRecursive"], bytes);
        assert_eq!(stats["hugetlb"], json!({"2MB": {"failcnt": 0}}));
        assert_eq!((&stats["intel_rdt"], &stats["network_interfaces"]), (&json!({}), &json!(null)));
    }

    #[test]
    fn missing_or_invalid_numbers_become_zero() {
        let stats = stats(&[("cpu.stat", "usage_usec -1\nuser"), ("io.stat", "x:y rbytes=1\n8\n"), ("memory.max", "")]);
        assert_eq!(stats["cpu"]["usage"], json!({"kernel": 0, "user": 0}));
        assert_eq!(stats["blkio"], json!({}));
        assert_eq!(stats["memory"]["usage"], json!({"limit": 0, "failcnt": 0}));
    }
}
