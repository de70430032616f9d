//! Weights of cgroup v2, for the host's cgroups and the guest's. The specification uses the scales of cgroup v1.

/// Converts CPU shares of v1 (2 to 262144) to `cpu.weight` (1 to 10000), as runc does.
#[must_use]
pub fn cpu_weight(shares: u64) -> u64 {
    scale_weight(shares, (2, 262_144))
}

/// Converts a block I/O weight of v1 (10 to 1000) to `io.weight` (1 to 10000), as runc does.
#[must_use]
pub fn io_weight(weight: u16) -> u64 {
    scale_weight(weight.into(), (10, 1000))
}

fn scale_weight(value: u64, (min, max): (u64, u64)) -> u64 {
    1 + (value.clamp(min, max) - min) * 9999 / (max - min)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shares_are_converted_to_weights() {
        assert_eq!(cpu_weight(0), 1);
        assert_eq!(cpu_weight(2), 1);
        assert_eq!(cpu_weight(1024), 39);
        assert_eq!(cpu_weight(262_144), 10_000);
        assert_eq!(cpu_weight(u64::MAX), 10_000);
        assert_eq!([10, 100, 1000].map(io_weight), [1, 910, 10_000]);
    }
}
