//! Owns the `tandem.toml` of a dev cluster: the user's part wins, what is missing is filled in.

use std::path::{Path, PathBuf};

use toml::{Table, Value};

/// Names and zones of the nodes, as many as `--nodes` may ask for.
const PLACES: [(&str, &str); 16] = [
    ("paris", "eu"),
    ("delhi", "asia"),
    ("lima", "america"),
    ("oslo", "eu"),
    ("cairo", "africa"),
    ("tokyo", "asia"),
    ("quito", "america"),
    ("perth", "oceania"),
    ("dakar", "africa"),
    ("seoul", "asia"),
    ("miami", "america"),
    ("sofia", "eu"),
    ("accra", "africa"),
    ("osaka", "asia"),
    ("turin", "eu"),
    ("boston", "america"),
];

/// What a developer's limit of open files and three servers of 200 connections each can serve.
const MAX_CLIENTS: i64 = 500;

/// What pgbench adds to: of two nodes' additions to a row none may be lost.
const PGBENCH_COUNTERS: [(&str, &str); 3] = [
    ("public.pgbench_accounts", "abalance"),
    ("public.pgbench_tellers", "tbalance"),
    ("public.pgbench_branches", "bbalance"),
];

/// Keys whose values are paths, relative to the file they stand in.
const PATHS: [&[&str]; 9] = [
    &["proxy", "rules"],
    &["proxy", "tls", "cert"],
    &["proxy", "tls", "key"],
    &["proxy", "tls", "client_ca"],
    &["auth", "users_file"],
    &["auth", "hba_file"],
    &["admin", "token_file"],
    &["state_dir"],
    &["replication", "journal_dir"],
];

/// The same, in each `[[node]]`.
const NODE_PATHS: [&str; 2] = ["sslrootcert", "password_file"];

/// Why a configuration cannot serve a dev cluster.
#[derive(Debug, Clone, thiserror::Error, PartialEq, Eq)]
pub enum ConfigTextError {
    /// It is not TOML.
    #[error("{path}: {problem}")]
    Syntax {
        /// The file.
        path: PathBuf,
        /// What the parser says, with line and column.
        problem: String,
    },
    /// A key that we must look into has another type.
    #[error("{path}: \"{key}\" must be {wanted}")]
    Type {
        /// The file.
        path: PathBuf,
        /// The key.
        key: String,
        /// What it should be.
        wanted: &'static str,
    },
    /// The file has another number of nodes than asked for.
    #[error(
        "{path} has {found} [[node]] tables, but --nodes is {wanted}: make them equal (or leave [[node]] out)"
    )]
    NodeCount {
        /// The file.
        path: PathBuf,
        /// How many it has.
        found: usize,
        /// How many were asked for.
        wanted: usize,
    },
    /// A node's name cannot be a directory's.
    #[error(
        "{path}: node name \"{name}\": a dev cluster's names are made of letters, digits, '-' and '_'"
    )]
    Name {
        /// The file.
        path: PathBuf,
        /// The name.
        name: String,
    },
}

/// A `tandem.toml`, perhaps partial.
#[derive(Debug, Clone, Default, PartialEq)]
pub(super) struct ConfigText {
    path: PathBuf,
    table: Table,
}

/// What the dev cluster itself decides.
#[derive(Debug, Clone)]
pub(super) struct Fill {
    pub(super) port: u16,
    pub(super) admin_port: u16,
    pub(super) base_port: u16,
    pub(super) database: String,
    pub(super) password_file: PathBuf,
    /// The ports of the last start: a listen address that is only that is not the user's own.
    pub(super) earlier_ports: Option<(u16, u16)>,
    /// pgbench's tables are made.
    pub(super) has_pgbench: bool,
}

impl Fill {
    fn counters(&self) -> &'static [(&'static str, &'static str)] {
        match self.has_pgbench {
            true => &PGBENCH_COUNTERS,
            false => &[],
        }
    }
}

impl ConfigText {
    /// Reads `text`, which stands in the file `path`.
    pub(super) fn parse(path: &Path, text: &str) -> Result<Self, ConfigTextError> {
        match text.parse() {
            Ok(table) => Ok(Self {
                path: path.to_owned(),
                table,
            }),
            Err(error) => Err(ConfigTextError::Syntax {
                path: path.to_owned(),
                problem: format!("{error}"),
            }),
        }
    }

