//! A server's right to serve, as time runs: granted with its registration, prolonged by each heartbeat. Pure.
//!
//! **Invariant**: the holder's lease ends before control takes it as lost. The holder counts from the moment it *sent* the
//! request that was answered; control counts from the moment it *received* it, and adds [`GRACE_PART`] of the lease for the
//! difference between two clocks' speeds and for requests under way at the end. Both are in docs/ha.md#leases.

use std::time::Duration;

use base::Instant;

/// Lease where nobody chooses one.
pub const LEASE_DEFAULT: Duration = Duration::from_secs(3);
/// Shortest lease that may be granted.
pub const LEASE_MIN: Duration = Duration::from_millis(100);
/// Longest lease that may be granted.
pub const LEASE_MAX: Duration = Duration::from_secs(600);
/// Control waits one part in so many longer than the lease.
pub const GRACE_PART: u32 = 4;
/// Heartbeats in a lease: four may be lost before it ends.
pub const HEARTBEATS_PER_LEASE: u32 = 5;
/// Longest time between two heartbeats, however long the lease is.
pub const HEARTBEAT_INTERVAL_MAX: Duration = Duration::from_secs(1);

/// When control takes a lease of this length as lost: so long after the last request that prolonged it.
#[must_use]
pub fn lost_after(lease: Duration) -> Duration {
    lease + lease / GRACE_PART
}

/// Time between two heartbeats.
#[must_use]
pub fn heartbeat_interval(lease: Duration) -> Duration {
    (lease / HEARTBEATS_PER_LEASE).min(HEARTBEAT_INTERVAL_MAX)
}

/// The holder's side of a lease.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Lease {
    /// Not registered yet, or told to register again.
    None,
    /// Registered.
    Granted {
        /// Length.
        length: Duration,
        /// When the last answered request was sent.
        prolonged_at: Instant,
    },
}

impl Lease {
    /// A registration sent at `sent_at` was answered with a lease of `length`.
    #[must_use]
    pub fn granted(sent_at: Instant, length: Duration) -> Lease {
        Lease::Granted { length: length.clamp(LEASE_MIN, LEASE_MAX), prolonged_at: sent_at }
    }

    /// A heartbeat sent at `sent_at` was answered. Answers may come out of order: an older one changes nothing.
    pub fn prolong(&mut self, sent_at: Instant) {
        if let Lease::Granted { prolonged_at, .. } = self {
            *prolonged_at = (*prolonged_at).max(sent_at);
        }
    }

    /// When it ends unless it is prolonged; the origin of time if there is none.
    #[must_use]
    pub fn ends_at(&self) -> Instant {
        match self {
            Lease::None => Instant::ZERO,
            Lease::Granted { length, prolonged_at } => *prolonged_at + *length,
        }
    }

    /// True while the holder may serve.
    #[must_use]
    pub fn holds(&self, now: Instant) -> bool {
        now < self.ends_at()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(ms: u64) -> Instant {
        Instant::ZERO + Duration::from_millis(ms)
    }

    #[test]
    fn a_lease_counts_from_the_sending_and_never_shrinks() {
        let mut lease = Lease::None;
        assert!(!lease.holds(at(0)));
        lease.prolong(at(5));
        assert!(!lease.holds(at(6)), "only a registration grants");
        lease = Lease::granted(at(1000), Duration::from_secs(3));
        assert!(lease.holds(at(3999)) && !lease.holds(at(4000)));
        lease.prolong(at(2000));
        lease.prolong(at(1500));
        assert_eq!(lease.ends_at(), at(5000));
    }

    #[test]
    fn control_waits_longer_than_the_holder_and_several_heartbeats_may_be_lost() {
        for lease in [LEASE_MIN, LEASE_DEFAULT, LEASE_MAX] {
            assert!(lost_after(lease) > lease);
            assert!(heartbeat_interval(lease) * 4 < lease);
            assert!(heartbeat_interval(lease) <= HEARTBEAT_INTERVAL_MAX);
        }
        assert_eq!(Lease::granted(at(0), Duration::ZERO).ends_at(), Instant::ZERO + LEASE_MIN);
    }
}
