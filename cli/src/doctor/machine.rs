//! What this machine and this session allow: locked memory, open files, huge pages, io_uring.
//!
//! Limits are those of this command. A daemon that somebody else starts (a unit, another shell) has its own; what runs here is looked at
//! by [`super::processes`].

use std::fs;

use runtime::process;
use runtime::ring::{Ring, is_forbidden};
use rustix::process::{Resource, getrlimit};

use super::Needs;
use super::finding::Finding;
use crate::connection::ARENA_BYTES;
use crate::table::bytes_text;

/// Entries of the ring that is tried, as a locality with a device makes it at least.
const RING_ENTRIES: u32 = 256;
/// Descriptors that a daemon has apart from its connections and devices: streams, rings, wake-ups, ADDB.
const OTHER_FILES: u64 = 64;
/// Number of the capability to lock more memory than the limit, from linux/capability.h.
const CAP_IPC_LOCK: u32 = 14;
/// Fewer connections than this are few for a cluster.
const FEW_CONNECTIONS: u64 = 1024;

pub fn all(needs: Needs) -> Vec<Finding> {
    vec![memory_lock(needs), open_files(), huge_pages(needs), io_uring()]
}

/// The limits of another process, from the texts of its /proc/PID/limits and /proc/PID/status.
pub fn of_process(needs: Needs, limits: &str, status: &str) -> Vec<Finding> {
    // "Max open files            1024                 1048576              files"
    let columns = |name: &str| {
        let line = limits.lines().find_map(|line| line.strip_prefix(name))?;
        let mut words = line.split_whitespace().map(|word| match word {
            "unlimited" => Some(None),
            number => number.parse().ok().map(Some),
        });
        Some((words.next()??, words.next()??))
    };
    let capabilities = status.lines().find_map(|line| line.strip_prefix("CapEff:"));
    let bits = capabilities.and_then(|text| u64::from_str_radix(text.trim(), 16).ok());
    let may_exceed = bits.is_some_and(|bits| bits & (1 << CAP_IPC_LOCK) != 0);
    let memory = columns("Max locked memory").map(|(soft, _)| memory_lock_of(needs, soft, may_exceed));
    let files = columns("Max open files").map(|(soft, hard)| open_files_of(soft, hard));
    memory.into_iter().chain(files).collect()
}

fn memory_lock(needs: Needs) -> Finding {
    memory_lock_of(needs, process::memlock_limit(), process::may_lock_memory())
}

/// `limit`: `None` is no limit. `may_exceed`: CAP_IPC_LOCK.
fn memory_lock_of(needs: Needs, limit: Option<u64>, may_exceed: bool) -> Finding {
    const CHECK: &str = "locked memory";
    const WHY: &str =
        "RDMA works on locked memory only; io_uring works on locked buffers without looking each one up";
    let todo = "`ulimit -l unlimited` in the shell that starts the daemons (as root, or through /etc/security/limits.conf), or \
                LimitMEMLOCK=infinity in their unit";
    let Some(bytes) = limit else { return Finding::ok(CHECK, "no limit", WHY) };
    let seen = format!("the limit is {} (ulimit -l)", bytes_text(bytes));
    if may_exceed {
        return Finding::ok(CHECK, format!("{seen}, and does not bind this session (CAP_IPC_LOCK)"), WHY);
    }
    if bytes >= ARENA_BYTES {
        return Finding::ok(CHECK, seen, WHY);
    }
    let seen = format!("{seen}; the buffers of one process have up to {}", bytes_text(ARENA_BYTES));
    if needs.rdma { Finding::fail(CHECK, seen, WHY, todo) } else { Finding::warn(CHECK, seen, WHY, todo) }
}

fn open_files() -> Finding {
    let limit = getrlimit(Resource::Nofile);
    open_files_of(limit.current, limit.maximum)
}