    /// The whole text for a start without a configuration: what [`Self::fill`] would say, with comments.
    pub(super) fn fresh_text(names: &[String], fill: &Fill) -> String {
        let mut text = format!(
            "# Written by `tandem dev`. Edit it and start again: your edits are kept. Addresses, ports, roles and\n\
             # passwords of the nodes follow the command line. `tandem check --config` tells what is wrong with it.\n\
             cluster = \"dev\"\n\n\
             [proxy]\nlisten = [\"127.0.0.1:{}\"]      # also \"unix:/absolute/dir\"\n\
             pool_mode = \"transaction\"  # or \"session\"\nmax_client_connections = {MAX_CLIENTS}\nrules = \"rules.toml\"\n\n\
             [admin]\nlisten = \"127.0.0.1:{}\"          # the token is in state/admin.token\n\
             users = [\"app\"]                 # may use the console: psql -p {} -U app tandem\n\n\
             [replication]\ndatabase = {}             # the database kept converged\n\
             # journal_max = \"16GB\"      # of each node's changes, for nodes that are away; they are in journal/\n",
            fill.port,
            fill.admin_port,
            fill.port,
            Value::from(fill.database.clone()),
        );
        for (table, column) in fill.counters() {
            text.push_str(&format!(
                "\n[replication.table.{}]\ncounters = [\"{column}\"]\n",
                Value::from(*table)
            ));
        }
        for (place, name) in (0_u16..).zip(names) {
            let zone = PLACES
                .get(usize::from(place))
                .map_or("local", |(_, zone)| zone);
            let password_file = Value::from(fill.password_file.to_string_lossy().into_owned());
            text.push_str(&format!(
                "\n[[node]]\nname = \"{name}\"\nid = {}\nhost = \"127.0.0.1\"\nport = {}\nuser = \"tandem\"\n\
                 password_file = {password_file}\nzone = \"{zone}\"\n",
                place + 1,
                u32::from(fill.base_port) + u32::from(place),
            ));
        }
        text
    }

    /// Makes relative paths absolute, so that the text may move to another directory.
    pub(super) fn anchor_paths(&mut self) {
        let dir = std::path::absolute(&self.path)
            .ok()
            .and_then(|path| path.parent().map(Path::to_owned));
        let Some(dir) = dir else { return };
        let anchor = |value: &mut Value| {
            if let Value::String(text) = value {
                *text = dir.join(&*text).to_string_lossy().into_owned();
            }
        };
        for keys in PATHS {
            if let Some(value) = lookup(&mut self.table, keys) {
                anchor(value);
            }
        }
        for node in self
            .table
            .get_mut("node")
            .and_then(Value::as_array_mut)
            .into_iter()
            .flatten()
        {
            for key in NODE_PATHS {
                if let Some(value) = node.get_mut(key) {
                    anchor(value);
                }
            }
        }
    }

    /// Takes the rules file out: it is copied beside the configuration.
    pub(super) fn take_rules(&mut self) -> Option<PathBuf> {
        let rules = self
            .table
            .get_mut("proxy")?
            .as_table_mut()?
            .remove("rules")?;
        rules.as_str().map(PathBuf::from)
    }

    /// The names of `count` nodes: the file's, else ours.
    pub(super) fn node_names(&self, count: u16) -> Result<Vec<String>, ConfigTextError> {
        let wanted = usize::from(count);
        let Some(nodes) = self.table.get("node") else {
            return Ok(PLACES
                .iter()
                .take(wanted)
                .map(|(name, _)| (*name).to_owned())
                .collect());
        };
        let nodes = nodes
            .as_array()
            .ok_or_else(|| self.wrong_type("node", "an array of tables, [[node]]"))?;
        if nodes.len() != wanted {
            return Err(ConfigTextError::NodeCount {
                path: self.path.clone(),
                found: nodes.len(),
                wanted,
            });
        }
        let name_of = |(place, node): (usize, &Value)| match node.get("name") {
            None => Ok(PLACES.get(place).map_or_else(
                || format!("node{}", place + 1),
                |(name, _)| (*name).to_owned(),
            )),
            Some(name) => {
                let name = name
                    .as_str()
                    .ok_or_else(|| self.wrong_type("node.name", "a string"))?;
                let plain = !name.is_empty()
                    && name
                        .bytes()
                        .all(|b| b.is_ascii_alphanumeric() || b"-_".contains(&b));
                if plain {
                    Ok(name.to_owned())
                } else {
                    Err(ConfigTextError::Name {
                        path: self.path.clone(),
                        name: name.to_owned(),
                    })
                }
            }
        };
        nodes.iter().enumerate().map(name_of).collect()
    }

