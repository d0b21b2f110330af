//! A progress bar on standard error where somebody watches; silence elsewhere.

use std::io::IsTerminal;

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};

/// Shows how far a step is. Dropping it clears the line.
#[derive(Debug)]
pub struct Progress {
    bar: ProgressBar,
}

impl Progress {
    /// A bar over `total_bytes` with a heading; invisible if standard error is no terminal or `quiet` is set.
    pub fn start(heading: &str, total_bytes: u64, quiet: bool) -> Progress {
        let visible = !quiet && std::io::stderr().is_terminal();
        let target =
            if visible { ProgressDrawTarget::stderr_with_hz(10) } else { ProgressDrawTarget::hidden() };
        let bar = ProgressBar::with_draw_target(Some(total_bytes), target);
        let template = "{msg:<24} [{bar:32}] {bytes:>10} of {total_bytes}  {bytes_per_sec}";
        if let Ok(style) = ProgressStyle::with_template(template) {
            bar.set_style(style.progress_chars("=> "));
        }
        bar.set_message(heading.to_owned());
        Progress { bar }
    }

    /// Another heading.
    pub fn head(&self, heading: &str) {
        self.bar.set_message(heading.to_owned());
    }

    /// `done_bytes` of the total are done.
    pub fn reach(&self, done_bytes: u64) {
        self.bar.set_position(done_bytes);
    }
}

impl Drop for Progress {
    fn drop(&mut self) {
        self.bar.finish_and_clear();
    }
}
