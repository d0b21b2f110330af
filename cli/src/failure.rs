//! What a command says when it cannot do what was asked: one clear line, and an exit status.

use std::fmt;

/// A command's failure: printed as `clovis: MESSAGE`, exit status 1.
#[derive(Debug)]
pub struct Failure {
    message: String,
}

impl Failure {
    /// A failure with this message: what was wrong and what to do.
    pub fn new(message: impl Into<String>) -> Failure {
        Failure { message: message.into() }
    }

    /// Turns an error into a failure, saying what was being done: `DOING: ERROR`.
    pub fn while_doing<E: fmt::Display>(doing: impl fmt::Display) -> impl FnOnce(E) -> Failure {
        move |error| Failure { message: format!("{doing}: {error}") }
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // One line, also when a cause brought several.
        let mut lines = self.message.lines().map(str::trim).filter(|line| !line.is_empty());
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
