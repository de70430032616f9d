//! The targets of fuzzing that this crate has. Each takes any bytes, and panics only if the code has a defect.

use crate::spec;

/// A `config.json`: its checks, and its division into the host's part and the guest's part.
pub fn config(data: &[u8]) {
    spec::fuzz::config(data);
}

/// Changes of a running container, a line each: a process that `exec` starts, the limits before, and a change of them by `update`.
pub fn changes(data: &[u8]) {
    spec::fuzz::changes(data);
}

#[cfg(test)]
mod tests {
    use agent::fuzz::run_corpus;

    use super::*;

    #[test]
    fn the_committed_inputs_find_no_defect() {
        run_corpus("config", config);
        run_corpus("changes", changes);
    }
}
