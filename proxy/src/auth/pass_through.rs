//! Owns pass-through: verifiers read from the nodes' own `pg_authid`, and the check that all nodes agree.
//!
//! A client's SCRAM proof is only good for a node whose verifier is the very same text, so a role that differs
//! between nodes would work on one node and fail on another. It is refused, with the nodes named.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};

use futures_util::{StreamExt, future::join_all, stream::FuturesUnordered};
use tandem_wire::Secret;
use tokio::time::timeout;

use super::{
    Lookup, LookupError,
    control::{Control, ControlError},
};

const ONE_ROLE: &str = "SELECT rolpassword, \
     rolvaliduntil IS NULL OR rolvaliduntil > pg_catalog.now(), rolcanlogin \
     FROM pg_catalog.pg_authid WHERE rolname = $1";

const ALL_ROLES: &str =
    "SELECT rolname::pg_catalog.text, rolpassword FROM pg_catalog.pg_authid WHERE rolcanlogin";

/// How to make the verifiers equal again.
pub(crate) const MEND: &str = "Copy the verifier as text: read rolpassword from pg_authid on the node that is right, \
     and run ALTER ROLE ... PASSWORD '<that text>' on the others. Setting the same password again on each node is \
     not enough, because every verifier has its own salt.";

/// How long a login waits for the verifiers of the other nodes once one has answered. What differs is found by the next
/// comparison all the same: a proof is good for nodes with the same verifier only.
const SILENCE_MAX: Duration = Duration::from_millis(300);

/// What one node knows of a role.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum RoleOnNode {
    /// The node has no such role.
    Missing,
    /// It has.
    Known {
        /// `pg_authid.rolpassword`.
        verifier: Option<Secret>,
        /// Not past `VALID UNTIL`.
        valid: bool,
        /// `pg_authid.rolcanlogin`.
        login: bool,
    },
}

/// What the nodes together know of a role.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Agreement {
    /// The same everywhere.
    Same(RoleOnNode),
    /// Groups of nodes that agree among each other, by name.
    Differs(Vec<Vec<String>>),
}

/// Compares what the nodes answered. None when nobody did.
pub(crate) fn agree(answers: &[(String, RoleOnNode)]) -> Option<Agreement> {
    let (_, first) = answers.first()?;
    let mut groups: Vec<(&RoleOnNode, Vec<String>)> = Vec::new();
    for (node, role) in answers {
        match groups
            .iter_mut()
            .find(|(known, _)| same_verifier(known, role))
        {
            Some((_, nodes)) => nodes.push(node.clone()),
            None => groups.push((role, vec![node.clone()])),
        }
    }
    if groups.len() > 1 {
        return Some(Agreement::Differs(
            groups.into_iter().map(|(_, nodes)| nodes).collect(),
        ));
    }
    // Expired on one node is expired, and locked on one is locked: clocks and ALTER ROLE do not reach all nodes at one
    // instant.
    let any = |wanted: fn(&RoleOnNode) -> bool| answers.iter().any(|(_, role)| wanted(role));
    let expired = any(|role| matches!(role, RoleOnNode::Known { valid: false, .. }));
    let locked = any(|role| matches!(role, RoleOnNode::Known { login: false, .. }));
    Some(Agreement::Same(match first {
        RoleOnNode::Known { verifier, .. } => RoleOnNode::Known {
            verifier: verifier.clone(),
            valid: !expired,
            login: !locked,
        },
        RoleOnNode::Missing => RoleOnNode::Missing,
    }))
}

fn same_verifier(left: &RoleOnNode, right: &RoleOnNode) -> bool {
    match (left, right) {
        (RoleOnNode::Missing, RoleOnNode::Missing) => true,
        (
            RoleOnNode::Known { verifier: left, .. },
            RoleOnNode::Known {
                verifier: right, ..
            },
        ) => left == right,
        _ => false,
    }
}

