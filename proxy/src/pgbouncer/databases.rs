//! Owns `[databases]`: which of them is kept converged, and on which nodes.

use super::{Entry, Import, ImportError, connect};

/// Where the nodes are.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Nodes {
    pub(super) database: String,
    /// Hosts and ports.
    pub(super) places: Vec<(String, u16)>,
}

/// One line of `[databases]`, taken apart.
struct Line<'e> {
    entry: &'e Entry,
    pairs: Vec<(&'e str, String)>,
}

impl Line<'_> {
    fn get(&self, key: &str) -> Option<&str> {
        let found = self.pairs.iter().rev().find(|(known, _)| *known == key);
        found.map(|(_, value)| value.as_str())
    }
}

const SOCKET_DIR: &str = "/tmp";
const POSTGRESQL_PORT: u16 = 5432;

impl Import {
    /// Reads `[databases]`; the first one that is named is kept converged, or the one that is asked for.
    pub(super) fn databases(
        &mut self,
        entries: &[Entry],
        wanted: Option<&str>,
    ) -> Result<Nodes, ImportError> {
        let mut lines = Vec::new();
        for entry in entries.iter().filter(|entry| entry.section == "databases") {
            match connect::pairs(&entry.value) {
                Some(pairs) => lines.push(Line { entry, pairs }),
                None => self.note(
                    entry,
                    format!("what stands behind `{}` is no connection string", entry.key),
                    "PgBouncer refuses it too; mend it",
                ),
            }
        }
        let named = |name: &str| lines.iter().find(|line| line.entry.key == name);
        let fallback = named("*");
        let (main, database) = match wanted {
            Some(name) => {
                let line = named(name).or(fallback);
                let line = line.ok_or_else(|| ImportError::UnknownDatabase(name.to_owned()))?;
                (line, name.to_owned())
            }
            None => {
                let line = lines.iter().find(|line| line.entry.key != "*");
                let line = line.ok_or(ImportError::NoDatabase)?;
                (line, line.entry.key.clone())
            }
        };
        let places = self.places(main);
        for line in &lines {
            self.note_line(line, &database, &places);
        }
        Ok(Nodes { database, places })
    }

    fn places(&mut self, line: &Line<'_>) -> Vec<(String, u16)> {
        let port = match line.get("port").map(str::parse) {
            None => POSTGRESQL_PORT,
            Some(Ok(port)) => port,
            Some(Err(_)) => {
                self.note(line.entry, "`port` is no port", "5432 is written; mend it");
                POSTGRESQL_PORT
            }
        };
        let socket_dir = self
            .value("unix_socket_dir")
            .unwrap_or(SOCKET_DIR)
            .to_owned();
        match line.get("host").or_else(|| line.get("hostaddr")) {
            None | Some("") => vec![(socket_dir, port)],
            Some(hosts) => hosts
                .split(',')
                .map(|host| (host.trim().to_owned(), port))
                .collect(),
        }
    }

    fn note_line(&mut self, line: &Line<'_>, database: &str, nodes: &[(String, u16)]) {
        let entry = line.entry;
        let name = &entry.key;
        for (key, value) in &line.pairs {
            if let ("max_db_client_connections", Ok(limit)) = (*key, value.parse::<u32>()) {
                if limit > 0 {
                    self.limits.push(("database", name.clone(), limit));
                }
                continue;
            }
            let (what, instead) = match *key {
                "host" | "hostaddr" | "port" | "dbname" => continue,
                "user" | "password" => (
                    "one user for all clients",
                    "Tandem logs in to a node as the client's own user: create that role on the nodes",
                ),
                "auth_user" | "auth_query" | "auth_dbname" => (
                    "an authentication of its own",
                    "[auth] holds for all databases; Tandem's role asks",
                ),
                "pool_size"
                | "min_pool_size"
                | "reserve_pool"
                | "reserve_pool_size"
                | "max_db_connections"
                | "max_db_client_connections"
                | "server_lifetime" => (
                    "a pool of its own size",
                    "`pool_size` holds for all; ALTER DATABASE ... CONNECTION LIMIT on the nodes",
                ),
                "pool_mode" => ("a pool mode of its own", "`pool_mode` holds for all"),
                "connect_query" => (
                    "a query at each connect",
                    "use ALTER ROLE ... SET or ALTER DATABASE ... SET on the nodes",
                ),
                "client_encoding" | "datestyle" | "timezone" | "application_name" => (
                    "a setting of each session",
                    "use ALTER DATABASE ... SET on the nodes",
                ),
                "load_balance_hosts" => (
                    "how hosts are chosen",
                    "sessions go to the nearest healthy node; rules.toml says more",
                ),
                _ => (
                    "something unknown",
                    "see PgBouncer's manual for what it does",
                ),
            };
            self.note(
                entry,
                format!("`{key}` of database `{name}`: {what}"),
                instead,
            );
        }
        if let Some(other) = line
            .get("dbname")
            .filter(|other| other != name && name != "*")
        {
            self.note(
                entry,
                format!("database `{name}` is another name for `{other}`"),
                format!("let clients connect to `{other}`, or rename it"),
            );
        }
        if name == database {
            return;
        }
        let elsewhere = self
            .places(line)
            .into_iter()
            .any(|place| !nodes.contains(&place));
        if elsewhere {
            self.note(
                entry,
                format!("database `{name}` stands on another server than `{database}`"),
                "one Tandem serves nodes with the same databases: give it a Tandem of its own, or leave it with PgBouncer",
            );
        } else if name != "*" {
            self.note(
                entry,
                format!("database `{name}` is served, but not kept converged"),
                format!("only `{database}` is; clients of `{name}` meet whatever node is nearest"),
            );
        }
    }
}
