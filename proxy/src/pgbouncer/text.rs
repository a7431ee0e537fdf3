//! Owns the text of the `tandem.toml` that comes of it.

use std::fmt::Write as _;

use toml::Value;

use super::{
    Import,
    databases::Nodes,
    login::{Login, Rules},
    settings::{Carry, SETTINGS, carry_time},
};

/// PgBouncer's port where none is named.
const LISTEN_PORT: &str = "6432";

impl Import {
    pub(super) fn text(&mut self, nodes: &Nodes, login: &Login) -> String {
        let name = self.path.file_name().unwrap_or_default().to_string_lossy();
        let mut text = format!(
            "# Made by `tandem import-pgbouncer` of {name}. Each node needs a role for Tandem, and its password in a file:\n\
             #   CREATE ROLE tandem LOGIN SUPERUSER PASSWORD '...'\n\
             # `tandem check --config` says what else is to be done.\n\
             cluster = \"pg\"\n\n[proxy]\n"
        );
        let (listen, port) = self.listen();
        let mut line = |key: &str, value: Value| {
            // Writing to a String cannot fail.
            let _ = writeln!(text, "{key} = {value}");
        };
        line("listen", Value::from(listen));
        match self.value("pool_mode").unwrap_or("session") {
            "session" => line("pool_mode", Value::from("session")),
            "transaction" => line("pool_mode", Value::from("transaction")),
            _ => self.note_setting(
                "pool_mode",
                "statement pooling is not there",
                "transactions are pooled, which also takes what runs in one",
            ),
        }
        // 0 switches prepared statements off there; here they always work.
        let prepared = self.value("max_prepared_statements");
        if let Some(most) = prepared
            .and_then(|most| most.parse().ok())
            .filter(|most: &u32| *most > 0)
        {
            line("max_prepared_statements", Value::from(i64::from(most)));
        }
        for (setting, carry) in SETTINGS {
            let Some(value) = self.value(setting) else {
                continue;
            };
            match carry {
                Carry::Number(key) => {
                    if let Ok(number) = value.parse::<u32>() {
                        line(key, Value::from(i64::from(number)));
                    }
                }
                Carry::Flag(key) => {
                    if let Ok(number) = value.parse::<u32>() {
                        line(key, Value::from(number != 0));
                    }
                }
                Carry::Seconds(key) | Carry::SecondsOrZero(key) => {
                    if let Some(time) = carry_time(setting, value) {
                        line(key, Value::from(time));
                    }
                }
                Carry::Used | Carry::Limit(_) | Carry::Needless | Carry::Lost { .. } => {}
            }
        }
        if let Some(tls) = &login.tls {
            let _ = writeln!(text, "\n[proxy.tls]\nmode = \"{}\"", tls.mode);
            let files = [
                ("cert", Some(&tls.cert)),
                ("key", Some(&tls.key)),
                ("client_ca", tls.client_ca.as_ref()),
            ];
            for (key, path) in files {
                if let Some(path) = path {
                    let _ = writeln!(text, "{key} = {}", string(&path.to_string_lossy()));
                }
            }
        }
        auth(&mut text, login);
        self.limits(&mut text);
        admin(&mut text, login, &port);
        let _ = writeln!(
            text,
            "\n[replication]\ndatabase = {}",
            string(&nodes.database)
        );
        self.nodes(&mut text, nodes);
        text
    }

    /// How many clients each user and each database may have.
    fn limits(&self, text: &mut String) {
        let of_each = SETTINGS.iter().filter_map(|(setting, carry)| {
            let Carry::Limit(key) = carry else {
                return None;
            };
            let limit = self.value(setting)?.parse::<u32>().ok();
            limit.filter(|limit| *limit > 0).map(|limit| (*key, limit))
        });
        let of_each: Vec<_> = of_each.collect();
        if !of_each.is_empty() {
            text.push_str("\n[limits]\n");
        }
        for (key, limit) in of_each {
            let _ = writeln!(text, "{key} = {limit}");
        }
        for kind in ["user", "database"] {
            let listed: Vec<_> = self.limits.iter().filter(|(of, ..)| *of == kind).collect();
            if !listed.is_empty() {
                let _ = writeln!(text, "\n[limits.{kind}]");
            }
            for (_, name, limit) in listed {
                let _ = writeln!(text, "{} = {limit}", string(name));
            }
        }
    }

