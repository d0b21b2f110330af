//! The repairs that servers run, as control orders and keeps them: what a server says and an operator wants in, an order out. Pure.
//!
//! One record for each device that was ever replaced: how its last repair stands and how far it is. The server of the device copies
//! (docs/ha.md#repair); it asks what to do, and tells how far it is. **Invariant**: only the word `Ended` with nothing lost makes a device
//! whole, and only of the process that serves it, for the disk that it has. What a server says of its progress is for people, and for
//! itself after a restart: a lie costs its own device, nobody else's.
//! Units that go to spare units, come back from there, or are freed there go through the same table under the fid of their device, with the number of the copy in
//! the place of the disk's (`faces::spares`).
//! A pool that is rebalanced goes through the same table under its own fid, with the number of the rebalance in the place of the disk's
//! (docs/pools.md#rebalance).
//! Bound: a record for each device and pool. Start at [`RepairTable::handle_turn`] and [`RepairTable::handle_order`].

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::time::Duration;

use base::{Fid, Instant};
use faces::limits::{REPAIR_LOST_NAMED, REPAIR_REASON_BYTES_MAX};
use fops::repair::{RepairOrder, RepairProgress, RepairRecord, RepairState, RepairWord};

/// A copy that was not heard of for so long is not under way: its server tells four times as often.
const SILENT_AFTER: Duration = Duration::from_secs(3);
/// The rate is that of the bytes of so long a time. A copy that is bounded writes up to four windows at once and pays for them after: 16 MiB, in 16 s at 1 MiB/s.
const PACE_WINDOW: Duration = Duration::from_secs(60);
/// Words that are closer to each other count as one.
const PACE_GRAIN: Duration = Duration::from_secs(1);
/// A copy that began less than so long ago has had this long: its first bytes say little of how fast it is.
const PACE_TIME_MIN: Duration = Duration::from_secs(4);

/// What an operator wants of a repair.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RepairWish {
    /// Again, from the first object.
    Start,
    /// Stand still.
    Pause,
    /// Go on.
    Resume,
    /// Give the new disk up.
    Abort,
}

impl RepairWish {
    /// Each, in the order of the table in the tests.
    pub const ALL: [RepairWish; 4] =
        [RepairWish::Start, RepairWish::Pause, RepairWish::Resume, RepairWish::Abort];
}

/// Why an order is refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum RepairRefusal {
    /// There is none.
    #[error(
        "nothing is repaired there: `clovis device replace` gives a failed device another disk, and its repair begins by itself; `clovis repair start` rebuilds the units of one that is failed in spare units"
    )]
    None,
    /// It stands still.
    #[error("its repair is paused: `clovis repair resume` lets it go on where it is")]
    Paused,
    /// What is freed is in nobody's way, and has to be freed.
    #[error("its repair is over; what stood in spare units is being freed, which ends by itself")]
    Freeing,
    /// It does not run.
    #[error(
        "its repair failed, and does not run: `clovis repair status` says why, `clovis repair start` tries it again from the first object"
    )]
    Failed,
}

/// What an order made of a repair.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RepairHappening {
    /// A server copies, for the first time or again.
    Begun,
    /// It stands still.
    Paused,
    /// It goes on.
    Resumed,
    /// The device has everything.
    Complete,
    /// It is given up until somebody or something changes.
    Failed,
    /// The new disk is given up.
    Aborted,
}

impl RepairHappening {
    /// The word for `fops::conf::Event`, at most 16 letters.
    #[must_use]
    pub const fn word(self) -> &'static str {
        match self {
            RepairHappening::Begun => "repair started",
            RepairHappening::Paused => "repair paused",
            RepairHappening::Resumed => "repair resumed",
            RepairHappening::Complete => "copy complete",
            RepairHappening::Failed => "repair failed",
            RepairHappening::Aborted => "repair aborted",
        }
    }

    /// The same of a pool that is rebalanced.
    #[must_use]
    pub const fn word_of_pool(self) -> &'static str {
        match self {
            RepairHappening::Begun => "moves begun",
            RepairHappening::Paused => "moves paused",
            RepairHappening::Resumed => "moves resumed",
            RepairHappening::Complete => "moves complete",
            RepairHappening::Failed => "moves failed",
            RepairHappening::Aborted => "moves aborted",
        }
    }
}

