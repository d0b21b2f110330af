//! What a check found, and how it is shown.

use serde_json::{Value, json};

/// How a finding counts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// Nothing to do.
    Ok,
    /// It works, but slower, or less long; or it cannot be told from here.
    Warn,
    /// It does not work, or will not.
    Fail,
}

impl Verdict {
    pub const fn word(self) -> &'static str {
        match self {
            Verdict::Ok => "ok",
            Verdict::Warn => "warn",
            Verdict::Fail => "fail",
        }
    }
}

/// One check's answer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Finding {
    /// What was looked at.
    pub check: String,
    pub verdict: Verdict,
    /// What was seen, in this run.
    pub seen: String,
    /// Why it matters.
    pub why: &'static str,
    /// The exact thing to do; nothing if all is well.
    pub todo: Option<String>,
}

impl Finding {
    pub fn ok(check: impl Into<String>, seen: impl Into<String>, why: &'static str) -> Finding {
        Finding { check: check.into(), verdict: Verdict::Ok, seen: seen.into(), why, todo: None }
    }

    pub fn warn(
        check: impl Into<String>,
        seen: impl Into<String>,
        why: &'static str,
        todo: impl Into<String>,
    ) -> Finding {
        let todo = Some(todo.into());
        Finding { check: check.into(), verdict: Verdict::Warn, seen: seen.into(), why, todo }
    }

    pub fn fail(
        check: impl Into<String>,
        seen: impl Into<String>,
        why: &'static str,
        todo: impl Into<String>,
    ) -> Finding {
        Finding { verdict: Verdict::Fail, ..Finding::warn(check, seen, why, todo) }
    }

    /// Lines for people: one if all is well, else with why and what to do.
    pub fn text(&self, width: usize) -> String {
        let mut text = format!("{:<4}  {:<width$}  {}\n", self.verdict.word(), self.check, self.seen);
        if let Some(todo) = &self.todo {
            text.push_str(&format!("      why:  {}\n      do:   {todo}\n", self.why));
        }
        text
    }

    pub fn json(&self) -> Value {
        json!({ "check": self.check, "verdict": self.verdict.word(), "seen": self.seen, "why": self.why, "do": self.todo })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_well_takes_one_line_and_what_is_not_says_why_and_what_to_do() {
        assert_eq!(Finding::ok("a", "b", "c").text(3), "ok    a    b\n");
        let text = Finding::fail("a", "b", "c", "d").text(1);
        assert_eq!(text, "fail  a  b\n      why:  c\n      do:   d\n");
        assert_eq!(Finding::warn("a", "b", "c", "d").json()["verdict"], "warn");
    }
}
