//! Parity by [`layout::GroupCodec`] beside ISA-L, on equal buffers, working sets and loops.
//!
//! Warm: one group again and again, as right behind a receive. Cold: groups of 256 MiB in turn, so that each comes from memory.
//! ISA-L runs as a process of its own for each sample (its own pages each time); ours takes new buffers for each sample, too.
//! One thread that never waits: both sides are timed by their CPU time, which others that take the core do not lengthen.

use std::time::Duration;

use base::LayoutWidth;
use base::units::{MIB, narrow};
use layout::GroupCodec;
use runtime::{Arena, ArenaConfig, Buffer, process};

use super::machine::Quiet;
use super::pairs::{Sample, interleave};
use super::peer::{Absent, IsaLProgram, Scratch, is_at_least, isa_l_installations};
use super::report::{Comparison, Costs, Peer};
use super::{Plan, announce};
use crate::failure::Failure;

/// The target, for ISA-L from 2.32 on.
const TARGET: f64 = 0.9;
/// Bytes of a cold working set, data units only.
const COLD_BYTES: u64 = 256 * MIB;

/// One shape to measure.
#[derive(Clone, Copy, Debug)]
struct Case {
    data: u32,
    unit_bytes: u32,
    is_cold: bool,
    has_target: bool,
}

const PARITY: u32 = 2;
const CASES: [Case; 6] = [
    Case { data: 4, unit_bytes: 64 << 10, is_cold: false, has_target: true },
    Case { data: 8, unit_bytes: 64 << 10, is_cold: false, has_target: true },
    Case { data: 4, unit_bytes: 1 << 20, is_cold: false, has_target: false },
    Case { data: 8, unit_bytes: 1 << 20, is_cold: false, has_target: false },
    Case { data: 4, unit_bytes: 64 << 10, is_cold: true, has_target: false },
    Case { data: 8, unit_bytes: 64 << 10, is_cold: true, has_target: false },
];

impl Case {
    fn group_bytes(&self) -> u64 {
        u64::from(self.data) * u64::from(self.unit_bytes)
    }

    fn groups(&self) -> u32 {
        let groups = if self.is_cold { COLD_BYTES / self.group_bytes() } else { 1 };
        u32::try_from(groups).unwrap_or(u32::MAX)
    }

    fn rounds(&self, sample_bytes: u64) -> u64 {
        sample_bytes.div_ceil(self.group_bytes() * u64::from(self.groups())).max(1)
    }

    fn name(&self) -> String {
        let heat = if self.is_cold { "cold" } else { "warm" };
        format!("encode {}+{PARITY}, {} KiB, {heat}", self.data, self.unit_bytes >> 10)
    }
}

/// Measures every case with every ISA-L that is installed.
pub fn run(plan: &Plan) -> Result<Vec<Comparison>, Failure> {
    let scratch = Scratch::make(&std::env::temp_dir())?;
    let mut programs = Vec::new();
    let mut absent = Absent(String::new());
    for installation in isa_l_installations() {
        match IsaLProgram::build(scratch.path(), &installation)? {
            Ok(program) => programs.push(program),
            Err(hint) => absent = hint,
        }
    }
    let mut comparisons = Vec::new();
    for case in &CASES {
        if programs.is_empty() {
            announce(&case.name());
            comparisons.push(alone(plan, case, &absent)?);
        }
        for program in &programs {
            announce(&format!("{} beside ISA-L {}", case.name(), program.version));
            comparisons.push(beside(plan, case, program)?);
        }
    }
    Ok(comparisons)
}

fn sample_bytes(plan: &Plan, case: &Case) -> u64 {
    // Warm groups go at tens of GB/s: 1 GiB would last 30 ms only.
    let full = if case.is_cold { 4 << 30 } else { 8 << 30 };
    if plan.is_quick { full / 16 } else { full }
}

fn beside(plan: &Plan, case: &Case, program: &IsaLProgram) -> Result<Comparison, Failure> {
    let rounds = case.rounds(sample_bytes(plan, case));
    let quiet = Quiet::start();
    let (mut costs, mut peer_costs) = (Costs::default(), Costs::default());
    let pairs = interleave(
        plan.pairs,
        || {
            let (sample, cost) = ours(case, rounds)?;
            costs.add(cost);
            Ok(sample)
        },
        || {
            let (_, bytes, ns) = program.run(case.data, PARITY, case.unit_bytes, case.groups(), rounds)?;
            let took = Duration::from_nanos(ns);
            peer_costs.add(Costs { bytes, cpu_seconds: took.as_secs_f64(), ..Costs::default() });
            Ok(Sample { bytes, took })
        },
    )?;
    let is_reference = is_at_least(&program.version, 2, 32);
    Ok(Comparison {
        what: case.name(),
        peer: Peer::Ran(format!("ISA-L {}", program.version)),
        target: (case.has_target && is_reference).then_some(TARGET),
        pairs,
        alone: Vec::new(),
        costs,
        peer_costs: Some(peer_costs),
        others: quiet.others(),
        note: note(case),
        is_quick: plan.is_quick,
    })
}

