//! Networks: addresses of one family that share a prefix, `10.0.0.0/8`.

use core::fmt;
use core::str::FromStr;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

/// Addresses of one family that agree in the bits of a mask. Displays as `10.0.0.0/8`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Network {
    v6: bool,
    bits: u128,
    mask: u128,
}

/// Why a text is no network.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum NetworkError {
    /// No address stands before the slash.
    #[error("`{0}` is not an IP address")]
    Address(String),
    /// What stands behind it is no length of a prefix of this address.
    #[error("`/{0}` is not a length of this address's prefix")]
    Length(String),
}

impl Network {
    /// The addresses whose first `length` bits are those of `address`. `None`: it has not so many.
    #[must_use]
    pub fn of_prefix(address: IpAddr, length: u32) -> Option<Self> {
        let width = if address.is_ipv4() { 32 } else { 128 };
        let host_bits = u32::checked_sub(width, length)?;
        let all = u128::MAX >> (128 - width);
        let mask = all & all.checked_shl(host_bits).unwrap_or(0);
        Some(Self::new(address, mask))
    }

    /// The addresses that agree with `address` in the bits of `mask`. `None`: they are of two families.
    #[must_use]
    pub fn masked(address: IpAddr, mask: IpAddr) -> Option<Self> {
        let (_, bits) = bits(mask);
        (address.is_ipv4() == mask.is_ipv4()).then(|| Self::new(address, bits))
    }

    fn new(address: IpAddr, mask: u128) -> Self {
        let (v6, bits) = bits(address);
        Self {
            v6,
            bits: bits & mask,
            mask,
        }
    }

    /// Whether an address is one of these. An IPv4 address that came in IPv6 clothes counts as what it is.
    #[must_use]
    pub fn contains(&self, address: IpAddr) -> bool {
        let (v6, bits) = bits(address.to_canonical());
        v6 == self.v6 && bits & self.mask == self.bits
    }

    /// Whether all addresses of `other` are of these.
    #[must_use]
    pub fn covers(&self, other: &Self) -> bool {
        self.v6 == other.v6
            && self.mask & other.mask == self.mask
            && other.bits & self.mask == self.bits
    }

    /// Whether it is every address of its family.
    #[must_use]
    pub fn is_everything(&self) -> bool {
        self.mask == 0
    }
}

impl FromStr for Network {
    type Err = NetworkError;

    /// `10.0.0.0/8`, or one address. Bits behind the prefix are left aside, as PostgreSQL does in `pg_hba.conf`.
    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let (address, length) = match text.split_once('/') {
            Some((address, length)) => (address, Some(length)),
            None => (text, None),
        };
        let address: IpAddr = address
            .parse()
            .map_err(|_| NetworkError::Address(address.to_owned()))?;
        let network = match length {
            Some(length) => length
                .parse()
                .ok()
                .and_then(|length| Self::of_prefix(address, length)),
            None => Self::of_prefix(address, if address.is_ipv4() { 32 } else { 128 }),
        };
        network.ok_or_else(|| NetworkError::Length(length.unwrap_or_default().to_owned()))
    }
}

impl fmt::Display for Network {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (address, width) = match u32::try_from(self.bits) {
            Ok(bits) if !self.v6 => (IpAddr::V4(Ipv4Addr::from_bits(bits)), 32),
            _ => (IpAddr::V6(Ipv6Addr::from_bits(self.bits)), 128),
        };
        match self.mask.count_ones().min(width) {
            all if all == width => write!(f, "{address}"),
            length => write!(f, "{address}/{length}"),
        }
    }
}

fn bits(address: IpAddr) -> (bool, u128) {
    match address {
        IpAddr::V4(v4) => (false, u128::from(v4.to_bits())),
        IpAddr::V6(v6) => (true, v6.to_bits()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn network(text: &str) -> Network {
        text.parse().expect("a network")
    }

    #[test]
    fn addresses_are_inside_by_their_prefix_and_family() {
        let table = [
            ("10.0.0.0/8", "10.255.0.1", true),
            ("10.0.0.0/8", "11.0.0.1", false),
            ("10.1.2.3/8", "10.9.9.9", true),
            ("10.1.2.3", "10.1.2.3", true),
            ("10.1.2.3", "10.1.2.4", false),
            ("0.0.0.0/0", "203.0.113.9", true),
            ("0.0.0.0/0", "::1", false),
            ("::/0", "10.0.0.1", false),
            ("10.0.0.0/8", "::ffff:10.0.0.1", true),
            ("2001:db8::/32", "2001:db8:1::1", true),
            ("2001:db8::/32", "2001:db9::1", false),
            ("::1/128", "::1", true),
        ];
        for (text, address, wanted) in table {
            let address: IpAddr = address.parse().expect("an address");
            assert_eq!(
                network(text).contains(address),
                wanted,
                "{address} in {text}"
            );
        }
    }

    #[test]
    fn a_wider_network_covers_a_narrower_one() {
        let covers = |one: &str, other: &str| network(one).covers(&network(other));
        assert!(covers("10.0.0.0/8", "10.1.0.0/16") && covers("::/0", "::1"));
        assert!(covers("10.0.0.0/8", "10.0.0.0/8") && covers("10.1.2.3", "10.1.2.3/32"));
        assert!(!covers("10.1.0.0/16", "10.0.0.0/8") && !covers("10.0.0.0/8", "11.0.0.0/16"));
        assert!(!covers("0.0.0.0/0", "::/0"));
        assert!(network("::/0").is_everything() && !network("10.0.0.0/8").is_everything());
    }

    #[test]
    fn what_is_no_network_is_refused_with_what_is_wrong() {
        let refused = |text: &str| text.parse::<Network>().expect_err("none").to_string();
        assert_eq!(refused("office/8"), "`office` is not an IP address");
        assert_eq!(
            refused("10.0.0.0/33"),
            "`/33` is not a length of this address's prefix"
        );
        assert_eq!(
            refused("10.0.0.0/"),
            "`/` is not a length of this address's prefix"
        );
        assert_eq!(refused(""), "`` is not an IP address");
    }

    #[test]
    fn a_network_is_shown_as_it_is_written() {
        for text in [
            "10.0.0.0/8",
            "10.1.2.3",
            "0.0.0.0/0",
            "2001:db8::/32",
            "::1",
        ] {
            assert_eq!(network(text).to_string(), text);
        }
    }

    #[test]
    fn a_mask_is_of_the_address_s_family() {
        let address = |text: &str| text.parse::<IpAddr>().expect("an address");
        let masked = Network::masked(address("10.1.2.3"), address("255.0.0.0"));
        assert_eq!(masked, Some(network("10.0.0.0/8")));
        assert_eq!(Network::masked(address("10.1.2.3"), address("ff::")), None);
    }
}