/// Asks all nodes in `candidates` for a role.
pub(crate) async fn lookup(
    control: &Control,
    candidates: &[usize],
    user: &str,
) -> Result<Lookup, LookupError> {
    let mut asking: FuturesUnordered<_> = candidates
        .iter()
        .copied()
        .map(|node| async move { (node, ask(control, node, user).await) })
        .collect();
    let mut answers = Vec::new();
    // Without an answer there is nothing to go by; with one, a node that has fallen silent holds up nobody for long.
    while let Some(answer) = asking.next().await {
        let known = answer.1.is_ok();
        answers.push(answer);
        if known {
            break;
        }
    }
    let rest = async {
        while let Some(answer) = asking.next().await {
            answers.push(answer);
        }
    };
    if timeout(SILENCE_MAX, rest).await.is_err() {
        tracing::info!(user, "not every node was asked for the verifier in time");
    }
    let mut known = Vec::new();
    let mut failures = Vec::new();
    for (node, answer) in answers {
        let name = control
            .nodes()
            .get(node)
            .map_or("?", |node| node.name())
            .to_owned();
        match answer {
            Ok(role) => known.push((name, role)),
            Err(error) => {
                tracing::warn!(node = name, %error, "cannot read a verifier from this node");
                failures.push(format!("{name}: {error}"));
            }
        }
    }
    match agree(&known) {
        None => Err(LookupError::NoAnswer(failures.join("; "))),
        Some(Agreement::Differs(groups)) => Err(LookupError::Differs(groups)),
        Some(Agreement::Same(RoleOnNode::Missing)) => Ok(Lookup::Unknown),
        Some(Agreement::Same(RoleOnNode::Known { valid: false, .. })) => Ok(Lookup::Expired),
        Some(Agreement::Same(RoleOnNode::Known { verifier: None, .. })) => Ok(Lookup::NoPassword),
        Some(Agreement::Same(RoleOnNode::Known {
            verifier: Some(verifier),
            login,
            ..
        })) => Ok(match login {
            true => Lookup::Secret(verifier),
            false => Lookup::NoLogin(verifier),
        }),
    }
}

async fn ask(control: &Control, node: usize, user: &str) -> Result<RoleOnNode, ControlError> {
    let rows = control.query(node, ONE_ROLE, &[&user]).await?;
    let Some(row) = rows.first() else {
        return Ok(RoleOnNode::Missing);
    };
    let verifier: Option<String> = row.try_get(0)?;
    Ok(RoleOnNode::Known {
        verifier: verifier.map(Secret::new),
        valid: row.try_get(1)?,
        login: row.try_get(2)?,
    })
}

/// Compares the verifiers of all login roles over the nodes in `candidates`; logs each role that differs. Returns
/// how many do.
pub(crate) async fn compare_all(control: &Control, candidates: &[usize]) -> usize {
    let answers = join_all(
        candidates
            .iter()
            .copied()
            .map(|node| async move { (node, control.query(node, ALL_ROLES, &[]).await) }),
    )
    .await;
    let mut by_node: Vec<(String, BTreeMap<String, Option<Secret>>)> = Vec::new();
    for (node, answer) in answers {
        let name = control
            .nodes()
            .get(node)
            .map_or("?", |node| node.name())
            .to_owned();
        let roles = answer.and_then(|rows| {
            rows.iter()
                .map(|row| {
                    let verifier: Option<String> = row.try_get(1)?;
                    Ok((row.try_get(0)?, verifier.map(Secret::new)))
                })
                .collect::<Result<BTreeMap<_, _>, ControlError>>()
        });
        match roles {
            Ok(roles) => by_node.push((name, roles)),
            Err(error) => {
                tracing::warn!(node = name, %error, "cannot compare the verifiers of this node's roles");
            }
        }
    }
    let differing = differing_roles(&by_node);
    for (role, groups) in &differing {
        tracing::warn!(
            role,
            nodes = %groups_text(groups),
            "the role's verifier differs between nodes: its logins are refused. {MEND}"
        );
    }
    differing.len()
}

