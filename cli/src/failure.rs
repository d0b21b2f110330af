//! What a command says when it cannot do what was asked: one clear line, and an exit status.

use std::fmt;
use std::process::ExitCode;

/// Exit status of a program that SIGPIPE ended, as shells show it: 128 + 13.
const PIPE_STATUS: u8 = 141;

/// A command's failure: printed as `clovis: MESSAGE`, exit status 1.
#[derive(Debug)]
pub struct Failure {
    /// `None`: nothing is left to be said, and nobody to say it to.
    message: Option<String>,
}

impl Failure {
    /// A failure with this message: what was wrong and what to do.
    pub fn new(message: impl Into<String>) -> Failure {
        Failure { message: Some(message.into()) }
    }

    /// The reader of standard output has gone, as `head` does: the command ends without a word, like any other in a pipe.
    pub fn pipe_closed() -> Failure {
        Failure { message: None }
    }

    /// Prints the failure, if there is something to say, and gives the exit status of `program`.
    pub fn report(&self, program: &str) -> ExitCode {
        if self.message.is_none() {
            return ExitCode::from(PIPE_STATUS);
        }
        eprintln!("{program}: {self}");
        ExitCode::FAILURE
    }

    /// Turns an error into a failure, saying what was being done: `DOING: ERROR`.
    pub fn while_doing<E: fmt::Display>(doing: impl fmt::Display) -> impl FnOnce(E) -> Failure {
        move |error| Failure::new(format!("{doing}: {error}"))
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // One line, also when a cause brought several.
        let mut lines = self
            .message
            .as_deref()
            .unwrap_or("the reader of the output has gone")
            .lines()
            .map(str::trim)
            .filter(|line| !line.is_empty());
        f.write_str(lines.next().unwrap_or("unknown failure"))?;
        for line in lines {
            write!(f, "; {line}")?;
        }
        Ok(())
    }
}

impl std::error::Error for Failure {}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_failure_is_one_line() {
        let failure = Failure::while_doing("reading x")("first\n  second\n");
        assert_eq!(failure.to_string(), "reading x: first; second");
    }
}