fn alone(plan: &Plan, case: &Case, absent: &Absent) -> Result<Comparison, Failure> {
    let rounds = case.rounds(sample_bytes(plan, case));
    let quiet = Quiet::start();
    let mut costs = Costs::default();
    let mut samples = Vec::new();
    for _ in 0..plan.pairs {
        let (sample, cost) = ours(case, rounds)?;
        costs.add(cost);
        samples.push(sample);
    }
    Ok(Comparison {
        what: case.name(),
        peer: Peer::Absent(absent.0.clone()),
        target: case.has_target.then_some(TARGET),
        pairs: Vec::new(),
        alone: samples,
        costs,
        peer_costs: None,
        others: quiet.others(),
        note: note(case),
        is_quick: plan.is_quick,
    })
}

fn note(case: &Case) -> String {
    let set = if case.is_cold {
        format!("{} groups in turn", case.groups())
    } else {
        "one group again and again".to_owned()
    };
    format!("GB of data units per second of CPU time, {set}, one thread")
}

/// Data and parity units of a group, as the codec takes them.
type GroupView<'a> = (Vec<&'a [u8]>, Vec<&'a mut [u8]>);

/// Encodes `rounds` times over new buffers, after one untimed pass.
fn ours(case: &Case, rounds: u64) -> Result<(Sample, Costs), Failure> {
    let width = LayoutWidth::new(case.data, PARITY, 0).map_err(Failure::while_doing("the layout"))?;
    let codec = GroupCodec::new(width);
    let group_bytes = u64::from(case.data + PARITY) * u64::from(case.unit_bytes);
    let arena = Arena::new(ArenaConfig { capacity_bytes: group_bytes * u64::from(case.groups()) })
        .map_err(Failure::while_doing("reserving memory for units"))?;
    let mut random = fastrand::Rng::with_seed(1);
    let mut unit = || -> Result<Buffer, Failure> {
        let mut buffer = arena
            .try_alloc(narrow(u64::from(case.unit_bytes)))
            .ok_or_else(|| Failure::new("the arena is too small"))?;
        random.fill(&mut buffer);
        Ok(buffer)
    };
    let mut groups = Vec::new();
    for _ in 0..case.groups() {
        let data = (0..case.data).map(|_| unit()).collect::<Result<Vec<_>, _>>()?;
        let parity = (0..PARITY).map(|_| unit()).collect::<Result<Vec<_>, _>>()?;
        groups.push((data, parity));
    }
    let mut views: Vec<GroupView<'_>> = groups
        .iter_mut()
        .map(|(data, parity)| {
            (data.iter().map(|unit| &**unit).collect(), parity.iter_mut().map(|unit| &mut **unit).collect())
        })
        .collect();
    let mut pass = || -> Result<(), Failure> {
        for (data, parity) in &mut views {
            codec.encode(data, parity).map_err(Failure::while_doing("encoding"))?;
        }
        Ok(())
    };
    pass()?;
    let began = process::thread_cpu_time();
    for _ in 0..rounds {
        pass()?;
    }
    let took = process::thread_cpu_time().saturating_sub(began);
    let bytes = case.group_bytes() * u64::from(case.groups()) * rounds;
    Ok((Sample { bytes, took }, Costs { bytes, cpu_seconds: took.as_secs_f64(), ..Costs::default() }))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_case_encodes_what_it_says() {
        for case in CASES {
            let small = Case { is_cold: false, ..case };
            let (sample, costs) = ours(&small, 2).unwrap();
            assert_eq!((sample.bytes, costs.bytes), (2 * small.group_bytes(), 2 * small.group_bytes()));
        }
    }

    #[test]
    fn a_sample_is_at_least_what_was_asked_for() {
        for case in CASES {
            let bytes = case.rounds(1 << 30) * u64::from(case.groups()) * case.group_bytes();
            assert!((1 << 30..2 << 30).contains(&bytes), "{}: {bytes}", case.name());
        }
    }
}
