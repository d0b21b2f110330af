//! What a figure was measured on, and how quiet it was there. Reads `/proc`; nothing is kept.
//!
//! Quiet is measured, not assumed: [`Quiet`] compares the CPU time that the machine spent with what this process and its
//! ended children used. What is left over is others', and above [`OTHERS_MAX`] a ratio does not count. Interrupts and the kernel's own
//! threads are nobody's: they complete the I/O that is measured, of both sides alike, and what another process has them do shows in
//! that process, too.

use std::collections::BTreeMap;
use std::fs;
use std::time::Duration;

use runtime::process;

/// Share of all cores that others (and the hypervisor) may use while a ratio is taken that counts.
pub const OTHERS_MAX: f64 = 0.05;

/// Clock ticks per second of the figures in `/proc`: a constant of Linux's interface on every architecture of ours.
/// Source: proc(5), sysconf(_SC_CLK_TCK).
const TICKS_PER_SECOND: u64 = 100;

/// Ticks of `/proc` as a duration.
pub fn ticks(count: u64) -> Duration {
    Duration::from_millis(count.saturating_mul(1000 / TICKS_PER_SECOND))
}

/// The machine, as a line of a report.
#[derive(Clone, Debug)]
pub struct Machine {
    /// CPU model.
    pub cpu: String,
    /// Cores that this process may use.
    pub cores: usize,
    /// Linux release.
    pub linux: String,
    /// The parity kernel in use.
    pub kernel: &'static str,
    /// Load averages (1, 5 and 15 minutes) before the first measurement.
    pub load_before: String,
}

impl Machine {
    /// Looks. What cannot be read is called unknown: no figure depends on it.
    pub fn look() -> Machine {
        let read = |path: &str| fs::read_to_string(path).unwrap_or_default();
        let cpu_info = read("/proc/cpuinfo");
        let line =
            cpu_info.lines().find(|line| line.starts_with("model name") || line.starts_with("CPU part"));
        let cpu = line.and_then(|line| line.split_once(':')).map_or("unknown CPU", |(_, name)| name.trim());
        let linux = read("/proc/sys/kernel/osrelease");
        Machine {
            cpu: cpu.to_owned(),
            cores: process::allowed_cores().map_or(1, |cores| cores.len()),
            linux: linux.trim().to_owned(),
            kernel: layout::Kernel::best().name(),
            load_before: load_averages(),
        }
    }

    /// One line.
    pub fn line(&self) -> String {
        format!("{}, {} cores, Linux {}, parity kernel {}", self.cpu, self.cores, self.linux, self.kernel)
    }
}

/// The load averages now: `0.10 0.20 0.30`.
pub fn load_averages() -> String {
    let text = fs::read_to_string("/proc/loadavg").unwrap_or_default();
    text.split_whitespace().take(3).collect::<Vec<_>>().join(" ")
}

/// CPU time of a process: its own, and that of its ended children.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ProcessTimes {
    /// User and system time of all its threads.
    pub own: Duration,
    /// The same of children that were waited for.
    pub children: Duration,
}

impl ProcessTimes {
    /// Those of a process, by 10 ms; `None` if it does not run.
    pub fn of(process_id: u32) -> Option<ProcessTimes> {
        ProcessTimes::parse(&fs::read_to_string(format!("/proc/{process_id}/stat")).ok()?)
    }

    /// Source: proc(5), fields 14 to 17 of `/proc/PID/stat`; the name in parentheses may hold anything.
    fn parse(stat: &str) -> Option<ProcessTimes> {
        let fields: Vec<u64> = stat
            .rsplit_once(')')?
            .1
            .split_whitespace()
            .skip(11)
            .take(4)
            .map(str::parse)
            .collect::<Result<_, _>>()
            .ok()?;
        let [user, system, children_user, children_system] = fields[..] else { return None };
        Some(ProcessTimes { own: ticks(user + system), children: ticks(children_user + children_system) })
    }
}

/// Ticks that all cores spent in processes and kernel threads, and in all; the hypervisor's share counts as spent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct CoreTicks {
    busy: u64,
    all: u64,
}

impl CoreTicks {
    fn now() -> Option<CoreTicks> {
        CoreTicks::parse(&fs::read_to_string("/proc/stat").ok()?)
    }

    /// Source: proc(5), first line of `/proc/stat`: user nice system idle iowait irq softirq steal (guest is in user).
    fn parse(stat: &str) -> Option<CoreTicks> {
        let line = stat.lines().next()?.strip_prefix("cpu ")?;
        let counts: Vec<u64> =
            line.split_whitespace().take(8).map(str::parse).collect::<Result<_, _>>().ok()?;
        // Idle, waiting for I/O, interrupts, soft interrupts.
        let of_nobody: u64 = counts.get(3..7)?.iter().sum();
        let all: u64 = counts.iter().sum();
        Some(CoreTicks { busy: all - of_nobody, all })
    }
}

