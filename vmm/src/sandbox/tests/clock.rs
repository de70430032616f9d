//! The guest's clock.

use super::*;

const SECOND: i64 = 1_000_000_000;

/// Answers questions for the time until a call of another kind comes.
fn correction(bench: &mut Bench, missing_ns: i64) -> agent::Request {
    loop {
        let agent::Call { id, request } = bench.any_call();
        match request {
            agent::Request::ReadClock => bench.tell_time(id, missing_ns),
            other => return other,
        }
    }
}

#[test]
fn a_clock_that_is_late_or_ahead_at_the_start_is_set() {
    for missing in [SECOND, -3600 * SECOND] {
        let mut bench = Bench::new();
        bench.greet();
        let agent::Request::AdjustClock { missing_ns, set: true } = correction(&mut bench, missing) else {
            panic!("another request came")
        };
        assert!(missing_ns.abs_diff(missing) < SECOND.unsigned_abs() / 2, "{missing_ns} for {missing}");
    }
}

#[test]
fn a_clock_that_is_right_is_left_alone_and_one_that_cannot_be_read_harms_nobody() {
    let mut bench = Bench::new();
    bench.greet();
    let agent::Call { id, request: agent::Request::ReadClock } = bench.any_call() else { panic!("another request") };
    let cause = Failure { kind: FailureKind::System, step: "read".into(), cause: "no".into() };
    bench.say(&FromAgent::Reply { id, result: Err(cause) });
    let (_, _output) = bench.create("main");
    bench.answer_make();
    assert!(bench.runs());
    let mut bench = Bench::new();
    bench.greet();
    let agent::Call { id, .. } = bench.any_call();
    bench.tell_time(id, 0);
    let (_, _output) = bench.create("main");
    bench.answer_make();
}