    /// Fills in what is missing. A node's address, port, role and password are always ours: these are our servers.
    pub(super) fn fill(&mut self, names: &[String], fill: &Fill) -> Result<(), ConfigTextError> {
        self.table
            .entry("cluster")
            .or_insert_with(|| Value::from("dev"));
        let listen = |port: u16| Value::from(vec![format!("127.0.0.1:{port}")]);
        let admin_listen = |port: u16| Value::from(format!("127.0.0.1:{port}"));
        let earlier = fill.earlier_ports;
        let proxy = self.section("proxy")?;
        proxy.insert("rules".to_owned(), Value::from("rules.toml"));
        if earlier.is_some_and(|(port, _)| proxy.get("listen") == Some(&listen(port))) {
            proxy.remove("listen");
        }
        proxy.entry("listen").or_insert_with(|| listen(fill.port));
        proxy
            .entry("pool_mode")
            .or_insert_with(|| Value::from("transaction"));
        proxy
            .entry("max_client_connections")
            .or_insert_with(|| Value::from(MAX_CLIENTS));
        let admin = self.section("admin")?;
        if earlier.is_some_and(|(_, port)| admin.get("listen") == Some(&admin_listen(port))) {
            admin.remove("listen");
        }
        admin
            .entry("listen")
            .or_insert_with(|| admin_listen(fill.admin_port));
        admin
            .entry("users")
            .or_insert_with(|| Value::from(vec!["app"]));
        self.section("replication")?
            .insert("database".to_owned(), Value::from(fill.database.clone()));
        self.fill_counters(fill)?;

        let wrong = self.wrong_type("node", "an array of tables, [[node]]");
        let nodes = self
            .table
            .entry("node")
            .or_insert_with(|| Value::Array(Vec::new()));
        let nodes = nodes.as_array_mut().ok_or_else(|| wrong.clone())?;
        nodes.resize_with(names.len(), || Value::Table(Table::new()));
        for (place, (node, name)) in (0_u16..).zip(nodes.iter_mut().zip(names)) {
            let node = node.as_table_mut().ok_or_else(|| wrong.clone())?;
            let zone = PLACES
                .get(usize::from(place))
                .map_or("local", |(_, zone)| zone);
            node.entry("name")
                .or_insert_with(|| Value::from(name.clone()));
            node.entry("id")
                .or_insert_with(|| Value::from(i64::from(place) + 1));
            node.insert("host".to_owned(), Value::from("127.0.0.1"));
            node.insert(
                "port".to_owned(),
                Value::from(i64::from(fill.base_port) + i64::from(place)),
            );
            node.insert("user".to_owned(), Value::from("tandem"));
            node.insert(
                "password_file".to_owned(),
                Value::from(fill.password_file.to_string_lossy().into_owned()),
            );
            node.remove("password");
            node.remove("password_env");
            node.entry("zone").or_insert_with(|| Value::from(zone));
        }
        Ok(())
    }

    /// Every address that the daemon will listen on, with what to change when it is taken.
    pub(super) fn listen_addresses(&self) -> Vec<(String, &'static str)> {
        let of = |section: &str| {
            self.table
                .get(section)
                .and_then(|section| section.get("listen"))
        };
        let text = |value: &Value| value.as_str().map(str::to_owned);
        let proxy = of("proxy")
            .and_then(Value::as_array)
            .into_iter()
            .flatten()
            .filter_map(text);
        let admin = of("admin").and_then(text);
        proxy
            .map(|address| (address, "--port, or listen in [proxy],"))
            .chain(admin.map(|address| (address, "--admin-port, or listen in [admin],")))
            .collect()
    }

    /// Whether `text` says the same already; comments and order do not count.
    pub(super) fn is_said_by(&self, text: &str) -> bool {
        text.parse::<Table>().is_ok_and(|table| table == self.table)
    }

    /// Whether it holds a secret in clear: then the file is for the owner's eyes.
    pub(super) fn holds_secret(&self) -> bool {
        fn secret(table: &Table) -> bool {
            table.iter().any(|(key, value)| match value {
                Value::Table(inner) => secret(inner),
                Value::Array(items) => items.iter().filter_map(Value::as_table).any(secret),
                _ => key.contains("password") && key != "password_file" && key != "password_env",
            })
        }
        secret(&self.table)
    }

