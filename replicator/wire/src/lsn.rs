//! Log sequence numbers: positions in a node's write-ahead log.

use std::fmt;
use std::str::FromStr;

/// A byte position in the write-ahead log of one node.
///
/// Shown as PostgreSQL's `pg_lsn` shows it: two hexadecimal halves, `16/B374D848`. Positions of different nodes
/// cannot be compared in a meaningful way.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct Lsn(pub u64);

impl fmt::Display for Lsn {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:X}/{:X}", self.0 >> 32, self.0 & 0xffff_ffff)
    }
}

/// A text is not a log sequence number.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("not a log sequence number: expected two hexadecimal numbers such as 16/B374D848")]
pub struct LsnParseError;

impl FromStr for Lsn {
    type Err = LsnParseError;

    /// Reads what [`Lsn`]'s `Display` writes. Like PostgreSQL's `pg_lsn_in` it takes 1 to 8 digits on each side
    /// and both letter cases.
    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let (high, low) = text.split_once('/').ok_or(LsnParseError)?;
        Ok(Self(half(high)? << 32 | half(low)?))
    }
}

fn half(digits: &str) -> Result<u64, LsnParseError> {
    if !(1..=8).contains(&digits.len()) || !digits.bytes().all(|b| b.is_ascii_hexdigit()) {
        return Err(LsnParseError);
    }
    u64::from_str_radix(digits, 16).map_err(|_| LsnParseError)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shows_and_reads_the_form_of_pg_lsn() {
        let lsn = Lsn(0x16_B374_D848);
        assert_eq!(lsn.to_string(), "16/B374D848");
        assert_eq!("16/b374d848".parse(), Ok(lsn));
        assert_eq!(Lsn::default().to_string(), "0/0");
        assert_eq!("FFFFFFFF/FFFFFFFF".parse(), Ok(Lsn(u64::MAX)));
    }

    #[test]
    fn refuses_what_pg_lsn_refuses() {
        for text in [
            "",
            "/",
            "1/",
            "/1",
            "1",
            "+1/0",
            "1/-1",
            "123456789/0",
            "0/123456789",
            "1/2/3",
            "g/0",
            " 1/0",
        ] {
            assert_eq!(text.parse::<Lsn>(), Err(LsnParseError), "{text:?}");
        }
    }

    #[test]
    fn orders_by_position() {
        assert!(Lsn(1 << 32) > Lsn(0xffff_ffff));
    }
}
