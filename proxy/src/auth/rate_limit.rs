//! Owns the limit on failed logins: one token bucket per source address. Pure; the time is an argument.

use std::{
    collections::HashMap,
    net::{IpAddr, Ipv6Addr},
    time::{Duration, Instant},
};

/// Failed logins that one address may spend at once.
const BURST: u32 = 100;
/// One failed login is forgiven in this time.
const REFILL: Duration = Duration::from_millis(100);
/// Addresses remembered. Beyond it those with nothing to forgive go first, then everything.
const ADDRESSES_MAX: usize = 65_536;

/// Counts failed logins per source address.
///
/// Only failures cost a token, so an application that opens thousands of connections at once is never slowed
/// down, while a guesser is. An IPv6 source counts as its /64, which is what one host can choose from freely.
#[derive(Debug, Default)]
pub(crate) struct RateLimit {
    buckets: HashMap<IpAddr, Bucket>,
}

#[derive(Debug)]
struct Bucket {
    spent: u32,
    since: Instant,
}

impl Bucket {
    fn forgive(&mut self, now: Instant) {
        let passed = now.saturating_duration_since(self.since).as_nanos() / REFILL.as_nanos();
        let tokens = u32::try_from(passed).unwrap_or(u32::MAX);
        if tokens >= self.spent {
            self.spent = 0;
            self.since = now;
        } else {
            self.spent -= tokens;
            self.since += REFILL * tokens;
        }
    }
}

fn source(address: IpAddr) -> IpAddr {
    match address {
        IpAddr::V4(_) => address,
        IpAddr::V6(v6) => match v6.to_ipv4_mapped() {
            Some(v4) => IpAddr::V4(v4),
            None => IpAddr::V6(Ipv6Addr::from_bits(v6.to_bits() & !u128::from(u64::MAX))),
        },
    }
}

impl RateLimit {
    /// Whether this address may try to log in.
    pub(crate) fn allows(&mut self, address: IpAddr, now: Instant) -> bool {
        match self.buckets.get_mut(&source(address)) {
            None => true,
            Some(bucket) => {
                bucket.forgive(now);
                bucket.spent < BURST
            }
        }
    }

    /// A login from this address has failed.
    pub(crate) fn failed(&mut self, address: IpAddr, now: Instant) {
        if self.buckets.len() >= ADDRESSES_MAX {
            self.buckets.retain(|_, bucket| {
                bucket.forgive(now);
                bucket.spent > 0
            });
            if self.buckets.len() >= ADDRESSES_MAX {
                self.buckets.clear();
            }
        }
        let bucket = self.buckets.entry(source(address)).or_insert(Bucket {
            spent: 0,
            since: now,
        });
        bucket.forgive(now);
        bucket.spent = (bucket.spent + 1).min(BURST);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn address(text: &str) -> IpAddr {
        text.parse().expect("an address")
    }

    #[test]
    fn a_guesser_is_stopped_and_forgiven_with_time() {
        let now = Instant::now();
        let mut limit = RateLimit::default();
        let guesser = address("192.0.2.7");
        for _ in 0..BURST {
            assert!(limit.allows(guesser, now));
            limit.failed(guesser, now);
        }
        assert!(!limit.allows(guesser, now));
        assert!(
            limit.allows(address("192.0.2.8"), now),
            "others are not hurt"
        );
        let later = now + REFILL * 3;
        for _ in 0..3 {
            assert!(limit.allows(guesser, later));
            limit.failed(guesser, later);
        }
        assert!(!limit.allows(guesser, later));
        assert!(limit.allows(guesser, later + REFILL * BURST * 2));
    }

    #[test]
    fn an_ipv6_host_counts_as_its_network_and_a_mapped_address_as_ipv4() {
        let now = Instant::now();
        let mut limit = RateLimit::default();
        for n in 0..BURST {
            limit.failed(address(&format!("2001:db8:1:2::{n:x}")), now);
            limit.failed(address("::ffff:198.51.100.1"), now);
        }
        assert!(!limit.allows(address("2001:db8:1:2:ffff::1"), now));
        assert!(limit.allows(address("2001:db8:1:3::1"), now));
        assert!(!limit.allows(address("198.51.100.1"), now));
    }

    #[test]
    fn memory_is_bounded() {
        let now = Instant::now();
        let mut limit = RateLimit::default();
        for n in 0..(u32::try_from(ADDRESSES_MAX).expect("fits") + 10) {
            limit.failed(IpAddr::V4(n.into()), now);
        }
        assert!(limit.buckets.len() <= ADDRESSES_MAX);
    }
}