    /// The whole text of the file.
    pub(super) fn to_text(&self) -> String {
        let body = self.table.to_string();
        format!(
            "# Written by `tandem dev`. Edit it and start again: your edits are kept. Addresses, ports, roles and\n\
             # passwords of the nodes follow the command line.\n\n{body}"
        )
    }

    /// A table that the user says something about stays as he has it.
    fn fill_counters(&mut self, fill: &Fill) -> Result<(), ConfigTextError> {
        let counters = fill.counters();
        if counters.is_empty() {
            return Ok(());
        }
        let wrong = self.wrong_type("replication.table", "a table");
        let tables = self.section("replication")?.entry("table");
        let tables = tables.or_insert_with(|| Value::Table(Table::new()));
        let tables = tables.as_table_mut().ok_or(wrong)?;
        for (table, column) in counters {
            let counter = || {
                let counters = Value::from(vec![*column]);
                Value::Table(Table::from_iter([("counters".to_owned(), counters)]))
            };
            tables.entry(*table).or_insert_with(counter);
        }
        Ok(())
    }

    fn section(&mut self, name: &str) -> Result<&mut Table, ConfigTextError> {
        let wrong = self.wrong_type(name, "a table");
        self.table
            .entry(name)
            .or_insert_with(|| Value::Table(Table::new()))
            .as_table_mut()
            .ok_or(wrong)
    }

    fn wrong_type(&self, key: &str, wanted: &'static str) -> ConfigTextError {
        ConfigTextError::Type {
            path: self.path.clone(),
            key: key.to_owned(),
            wanted,
        }
    }
}

