//! Weights. The specification uses those of cgroup v1; cgroup v2 has another scale.

/// Converts CPU shares of v1 (2 to 262144) to a CPU weight of v2, as all OCI runtimes do.
pub(crate) fn cpu_weight(shares: u64) -> u64 {
    scale_weight(shares, (2, 262_144))
}

/// Scales a value linearly from the range `min` to `max` to a weight of v2, from 1 to 10000.
pub(crate) fn scale_weight(value: u64, (min, max): (u64, u64)) -> u64 {
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
    }
}