/// What a turn needs to know of the rest.
#[derive(Clone, Copy, Debug)]
pub struct Surroundings {
    /// Number of the disk that the device has, if it is in repair.
    pub in_repair: Option<u32>,
    /// Every server whose lease runs refuses the changes of those who do not know.
    pub all_know: bool,
    /// Configuration version in force.
    pub version: u64,
}

#[derive(Clone, Debug)]
struct Repair {
    record: RepairRecord,
    /// When its server last spoke, and whether it copied.
    heard: Option<(Instant, bool)>,
    /// Times and bytes of words: the last one, and others [`PACE_GRAIN`] apart, oldest first, back to [`PACE_WINDOW`] before it.
    pace: VecDeque<(Instant, u64)>,
    /// Configuration version when this pass over the objects began.
    pass_version: u64,
}

impl Repair {
    fn new(record: RepairRecord) -> Repair {
        Repair { record, heard: None, pace: VecDeque::new(), pass_version: 0 }
    }

    fn fresh(device: Fid, replacement: u32) -> Repair {
        Repair::new(RepairRecord {
            device,
            replacement,
            state: RepairState::Running,
            has_begun: false,
            reason: String::new(),
            failed_version: 0,
            progress: RepairProgress::default(),
        })
    }

    /// From the first object on.
    fn begin_again(&mut self) {
        let RepairRecord { device, replacement, .. } = self.record;
        self.record = Repair::fresh(device, replacement).record;
        self.pace.clear();
    }

    fn fail(&mut self, reason: &str) {
        self.record.state = RepairState::Failed;
        let mut end = reason.len().min(REPAIR_REASON_BYTES_MAX);
        while !reason.is_char_boundary(end) {
            end -= 1;
        }
        reason[..end].clone_into(&mut self.record.reason);
        self.record.failed_version = self.pass_version;
    }

    fn note(&mut self, now: Instant, progress: &RepairProgress) {
        let mut progress = progress.clone();
        progress.lost.truncate(REPAIR_LOST_NAMED);
        progress.lost_count = progress.lost_count.max(base::units::wide(progress.lost.len()));
        if self.pace.back().is_some_and(|(_, bytes)| *bytes > progress.bytes) {
            self.pace.clear();
        }
        // The last word makes room for this one, unless it is the first of its grain.
        if let [.., (before, _), (last, _)] = self.pace.make_contiguous()
            && *before + PACE_GRAIN > *last
        {
            self.pace.pop_back();
        }
        while self.pace.get(1).is_some_and(|(at, _)| *at + PACE_WINDOW <= now) {
            self.pace.pop_front();
        }
        self.pace.push_back((now, progress.bytes));
        self.record.progress = progress;
    }

    /// Of the last [`PACE_WINDOW`], or since it began or went on.
    fn bytes_per_second(&self) -> u64 {
        let (Some((since, from)), Some((until, to))) = (self.pace.front(), self.pace.back()) else {
            return 0;
        };
        let ms = until.since(*since).max(PACE_TIME_MIN).as_millis();
        u64::try_from(u128::from(to.saturating_sub(*from)) * 1000 / ms).unwrap_or(u64::MAX)
    }

    fn is_copying(&self, now: Instant) -> bool {
        self.heard.is_some_and(|(at, copies)| copies && at + SILENT_AFTER > now)
    }
}

/// See the module head.
#[derive(Clone, Debug, Default)]
pub struct RepairTable {
    repairs: BTreeMap<Fid, Repair>,
    changed: BTreeSet<Fid>,
    serial: u64,
}

impl RepairTable {
    /// What the store had.
    #[must_use]
    pub fn new(records: Vec<RepairRecord>) -> RepairTable {
        let repairs = records.into_iter().map(|record| (record.device, Repair::new(record))).collect();
        RepairTable { repairs, ..RepairTable::default() }
    }

    /// Grows with each change of a record.
    #[must_use]
    pub fn serial(&self) -> u64 {
        self.serial
    }

    /// Records that changed since the last call.
    pub fn take_changes(&mut self) -> Vec<RepairRecord> {
        let changed = std::mem::take(&mut self.changed);
        changed.iter().filter_map(|device| Some(self.repairs.get(device)?.record.clone())).collect()
    }

    /// Number of the last repair of a device, or rebalance of a pool; 0: there was none.
    #[must_use]
    pub fn last_number(&self, subject: Fid) -> u32 {
        self.repairs.get(&subject).map_or(0, |repair| repair.record.replacement)
    }

