//! Owns what a drill has found, as a value: the JSON of `--json`, and what text and picture are made from.

mod html;
mod text;

use std::collections::BTreeMap;

use serde::Serialize;

use super::audit::Audit;
use super::fault::Scenario;
use super::ledger;
use super::load::{Ended, Ran};
use super::timeline::{Span, Step, ms, percentile};
use super::verdict::Check;

pub(super) use html::html;
pub(super) use text::text;

/// A drill.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub(super) struct Report {
    pub(super) cluster: String,
    /// All nodes, in the order of the configuration.
    pub(super) nodes: Vec<String>,
    pub(super) scenario: Scenario,
    /// The one that it befell.
    pub(super) node: String,
    pub(super) seed: u64,
    /// When the load began, in milliseconds since 1970.
    pub(super) began_ms: u64,
    pub(super) load: LoadReport,
    /// What was done to the node when.
    pub(super) moments: Vec<MomentReport>,
    pub(super) drill: Phase,
    /// The same load without the fault.
    pub(super) control: Option<Phase>,
    /// All writes of the ledger, compared with what the nodes have in the end.
    pub(super) ledger: Audit,
    pub(super) keys: Vec<KeyReport>,
    /// What the conflict log says of this time, by table and type.
    pub(super) conflicts: Vec<ConflictReport>,
    /// Whether all nodes had everything in the end.
    pub(super) converged: bool,
    /// From the mending until everything that had been committed by then was everywhere.
    pub(super) converge_ms: Option<f64>,
    /// What pgbench's tables add up to, by node.
    pub(super) sums: Vec<Sums>,
    /// Whether they add up; none: they are not there, or the load by itself does not keep them.
    pub(super) invariants_hold: Option<bool>,
    /// What else is worth knowing.
    pub(super) notes: Vec<String>,
    pub(super) passed: bool,
    pub(super) checks: Vec<Check>,
    pub(super) timeline: Vec<Step>,
}

/// What pgbench was asked for.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub(super) struct LoadReport {
    pub(super) arguments: Vec<String>,
    /// Transactions per second at full speed, where that was tried.
    pub(super) saturation: Option<f64>,
    /// Transactions per second asked for.
    pub(super) rate: Option<u32>,
}

/// Something that was done to the node.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub(super) struct MomentReport {
    /// Counted from the load's start.
    pub(super) ms: u64,
    pub(super) what: String,
}

/// What a run came to: pgbench's side, and the ledger's.
#[derive(Debug, Clone, Default, PartialEq, Serialize)]
pub(super) struct Phase {
    pub(super) seconds: f64,
    pub(super) transactions: u64,
    pub(super) per_second: f64,
    pub(super) p50_ms: Option<f64>,
    pub(super) p99_ms: Option<f64>,
    pub(super) max_ms: Option<f64>,
    pub(super) failed: u64,
    pub(super) retried: u64,
    pub(super) retries: u64,
    pub(super) skipped: u64,
    /// Clients of pgbench that ended before their time.
    pub(super) clients_lost: u64,
    pub(super) hung: bool,
    pub(super) acknowledged: u64,
    /// By SQLSTATE.
    pub(super) refused: BTreeMap<String, u64>,
    pub(super) unknown: u64,
    pub(super) connections_lost: u64,
    /// The longest time without a successful write, of the worst key whose home was the broken node.
    pub(super) gap_moved_ms: Option<f64>,
    /// The same, of all other keys.
    pub(super) gap_other_ms: Option<f64>,
}

impl Phase {
    #[allow(clippy::cast_precision_loss)] // Counts of one drill.
    pub(super) fn new(span: Span, ran: &Ran, ledger: ledger::Figures) -> Self {
        let mut phase = Self {
            seconds: ms(span.length_us()) / 1000.0,
            clients_lost: ran.clients_lost.len() as u64,
            hung: ran.hung,
            acknowledged: ledger.acknowledged,
            refused: ledger.refused,
            unknown: ledger.unknown,
            connections_lost: ledger.connections_lost,
            gap_moved_ms: ledger.gap_moved_us.map(ms),
            gap_other_ms: ledger.gap_other_us.map(ms),
            ..Self::default()
        };
        let mut latencies = Vec::with_capacity(ran.transactions.len());
        for transaction in &ran.transactions {
            match transaction.ended {
                Ended::Well { latency_us } => latencies.push(latency_us),
                Ended::Failed => phase.failed += 1,
                Ended::Skipped => phase.skipped += 1,
            }
            phase.retries += transaction.retries;
            phase.retried += u64::from(transaction.retries > 0);
        }
        latencies.sort_unstable();
        phase.transactions = latencies.len() as u64;
        phase.per_second = phase.transactions as f64 / phase.seconds.max(0.001);
        phase.p50_ms = percentile(&latencies, 50).map(ms);
        phase.p99_ms = percentile(&latencies, 99).map(ms);
        phase.max_ms = latencies.last().copied().map(ms);
        phase
    }
}

/// A client of the ledger.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub(super) struct KeyReport {
    pub(super) client: u32,
    pub(super) key: Option<String>,
    /// Where it wrote last before the node was broken.
    pub(super) home: Option<String>,
    pub(super) gap_ms: f64,
}

