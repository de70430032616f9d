//! The last line of a VMM's log, which a signal handler writes: what ended the process.

use super::seccomp::class_name;

/// A line of text, made without allocation: a signal handler may interrupt the allocator.
pub(super) struct LastLine {
    bytes: [u8; 160],
    length: usize,
}

impl LastLine {
    /// Begins the line with the time, what happened, and the class of the calling thread.
    pub(super) fn new(event: &str) -> Self {
        let mut line = Self::empty();
        // SAFETY: `time` may be called in a signal handler, and a null pointer asks for the result only.
        let seconds = unsafe { libc::time(std::ptr::null_mut()) };
        line.add_number(u32::try_from(seconds).unwrap_or_default());
        line.add(" ERROR ");
        line.add(event);
        line.add(": a thread of class ");
        line.add(class_name());
        line
    }

    fn empty() -> Self {
        Self { bytes: [0; 160], length: 0 }
    }

    /// Appends what fits.
    pub(super) fn add(&mut self, text: &str) {
        for (to, from) in self.bytes[self.length..].iter_mut().zip(text.bytes()) {
            *to = from;
            self.length += 1;
        }
    }

    pub(super) fn add_number(&mut self, number: u32) {
        if number >= 10 {
            self.add_number(number / 10);
        }
        let digit = [b'0' + u8::try_from(number % 10).unwrap_or_default()];
        self.add(str::from_utf8(&digit).unwrap_or_default());
    }

    /// Writes the line to the log, and ends the process.
    pub(super) fn end_process(mut self, status: i32) -> ! {
        self.add("\n");
        // SAFETY: pointer and length are those of the buffer. Both calls may be made in a signal handler.
        unsafe {
            libc::write(libc::STDERR_FILENO, self.bytes.as_ptr().cast(), self.length);
            libc::_exit(status)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_takes_what_fits() {
        let mut line = LastLine::empty();
        line.add_number(1905);
        line.add(" x");
        assert_eq!(&line.bytes[..line.length], b"1905 x");
        line.add(&"y".repeat(1000));
        assert_eq!(line.length, 160);
    }
}