fn used_by_us() -> Duration {
    let times = ProcessTimes::of(std::process::id());
    times.map_or(Duration::ZERO, |times| times.own + times.children)
}

/// Ticks of each of the kernel's own threads, by process id. One that ended since is missing, and its time counts as others'.
fn kernel_threads() -> BTreeMap<u32, u64> {
    let entries = fs::read_dir("/proc").into_iter().flatten().flatten();
    let of =
        |id: u32| Some((id, kernel_thread_ticks(&fs::read_to_string(format!("/proc/{id}/stat")).ok()?)?));
    entries.filter_map(|entry| of(entry.file_name().to_str()?.parse().ok()?)).collect()
}

/// User and system ticks, if this is a thread of the kernel: a child of process 2, or process 2 itself (it has no parent, and no
/// memory). Source: proc(5), fields 4, 14, 15 and 23 of `/proc/PID/stat`.
fn kernel_thread_ticks(stat: &str) -> Option<u64> {
    let fields: Vec<&str> = stat.rsplit_once(')')?.1.split_whitespace().collect();
    let number = |field: usize| fields.get(field - 3)?.parse::<u64>().ok();
    let is_of_kernel = number(4)? == 2 || number(4)? == 0 && number(23)? == 0;
    is_of_kernel.then(|| Some(number(14)? + number(15)?))?
}

/// Measures how much others used the machine over a stretch of time. Children must have been waited for at its end.
#[derive(Clone, Debug)]
pub struct Quiet {
    cores: Option<CoreTicks>,
    us: Duration,
    kernel: BTreeMap<u32, u64>,
}

impl Quiet {
    /// From now on.
    pub fn start() -> Quiet {
        Quiet { cores: CoreTicks::now(), us: used_by_us(), kernel: kernel_threads() }
    }

    /// Share of all cores that others used since the start, 0 to 1; `None` where `/proc` does not say.
    pub fn others(&self) -> Option<f64> {
        let (before, after) = (self.cores?, CoreTicks::now()?);
        let kernel: u64 = kernel_threads()
            .into_iter()
            .map(|(id, ticks)| ticks.saturating_sub(self.kernel.get(&id).copied().unwrap_or(0)))
            .sum();
        others_share(before, after, used_by_us().saturating_sub(self.us) + ticks(kernel))
    }
}

/// `known`: what is ours, and nobody's.
fn others_share(before: CoreTicks, after: CoreTicks, known: Duration) -> Option<f64> {
    let all = ticks(after.all.checked_sub(before.all)?).as_secs_f64();
    let busy = ticks(after.busy.checked_sub(before.busy)?).as_secs_f64();
    (all > 0.0).then(|| ((busy - known.as_secs_f64()) / all).clamp(0.0, 1.0))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn process_times_are_read_behind_any_name() {
        let stat = "12 (a) b (c) S 1 2 3 4 5 6 7 8 9 10 150 50 30 20 20 0 1 0 999";
        let times = ProcessTimes { own: Duration::from_secs(2), children: Duration::from_millis(500) };
        assert_eq!(ProcessTimes::parse(stat), Some(times));
        assert_eq!(ProcessTimes::parse("12 (a) S 1 2"), None);
        assert!(ProcessTimes::of(std::process::id()).is_some());
    }

    #[test]
    fn threads_of_the_kernel_are_told_from_processes() {
        let stat = |parent: u32, memory: u32| {
            format!("15 (a b) I {parent} 0 0 0 -1 69238880 0 0 0 0 7 5 0 0 20 0 1 0 12 {memory} 0")
        };
        assert_eq!(kernel_thread_ticks(&stat(2, 0)), Some(12));
        assert_eq!(kernel_thread_ticks(&stat(0, 0)), Some(12));
        assert_eq!(kernel_thread_ticks(&stat(1, 4096)), None);
        assert_eq!(kernel_thread_ticks(&stat(0, 4096)), None, "the first process has memory");
        assert_eq!(kernel_thread_ticks("15 (a) I 2 0"), None);
        assert!(!kernel_threads().contains_key(&std::process::id()));
    }

    #[test]
    fn what_is_neither_idle_nor_ours_is_others() {
        let before = CoreTicks::parse("cpu  100 0 100 800 0 0 0 0 0 0\ncpu0 1 2 3").unwrap();
        let after = CoreTicks::parse("cpu  250 0 150 1350 40 7 3 10 0 0\n").unwrap();
        assert_eq!((after.busy - before.busy, after.all - before.all), (210, 810));
        // 2.1 s busy of 8.1 s, 1.3 s of it ours.
        let share = others_share(before, after, Duration::from_millis(1300)).unwrap();
        assert!((share - 0.8 / 8.1).abs() < 1e-9, "{share}");
        assert_eq!(others_share(before, after, Duration::from_secs(9)), Some(0.0));
        assert_eq!(others_share(before, before, Duration::ZERO), None);
    }
}