/// A line of the conflict log's summary.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub(super) struct ConflictReport {
    pub(super) table: String,
    #[serde(rename = "type")]
    pub(super) kind: String,
    pub(super) lines: u64,
}

/// What pgbench's tables add up to on a node.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub(super) struct Sums {
    pub(super) node: String,
    pub(super) accounts: i64,
    pub(super) tellers: i64,
    pub(super) branches: i64,
    pub(super) history: i64,
}

impl Sums {
    /// Whether all sums of all nodes are one.
    pub(super) fn hold(sums: &[Self]) -> bool {
        let Some(first) = sums.first() else {
            return false;
        };
        sums.iter().all(|sums| {
            [sums.accounts, sums.tellers, sums.branches, sums.history]
                .iter()
                .all(|sum| *sum == first.accounts)
        })
    }
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;
    use crate::cli::drill::audit::{Entry, Part};
    use crate::cli::drill::load::Transaction;

    fn sums(node: &str, accounts: i64) -> Sums {
        Sums {
            node: node.to_owned(),
            accounts,
            tellers: 5,
            branches: 5,
            history: 5,
        }
    }

    /// A drill with something of everything; one write is lost.
    pub(in crate::cli::drill) fn report() -> Report {
        let step = |ms, transactions, failed| Step {
            ms,
            transactions,
            failed,
            p50_ms: Some(2.0),
            p99_ms: Some(9.5),
            written: vec![transactions / 2, 1],
            ..Step::default()
        };
        Report {
            cluster: "dev".to_owned(),
            nodes: vec!["paris".to_owned(), "<delhi>".to_owned()],
            scenario: Scenario::Kill,
            node: "paris".to_owned(),
            seed: 7,
            began_ms: 1_700_000_000_000,
            load: LoadReport {
                arguments: vec!["-S".to_owned()],
                saturation: Some(1000.0),
                rate: Some(400),
            },
            moments: vec![
                MomentReport {
                    ms: 100,
                    what: "kill".to_owned(),
                },
                MomentReport {
                    ms: 300,
                    what: "mended".to_owned(),
                },
            ],
            drill: Phase {
                seconds: 0.5,
                transactions: 120,
                failed: 3,
                retried: 4,
                clients_lost: 1,
                connections_lost: 1,
                refused: BTreeMap::from([("40001".to_owned(), 2)]),
                gap_moved_ms: Some(212.5),
                gap_other_ms: Some(14.0),
                ..Phase::default()
            },
            control: Some(Phase {
                transactions: 150,
                gap_moved_ms: Some(12.0),
                ..Phase::default()
            }),
            ledger: Audit {
                lost: vec![Entry {
                    client: 2,
                    key: Some("branch:3".to_owned()),
                    seq: 41,
                    part: Part::Insert,
                    at_ms: 1_700_000_000_150,
                    nodes: vec!["<delhi>".to_owned()],
                    told: "acknowledged".to_owned(),
                }],
                ..Audit::default()
            },
            keys: vec![KeyReport {
                client: 2,
                key: Some("branch:3".to_owned()),
                home: Some("paris".to_owned()),
                gap_ms: 212.5,
            }],
            conflicts: vec![ConflictReport {
                table: "public.t".to_owned(),
                kind: "update_origin_differs".to_owned(),
                lines: 2,
            }],
            converged: true,
            converge_ms: Some(1500.0),
            sums: vec![sums("paris", 5), sums("<delhi>", 5)],
            invariants_hold: Some(true),
            notes: vec!["client 3 aborted & gone".to_owned()],
            passed: false,
            checks: Vec::new(),
            timeline: vec![
                step(0, 40, 0),
                step(100, 0, 3),
                step(200, 0, 0),
                step(300, 40, 0),
                step(400, 40, 0),
            ],
        }
    }

    #[test]
    fn sums_hold_only_if_all_are_one_on_all_nodes() {
        assert!(Sums::hold(&[sums("a", 5), sums("b", 5)]));
        assert!(!Sums::hold(&[sums("a", 5), sums("b", 4)]));
        let consistent_but_other = Sums {
            tellers: 4,
            branches: 4,
            history: 4,
            ..sums("b", 4)
        };
        assert!(!Sums::hold(&[sums("a", 5), consistent_but_other]));
        assert!(!Sums::hold(&[]));
    }

    #[test]
    fn a_phase_counts_by_how_transactions_ended() {
        let ended = |ended, retries| Transaction {
            ended_us: 1,
            ended,
            retries,
        };
        let ran = Ran {
            transactions: vec![
                ended(Ended::Well { latency_us: 3000 }, 2),
                ended(Ended::Well { latency_us: 1000 }, 0),
                ended(Ended::Failed, 9),
                ended(Ended::Skipped, 0),
            ],
            clients_lost: vec!["client 1".to_owned()],
            hung: false,
        };
        let span = Span {
            from_us: 0,
            to_us: 2_000_000,
        };
        let phase = Phase::new(span, &ran, ledger::Figures::default());
        assert_eq!((phase.transactions, phase.failed, phase.skipped), (2, 1, 1));
        assert_eq!((phase.retried, phase.retries), (2, 11));
        assert_eq!((phase.p50_ms, phase.max_ms), (Some(1.0), Some(3.0)));
        assert!((phase.per_second - 1.0).abs() < 1e-9);
    }
}
