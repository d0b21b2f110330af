//! The configuration in force as bytes, what changed from one version to the next, and what whoever asks is told of it. Pure.
//!
//! **Invariant**: a version that somebody was told of leads to the newest by the differences that are kept, or everything is told anew.
//! **Invariant**: parts that are told under one version are parts of the same bytes. Who begins to fetch everything gets the version that was
//! handed out last, for [`CONF_HANDOUT`]: it does not change under those who are at it, and what changed since follows as a difference.
//! Bounds: the newest version, two that are handed out, [`CONF_HISTORY_STEPS`] differences of [`CONF_HISTORY_BYTES`] together; nothing for
//! each reader. Left over: after a restart nothing is known of differences, and everybody whose version is older fetches everything.
//! Start at [`ConfBook::answer`].

use std::collections::VecDeque;
use std::rc::Rc;

use base::Instant;
use base::checksum::crc32c;
use base::units::wide;
use faces::conf_difference::difference;
use faces::limits::{
    CONF_CHANGES_BYTES, CONF_HANDOUT, CONF_HISTORY_BYTES, CONF_HISTORY_STEPS, CONF_PART_BYTES,
    CONF_SPLICE_BYTES,
};
use faces::{Configuration, ConfigurationError};
use fops::conf_sync::{ConfSplice, ConfSync, ConfSyncReply};

/// A configuration as it travels and is stored.
#[derive(Clone, Debug)]
pub struct ConfBytes {
    /// Its version.
    pub version: u64,
    /// Encoded.
    pub bytes: Rc<[u8]>,
    /// CRC-32C of them.
    pub checksum: u32,
}

impl ConfBytes {
    /// Errors: larger than the limits allow.
    pub fn of(configuration: &Configuration) -> Result<ConfBytes, ConfigurationError> {
        let bytes: Rc<[u8]> = configuration.to_bytes()?.into();
        let checksum = crc32c(&bytes);
        Ok(ConfBytes { version: configuration.version, bytes, checksum })
    }
}

/// From one version to the next that was told of.
#[derive(Debug)]
struct Step {
    from: u64,
    to: u64,
    /// Of the bytes afterwards.
    checksum: u32,
    bytes: usize,
    splices: Vec<ConfSplice>,
}

/// What is known of the configuration and its last versions.
#[derive(Debug)]
pub struct ConfBook {
    newest: ConfBytes,
    /// Each begins where the one before ended; the last one ends at the newest.
    steps: VecDeque<Step>,
    steps_bytes: usize,
    /// Versions that are being fetched, with when that began: the one for those who begin, and the one before.
    handouts: [Option<(Instant, ConfBytes)>; 2],
}

/// Bytes of a step in a message: a count, and its splices.
fn bytes_of(splices: &[ConfSplice]) -> usize {
    8 + splices.iter().map(|splice| CONF_SPLICE_BYTES + splice.put.len()).sum::<usize>()
}

impl ConfBook {
    /// A book that knows no other version.
    #[must_use]
    pub fn new(newest: ConfBytes) -> ConfBook {
        ConfBook { newest, steps: VecDeque::new(), steps_bytes: 0, handouts: [None, None] }
    }

    /// The newest version.
    #[must_use]
    pub fn newest(&self) -> &ConfBytes {
        &self.newest
    }

    /// A newer version is in force, and durable.
    pub fn publish(&mut self, next: ConfBytes) {
        let splices = difference(&self.newest.bytes, &next.bytes);
        let bytes = bytes_of(&splices);
        if bytes > CONF_CHANGES_BYTES {
            // Not told in one message: those who have an older one fetch everything.
            self.steps.clear();
            self.steps_bytes = 0;
        } else {
            let (from, to, checksum) = (self.newest.version, next.version, next.checksum);
            self.steps.push_back(Step { from, to, checksum, bytes, splices });
            self.steps_bytes += bytes;
        }
        while self.steps.len() > CONF_HISTORY_STEPS || self.steps_bytes > CONF_HISTORY_BYTES {
            self.steps_bytes -= self.steps.pop_front().map_or(0, |step| step.bytes);
        }
        self.newest = next;
    }

    /// Index of the difference that begins at a version.
    fn step_from(&self, version: u64) -> Option<usize> {
        self.steps.binary_search_by_key(&version, |step| step.from).ok()
    }

    /// What somebody is told at `now`. Of a version that is newer than any here it is told what there is.
    pub fn answer(&mut self, now: Instant, ask: &ConfSync) -> ConfSyncReply {
        let newest = self.newest.version;
        if ask.known_version >= newest {
            return ConfSyncReply::Current { version: newest };
        }
        if ask.version != 0
            && let Some(begun) = self.being_fetched(ask.version)
        {
            return part_of(begun, newest, ask.offset);
        }
        if let Some(first) = self.step_from(ask.known_version) {
            return self.changes(first);
        }
        part_of(self.hand_out(now, ask.known_version), newest, 0)
    }

