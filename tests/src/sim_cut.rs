//! How a failing seed is made smaller: a *cut* of what the seed itself does. Pure.
//!
//! A cut leaves out mishaps, ends the time of faults earlier, begins fewer operations, has fewer clients. What is left happens
//! as it would have, so a cut of a failing seed mostly fails the same way. [`minimise`] tries cuts within a budget of runs and keeps each one
//! that fails. As text a cut is `faults=3+7,ms=2100,ops=120,clients=1`: what `./dev sim --cut` takes and regressions.txt holds.

use std::collections::BTreeSet;
use std::fmt;
use std::str::FromStr;

/// How many runs a minimisation may take.
const RUNS_MAX: u32 = 90;

/// What is left of a seed. The default is all of it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Cut {
    /// Groups of faults that happen; `None`: all.
    pub faults: Option<BTreeSet<u32>>,
    /// How long faults happen and clients work, in milliseconds.
    pub length_ms: Option<u64>,
    /// Operations that clients begin.
    pub operations: Option<u64>,
    /// Clients.
    pub clients: Option<usize>,
}

/// Not a cut.
#[derive(Debug, PartialEq, Eq)]
pub struct NotACut(String);

impl std::error::Error for NotACut {}

impl fmt::Display for NotACut {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?} is no part of a cut such as faults=3+7,ms=2100,ops=120,clients=1", self.0)
    }
}

impl FromStr for Cut {
    type Err = NotACut;

    fn from_str(text: &str) -> Result<Cut, NotACut> {
        let mut cut = Cut::default();
        for part in text.split(',').filter(|part| !part.is_empty() && *part != "all") {
            let wrong = || NotACut(part.to_owned());
            let (name, value) = part.split_once('=').ok_or_else(wrong)?;
            let number = || value.parse::<u64>().map_err(|_| wrong());
            match name {
                "faults" => {
                    let groups = value.split('+').filter(|group| !group.is_empty());
                    let groups: Result<_, _> =
                        groups.map(|group| group.parse().map_err(|_| wrong())).collect();
                    cut.faults = Some(groups?);
                }
                "ms" => cut.length_ms = Some(number()?),
                "ops" => cut.operations = Some(number()?),
                "clients" => cut.clients = Some(usize::try_from(number()?.max(1)).map_err(|_| wrong())?),
                _ => return Err(wrong()),
            }
        }
        Ok(cut)
    }
}

impl fmt::Display for Cut {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut parts = Vec::new();
        if let Some(faults) = &self.faults {
            let groups: Vec<String> = faults.iter().map(u32::to_string).collect();
            parts.push(format!("faults={}", groups.join("+")));
        }
        parts.extend(self.length_ms.map(|ms| format!("ms={ms}")));
        parts.extend(self.operations.map(|count| format!("ops={count}")));
        parts.extend(self.clients.map(|count| format!("clients={count}")));
        f.write_str(if parts.is_empty() { "all".to_owned() } else { parts.join(",") }.as_str())
    }
}

/// What a run that failed was made of, which a minimisation begins with.
#[derive(Clone, Debug)]
pub struct Extent {
    /// Groups of faults that happened.
    pub faults: BTreeSet<u32>,
    /// Milliseconds of faults.
    pub length_ms: u64,
    /// Operations begun.
    pub operations: u64,
    /// Clients.
    pub clients: usize,
}