    /// Where to listen, and at which port.
    fn listen(&mut self) -> (Vec<String>, String) {
        let port = self.value("listen_port").unwrap_or(LISTEN_PORT).to_owned();
        let mut listen = Vec::new();
        let addresses = self.value("listen_addr").unwrap_or_default().to_owned();
        for address in addresses.split(',').map(str::trim) {
            match address {
                "" => {}
                "*" => listen.extend([format!("0.0.0.0:{port}"), format!("[::]:{port}")]),
                "localhost" => listen.push(format!("127.0.0.1:{port}")),
                _ => match address.parse() {
                    Ok(ip) => {
                        let number = port.parse().unwrap_or(0);
                        listen.push(std::net::SocketAddr::new(ip, number).to_string());
                    }
                    Err(_) => {
                        let what = format!("`{address}` is no IP address");
                        self.note_setting(
                            "listen_addr",
                            what,
                            "write the address that it stands for",
                        );
                    }
                },
            }
        }
        if let Some(dir) = self.value("unix_socket_dir") {
            listen.push(format!("unix:{dir}:{port}"));
        }
        if listen.is_empty() {
            listen.push(format!("127.0.0.1:{port}"));
        }
        (listen, port)
    }

    fn nodes(&mut self, text: &mut String, nodes: &Nodes) {
        let sslmode = match self.value("server_tls_sslmode") {
            // As libpq's, in clear first; there is no such mode.
            None | Some("allow") => "prefer".to_owned(),
            Some(mode) => mode.to_owned(),
        };
        let root = self.file("server_tls_ca_file");
        for (number, (host, port)) in (1..).zip(&nodes.places) {
            let _ = writeln!(
                text,
                "\n[[node]]\nname = \"node{number}\"\nid = {number}                       # never change it\n\
                 host = {}\nport = {port}\nuser = \"tandem\"\npassword_file = \"node{number}.password\"\nsslmode = {}",
                string(host),
                string(&sslmode)
            );
            if let Some(root) = &root {
                let _ = writeln!(text, "sslrootcert = {}", string(&root.to_string_lossy()));
            }
        }
        if nodes.places.len() == 1 {
            text.push_str("\n# Add a [[node]] for each further primary.\n");
        }
    }
}

fn auth(text: &mut String, login: &Login) {
    text.push_str("\n[auth]\n");
    let _ = match &login.rules {
        Rules::Method(method) => writeln!(text, "method = \"{method}\""),
        Rules::Lines(lines) => writeln!(text, "hba = {}", Value::from(lines.clone())),
        Rules::File(path) => writeln!(text, "hba_file = {}", string(&path.to_string_lossy())),
    };
    if let Some(path) = &login.users_file {
        let _ = writeln!(text, "users_file = {}", string(&path.to_string_lossy()));
    }
    if let Some(query) = &login.query {
        let _ = writeln!(text, "query = {}", string(query));
    }
}

fn admin(text: &mut String, login: &Login, proxy_port: &str) {
    let port = if proxy_port == "6433" { 6434 } else { 6433 };
    let _ = writeln!(
        text,
        "\n# The console is database \"tandem\", where PgBouncer's is \"pgbouncer\".\n[admin]\nlisten = \"127.0.0.1:{port}\""
    );
    for (key, names) in [("users", &login.admins), ("readers", &login.readers)] {
        if !names.is_empty() {
            let _ = writeln!(text, "{key} = {}", Value::from(names.clone()));
        }
    }
}

fn string(text: &str) -> Value {
    Value::from(text)
}
