//! Verifiers: what is stored to check a password, in the forms of `pg_authid.rolpassword`.

use super::scram::ScramVerifier;
use crate::secret::Secret;

/// What a user's password is checked against.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Verifier {
    /// `SCRAM-SHA-256$iterations:salt$StoredKey:ServerKey`.
    Scram(ScramVerifier),
    /// `md5` and 32 hexadecimal digits.
    Md5(Secret),
    /// The password itself (from a users file; PostgreSQL stores none).
    Plain(Secret),
}

/// A text that begins like a SCRAM verifier but is none.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "malformed SCRAM verifier: expected SCRAM-SHA-256$iterations:salt$StoredKey:ServerKey as in pg_authid.rolpassword"
)]
pub struct VerifierError;

impl Verifier {
    /// Reads the text of `pg_authid.rolpassword`. As PostgreSQL's `get_password_type` does, a text of neither stored
    /// form is taken for a password; unlike there a broken SCRAM verifier is an error, because taken for a password it
    /// would let in whoever can read it.
    ///
    /// # Errors
    /// [`VerifierError`] for a text that begins with `SCRAM-SHA-256$` and does not go on as it must.
    pub fn parse(text: &str) -> Result<Self, VerifierError> {
        if text.starts_with(ScramVerifier::PREFIX) {
            return ScramVerifier::parse(text)
                .map(Self::Scram)
                .ok_or(VerifierError);
        }
        let digits = text.strip_prefix("md5").unwrap_or_default();
        if digits.len() == 32
            && digits
                .bytes()
                .all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f'))
        {
            return Ok(Self::Md5(Secret::new(text)));
        }
        Ok(Self::Plain(Secret::new(text)))
    }

    /// The text that [`Verifier::parse`] reads, the same bytes for what PostgreSQL stored.
    pub fn to_text(&self) -> Secret {
        match self {
            Self::Scram(verifier) => verifier.to_text(),
            Self::Md5(text) | Self::Plain(text) => text.clone(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const STORED: &str = "SCRAM-SHA-256$4096:W22ZaJ0SNY7soEsUEjb6gQ==$WG5d8oPm3OtcPnkdi4Uo7BkeZkBFzpcXkuLmtbsT4qY=:wfPLwcE6nTWhTAmQ7tl2KeoiWGPlZqQxSrmfPwDl2dU=";

    #[test]
    fn stored_forms_are_told_apart_and_written_back_unchanged() {
        let scram = Verifier::parse(STORED).unwrap();
        let Verifier::Scram(inner) = &scram else {
            panic!("{scram:?}")
        };
        assert_eq!((inner.iterations, inner.salt.len()), (4096, 16));
        let md5 = "md5a3556571e93b0d20722ba62be61e8c2d";
        assert!(matches!(Verifier::parse(md5), Ok(Verifier::Md5(_))));
        for plain in [
            "hunter2",
            "md5tooshort",
            "md5A3556571E93B0D20722BA62BE61E8C2D",
            "",
        ] {
            assert!(
                matches!(Verifier::parse(plain), Ok(Verifier::Plain(_))),
                "{plain}"
            );
        }
        for text in [STORED, md5, "hunter2"] {
            assert_eq!(
                Verifier::parse(text).unwrap().to_text().expose(),
                text.as_bytes()
            );
        }
    }

    #[test]
    fn a_broken_scram_verifier_is_no_password() {
        for text in [
            "SCRAM-SHA-256$",
            "SCRAM-SHA-256$0:W22ZaJ0SNY7soEsUEjb6gQ==$WG5d8oPm3OtcPnkdi4Uo7BkeZkBFzpcXkuLmtbsT4qY=:wfPLwcE6nTWhTAmQ7tl2KeoiWGPlZqQxSrmfPwDl2dU=",
            "SCRAM-SHA-256$4096:!!$WG5d8oPm3OtcPnkdi4Uo7BkeZkBFzpcXkuLmtbsT4qY=:wfPLwcE6nTWhTAmQ7tl2KeoiWGPlZqQxSrmfPwDl2dU=",
            "SCRAM-SHA-256$4096:W22ZaJ0SNY7soEsUEjb6gQ==$WG5d:wfPLwcE6nTWhTAmQ7tl2KeoiWGPlZqQxSrmfPwDl2dU=",
            "SCRAM-SHA-256$4096:W22ZaJ0SNY7soEsUEjb6gQ==$WG5d8oPm3OtcPnkdi4Uo7BkeZkBFzpcXkuLmtbsT4qY=",
            &format!("{STORED}$"),
        ] {
            assert_eq!(Verifier::parse(text), Err(VerifierError), "{text}");
        }
    }

    #[test]
    fn verifiers_do_not_print() {
        for text in [STORED, "md5a3556571e93b0d20722ba62be61e8c2d", "hunter2"] {
            let shown = format!("{:?}", Verifier::parse(text).unwrap());
            for part in ["WG5d8oPm", "wfPL", "a3556571", "hunter2", "88, 110"] {
                assert!(!shown.contains(part), "{shown}");
            }
        }
    }
}
