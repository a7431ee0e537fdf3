//! `[[node]]`: who the primaries are and how Tandem logs in to them.

use std::collections::HashSet;
use std::fs;

use tandem_routing_rules::NodeInfo;
use tandem_routing_rules::document::{Section, Value};
use tandem_wire::Secret;
use tandem_wire::tls::SslMode;

use super::NodeConfig;
use super::reader::Reader;

/// Longest node name.
const NODE_NAME_MAX: usize = 32;
/// Highest node id.
const NODE_ID_MAX: i64 = 1_023;

/// All nodes that are right, and the names of all that have one, which is what the rules file is checked against.
pub(super) fn read_nodes(
    reader: &mut Reader<'_>,
    value: &Value<'_>,
) -> (Vec<NodeConfig>, Vec<NodeInfo>) {
    let sections = value.tables(&mut reader.problems).unwrap_or_default();
    if sections.is_empty() {
        reader
            .problems
            .add_with_hint(value.span(), "there is no node", "add a `[[node]]`");
    }
    let mut nodes = Vec::new();
    let mut named = Vec::new();
    let mut seen = Seen::default();
    for section in sections {
        let read = read_node(reader, section, &mut seen);
        named.extend(read.info);
        nodes.extend(read.node);
    }
    (nodes, named)
}

/// Names and ids met so far.
#[derive(Default)]
struct Seen {
    names: HashSet<String>,
    ids: HashSet<u16>,
}

struct ReadNode {
    info: Option<NodeInfo>,
    node: Option<NodeConfig>,
}

fn read_node(reader: &mut Reader<'_>, mut section: Section<'_>, seen: &mut Seen) -> ReadNode {
    let text = |reader: &mut Reader<'_>, value: Option<Value<'_>>| {
        value.and_then(|value| value.string(&mut reader.problems).map(str::to_owned))
    };
    let name = section
        .require("name", &mut reader.problems)
        .and_then(|value| node_name(reader, &value, seen));
    let id = section
        .require("id", &mut reader.problems)
        .and_then(|value| node_id(reader, &value, seen));
    let host = section
        .require("host", &mut reader.problems)
        .and_then(|value| host(reader, &value));
    let port = match section.take("port") {
        Some(value) => value
            .integer(1..=65_535, &mut reader.problems)
            .and_then(|port| u16::try_from(port).ok()),
        None => Some(5_432),
    };
    let user = section.require("user", &mut reader.problems);
    let user = text(reader, user);
    let password = password(reader, &mut section);
    let zone = section.take("zone");
    let zone = text(reader, zone);
    let (sslmode, sslrootcert) = {
        let modes = [
            ("disable", SslMode::Disable),
            ("prefer", SslMode::Prefer),
            ("require", SslMode::Require),
            ("verify-ca", SslMode::VerifyCa),
            ("verify-full", SslMode::VerifyFull),
        ];
        let value = section.take("sslmode");
        let mode = value
            .as_ref()
            .and_then(|value| value.choice(&modes, &mut reader.problems));
        let root = section.take("sslrootcert");
        if let (Some(value), Some(SslMode::VerifyCa | SslMode::VerifyFull), None) =
            (&value, mode, &root)
        {
            let hint = "add `sslrootcert`, the file with the certificate authority's certificate";
            reader.problems.add_with_hint(
                value.span(),
                "there is nothing to verify the certificate with",
                hint,
            );
        }
        (
            mode.unwrap_or(SslMode::Prefer),
            root.and_then(|value| reader.file(&value)),
        )
    };
    section.finish(&mut reader.problems);

    let info = name.clone().map(|name| NodeInfo {
        id: id.unwrap_or(0),
        name,
        zone: zone.clone(),
    });
    let node = || {
        Some(NodeConfig {
            name: name?,
            id: id?,
            host: host?,
            port: port?,
            user: user?,
            password,
            zone,
            sslmode,
            sslrootcert,
        })
    };
    ReadNode { info, node: node() }
}

fn node_id(reader: &mut Reader<'_>, value: &Value<'_>, seen: &mut Seen) -> Option<u16> {
    let id = u16::try_from(value.integer(1..=NODE_ID_MAX, &mut reader.problems)?).ok()?;
    if !seen.ids.insert(id) {
        let hint = "give each node its own id and never use one again";
        reader.problems.add_with_hint(
            value.span(),
            format!("another node has id {id} already"),
            hint,
        );
    }
    Some(id)
}

fn node_name(reader: &mut Reader<'_>, value: &Value<'_>, seen: &mut Seen) -> Option<String> {
    let name = value.string(&mut reader.problems)?;
    let begins_well = name.starts_with(|c: char| c.is_ascii_alphabetic());
    let fits = name
        .bytes()
        .all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'_' | b'-'));
    if !begins_well || !fits || name.len() > NODE_NAME_MAX {
        let hint = format!(
            "use up to {NODE_NAME_MAX} letters (a-z), digits, _ and -, with a letter first"
        );
        reader
            .problems
            .add_with_hint(value.span(), "not a name for a node", hint);
        return None;
    }
    if !seen.names.insert(name.to_owned()) {
        let message = format!("another node is called `{name}` already");
        reader
            .problems
            .add_with_hint(value.span(), message, "give each node its own name");
    }
    Some(name.to_owned())
}

fn host(reader: &mut Reader<'_>, value: &Value<'_>) -> Option<String> {
    let host = value.string(&mut reader.problems)?;
    let has_port = host.matches(':').count() == 1;
    if has_port || host.contains(|c: char| c.is_whitespace() || c.is_control()) {
        let hint = "write a name, an IP address, or the absolute directory of a unix socket; the port has its own key";
        reader
            .problems
            .add_with_hint(value.span(), "not a host", hint);
        return None;
    }
    Some(host.to_owned())
}

/// The password from the one place that is given, if any is.
fn password(reader: &mut Reader<'_>, section: &mut Section<'_>) -> Option<Secret> {
    let inline = section.take("password");
    let file = section.take("password_file");
    let variable = section.take("password_env");
    let given: Vec<&Value<'_>> = [&inline, &file, &variable].into_iter().flatten().collect();
    if let [_, second, ..] = given.as_slice() {
        let message = "a node has one of `password`, `password_file` and `password_env`";
        reader
            .problems
            .add_with_hint(second.key_span(), message, "keep one of them");
        return None;
    }
    if let Some(value) = inline {
        let text = value.string(&mut reader.problems)?;
        reader.warn_if_source_is_open(&value);
        return Some(Secret::new(text));
    }
    if let Some(value) = file {
        let path = reader.secret_file(&value)?;
        return match fs::read_to_string(&path) {
            Ok(text) => Some(Secret::new(text.trim_end_matches(['\r', '\n']))),
            Err(error) => {
                reader.problems.add(
                    value.span(),
                    format!("cannot read `{}`: {error}", path.display()),
                );
                None
            }
        };
    }
    let value = variable?;
    let name = value.string(&mut reader.problems)?;
    let found = reader.variable(name);
    if found.is_none() {
        let message = format!("the environment has no variable `{name}`");
        reader
            .problems
            .add_with_hint(value.span(), message, "set it where the daemon is started");
    }
    found.map(Secret::new)
}
