//! Owns who may do what in the console. Pure. Who is not listed may do nothing.

use std::collections::HashMap;

use tandem_wire::ErrorReport;

use super::statement::{Right, Statement};
use crate::config::AdminConfig;

/// Rights by user.
#[derive(Debug)]
pub(super) struct Permissions {
    rights: HashMap<String, Right>,
}

impl Permissions {
    /// As `[admin]` gives them. Who is listed as both may do everything.
    pub(super) fn new(config: &AdminConfig) -> Permissions {
        let readers = config.readers.iter().map(|name| (name, Right::Look));
        let users = config.users.iter().map(|name| (name, Right::Operate));
        let rights = readers
            .chain(users)
            .map(|(name, right)| (name.clone(), right));
        Permissions {
            rights: rights.collect(),
        }
    }

    /// What a user has, which includes what is less.
    pub(super) fn right(&self, user: &str) -> Option<Right> {
        self.rights.get(user).copied()
    }

    /// All who have any right, by name.
    pub(super) fn all(&self) -> Vec<(&str, Right)> {
        let rights = self.rights.iter();
        let mut all: Vec<_> = rights
            .map(|(name, right)| (name.as_str(), *right))
            .collect();
        all.sort_unstable();
        all
    }

    /// Whether a user may give a statement.
    pub(super) fn check(&self, user: &str, statement: &Statement) -> Result<(), ErrorReport> {
        let needed = statement.right();
        match self.right(user) {
            Some(right) if right >= needed => Ok(()),
            _ => Err(ErrorReport::error(
                "42501",
                format!(
                    "permission denied: \"{user}\" is not in `{}` of [admin]",
                    needed.key()
                ),
            )),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::statement::parse;
    use super::*;

    fn permissions() -> Permissions {
        let names = |names: &[&str]| names.iter().map(|name| (*name).to_owned()).collect();
        Permissions::new(&AdminConfig {
            listen: "127.0.0.1:0".parse().expect("an address"),
            token_file: "token".into(),
            users: names(&["ops", "both"]),
            readers: names(&["monitor", "both"]),
        })
    }

    /// CVE-2026-6667: one verb of another console looked at nobody's rights.
    #[test]
    fn every_verb_is_checked_and_who_is_not_listed_may_give_none() {
        let permissions = permissions();
        let texts = [
            "HELP",
            "SHOW VERSION",
            "SHOW CONFIG",
            "SHOW NODES",
            "SHOW LAG",
            "SHOW CONFLICTS",
            "SHOW RECOVERY",
            "SHOW RECOVERY_ROWS",
            "QUARANTINE LIST",
            "QUARANTINE SHOW n1/1",
            "QUARANTINE RETRY",
            "QUARANTINE SKIP n1/1",
            "QUARANTINE EDIT n1/1 SET a.b.c=1",
            "REAPPLY n1/1",
            "RELOAD",
            "PAUSE",
            "RESUME app",
            "DRAIN n1",
            "RECONNECT",
            "SHUTDOWN",
            "SHUTDOWN WAIT_FOR_SERVERS",
            "KILL_CLIENT 7",
            "SET application_name=x",
        ];
        let allowed = |user: &str| -> Vec<&str> {
            let may = |text: &&&str| {
                let statement = parse(text).expect(text).remove(0);
                permissions.check(user, &statement).is_ok()
            };
            texts.iter().filter(may).copied().collect()
        };
        assert_eq!(allowed("ops"), texts);
        assert_eq!(allowed("both"), texts);
        assert_eq!(
            allowed("monitor"),
            [
                "HELP",
                "SHOW VERSION",
                "SHOW CONFIG",
                "SHOW NODES",
                "SHOW LAG",
                "SHOW RECOVERY",
                "QUARANTINE LIST",
                "SET application_name=x"
            ]
        );
        for nobody in ["", "OPS", "ops ", "tandem", "postgres"] {
            assert!(allowed(nobody).is_empty(), "{nobody}");
        }
    }
}
