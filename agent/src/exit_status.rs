//! Descriptions of exit statuses.

use std::ffi::CStr;
use std::os::unix::process::ExitStatusExt;
use std::process::ExitStatus;

/// The description that Go, and so runc, uses: `exit status 4`, `signal: killed`.
#[must_use]
pub fn describe_exit_status(status: ExitStatus) -> String {
    let dumped = if status.core_dumped() { " (core dumped)" } else { "" };
    match (status.code(), status.signal()) {
        (Some(code), _) => format!("exit status {code}"),
        (None, Some(signal)) => format!("signal: {}{dumped}", signal_name(signal)),
        (None, None) => "unknown status".into(),
    }
}

fn signal_name(signal: i32) -> String {
    // SAFETY: every number is a valid argument. The result is null or a NUL-terminated string, which is valid until
    // this thread's next call.
    let text = unsafe {
        let text = libc::strsignal(signal);
        if text.is_null() { c"unknown signal" } else { CStr::from_ptr(text) }
    };
    text.to_string_lossy().to_lowercase()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn descriptions_are_those_of_go() {
        let of = |status| describe_exit_status(ExitStatus::from_raw(status));
        assert_eq!([of(4 << 8), of(9), of(31)], ["exit status 4", "signal: killed", "signal: bad system call"]);
        assert_eq!(of(11 | 0x80), "signal: segmentation fault (core dumped)");
    }
}
