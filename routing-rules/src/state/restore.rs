//! Owns what a RESET has to be on a server connection that logged in without what the session's login set.
//!
//! What RESET gives is settled when a connection logs in (`reset_val` in `src/backend/utils/misc/guc.c`), and nothing can
//! change it afterwards. So the session's RESET becomes a SET of the values that its login asked for.

use super::{
    Change, Effects, Scope, Settings, Value,
    difference::{ascii_literal, assignment, literal},
    settings::is_list_of_names,
};
use crate::lex::Lexer;

/// The setting that goes without saying: nearly every client sends it, and nothing depends on it.
const APPLICATION_NAME: &[u8] = b"application_name";

/// What is sent instead of a statement.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Restoring {
    /// One statement, in ASCII.
    pub text: Vec<u8>,
    /// What it does on the server connection.
    pub effects: Effects,
    /// The command tag that the client is owed.
    pub tag: &'static str,
}

impl Settings {
    /// Whether there is anything that a login asked for and RESET on `server` (of any server, where none is given) does
    /// not give.
    #[must_use]
    pub fn is_lost_by_reset(&self, server: Option<&Settings>) -> bool {
        !self.lost_by_reset(server).is_empty()
    }

    /// What to send to `server` instead of RESET, or of SET to DEFAULT, so that a setting is again what the session's login
    /// asked for. Nothing if the statement does that itself, or if it is none of these; DISCARD ALL and `set_config` with
    /// NULL are not.
    ///
    /// `effects` are those of `statement`. RESET ALL becomes a DO, because it has to stay one statement.
    #[must_use]
    pub fn restoring(
        &self,
        statement: &[u8],
        effects: &Effects,
        server: Option<&Settings>,
    ) -> Option<Restoring> {
        if !effects.changes.iter().any(Change::resets) {
            return None;
        }
        let lost = self.lost_by_reset(server);
        let (is_all, wanted) = match &effects.changes[..] {
            [Change::Set { name, scope, .. }] => {
                let (_, value) = *lost.iter().find(|(lost, _)| *lost == name)?;
                (false, vec![(name, value, *scope)])
            }
            [Change::ResetAll] if !lost.is_empty() => {
                let session = |(name, value)| (name, value, Scope::Session);
                (true, lost.into_iter().map(session).collect())
            }
            _ => return None,
        };
        let first = Lexer::new(statement, true).significant().next()?;
        let tag = ["RESET", "SET"];
        let tag = tag
            .into_iter()
            .find(|tag| first.is_word(&tag.to_ascii_lowercase()))?;
        let text = match &wanted[..] {
            [(name, value, scope)] if !is_all && !is_list_of_names(name) => {
                let word: &[u8] = match scope {
                    Scope::Session => b"SET ",
                    Scope::Local => b"SET LOCAL ",
                };
                [word, assignment(name, value, ascii_literal).as_slice()].concat()
            }
            wanted => block(is_all, wanted),
        };
        let reset = is_all.then_some(Change::ResetAll);
        let sets = wanted.into_iter().map(|(name, value, scope)| Change::Set {
            name: name.clone(),
            value: value.clone(),
            scope,
        });
        let effects = Effects {
            changes: reset.into_iter().chain(sets).collect(),
            ..effects.clone()
        };
        Some(Restoring { text, effects, tag })
    }

    /// What the login asked for and RESET does not give; nothing if that is the application's name only.
    fn lost_by_reset(&self, server: Option<&Settings>) -> Vec<(&Vec<u8>, &Value)> {
        let sent = self.startup().iter().filter(|(_, startup)| startup.is_sent);
        let lost = sent.filter(|(name, startup)| {
            let there = server.and_then(|server| server.startup().get(name));
            there.is_none_or(|there| there.value != startup.value)
        });
        let lost: Vec<_> = lost.map(|(name, startup)| (name, &startup.value)).collect();
        match &lost[..] {
            [(name, _)] if *name == APPLICATION_NAME => Vec::new(),
            _ => lost,
        }
    }
}