    fn being_fetched(&self, version: u64) -> Option<&ConfBytes> {
        let handed_out = self.handouts.iter().flatten().map(|(_, handed_out)| handed_out);
        handed_out.chain([&self.newest]).find(|one| one.version == version)
    }

    fn changes(&self, first: usize) -> ConfSyncReply {
        let (mut steps, mut bytes) = (Vec::new(), 0);
        let (mut version, mut checksum) = (0, 0);
        for step in self.steps.range(first..) {
            bytes += step.bytes;
            // The first one always fits.
            if bytes > CONF_CHANGES_BYTES {
                break;
            }
            steps.push(step.splices.clone());
            (version, checksum) = (step.to, step.checksum);
        }
        ConfSyncReply::Changes { version, newest: self.newest.version, checksum, steps }
    }

    /// The version for one who begins to fetch everything and knows `known`.
    fn hand_out(&mut self, now: Instant, known: u64) -> &ConfBytes {
        let leads_on = |one: &ConfBytes| {
            one.version > known
                && (one.version == self.newest.version || self.step_from(one.version).is_some())
        };
        let is_good = self.handouts[0].as_ref().is_some_and(|(since, one)| {
            leads_on(one) && (*since + CONF_HANDOUT > now || one.version == self.newest.version)
        });
        if !is_good {
            self.handouts[1] = self.handouts[0].take();
        }
        let newest = &self.newest;
        &self.handouts[0].get_or_insert_with(|| (now, newest.clone())).1
    }
}

