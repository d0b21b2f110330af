//! What a client may do: the rights that its credential carries, and a set of them.
//!
//! Each right stands for itself: none brings another with it, but without [`Right::Connect`] no connection is made. Texts are
//! `connect,read,write`; docs/security.md says what each one opens.

use std::fmt;
use std::str::FromStr;

/// One right.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
#[repr(u8)]
pub enum Right {
    /// Connect to the daemons, and see the configuration and their states.
    Connect = 1,
    /// Read objects, list them, watch them, take shared locks.
    Read = 2,
    /// Make, change and delete objects, notify watchers, take exclusive locks.
    Write = 4,
    /// Change the configuration and the states of devices, break locks, set faults, end daemons.
    Administer = 8,
    /// Be a daemon of the cluster: take connections, register, give signs of life. Not for clients.
    Serve = 16,
}

impl Right {
    /// All of them.
    pub const ALL: [Right; 5] = [Right::Connect, Right::Read, Right::Write, Right::Administer, Right::Serve];

    /// Its word.
    #[must_use]
    pub const fn word(self) -> &'static str {
        match self {
            Right::Connect => "connect",
            Right::Read => "read",
            Right::Write => "write",
            Right::Administer => "administer",
            Right::Serve => "serve",
        }
    }
}

impl fmt::Display for Right {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.word())
    }
}

/// A set of rights.
#[derive(Clone, Copy, Default, PartialEq, Eq)]
pub struct Rights(u8);

impl Rights {
    /// None.
    pub const NONE: Rights = Rights(0);
    /// Every one: of a daemon, and of each peer where nobody asks for certificates.
    pub const ALL: Rights = Rights(31);
    /// What a client may have: all but to be a daemon.
    pub const CLIENT: Rights = Rights(15);

    /// This one alone.
    #[must_use]
    pub const fn only(right: Right) -> Rights {
        Rights(right as u8)
    }

    /// With one more.
    #[must_use]
    pub const fn with(self, right: Right) -> Rights {
        Rights(self.0 | right as u8)
    }

    /// Without one.
    #[must_use]
    pub const fn without(self, right: Right) -> Rights {
        Rights(self.0 & !(right as u8))
    }

    /// True if it is among them.
    #[must_use]
    pub const fn has(self, right: Right) -> bool {
        self.0 & right as u8 != 0
    }

    /// Those it has, in their order.
    pub fn iter(self) -> impl Iterator<Item = Right> {
        Right::ALL.into_iter().filter(move |right| self.has(*right))
    }
}

impl FromIterator<Right> for Rights {
    fn from_iter<I: IntoIterator<Item = Right>>(rights: I) -> Rights {
        rights.into_iter().fold(Rights::NONE, Rights::with)
    }
}

impl fmt::Display for Rights {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if *self == Rights::NONE {
            return f.write_str("none");
        }
        for (index, right) in self.iter().enumerate() {
            let comma = if index == 0 { "" } else { "," };
            write!(f, "{comma}{right}")?;
        }
        Ok(())
    }
}

impl fmt::Debug for Rights {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Rights({self})")
    }
}

/// A text names something else than rights.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{word:?} is no right: write some of connect, read, write, administer with commas between them")]
pub struct ParseRightsError {
    /// What stands there.
    pub word: String,
}

impl FromStr for Rights {
    type Err = ParseRightsError;
    fn from_str(text: &str) -> Result<Rights, ParseRightsError> {
        let right = |word: &str| {
            let found = Right::ALL.into_iter().find(|right| right.word() == word);
            found.ok_or_else(|| ParseRightsError { word: word.chars().take(32).collect() })
        };
        text.split(',').map(right).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sets_are_written_as_they_are_read() {
        for bits in 1..=31 {
            let rights = Rights(bits);
            assert_eq!(rights.to_string().parse::<Rights>(), Ok(rights));
        }
        assert_eq!(Rights::ALL.to_string(), "connect,read,write,administer,serve");
        assert_eq!(Rights::NONE.to_string(), "none");
        assert_eq!(Rights::CLIENT.with(Right::Serve), Rights::ALL);
    }

    #[test]
    fn no_right_brings_another() {
        let rights: Rights = "connect,write".parse().unwrap();
        assert!(rights.has(Right::Connect) && rights.has(Right::Write));
        assert!(!rights.has(Right::Read) && !rights.has(Right::Administer) && !rights.has(Right::Serve));
        assert_eq!(rights.without(Right::Write), Rights::only(Right::Connect));
    }

    #[test]
    fn other_words_are_refused_by_name() {
        for (text, word) in
            [("", ""), ("read,", ""), ("reed", "reed"), ("read, write", " write"), ("READ", "READ")]
        {
            assert_eq!(text.parse::<Rights>(), Err(ParseRightsError { word: word.to_owned() }));
        }
    }
}