    /// How the last repair of a device, or rebalance of a pool, stands.
    #[must_use]
    pub fn state(&self, subject: Fid) -> Option<RepairState> {
        self.repairs.get(&subject).map(|repair| repair.record.state)
    }

    fn touch(&mut self, device: Fid) {
        self.serial += 1;
        self.changed.insert(device);
    }

    /// A device has a new disk: its repair begins by itself.
    pub fn begin(&mut self, device: Fid, replacement: u32) {
        self.repairs.insert(device, Repair::fresh(device, replacement));
        self.touch(device);
    }

    /// A device is failed again in the middle of its repair.
    pub fn abort(&mut self, device: Fid) {
        if let Some(repair) = self.repairs.get_mut(&device)
            && !matches!(repair.record.state, RepairState::Done | RepairState::Aborted)
        {
            repair.record.state = RepairState::Aborted;
            self.touch(device);
        }
    }

    /// The server of a device that it serves speaks. What happened, if something did: of [`RepairHappening::Complete`] the caller makes the
    /// device whole, in the same transaction.
    pub fn handle_turn(
        &mut self,
        now: Instant,
        (device, replacement): (Fid, u32),
        word: &RepairWord,
        around: Surroundings,
    ) -> (RepairOrder, RepairProgress, Option<RepairHappening>) {
        let copies = matches!(word, RepairWord::Copies(_));
        if around.in_repair != Some(replacement) {
            if let Some(repair) = self.repairs.get_mut(&device) {
                repair.heard = Some((now, copies));
            }
            return (RepairOrder::Leave, RepairProgress::default(), None);
        }
        let is_known = self.repairs.get(&device).is_some_and(|repair| {
            let RepairRecord { replacement: of, state, .. } = repair.record;
            of == replacement && !matches!(state, RepairState::Done | RepairState::Aborted)
        });
        if !is_known {
            // A store of a version before this one has none.
            self.begin(device, replacement);
        }
        let Some(repair) = self.repairs.get_mut(&device) else {
            return (RepairOrder::Wait, RepairProgress::default(), None);
        };
        let before = repair.record.clone();
        repair.heard = Some((now, copies));
        if let RepairWord::Copies(progress) | RepairWord::Ended(progress) | RepairWord::Fails(progress, _) =
            word
        {
            repair.note(now, progress);
        }
        let go = if around.all_know { RepairOrder::Run } else { RepairOrder::Wait };
        let (order, happening) = match (repair.record.state, word) {
            (_, RepairWord::Ended(_)) if repair.record.progress.lost_count == 0 => {
                repair.record.state = RepairState::Done;
                (RepairOrder::Leave, Some(RepairHappening::Complete))
            }
            (state, RepairWord::Ended(progress)) => {
                repair.fail(&format!("too many units are lost of {} objects", progress.lost_count));
                let is_new = state != RepairState::Failed;
                (RepairOrder::Pause, is_new.then_some(RepairHappening::Failed))
            }
            (RepairState::Running, RepairWord::Fails(_, reason)) => {
                repair.fail(reason);
                (RepairOrder::Pause, Some(RepairHappening::Failed))
            }
            (RepairState::Running, RepairWord::Copies(_)) => {
                let is_first = !std::mem::replace(&mut repair.record.has_begun, true);
                (go, is_first.then_some(RepairHappening::Begun))
            }
            // A change since this pass began may be the return of what it lacked.
            (RepairState::Failed, RepairWord::Asks)
                if around.all_know && around.version > repair.record.failed_version =>
            {
                repair.begin_again();
                repair.pass_version = around.version;
                (go, None)
            }
            (RepairState::Running, RepairWord::Asks) => {
                repair.pass_version = around.version;
                (go, None)
            }
            // Whoever hears of it too late stands still too; words of a later version change nothing.
            _ => (RepairOrder::Pause, None),
        };
        let progress = repair.record.progress.clone();
        if repair.record != before {
            self.touch(device);
        }
        (order, progress, happening)
    }

