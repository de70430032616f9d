//! Weights: the specification has those of cgroup v1, which cgroup v2 scales differently.

/// CPU shares of v1 (2 to 262144) as a weight of v2, by the conversion that every OCI runtime uses.
pub(crate) fn cpu_weight(shares: u64) -> u64 {
    weight_between(shares, (2, 262_144))
}

/// A value between these two as a weight of v2, between 1 and 10000.
pub(crate) fn weight_between(value: u64, (least, most): (u64, u64)) -> u64 {
    1 + (value.clamp(least, most) - least) * 9999 / (most - least)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shares_become_weights_as_elsewhere() {
        assert_eq!(cpu_weight(0), 1);
        assert_eq!(cpu_weight(2), 1);
        assert_eq!(cpu_weight(1024), 39);
        assert_eq!(cpu_weight(262_144), 10_000);
    }
}
