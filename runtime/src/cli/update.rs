//! Options of `update`.

use std::path::PathBuf;

use clap::Args;

/// Options of `update`. The command parses numbers itself, to refuse invalid ones in runc's words. An empty value means no value.
#[derive(Args, Debug, Default)]
pub(crate) struct UpdateArgs {
    /// File with the limits, as `linux.resources` of a specification, or `-` for standard input; other options are then ignored
    #[arg(short, long, value_name = "FILE")]
    pub(crate) resources: Option<PathBuf>,
    /// Weight of block I/O, 10 to 1000; 0 leaves it unchanged
    #[arg(long, value_name = "WEIGHT", default_value_t = 0)]
    pub(crate) blkio_weight: u16,
    /// Period of the CPU quota, in microseconds
    #[arg(long, value_name = "MICROSECONDS")]
    pub(crate) cpu_period: Option<String>,
    /// CPU time per period, in microseconds; -1 for no limit
    #[arg(long, value_name = "MICROSECONDS", allow_hyphen_values = true)]
    pub(crate) cpu_quota: Option<String>,
    /// Unused CPU time that may accumulate for a burst, in microseconds
    #[arg(long, value_name = "MICROSECONDS")]
    pub(crate) cpu_burst: Option<String>,
    /// Weight of CPU time, 2 to 262144
    #[arg(long, value_name = "SHARES")]
    pub(crate) cpu_share: Option<String>,
    /// Refused: the guest's kernel has no real-time group scheduling
    #[arg(long, value_name = "MICROSECONDS")]
    pub(crate) cpu_rt_period: Option<String>,
    /// Refused: the guest's kernel has no real-time group scheduling
    #[arg(long, value_name = "MICROSECONDS", allow_hyphen_values = true)]
    pub(crate) cpu_rt_runtime: Option<String>,
    /// List of CPUs to use, such as `0-2,4`
    #[arg(long, value_name = "LIST")]
    pub(crate) cpuset_cpus: Option<String>,
    /// List of memory nodes to use, such as `0-1`
    #[arg(long, value_name = "LIST")]
    pub(crate) cpuset_mems: Option<String>,
    /// CPU scheduling: 1 runs the container only on otherwise idle CPUs, 0 as usual
    #[arg(long, value_name = "0|1", allow_hyphen_values = true)]
    pub(crate) cpu_idle: Option<String>,
    /// Accepted and ignored, as runc does
    #[arg(long, hide = true)]
    pub(crate) kernel_memory: Option<String>,
    /// Accepted and ignored, as runc does
    #[arg(long, hide = true)]
    pub(crate) kernel_memory_tcp: Option<String>,
    /// Limit of memory, in bytes or with a suffix such as `512M`; -1 for no limit
    #[arg(long, value_name = "BYTES", allow_hyphen_values = true)]
    pub(crate) memory: Option<String>,
    /// Memory that is protected from reclaim, in bytes or with a suffix such as `512M`
    #[arg(long, value_name = "BYTES", allow_hyphen_values = true)]
    pub(crate) memory_reservation: Option<String>,
    /// Limit of memory and swap together, in bytes or with a suffix such as `1G`; -1 for no limit
    #[arg(long, value_name = "BYTES", allow_hyphen_values = true)]
    pub(crate) memory_swap: Option<String>,
    /// Limit of the number of processes; -1 for no limit, 0 leaves it unchanged
    #[arg(long, value_name = "COUNT", default_value_t = 0, allow_negative_numbers = true)]
    pub(crate) pids_limit: i64,
    /// Refused: the guest has no cache allocation
    #[arg(long, value_name = "SCHEMA")]
    pub(crate) l3_cache_schema: Option<String>,
    /// Refused: the guest has no memory bandwidth allocation
    #[arg(long, value_name = "SCHEMA")]
    pub(crate) mem_bw_schema: Option<String>,
    /// The container's id
    pub(crate) id: String,
}
