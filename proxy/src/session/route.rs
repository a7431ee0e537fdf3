//! Owns the choice of a node for a session, from what is known of it at its login.

use std::{fmt::Write as _, sync::Arc};

use tandem_routing_rules::{ClusterView, NodeView, SessionFacts, decide_session};

use super::Shared;
use crate::pool::Key;

/// Which nodes take no sessions now.
pub(crate) fn unusable(shared: &Shared) -> Vec<bool> {
    (0..shared.nodes.len())
        .map(|node| !shared.health.usable(node))
        .collect()
}

/// The rules' choice among the nodes that are left, and its reason. Of `who` the node does not count.
pub(crate) fn choose(
    shared: &Shared,
    who: &Key,
    application_name: Option<&str>,
    unusable: &[bool],
) -> Option<(usize, String)> {
    let views: Vec<NodeView<'_>> = shared
        .nodes
        .iter()
        .zip(unusable)
        .enumerate()
        .map(|(index, (node, unusable))| NodeView {
            id: node.config().id,
            name: node.name(),
            zone: node.config().zone.as_deref(),
            healthy: !unusable,
            rtt_us: shared.health.rtt_us(index),
            sessions: node.sessions(),
        })
        .collect();
    let settings = shared.settings.load();
    let cluster = ClusterView {
        nodes: &views,
        zone: settings.config.proxy.zone.as_deref(),
    };
    let key = param(&who.params, "tandem.key")
        .map(str::to_owned)
        .or_else(|| {
            param(&who.params, "options").and_then(|options| option_setting(options, "tandem.key"))
        });
    let facts = SessionFacts {
        user: &who.user,
        database: &who.database,
        application_name,
        key: key.as_deref(),
    };
    let decision = decide_session(&settings.config.rules, &facts, &cluster).ok()?;
    let index = views.iter().position(|view| view.id == decision.node)?;
    Some((index, decision.to_string()))
}

/// The value of a startup parameter.
pub(super) fn param<'a>(params: &'a [(String, String)], name: &str) -> Option<&'a str> {
    let found = params.iter().find(|(known, _)| known == name);
    found.map(|(_, value)| value.as_str())
}

/// The same pool on another node.
pub(super) fn elsewhere(key: &Key, node: usize) -> Key {
    Key {
        node,
        database: key.database.clone(),
        user: key.user.clone(),
        params: Arc::clone(&key.params),
    }
}

/// What is wrong with each node that was not tried.
pub(super) fn add_problems(shared: &Shared, tried: &mut String) {
    for (index, node) in shared.nodes.iter().enumerate() {
        if let Some(problem) = shared.health.problem(index)
            && !tried.contains(&format!("{}: ", node.name()))
        {
            let _ = write!(tried, "{}: {problem}; ", node.name());
        }
    }
}

/// The value of `-c name=value` or `--name=value` in a startup packet's `options`.
///
/// Words are separated by white space; a backslash takes the next character as it is (`pg_split_opts` in PostgreSQL's
/// postinit.c). The last one counts.
fn option_setting(options: &str, name: &str) -> Option<String> {
    let mut found = None;
    let mut words = split_options(options).into_iter();
    while let Some(word) = words.next() {
        let setting = if word == "-c" {
            words.next()
        } else {
            word.strip_prefix("-c")
                .or_else(|| word.strip_prefix("--"))
                .map(str::to_owned)
        };
        if let Some((known, value)) = setting
            .as_deref()
            .and_then(|setting| setting.split_once('='))
            && known == name
        {
            found = Some(value.to_owned());
        }
    }
    found
}

fn split_options(options: &str) -> Vec<String> {
    let mut words = Vec::new();
    let mut word: Option<String> = None;
    let mut chars = options.chars();
    while let Some(c) = chars.next() {
        if c.is_ascii_whitespace() {
            words.extend(word.take());
        } else {
            let c = if c == '\\' { chars.next() } else { Some(c) };
            word.get_or_insert_default().extend(c);
        }
    }
    words.extend(word);
    words
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_setting_is_found_in_the_options() {
        let table = [
            ("-c tandem.key=station:42", Some("station:42")),
            ("-ctandem.key=a", Some("a")),
            ("--tandem.key=a", Some("a")),
            ("-c geqo=off  -c tandem.key=a\\ b -c x=y", Some("a b")),
            ("-c tandem.key=a -c tandem.key=b", Some("b")),
            ("-c other.key=a", None),
            ("-c", None),
            ("", None),
            ("-c tandem.key", None),
            ("\\", None),
        ];
        for (options, expected) in table {
            assert_eq!(
                option_setting(options, "tandem.key").as_deref(),
                expected,
                "{options}"
            );
        }
    }
}