    /// An operator's order. `is_in_repair`: the device is. Nothing: it was so already. Errors: nothing changed then.
    ///
    /// Of [`RepairHappening::Aborted`] the caller makes the device failed.
    pub fn handle_order(
        &mut self,
        device: Fid,
        is_in_repair: bool,
        wish: RepairWish,
    ) -> Result<Option<RepairHappening>, RepairRefusal> {
        use RepairState::{Aborted, Done, Failed, Paused, Running};
        use RepairWish::{Abort, Pause, Resume, Start};
        let Some(repair) = self.repairs.get_mut(&device) else { return Err(RepairRefusal::None) };
        let happening = match (wish, repair.record.state) {
            // Done already; told again by whoever did not hear the answer.
            (Abort, Aborted) if !is_in_repair => return Ok(None),
            (_, Done | Aborted) => return Err(RepairRefusal::None),
            (_, _) if !is_in_repair => return Err(RepairRefusal::None),
            (Start | Resume, Running) | (Pause, Paused) => return Ok(None),
            (Start, Failed) => {
                repair.begin_again();
                RepairHappening::Begun
            }
            // Its progress would be lost, which is not what a pause was for.
            (Start, Paused) => return Err(RepairRefusal::Paused),
            (Pause | Resume, Failed) => return Err(RepairRefusal::Failed),
            (Pause, Running) => {
                repair.record.state = Paused;
                RepairHappening::Paused
            }
            (Resume, Paused) => {
                repair.record.state = Running;
                repair.pace.clear();
                RepairHappening::Resumed
            }
            (Abort, Running | Paused | Failed) => {
                repair.record.state = Aborted;
                RepairHappening::Aborted
            }
            // `RepairState` may grow a state.
            _ => return Err(RepairRefusal::None),
        };
        if happening == RepairHappening::Begun {
            // Told now; the first word of the server tells nothing new.
            repair.record.has_begun = true;
        }
        self.touch(device);
        Ok(Some(happening))
    }

    /// True if the server of the device was heard to copy a moment ago.
    #[must_use]
    pub fn is_copying(&self, now: Instant, device: Fid) -> bool {
        self.repairs.get(&device).is_some_and(|repair| repair.is_copying(now))
    }

    /// The records behind a device, each with the bytes written in a second lately, if its server copies.
    pub fn behind(
        &self,
        now: Instant,
        after: Option<Fid>,
    ) -> impl Iterator<Item = (&RepairRecord, Option<u64>)> {
        let from = after.map_or(std::ops::Bound::Unbounded, std::ops::Bound::Excluded);
        let repairs = self.repairs.range((from, std::ops::Bound::Unbounded));
        repairs.map(move |(_, repair)| {
            (&repair.record, repair.is_copying(now).then(|| repair.bytes_per_second()))
        })
    }
}

#[cfg(test)]
mod tests {
    use std::fmt::Write as _;

    use super::*;

    const DEVICE: Fid = Fid { container: 0x6b00_0000_0000_0001, key: 3 };
    const AROUND: Surroundings = Surroundings { in_repair: Some(1), all_know: true, version: 9 };
    const STATES: [RepairState; 5] = [
        RepairState::Running,
        RepairState::Paused,
        RepairState::Failed,
        RepairState::Done,
        RepairState::Aborted,
    ];

    fn at(ms: u64) -> Instant {
        Instant::ZERO + Duration::from_millis(ms)
    }

    fn so_far(objects: u64, lost_count: u64) -> RepairProgress {
        let last = Some(Fid { container: 1, key: objects });
        RepairProgress { records: objects, objects, bytes: objects * 100, last, lost_count, lost: Vec::new() }
    }

    fn table(state: RepairState) -> RepairTable {
        let mut record = Repair::fresh(DEVICE, 1).record;
        (record.state, record.has_begun, record.failed_version) = (state, true, 9);
        record.progress = so_far(5, 0);
        RepairTable::new(vec![record])
    }

    fn state_of(table: &RepairTable) -> RepairState {
        table.repairs[&DEVICE].record.state
    }

    /// Each order in each state.
    const ORDERS: &str = "\
state    Start    Pause    Resume   Abort
running  -        paused   -        aborted
paused   Paused   -        running  aborted
failed   running  Failed   Failed   aborted
done     None     None     None     None
aborted  None     None     None     None
";

