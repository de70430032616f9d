//! Corrections of the guest's clock.

use super::*;

const SECOND: i64 = 1_000_000_000;

/// Answers calls that read the clock until a call of another kind comes, and returns that one's request.
fn correction(sandbox: &mut TestSandbox, offset_ns: i64) -> agent::Request {
    loop {
        let agent::Call { id, request } = sandbox.next_call_of_any_kind();
        match request {
            agent::Request::ReadClock => sandbox.answer_clock(id, offset_ns),
            other => return other,
        }
    }
}

#[test]
fn a_clock_that_is_wrong_after_the_boot_is_set() {
    for missing in [SECOND, -3600 * SECOND] {
        let mut sandbox = TestSandbox::new();
        sandbox.send_hello();
        let agent::Request::AdjustClock { offset_ns, set: true } = correction(&mut sandbox, missing) else {
            panic!("another request came")
        };
        assert!(offset_ns.abs_diff(missing) < SECOND.unsigned_abs() / 2, "{offset_ns} for {missing}");
    }
}

#[test]
fn a_right_clock_is_not_corrected_and_an_unreadable_one_has_no_effect() {
    let mut sandbox = TestSandbox::new();
    sandbox.send_hello();
    let agent::Call { id, request: agent::Request::ReadClock } = sandbox.next_call_of_any_kind() else {
        panic!("another request")
    };
    let cause = Failure { kind: FailureKind::System, step: "read".into(), cause: "no".into() };
    sandbox.send(&FromAgent::Reply { id, result: Err(cause) });
    let (_, _output) = sandbox.create("main");
    sandbox.answer_create();
    assert!(sandbox.is_running());
    let mut sandbox = TestSandbox::new();
    sandbox.send_hello();
    let agent::Call { id, .. } = sandbox.next_call_of_any_kind();
    sandbox.answer_clock(id, 0);
    let (_, _output) = sandbox.create("main");
    sandbox.answer_create();
}