fn differing_roles(
    by_node: &[(String, BTreeMap<String, Option<Secret>>)],
) -> Vec<(String, Vec<Vec<String>>)> {
    let roles: BTreeSet<&String> = by_node.iter().flat_map(|(_, roles)| roles.keys()).collect();
    roles
        .into_iter()
        .filter_map(|role| {
            let answers: Vec<_> = by_node
                .iter()
                .map(|(node, roles)| {
                    let on_node = match roles.get(role) {
                        None => RoleOnNode::Missing,
                        Some(verifier) => RoleOnNode::Known {
                            verifier: verifier.clone(),
                            valid: true,
                            login: true,
                        },
                    };
                    (node.clone(), on_node)
                })
                .collect();
            match agree(&answers) {
                Some(Agreement::Differs(groups)) => Some((role.clone(), groups)),
                _ => None,
            }
        })
        .collect()
}

/// `paris, oslo | rome`: nodes that agree stand together.
pub(crate) fn groups_text(groups: &[Vec<String>]) -> String {
    groups
        .iter()
        .map(|nodes| nodes.join(", "))
        .collect::<Vec<_>>()
        .join(" | ")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn known(verifier: &str) -> RoleOnNode {
        RoleOnNode::Known {
            verifier: Some(Secret::new(verifier)),
            valid: true,
            login: true,
        }
    }

    fn answers(roles: &[(&str, RoleOnNode)]) -> Vec<(String, RoleOnNode)> {
        roles
            .iter()
            .map(|(node, role)| ((*node).to_owned(), role.clone()))
            .collect()
    }

    #[test]
    fn nodes_agree_when_their_texts_are_equal() {
        assert_eq!(agree(&[]), None);
        let same = answers(&[("paris", known("v")), ("oslo", known("v"))]);
        assert_eq!(agree(&same), Some(Agreement::Same(known("v"))));
        let missing = answers(&[
            ("paris", RoleOnNode::Missing),
            ("oslo", RoleOnNode::Missing),
        ]);
        assert_eq!(agree(&missing), Some(Agreement::Same(RoleOnNode::Missing)));
    }

    #[test]
    fn a_difference_names_the_nodes_that_stand_together() {
        let roles = answers(&[
            ("paris", known("v")),
            ("oslo", known("w")),
            ("rome", known("v")),
            ("bonn", RoleOnNode::Missing),
        ]);
        let Some(Agreement::Differs(groups)) = agree(&roles) else {
            panic!("they differ")
        };
        assert_eq!(groups_text(&groups), "paris, rome | oslo | bonn");
        let without = RoleOnNode::Known {
            verifier: None,
            valid: true,
            login: true,
        };
        assert!(matches!(
            agree(&answers(&[("paris", known("v")), ("oslo", without)])),
            Some(Agreement::Differs(_))
        ));
    }

    #[test]
    fn expired_or_locked_on_one_node_is_so_on_all() {
        for (valid, login) in [(false, true), (true, false), (false, false)] {
            let kept_away = RoleOnNode::Known {
                verifier: Some(Secret::new("v")),
                valid,
                login,
            };
            let roles = answers(&[("paris", known("v")), ("oslo", kept_away.clone())]);
            assert_eq!(agree(&roles), Some(Agreement::Same(kept_away)));
        }
    }

    #[test]
    fn roles_that_differ_are_found_over_all_nodes() {
        let node = |name: &str, roles: &[(&str, Option<&str>)]| {
            let roles = roles
                .iter()
                .map(|(role, v)| ((*role).to_owned(), v.map(Secret::new)));
            (name.to_owned(), roles.collect::<BTreeMap<_, _>>())
        };
        let by_node = [
            node(
                "paris",
                &[("app", Some("v")), ("batch", Some("x")), ("postgres", None)],
            ),
            node(
                "oslo",
                &[
                    ("app", Some("v")),
                    ("batch", Some("y")),
                    ("postgres", None),
                    ("extra", None),
                ],
            ),
        ];
        let found: Vec<String> = differing_roles(&by_node)
            .into_iter()
            .map(|(role, _)| role)
            .collect();
        assert_eq!(found, ["batch", "extra"]);
    }
}