    #[test]
    fn every_order_in_every_state() {
        let mut found = String::from("state   ");
        for wish in RepairWish::ALL {
            let _ = write!(found, " {:<8}", format!("{wish:?}"));
        }
        for state in STATES {
            let _ = write!(found, "\n{:<8}", state.word());
            for wish in RepairWish::ALL {
                let mut table = table(state);
                let is_in_repair = !matches!(state, RepairState::Done);
                let cell = match table.handle_order(DEVICE, is_in_repair, wish) {
                    Ok(None) => "-".to_owned(),
                    Ok(Some(_)) => state_of(&table).word().to_owned(),
                    Err(refusal) => format!("{refusal:?}"),
                };
                assert_eq!(table.take_changes().is_empty(), state_of(&table) == state, "{state:?} {wish:?}");
                let _ = write!(found, " {cell:<8}");
            }
        }
        let trimmed: String = found.lines().map(|line| format!("{}\n", line.trim_end())).collect();
        assert_eq!(trimmed, ORDERS);
        assert_eq!(table(RepairState::Aborted).handle_order(DEVICE, false, RepairWish::Abort), Ok(None));
        let nobody = Fid { container: 1, key: 1 };
        assert_eq!(
            table(RepairState::Running).handle_order(nobody, true, RepairWish::Pause),
            Err(RepairRefusal::None)
        );
    }

    /// Each word of a server in each state: the order, and what becomes of the repair.
    const TURNS: &str = "\
state    Asks              Copies            Ended             Ended, lost       Fails
running  Run running       Run running       Leave done        Pause failed      Pause failed
paused   Pause paused      Pause paused      Leave done        Pause failed      Pause paused
failed   Pause failed      Pause failed      Leave done        Pause failed      Pause failed
done     Run running       Run running       Leave done        Pause failed      Pause failed
aborted  Run running       Run running       Leave done        Pause failed      Pause failed
";

    #[test]
    fn every_word_in_every_state() {
        let words = [
            ("Asks", RepairWord::Asks),
            ("Copies", RepairWord::Copies(so_far(6, 0))),
            ("Ended", RepairWord::Ended(so_far(7, 0))),
            ("Ended, lost", RepairWord::Ended(so_far(7, 2))),
            ("Fails", RepairWord::Fails(so_far(6, 0), "no".to_owned())),
        ];
        let mut found = String::from("state   ");
        for (name, _) in &words {
            let _ = write!(found, " {name:<17}");
        }
        for state in STATES {
            let _ = write!(found, "\n{:<8}", state.word());
            for (_, word) in &words {
                let mut table = table(state);
                // A record that is over, of a device that is in repair all the same, is of another store: it begins afresh.
                let (order, ..) = table.handle_turn(at(0), (DEVICE, 1), word, AROUND);
                let cell = format!("{order:?} {}", state_of(&table).word());
                let _ = write!(found, " {cell:<17}");
            }
        }
        let trimmed: String = found.lines().map(|line| format!("{}\n", line.trim_end())).collect();
        assert_eq!(trimmed, TURNS);
    }

    #[test]
    fn nobody_copies_before_all_know_or_to_another_disk() {
        let mut table = table(RepairState::Running);
        let early = Surroundings { all_know: false, ..AROUND };
        assert_eq!(table.handle_turn(at(0), (DEVICE, 1), &RepairWord::Asks, early).0, RepairOrder::Wait);
        for in_repair in [None, Some(2)] {
            let gone = Surroundings { in_repair, ..AROUND };
            let ended = RepairWord::Ended(so_far(9, 0));
            assert_eq!(table.handle_turn(at(0), (DEVICE, 1), &ended, gone).0, RepairOrder::Leave);
            assert_eq!(state_of(&table), RepairState::Running, "a copy of another disk counts for nothing");
        }
        // A new disk begins from the first object.
        let (order, progress, _) = table.handle_turn(
            at(0),
            (DEVICE, 2),
            &RepairWord::Asks,
            Surroundings { in_repair: Some(2), ..AROUND },
        );
        assert_eq!((order, progress), (RepairOrder::Run, RepairProgress::default()));
    }

    #[test]
    fn a_failed_repair_is_tried_again_once_something_changed_since_it_began() {
        let mut table = table(RepairState::Running);
        let mut turn = |word, version| {
            let around = Surroundings { version, ..AROUND };
            table.handle_turn(at(0), (DEVICE, 1), &word, around)
        };
        assert_eq!(turn(RepairWord::Asks, 12).0, RepairOrder::Run);
        // Another device was away, and came back while this pass ran: version 14.
        let (_, _, happening) = turn(RepairWord::Ended(so_far(7, 3)), 14);
        assert_eq!(happening, Some(RepairHappening::Failed));
        assert_eq!(turn(RepairWord::Asks, 14).1, RepairProgress::default(), "from the first object");
        assert_eq!(turn(RepairWord::Ended(so_far(7, 3)), 14).0, RepairOrder::Pause);
        assert_eq!(turn(RepairWord::Asks, 14).0, RepairOrder::Pause, "nothing changed");
        assert_eq!(turn(RepairWord::Asks, 15).0, RepairOrder::Run);
    }

