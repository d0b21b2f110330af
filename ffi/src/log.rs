//! One line on standard error for each misuse and each operation that failed; and the trace of C programs.
//!
//! `CLOVIS_LOG=off` silences the library's own lines. `CLOVIS_TRACE=debug` shows all levels of programs' own trace, else WARN and worse.
//! Global state: both are read from the environment once in a process.

use std::fmt;
use std::sync::OnceLock;

/// Prints a line, unless the user wants none. Never fails: there is nobody to tell.
pub fn line(what: fmt::Arguments<'_>) {
    static IS_OFF: OnceLock<bool> = OnceLock::new();
    if !*IS_OFF.get_or_init(|| std::env::var_os("CLOVIS_LOG").is_some_and(|value| value == "off")) {
        let text = format!("clovis: {what}\n");
        // One write for one line, so that lines of threads do not mix. A closed standard error is the user's wish.
        let _ = std::io::Write::write_all(&mut std::io::stderr(), text.as_bytes());
    }
}

/// Logs a line: `say!("{call}: {reason}")`.
#[macro_export]
macro_rules! say {
    ($($arguments:tt)*) => { $crate::log::line(format_args!($($arguments)*)) };
}

/// True if a program's own trace of this level is shown: the values of `enum m0_trace_level`.
#[must_use]
pub fn shows(level: u32) -> bool {
    const ALWAYS_SHOWN: u32 = 1 | 2 | 4 | 8;
    static ALL: OnceLock<bool> = OnceLock::new();
    level & ALWAYS_SHOWN != 0
        || *ALL.get_or_init(|| std::env::var_os("CLOVIS_TRACE").is_some_and(|value| value == "debug"))
}