fn lookup<'a>(table: &'a mut Table, keys: &[&str]) -> Option<&'a mut Value> {
    let (last, above) = keys.split_last()?;
    let inner = above
        .iter()
        .try_fold(table, |table, key| table.get_mut(*key)?.as_table_mut())?;
    inner.get_mut(*last)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn fill() -> Fill {
        Fill {
            port: 6432,
            admin_port: 6433,
            base_port: 6501,
            database: "app".to_owned(),
            password_file: PathBuf::from("/d/state/tandem.password"),
            earlier_ports: None,
            has_pgbench: false,
        }
    }

    fn filled(text: &str, count: u16, fill: &Fill) -> Table {
        let mut config = ConfigText::parse(Path::new("/u/tandem.toml"), text).unwrap();
        let names = config.node_names(count).unwrap();
        config.fill(&names, fill).unwrap();
        config.to_text().parse().unwrap()
    }

    #[test]
    fn an_empty_configuration_becomes_a_whole_one() {
        let table = filled("", 3, &fill());
        let nodes = table["node"].as_array().unwrap();
        let of = |place: usize| {
            (
                nodes[place]["name"].as_str().unwrap(),
                nodes[place]["port"].as_integer().unwrap(),
            )
        };
        assert_eq!(
            [of(0), of(1), of(2)],
            [("paris", 6501), ("delhi", 6502), ("lima", 6503)]
        );
        assert_eq!(table["proxy"]["listen"][0].as_str(), Some("127.0.0.1:6432"));
        assert_eq!(table["proxy"]["rules"].as_str(), Some("rules.toml"));
        assert_eq!(table["replication"]["database"].as_str(), Some("app"));
    }

    #[test]
    fn the_commented_text_says_what_filling_in_would() {
        let mut config = ConfigText::parse(Path::new("/u/tandem.toml"), "").unwrap();
        let names = config.node_names(16).unwrap();
        for has_pgbench in [false, true] {
            let fill = Fill {
                has_pgbench,
                ..fill()
            };
            config.fill(&names, &fill).unwrap();
            let fresh: Table = ConfigText::fresh_text(&names, &fill).parse().unwrap();
            assert_eq!(fresh, config.table);
        }
    }

    #[test]
    fn pgbenchs_balances_are_counters_unless_the_user_says_otherwise() {
        let text = "[replication.table.'public.pgbench_tellers']\nresolver = 'first_update_wins'\n";
        let has_pgbench = Fill {
            has_pgbench: true,
            ..fill()
        };
        let table = filled(text, 1, &has_pgbench);
        let tables = &table["replication"]["table"];
        assert_eq!(
            tables["public.pgbench_branches"]["counters"][0].as_str(),
            Some("bbalance")
        );
        assert!(tables["public.pgbench_tellers"].get("counters").is_none());
        assert!(
            filled("", 1, &fill())["replication"].get("table").is_none(),
            "without pgbench's tables there are none"
        );
    }

    #[test]
    fn the_users_part_wins_but_the_servers_stay_ours() {
        let text = "cluster = 'bikes'\n[proxy]\nlisten = ['127.0.0.1:7777']\nmax_client_connections = 5\n\
                    [[node]]\nname = 'rome'\nid = 7\nhost = 'db.example'\nport = 1\npassword = 'x'\nzone = 'it'\n";
        let table = filled(text, 1, &fill());
        assert_eq!(table["cluster"].as_str(), Some("bikes"));
        assert_eq!(table["proxy"]["listen"][0].as_str(), Some("127.0.0.1:7777"));
        assert_eq!(
            table["proxy"]["max_client_connections"].as_integer(),
            Some(5)
        );
        let node = table["node"][0].as_table().unwrap();
        assert_eq!(
            (node["name"].as_str(), node["id"].as_integer()),
            (Some("rome"), Some(7))
        );
        assert_eq!(
            (node["host"].as_str(), node["port"].as_integer()),
            (Some("127.0.0.1"), Some(6501))
        );
        assert_eq!(node["zone"].as_str(), Some("it"));
        assert!(!node.contains_key("password"));
    }

    #[test]
    fn a_later_start_moves_our_own_ports_and_leaves_the_users() {
        let first = filled("", 1, &fill()).to_string();
        let later = Fill {
            port: 7000,
            admin_port: 7001,
            earlier_ports: Some((6432, 6433)),
            ..fill()
        };
        let table = filled(&first, 1, &later);
        assert_eq!(table["proxy"]["listen"][0].as_str(), Some("127.0.0.1:7000"));
        assert_eq!(table["admin"]["listen"].as_str(), Some("127.0.0.1:7001"));
        let edited = first.replace("127.0.0.1:6432", "127.0.0.1:9999");
        assert_eq!(
            filled(&edited, 1, &later)["proxy"]["listen"][0].as_str(),
            Some("127.0.0.1:9999")
        );
    }

    #[test]
    fn paths_of_the_users_file_stay_what_they_meant() {
        let text =
            "[proxy]\nrules = 'r.toml'\n[proxy.tls]\ncert = 'tls/c.pem'\nkey = '/abs/k.pem'\n";
        let mut config = ConfigText::parse(Path::new("/u/tandem.toml"), text).unwrap();
        config.anchor_paths();
        assert_eq!(config.take_rules(), Some(PathBuf::from("/u/r.toml")));
        assert_eq!(
            config.table["proxy"]["tls"]["cert"].as_str(),
            Some("/u/tls/c.pem")
        );
        assert_eq!(
            config.table["proxy"]["tls"]["key"].as_str(),
            Some("/abs/k.pem")
        );
    }

    #[test]
    fn wrong_counts_names_and_types_are_told() {
        let parse = |text: &str| ConfigText::parse(Path::new("/u/t.toml"), text).unwrap();
        let two = parse("[[node]]\nname='a'\n[[node]]\nname='b'\n");
        assert!(matches!(
            two.node_names(3),
            Err(ConfigTextError::NodeCount {
                found: 2,
                wanted: 3,
                ..
            })
        ));
        assert_eq!(two.node_names(2).unwrap(), ["a", "b"]);
        assert!(matches!(
            parse("[[node]]\nname='../x'\n").node_names(1),
            Err(ConfigTextError::Name { .. })
        ));
        assert!(matches!(
            parse("node = 1").node_names(1),
            Err(ConfigTextError::Type { .. })
        ));
        assert!(matches!(
            parse("proxy = 1").fill(&[], &fill()),
            Err(ConfigTextError::Type { .. })
        ));
        let error = ConfigText::parse(Path::new("/u/t.toml"), "a = = 1").unwrap_err();
        assert!(error.to_string().starts_with("/u/t.toml"), "{error}");
    }

    #[test]
    fn a_clear_password_is_noticed_and_a_password_file_is_not() {
        let holds = |text: &str| {
            ConfigText::parse(Path::new("/t"), text)
                .unwrap()
                .holds_secret()
        };
        assert!(holds("[auth]\npassword = 'x'"));
        assert!(!holds("[[node]]\npassword_file = 'x'\npassword_env = 'Y'"));
    }

    #[test]
    fn the_same_content_is_recognised_in_spite_of_comments() {
        let config = ConfigText::parse(Path::new("/t"), "a = 1\nb = 2").unwrap();
        assert!(config.is_said_by("# mine\nb = 2\na = 1"));
        assert!(!config.is_said_by("a = 1"));
    }
}
