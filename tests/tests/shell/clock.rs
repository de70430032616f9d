//! The time of day in containers.

use std::io::{BufRead, BufReader, Write};
use std::process::{Child, ChildStdin, ChildStdout, Stdio};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use nix::sys::time::TimeSpec;
use nix::time::{ClockId, clock_gettime, clock_settime};
use vmrt_tests::bundle::Bundle;
use vmrt_tests::runtime::{Runtime, new_id, wait};
use vmrt_tests::{TIMEOUT, eventually, is_hardware};

/// How many containers report their time. Each takes 15 s to start where the CPU is emulated.
fn containers() -> usize {
    if is_hardware() { 10 } else { 3 }
}

/// The largest allowed difference of the clocks, in seconds.
const TOLERANCE: f64 = 0.010;

/// A program that prints the time of day and its difference to the time since the boot, at the start and for each line that it
/// reads. It reads the time of day between two readings of the time since the boot. Of five attempts it prints the one with the
/// smallest difference of these readings: in the others, something else ran on the CPU.
const PROGRAM: &str = r#"
    use Time::HiRes qw(time clock_gettime CLOCK_MONOTONIC);
    sub attempt {
        my $before = clock_gettime(CLOCK_MONOTONIC);
        my $now = time;
        my $after = clock_gettime(CLOCK_MONOTONIC);
        return [$after - $before, $now, $now - ($before + $after) / 2];
    }
    sub report { printf "%.6f %.6f\n", @{(sort { $a->[0] <=> $b->[0] } map { attempt } 1 .. 5)[0]}[1, 2] }
    $| = 1;
    report;
    report while <STDIN>;
"#;

/// A container that reports its time.
struct Clock<'a> {
    runtime: &'a Runtime,
    id: String,
    child: Child,
    questions: Option<ChildStdin>,
    answers: BufReader<ChildStdout>,
    /// The difference of the time of day and the time since the boot when the container's program began.
    first: f64,
}

impl<'a> Clock<'a> {
    fn start(runtime: &'a Runtime, bundle: &Bundle) -> Self {
        let id = new_id();
        let mut command = runtime.command(&["run", "--bundle"]);
        command.arg(bundle.path()).arg(&id).stdin(Stdio::piped()).stdout(Stdio::piped());
        let mut child = command.spawn().unwrap();
        let questions = child.stdin.take();
        let answers = BufReader::new(child.stdout.take().unwrap());
        let mut clock = Self { runtime, id, child, questions, answers, first: 0.0 };
        clock.first = clock.read_answer().1;
        clock
    }

    fn read_answer(&mut self) -> (f64, f64) {
        let mut line = String::new();
        self.answers.read_line(&mut line).unwrap();
        let (time, difference) = line.trim().split_once(' ').unwrap_or_else(|| panic!("{line:?} is no time"));
        (time.parse().unwrap(), difference.parse().unwrap())
    }

    fn ask(&mut self) -> (f64, f64) {
        self.questions.as_ref().unwrap().write_all(b"\n").unwrap();
        self.read_answer()
    }

    /// The least possible error of the clock, in seconds: the container reads its clock between two readings of the host's.
    fn error(&mut self) -> f64 {
        let before = host_time();
        let (time, _) = self.ask();
        (before - time).max(time - host_time()).max(0.0)
    }

    fn worst_error(&mut self) -> f64 {
        (0..40).map(|_| self.error()).fold(0.0, f64::max)
    }

    fn assert_right(&mut self, when: &str) {
        let worst = self.worst_error();
        assert!(worst <= TOLERANCE, "{when}: wrong by {worst} s");
    }

    fn await_right(&mut self, when: &str) {
        let right = eventually(TIMEOUT, || (self.worst_error() <= TOLERANCE).then_some(()));
        assert!(right.is_some(), "{when}: still wrong by {} s", self.worst_error());
    }

    fn call(&self, command: &str) {
        self.runtime.call(&[command, &self.id]).ok();
    }

    fn end(mut self) {
        drop(self.questions.take());
        assert_eq!(wait(&mut self.child), 0);
    }
}

fn host_time() -> f64 {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_secs_f64()
}

fn move_host_clock(seconds: i64) {
    let now = clock_gettime(ClockId::CLOCK_REALTIME).unwrap();
    clock_settime(ClockId::CLOCK_REALTIME, now + TimeSpec::new(seconds, 0)).unwrap();
}

#[test]
fn the_time_of_day_is_the_hosts_from_the_start_and_after_changes() {
    let runtime = Runtime::new();
    let bundle = Bundle::debian(["perl", "-e", PROGRAM]);
    let mut paused = Clock::start(&runtime, &bundle);
    paused.call("pause");
    let since = Instant::now();
    let mut clocks: Vec<_> = (1..containers()).map(|_| Clock::start(&runtime, &bundle)).collect();
    for clock in &mut clocks {
        clock.assert_right("at the start");
        // A correction since the program began would appear here.
        let corrected = clock.ask().1 - clock.first;
        assert!(corrected.abs() <= TOLERANCE, "the clock was wrong by {corrected} s when the program began");
    }
    std::thread::sleep(Duration::from_secs(60).saturating_sub(since.elapsed()));
    paused.call("resume");
    paused.assert_right("after a pause");
    clocks.push(paused);
    for seconds in [3600, -7200, 3600] {
        move_host_clock(seconds);
        for clock in &mut clocks {
            clock.await_right("after the host's clock was moved");
        }
    }
    clocks.into_iter().for_each(Clock::end);
}

#[test]
fn the_time_of_a_new_file_on_a_share_is_not_in_the_future() {
    let runtime = Runtime::new();
    let script = "import os, time\nfor name in range(20):\n before = time.time()\n open('/w/f%d' % name, 'w').close()\n \
                  changed = os.stat('/w/f%d' % name).st_mtime\n \
                  assert before - 0.02 <= changed <= time.time() + 0.02, (before, changed, time.time())";
    let directory = tempfile::tempdir().unwrap();
    runtime.run(&Bundle::debian(["python3", "-c", script]).bind(directory.path(), "/w", &[])).ok();
}