/// `None` is no limit.
fn open_files_of(soft: Option<u64>, hard: Option<u64>) -> Finding {
    const CHECK: &str = "open files";
    const WHY: &str = "each connection and each device of a daemon is an open file; a daemon that has none left refuses connections";
    let wanted = base::units::wide(verbs_net::limits::CONNECTIONS_MAX) + OTHER_FILES;
    let Some(soft) = soft else { return Finding::ok(CHECK, "no limit", WHY) };
    let seen = format!(
        "{soft} for this session (ulimit -n): about {} connections of a daemon",
        soft.saturating_sub(OTHER_FILES)
    );
    if soft >= wanted {
        return Finding::ok(CHECK, format!("{soft} for this session (ulimit -n)"), WHY);
    }
    let reach = match hard {
        Some(hard) if hard < wanted => {
            format!("as root: `ulimit -n {wanted}`; the hard limit here is {hard}")
        }
        _ => format!("`ulimit -n {wanted}` in the shell that starts the daemons"),
    };
    let todo = format!(
        "{reach}, or LimitNOFILE={wanted} in their unit: a daemon takes up to {} connections",
        wanted - OTHER_FILES
    );
    if soft < OTHER_FILES {
        Finding::fail(CHECK, seen, WHY, todo)
    } else if soft - OTHER_FILES < FEW_CONNECTIONS {
        Finding::warn(CHECK, seen, WHY, todo)
    } else {
        Finding::ok(CHECK, seen, WHY)
    }
}

fn huge_pages(needs: Needs) -> Finding {
    match fs::read_to_string("/proc/meminfo") {
        Ok(text) => huge_pages_of(needs, &text),
        Err(error) => huge_pages_unknown(needs, &format!("/proc/meminfo: {error}")),
    }
}

const HUGE_PAGES: &str = "huge pages";
const HUGE_PAGES_WHY: &str = "SPDK reaches NVMe devices from huge pages only";

fn huge_pages_unknown(needs: Needs, reason: &str) -> Finding {
    let seen = format!("cannot tell: {reason}");
    if needs.spdk {
        Finding::warn(
            HUGE_PAGES,
            seen,
            HUGE_PAGES_WHY,
            "look at `grep Huge /proc/meminfo` on the servers' machines",
        )
    } else {
        Finding::ok(HUGE_PAGES, format!("not needed by what was looked at ({seen})"), HUGE_PAGES_WHY)
    }
}

/// `meminfo`: the text of /proc/meminfo.
fn huge_pages_of(needs: Needs, meminfo: &str) -> Finding {
    let field = |name: &str| {
        let line = meminfo.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':'))?;
        line.split_whitespace().next()?.parse::<u64>().ok()
    };
    let (Some(total), Some(free), Some(kib)) =
        (field("HugePages_Total"), field("HugePages_Free"), field("Hugepagesize"))
    else {
        return huge_pages_unknown(needs, "this kernel does not say how many there are");
    };
    let size = bytes_text(kib * 1024);
    let seen = format!("{total} of {size}, {free} free");
    if !needs.spdk {
        return Finding::ok(
            HUGE_PAGES,
            format!("{seen}; not needed: no device that was looked at is driven by SPDK"),
            HUGE_PAGES_WHY,
        );
    }
    let wanted = ARENA_BYTES.div_ceil((kib * 1024).max(1));
    if total < wanted {
        let todo = format!(
            "`sysctl vm.nr_hugepages={}` for each server process of this machine (as root; 2 pages for each if they are 1 GiB)",
            wanted * 2
        );
        Finding::fail(
            HUGE_PAGES,
            format!("{seen}; the buffers of one server take {wanted}"),
            HUGE_PAGES_WHY,
            todo,
        )
    } else {
        Finding::ok(HUGE_PAGES, seen, HUGE_PAGES_WHY)
    }
}