fn part_of(whole: &ConfBytes, newest: u64, offset: u64) -> ConfSyncReply {
    let from = usize::try_from(offset).unwrap_or(usize::MAX).min(whole.bytes.len());
    let end = from.saturating_add(CONF_PART_BYTES).min(whole.bytes.len());
    ConfSyncReply::Part {
        version: whole.version,
        newest,
        total_bytes: wide(whole.bytes.len()),
        checksum: whole.checksum,
        offset: wide(from),
        part: whole.bytes[from..end].to_vec(),
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use faces::conf_difference::apply;
    use faces::conf_parts::{Parts, Whole};
    use faces::limits::CONFIGURATION_BYTES_MAX;

    use super::*;

    fn at(ms: u64) -> Instant {
        Instant::ZERO + Duration::from_millis(ms)
    }

    /// Bytes of a version: its number, and places that its changes hit.
    fn bytes(version: u64, len: usize) -> ConfBytes {
        let mut bytes = vec![0; len];
        bytes[..8].copy_from_slice(&version.to_le_bytes());
        for change in 1..=version {
            let place = 8 + base::units::narrow(change * 997) % (len - 8);
            bytes[place] = bytes[place].wrapping_add(1);
        }
        let checksum = crc32c(&bytes);
        ConfBytes { version, bytes: bytes.into(), checksum }
    }

    fn ask(known_version: u64, version: u64, offset: u64) -> ConfSync {
        ConfSync { format: 2, known_version, version, offset }
    }

    /// A reader as `ConfClient` is one: what it has, and how many messages it took to have the newest.
    fn follow(book: &mut ConfBook, now: Instant, mut have: Option<ConfBytes>) -> (ConfBytes, usize) {
        let mut parts: Option<Parts> = None;
        for messages in 1..100 {
            let known = have.as_ref().map_or(0, |have| have.version);
            let begun = parts.as_ref().map_or((0, 0), |parts| (parts.version(), parts.offset()));
            match book.answer(now, &ask(known, begun.0, begun.1)) {
                ConfSyncReply::Current { version } => {
                    let have = have.expect("nobody is current without anything");
                    assert_eq!(version, have.version);
                    return (have, messages);
                }
                ConfSyncReply::Changes { version, checksum, steps, .. } => {
                    let mut bytes = have.take().expect("changes of something").bytes.to_vec();
                    for step in &steps {
                        apply(&mut bytes, step, CONFIGURATION_BYTES_MAX).unwrap();
                    }
                    assert_eq!(crc32c(&bytes), checksum);
                    have = Some(ConfBytes { version, bytes: bytes.into(), checksum });
                }
                ConfSyncReply::Part { version, total_bytes, checksum, offset, part, .. } => {
                    let whole = Whole { version, bytes: total_bytes, checksum };
                    let mut so_far = parts.take().unwrap_or_else(|| Parts::begin(whole).unwrap());
                    if so_far.take(whole, offset, &part).unwrap() {
                        let bytes = so_far.into_bytes().unwrap().into();
                        have = Some(ConfBytes { version, bytes, checksum });
                    } else {
                        parts = Some(so_far);
                    }
                }
            }
        }
        panic!("not whole after 100 messages");
    }

    #[test]
    fn who_has_nothing_gets_parts_and_who_has_a_version_gets_what_changed() {
        const LEN: usize = 700_000;
        let mut book = ConfBook::new(bytes(1, LEN));
        let (first, messages) = follow(&mut book, at(0), None);
        assert_eq!((first.version, messages), (1, LEN.div_ceil(CONF_PART_BYTES) + 1));
        for version in 2..=50 {
            book.publish(bytes(version, LEN));
        }
        let (newest, messages) = follow(&mut book, at(1), Some(first));
        assert!((newest.version, messages) == (50, 2) && newest.bytes == bytes(50, LEN).bytes);
        // One device: some dozens of bytes.
        let ConfSyncReply::Changes { steps, .. } = book.answer(at(1), &ask(49, 0, 0)) else {
            panic!("no changes")
        };
        assert!(bytes_of(&steps[0]) <= 64, "{} bytes", bytes_of(&steps[0]));
        assert_eq!(book.answer(at(1), &ask(51, 0, 0)), ConfSyncReply::Current { version: 50 });
    }

    #[test]
    fn versions_that_come_while_somebody_fetches_do_not_keep_it_from_the_end() {
        const LEN: usize = 700_000;
        let mut book = ConfBook::new(bytes(1, LEN));
        let mut parts: Option<Parts> = None;
        let mut version = 1;
        // A version for each part that is fetched, and somebody else who begins with each.
        let whole = loop {
            let begun = parts.as_ref().map_or((0, 0), |parts| (parts.version(), parts.offset()));
            let now = at(version * 100);
            let ConfSyncReply::Part { version: of, total_bytes, checksum, offset, part, newest } =
                book.answer(now, &ask(0, begun.0, begun.1))
            else {
                panic!("no part")
            };
            assert_eq!((of, newest), (1, version));
            let whole = Whole { version: of, bytes: total_bytes, checksum };
            let mut so_far = parts.take().unwrap_or_else(|| Parts::begin(whole).unwrap());
            if so_far.take(whole, offset, &part).unwrap() {
                break ConfBytes { version: of, bytes: so_far.into_bytes().unwrap().into(), checksum };
            }
            parts = Some(so_far);
            version += 1;
            book.publish(bytes(version, LEN));
            follow(&mut book, now, None);
        };
        let (newest, messages) = follow(&mut book, at(2_000), Some(whole));
        assert!(newest.version == version && messages == 2 && newest.bytes == bytes(version, LEN).bytes);
        // Later the handout is a newer one, and the one before is still told to its end.
        let late = at(2_000) + CONF_HANDOUT;
        let part = |book: &mut ConfBook, ask: &ConfSync| match book.answer(late, ask) {
            ConfSyncReply::Part { version, offset, .. } => (version, offset),
            other => panic!("{other:?}"),
        };
        assert_eq!(part(&mut book, &ask(0, 0, 0)), (version, 0));
        assert_eq!(part(&mut book, &ask(0, 1, 4096)), (1, 4096));
        assert_eq!(part(&mut book, &ask(0, 7, 4096)), (version, 0), "begun anew");
        assert_eq!(part(&mut book, &ask(0, 1, u64::MAX)).1, wide(LEN), "behind its end");
    }

    #[test]
    fn the_history_is_bounded_and_who_is_too_far_behind_fetches_everything() {
        const LEN: usize = 100_000;
        let mut book = ConfBook::new(bytes(1, LEN));
        let (old, _) = follow(&mut book, at(0), None);
        for version in 2..=base::units::wide(CONF_HISTORY_STEPS) + 2 {
            book.publish(bytes(version, LEN));
        }
        assert_eq!(book.steps.len(), CONF_HISTORY_STEPS);
        assert!(matches!(book.answer(at(9_000), &ask(1, 0, 0)), ConfSyncReply::Part { .. }));
        let (newest, _) = follow(&mut book, at(9_000), Some(old));
        assert_eq!(newest.version, book.newest().version);
        // Many small ones come in several messages.
        let (_, messages) = follow(&mut book, at(9_000), Some(bytes(2, LEN)));
        assert!((3..20).contains(&messages), "{messages}");
        // One that is nearly everything.
        let mut other = bytes(newest.version + 1, LEN).bytes.to_vec();
        other[8..].iter_mut().for_each(|byte| *byte ^= 255);
        let checksum = crc32c(&other);
        book.publish(ConfBytes { version: newest.version + 1, bytes: other.into(), checksum });
        assert_eq!((book.steps.len(), book.steps_bytes), (0, 0));
        let (last, _) = follow(&mut book, at(9_001), Some(newest.clone()));
        assert_eq!(last.version, newest.version + 1);
    }
}