/// One statement that sets all of these; lists of names as they are, which SET would quote.
fn block(is_all: bool, wanted: &[(&Vec<u8>, &Value, Scope)]) -> Vec<u8> {
    let calls = wanted.iter().map(|(name, value, scope)| {
        let value = match value {
            Value::Text(text) => ascii_literal(text),
            // A login says nothing else.
            Value::List(_) | Value::Default => b"NULL".to_vec(),
        };
        let is_local: &[u8] = match scope {
            Scope::Session => b"false",
            Scope::Local => b"true",
        };
        [
            b"pg_catalog.set_config(",
            ascii_literal(name).as_slice(),
            b", ",
            value.as_slice(),
            b", ",
            is_local,
            b")",
        ]
        .concat()
    });
    let calls: Vec<Vec<u8>> = calls.collect();
    let reset: &[u8] = if is_all { b"RESET ALL; " } else { b"" };
    let calls = calls.join(&b", "[..]);
    let body = [b"BEGIN ", reset, b"PERFORM ", calls.as_slice(), b"; END"].concat();
    [b"DO ", literal(&body).as_slice()].concat()
}

#[cfg(test)]
mod tests {
    use super::super::effects;
    use super::*;

    fn login(pairs: &[(&str, &str)]) -> Settings {
        let pairs = pairs.iter();
        Settings::new(pairs.map(|(name, value)| (name.as_bytes(), value.as_bytes())))
    }

    fn restored(session: &Settings, server: Option<&Settings>, sql: &str) -> Option<String> {
        let found = session.restoring(sql.as_bytes(), &effects(sql.as_bytes(), true), server);
        found.map(|found| String::from_utf8(found.text).expect("ASCII"))
    }

    #[test]
    fn a_reset_becomes_what_the_login_asked_for() {
        let session = login(&[
            ("work_mem", "5MB"),
            ("Search_Path", "A ,é"),
            ("a.b", "it's"),
        ]);
        let table = [
            (
                "SET work_mem TO DEFAULT",
                Some(r#"SET "work_mem" TO '5MB'"#),
            ),
            (
                "SET LOCAL work_mem = DEFAULT",
                Some(r#"SET LOCAL "work_mem" TO '5MB'"#),
            ),
            ("/* it */ reset A.B", Some(r#"SET "a"."b" TO 'it''s'"#)),
            (
                "SET search_path = DEFAULT",
                Some(
                    r"DO E'BEGIN PERFORM pg_catalog.set_config(''search_path'', E''A ,\\xC3\\xA9'', false); END'",
                ),
            ),
            ("RESET timezone", None),
            ("SET work_mem = '6MB'", None),
            ("SELECT set_config('work_mem', NULL, false)", None),
            ("DISCARD ALL", None),
        ];
        for (sql, expected) in table {
            assert_eq!(restored(&session, None, sql).as_deref(), expected, "{sql}");
        }
    }

    #[test]
    fn a_reset_of_all_stays_one_statement() {
        let session = login(&[("work_mem", "5MB"), ("application_name", "x")]);
        let all = b"reset all";
        let found = session.restoring(all, &effects(all, true), None);
        let found = found.expect("something is lost");
        assert_eq!(found.tag, "RESET");
        assert_eq!(found.effects.changes.len(), 3);
        assert_eq!(
            String::from_utf8(found.text).expect("ASCII"),
            "DO 'BEGIN RESET ALL; PERFORM pg_catalog.set_config(''application_name'', ''x'', false), \
             pg_catalog.set_config(''work_mem'', ''5MB'', false); END'"
        );
    }

    #[test]
    fn a_reset_stays_where_the_server_gives_the_same() {
        let session = login(&[("client_encoding", "UTF8"), ("application_name", "x")]);
        let mut server = Settings::default();
        assert!(session.is_lost_by_reset(Some(&server)));
        server.reported_at_login(b"client_encoding", b"UTF8");
        server.reported_at_login(b"application_name", b"");
        assert!(!session.is_lost_by_reset(Some(&server)));
        assert_eq!(restored(&session, Some(&server), "RESET ALL"), None);
        assert!(session.is_lost_by_reset(None));
    }
}
