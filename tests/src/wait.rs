//! Waiting for a condition of another process, with a deadline: never a pause of a guessed length.

use std::time::{Duration, Instant};

/// Time between two looks at the condition: short against a process start, long against the cost of a look.
const LOOK_INTERVAL: Duration = Duration::from_millis(10);

/// The condition did not come true in time.
#[derive(Debug, thiserror::Error)]
#[error("{what}: not so after {waited:?}")]
pub struct NotInTime {
    /// What was waited for, in words.
    pub what: String,
    /// How long.
    pub waited: Duration,
}

/// Looks again and again until `condition` gives a value, at most `limit` long. `what` says it in words, for the error.
///
/// The condition is looked at once more after the deadline, so a test that was not scheduled for a while does not fail for that.
///
/// # Errors
/// [`NotInTime`] when the limit is over.
#[allow(
    clippy::disallowed_methods,
    reason = "other processes live in real time, and so does this wait for them"
)]
pub fn until<T>(
    what: &str,
    limit: Duration,
    mut condition: impl FnMut() -> Option<T>,
) -> Result<T, NotInTime> {
    let started = Instant::now();
    loop {
        let is_over = started.elapsed() >= limit;
        if let Some(value) = condition() {
            return Ok(value);
        }
        if is_over {
            return Err(NotInTime { what: what.to_owned(), waited: started.elapsed() });
        }
        std::thread::sleep(LOOK_INTERVAL);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn gives_the_value_when_it_comes() {
        let mut looks = 0;
        let value = until("three looks", Duration::from_secs(10), || {
            looks += 1;
            (looks == 3).then_some(looks)
        });
        assert_eq!(value.unwrap(), 3);
    }

    #[test]
    fn says_what_did_not_come() {
        let error = until("the moon", Duration::from_millis(30), || None::<()>).unwrap_err();
        assert!(error.waited >= Duration::from_millis(30));
        assert!(error.to_string().starts_with("the moon: not so after"), "{error}");
    }
}