    #[test]
    fn lies_are_cut_to_what_is_kept() {
        let mut table = table(RepairState::Running);
        let lost = vec![DEVICE; 5000];
        let lie = RepairProgress {
            bytes: u64::MAX,
            objects: u64::MAX,
            lost_count: 0,
            lost,
            ..RepairProgress::default()
        };
        table.handle_turn(at(0), (DEVICE, 1), &RepairWord::Copies(so_far(1, 0)), AROUND);
        table.handle_turn(at(1), (DEVICE, 1), &RepairWord::Copies(lie.clone()), AROUND);
        let reason = "ü".repeat(5000);
        table.handle_turn(at(2), (DEVICE, 1), &RepairWord::Fails(lie.clone(), reason), AROUND);
        let (_, _, happening) = table.handle_turn(at(3), (DEVICE, 1), &RepairWord::Ended(lie), AROUND);
        assert_eq!(happening, None, "it names lost ones, so it is not whole");
        let record = &table.repairs[&DEVICE].record;
        assert!(record.reason.len() <= REPAIR_REASON_BYTES_MAX && record.progress.lost.len() == 16);
        let (_, rate) = table.behind(at(3), None).next().unwrap();
        assert_eq!(rate, None, "it said that it does not copy");
    }

    #[test]
    fn the_rate_of_a_copy_that_writes_in_lumps_is_steady() {
        const LUMP: u64 = 16 << 20;
        let mut table = table(RepairState::Running);
        // Bounded to 1 MiB/s: four windows at once every 16 s, and a word twice a second.
        let rates: Vec<u64> = (0..600)
            .map(|word| {
                let progress = RepairProgress { bytes: (word / 32 + 1) * LUMP, ..RepairProgress::default() };
                let word_at = at(word * 500);
                table.handle_turn(word_at, (DEVICE, 1), &RepairWord::Copies(progress), AROUND);
                table.behind(word_at, None).next().unwrap().1.unwrap()
            })
            .collect();
        let mib = |rate: u64| rate as f64 / f64::from(1 << 20);
        let jumps = rates.windows(2).map(|pair| (mib(pair[0]) - mib(pair[1])).abs());
        assert!(jumps.clone().all(|jump| jump <= 1.0), "{:?}", jumps.collect::<Vec<_>>());
        let settled = rates[120..].iter().copied().map(mib);
        assert!(
            settled.clone().all(|rate| (0.75..=1.25).contains(&rate)),
            "{:?}",
            settled.collect::<Vec<_>>()
        );
        assert!(table.repairs[&DEVICE].pace.len() <= 64);
    }

    #[test]
    fn the_rate_is_that_of_the_last_words() {
        let mut table = table(RepairState::Running);
        for second in 0..100 {
            let word = RepairWord::Copies(so_far(second * 10, 0));
            table.handle_turn(at(second * 1000), (DEVICE, 1), &word, AROUND);
        }
        let now = |table: &RepairTable, ms| table.behind(at(ms), None).next().unwrap().1;
        assert_eq!(now(&table, 99_000), Some(1000), "ten objects of 100 bytes a second");
        // What has just begun again is not taken for fast, or slow, by its first bytes.
        for (ms, bytes_per_second) in [(100_000, 0), (100_500, 250), (104_000, 250), (108_000, 125)] {
            let word = RepairWord::Copies(so_far(if ms == 100_000 { 0 } else { 10 }, 0));
            table.handle_turn(at(ms), (DEVICE, 1), &word, AROUND);
            assert_eq!(now(&table, ms), Some(bytes_per_second), "{ms}");
        }
        assert_eq!(now(&table, 111_000), None, "silent");
        assert!(table.is_copying(at(110_000), DEVICE) && !table.is_copying(at(111_000), DEVICE));
        assert_eq!(table.behind(at(0), Some(DEVICE)).count(), 0);
    }
}
