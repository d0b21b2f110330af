//! Standard output of a command. It may be a pipe that nobody reads any more, or a full disk: that is a failure like any
//! other, while the `println!` of the standard library would panic.

use std::io::{self, Write as _};

use crate::failure::Failure;

/// Writes a text, as it is. Errors: [`Failure::pipe_closed`] if the reader has gone; anything else by its name.
pub fn print(text: &str) -> Result<(), Failure> {
    let mut stdout = io::stdout().lock();
    stdout.write_all(text.as_bytes()).and_then(|()| stdout.flush()).map_err(failure)
}

/// Writes a text and ends the line.
pub fn line(text: &str) -> Result<(), Failure> {
    print(&format!("{text}\n"))
}

/// What it means that standard output did not take bytes.
pub fn failure(error: io::Error) -> Failure {
    match error.kind() {
        io::ErrorKind::BrokenPipe => Failure::pipe_closed(),
        _ => Failure::new(format!("writing to standard output: {error}")),
    }
}