/// Makes `cut` smaller while `fails` says that it still fails: half of the faults at a time, then single ones; then the time, the operations, the
/// clients. `whole`: what the failing run was made of. Answer: the smallest found, and the runs that it took.
pub fn minimise(whole: &Extent, mut fails: impl FnMut(&Cut) -> bool) -> (Cut, u32) {
    let mut best = Cut::default();
    let mut runs = 0;
    let mut attempt = |best: &mut Cut, candidate: Cut| {
        if runs >= RUNS_MAX || candidate == *best {
            return false;
        }
        runs += 1;
        let is_better = fails(&candidate);
        if is_better {
            *best = candidate;
        }
        is_better
    };
    // Time first: it makes every later run shorter.
    let mut least = 0;
    let mut length = whole.length_ms;
    while length - least > whole.length_ms / 32 {
        let half = least.midpoint(length);
        let candidate = Cut { length_ms: Some(half), ..best.clone() };
        if attempt(&mut best, candidate) { length = half } else { least = half }
    }
    // Faults: pieces of half, a quarter and so on left out, down to single ones.
    let mut kept: Vec<u32> = whole.faults.iter().copied().collect();
    let mut piece = kept.len().max(1);
    loop {
        let mut at = 0;
        while at < kept.len() {
            let end = (at + piece).min(kept.len());
            let without: Vec<u32> = kept[..at].iter().chain(&kept[end..]).copied().collect();
            let candidate = Cut { faults: Some(without.iter().copied().collect()), ..best.clone() };
            if attempt(&mut best, candidate) { kept = without } else { at = end }
        }
        if piece == 1 {
            break;
        }
        piece = piece.div_ceil(2);
    }
    for clients in 1..whole.clients {
        let candidate = Cut { clients: Some(clients), ..best.clone() };
        if attempt(&mut best, candidate) {
            break;
        }
    }
    let (mut least, mut most) = (0, whole.operations);
    while most - least > 1 + most / 32 {
        let half = least.midpoint(most);
        let candidate = Cut { operations: Some(half), ..best.clone() };
        if attempt(&mut best, candidate) { most = half } else { least = half }
    }
    (best, runs)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_cut_is_read_as_it_is_written() {
        for text in ["all", "faults=3+7,ms=2100,ops=120,clients=1", "faults=", "ms=5", "ops=0"] {
            assert_eq!(text.parse::<Cut>().unwrap().to_string(), text);
        }
        assert_eq!("".parse::<Cut>(), Ok(Cut::default()));
        for text in ["faults=x", "ms", "ms=", "nodes=3", "ops=-1"] {
            assert!(text.parse::<Cut>().is_err(), "{text} is no cut");
        }
    }

    #[test]
    fn a_minimisation_finds_what_a_failure_needs_and_nothing_else() {
        let whole = Extent { faults: (1..=20).collect(), length_ms: 8000, operations: 400, clients: 3 };
        let needs = |cut: &Cut| {
            let has = |group| cut.faults.as_ref().is_none_or(|faults| faults.contains(&group));
            has(4)
                && has(17)
                && cut.length_ms.is_none_or(|ms| ms >= 3000)
                && cut.operations.is_none_or(|count| count >= 77)
                && cut.clients.is_none_or(|count| count >= 2)
        };
        let (cut, runs) = minimise(&whole, needs);
        assert!(needs(&cut) && runs <= RUNS_MAX, "{cut} after {runs} runs");
        assert_eq!(cut.faults, Some(BTreeSet::from([4, 17])));
        assert!((3000..=3250).contains(&cut.length_ms.unwrap()), "{cut}");
        assert!((77..=90).contains(&cut.operations.unwrap()), "{cut}");
        assert_eq!(cut.clients, Some(2));
    }

    #[test]
    fn a_failure_that_needs_nothing_is_cut_to_nothing_and_one_that_needs_all_stays_whole() {
        let whole = Extent { faults: (1..=9).collect(), length_ms: 8000, operations: 400, clients: 2 };
        let (cut, _) = minimise(&whole, |_| true);
        assert_eq!(cut.faults, Some(BTreeSet::new()));
        assert!(
            cut.length_ms.unwrap() <= 250 && cut.operations.unwrap() <= 13 && cut.clients == Some(1),
            "{cut}"
        );
        let (cut, runs) = minimise(&whole, |_| false);
        assert_eq!((cut, runs <= RUNS_MAX), (Cut::default(), true));
    }
}