/// Tried, not guessed: a ring is made and given back.
fn io_uring() -> Finding {
    const CHECK: &str = "io_uring";
    const WHY: &str = "devices are read and written through io_uring; without it helper threads do it, with more system calls and less speed";
    let setting = fs::read_to_string("/proc/sys/kernel/io_uring_disabled").ok();
    let setting = setting.as_deref().map(str::trim);
    match Ring::new(RING_ENTRIES) {
        Ok(_) => Finding::ok(CHECK, "a ring was made", WHY),
        Err(error) => {
            let told = setting.map_or_else(|| "not there".to_owned(), str::to_owned);
            let seen = format!("no ring: {error}; kernel.io_uring_disabled is {told}");
            let todo = match setting {
                Some("2") => "`sysctl kernel.io_uring_disabled=0` (as root)",
                Some("1") => {
                    "`sysctl kernel.io_uring_disabled=0` (as root), or start the daemons as a member of the group in kernel.io_uring_group"
                }
                _ if is_forbidden(&error) => {
                    "a container or sandbox forbids it (seccomp): allow io_uring_setup, io_uring_enter and io_uring_register there; or Linux 5.6 or newer is needed"
                }
                _ => "see what the kernel says in the line above; daemons use helper threads until then",
            };
            Finding::warn(CHECK, seen, WHY, todo)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::finding::Verdict;
    use super::*;

    const RDMA: Needs = Needs { rdma: true, spdk: false };
    const SPDK: Needs = Needs { rdma: false, spdk: true };

    #[test]
    fn too_little_locked_memory_fails_only_where_rdma_is_needed() {
        let verdict = |needs, limit, may| memory_lock_of(needs, limit, may).verdict;
        assert_eq!(verdict(RDMA, None, false), Verdict::Ok);
        assert_eq!(verdict(RDMA, Some(8 << 20), true), Verdict::Ok);
        assert_eq!(verdict(RDMA, Some(ARENA_BYTES), false), Verdict::Ok);
        assert_eq!(verdict(RDMA, Some(ARENA_BYTES - 1), false), Verdict::Fail);
        assert_eq!(verdict(Needs::default(), Some(64 << 10), false), Verdict::Warn);
    }

    #[test]
    fn few_open_files_are_a_warning_and_hardly_any_a_failure() {
        let verdict = |soft| open_files_of(soft, Some(1 << 20)).verdict;
        assert_eq!(verdict(None), Verdict::Ok);
        assert_eq!(verdict(Some(1 << 20)), Verdict::Ok);
        assert_eq!(verdict(Some(4096)), Verdict::Ok);
        assert_eq!(verdict(Some(1024)), Verdict::Warn);
        assert_eq!(verdict(Some(32)), Verdict::Fail);
        let low = open_files_of(Some(256), Some(512)).todo.unwrap();
        assert!(low.contains("hard limit here is 512"), "{low}");
    }

    #[test]
    fn the_limits_of_another_process_are_read_as_the_kernel_writes_them() {
        let limits = "Limit                     Soft Limit           Hard Limit           Units     \n\
                      Max locked memory         8388608              8388608              bytes     \n\
                      Max open files            1024                 unlimited            files     \n";
        let found = of_process(RDMA, limits, "Name:\tclovis\nCapEff:\t0000000000000000\n");
        assert_eq!((found[0].verdict, found[1].verdict), (Verdict::Fail, Verdict::Warn));
        let found = of_process(RDMA, limits, "CapEff:\t000001ffffffffff\n");
        assert_eq!(found[0].verdict, Verdict::Ok);
        assert_eq!(of_process(RDMA, "odd", "odd"), [], "nothing is said of what is not there");
        let own = fs::read_to_string("/proc/self/limits").unwrap();
        assert_eq!(of_process(RDMA, &own, "").len(), 2, "{own}");
    }

    #[test]
    fn huge_pages_are_judged_where_spdk_needs_them() {
        let meminfo = |total: u64| {
            format!("MemTotal: 8 kB\nHugePages_Total: {total}\nHugePages_Free: 3\nHugepagesize: 2048 kB\n")
        };
        assert_eq!(huge_pages_of(Needs::default(), &meminfo(0)).verdict, Verdict::Ok);
        assert_eq!(huge_pages_of(SPDK, &meminfo(ARENA_BYTES >> 21)).verdict, Verdict::Ok);
        let few = huge_pages_of(SPDK, &meminfo(3));
        assert_eq!(few.verdict, Verdict::Fail);
        assert!(few.seen.starts_with("3 of 2.0 MiB, 3 free"), "{}", few.seen);
        let odd = huge_pages_of(SPDK, "HugePages_Total: many\n");
        assert!(odd.verdict == Verdict::Warn && odd.seen.starts_with("cannot tell"), "{odd:?}");
    }

    #[test]
    fn a_ring_is_tried() {
        let found = io_uring();
        match found.verdict {
            Verdict::Ok => assert_eq!(found.seen, "a ring was made"),
            _ => assert!(found.seen.starts_with("no ring: ") && found.todo.is_some(), "{found:?}"),
        }
    }
}
