//! Owns how COMMIT PREPARED and ROLLBACK PREPARED come to the node on which the transaction was prepared: the nodes are asked,
//! each time, so that it makes no difference which session, or which daemon, prepared it.

use std::{
    fmt,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
};

use tandem_routing_rules::state::{Effect, Transaction};
use tandem_wire::{ErrorReport, Header, encode};
use tokio::task::JoinSet;

use super::{
    Shared,
    ahead::look_ahead,
    inbound::{Step, StopAt},
    owed::Status,
    program::{Program, program},
    report,
    task::{Place, Refusing, Task},
};
use crate::auth::control::Control;

const PREPARED: &str = "SELECT FROM pg_catalog.pg_prepared_xacts WHERE gid = $1 AND database = $2";

/// The transaction that a text ends, if it does that and nothing else.
pub(super) fn ended(program: &Program) -> Option<Box<str>> {
    let [step] = &**program else { return None };
    let (Effect::Transaction(Transaction::CommitPrepared(gid))
    | Effect::Transaction(Transaction::RollbackPrepared(gid))) = &step.effects.effect
    else {
        return None;
    };
    std::str::from_utf8(gid).ok().map(Into::into)
}

/// Where a prepared transaction is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Found {
    On(usize),
    /// On no node: PostgreSQL says so.
    Nowhere,
    /// On these: each has one of this name.
    Several(Vec<usize>),
    /// On none that has answered; these have not.
    Unknown(Vec<usize>),
}

impl Found {
    /// From what each node has said; none: it has not answered.
    fn from(answers: &[Option<bool>]) -> Found {
        let those = |said: Option<bool>| -> Vec<usize> {
            let all = answers.iter().enumerate();
            all.filter(|(_, answer)| **answer == said)
                .map(|(node, _)| node)
                .collect()
        };
        match (&those(Some(true))[..], &those(None)[..]) {
            ([node], _) => Found::On(*node),
            ([], []) => Found::Nowhere,
            ([], silent) => Found::Unknown(silent.to_vec()),
            (several, _) => Found::Several(several.to_vec()),
        }
    }
}

/// A question to the nodes.
pub(super) enum Search {
    Asks(Box<str>, Pin<Box<dyn Future<Output = Found> + Send>>),
    Done(Box<str>, Found),
}

impl fmt::Debug for Search {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Search::Asks(..) => "Asks",
            Search::Done(..) => "Done",
        })
    }
}

/// Asks all of these nodes.
async fn ask(control: Arc<Control>, nodes: Vec<bool>, gid: String, database: String) -> Found {
    let mut answers = vec![None; nodes.len()];
    let mut asked = JoinSet::new();
    for (node, _) in nodes.into_iter().enumerate().filter(|(_, usable)| *usable) {
        let (control, gid, database) = (Arc::clone(&control), gid.clone(), database.clone());
        asked.spawn(async move {
            let rows = control.query(node, PREPARED, &[&gid, &database]).await;
            (node, rows.map(|rows| !rows.is_empty()))
        });
    }
    while let Some(answered) = asked.join_next().await {
        if let Ok((node, Ok(has))) = answered
            && let Some(answer) = answers.get_mut(node)
        {
            *answer = Some(has);
        }
    }
    Found::from(&answers)
}

impl Task {
    /// The node of a prepared transaction that the client's next message, of this type, ends; none: any will do.
    pub(super) fn find_prepared(
        &mut self,
        gid: &str,
        tag: u8,
        shared: &Shared,
    ) -> Result<Option<usize>, Step> {
        let database = self.pool.key().database.clone();
        let Some(routed) = &mut self.routed else {
            return Ok(None);
        };
        match routed.search.take().map(|search| *search) {
            Some(Search::Done(known, found)) if *known == *gid => match found {
                Found::On(node) => Ok(Some(node)),
                Found::Nowhere => Ok(None),
                Found::Several(nodes) => {
                    let report = report::prepared_on_several(gid, &names(shared, &nodes));
                    Err(self.refuse_now(tag, &report))
                }
                Found::Unknown(nodes) => {
                    let report = report::prepared_not_found(gid, &names(shared, &nodes));
                    Err(self.refuse_now(tag, &report))
                }
            },
            _ => {
                // Also those that are out of service.
                let answers = |node| shared.health.is_up(node);
                let nodes = (0..shared.nodes.len()).map(answers).collect();
                let control = Arc::clone(&shared.control);
                let asks = ask(control, nodes, gid.to_owned(), database);
                let search = Search::Asks(gid.into(), Box::pin(asks));
                routed.search = Some(Box::new(search));
                Err(Step::Stop(StopAt::Errand))
            }
        }
    }

    /// A session that keeps its server is not told that what another node has does not exist.
    pub(super) fn ends_elsewhere(
        &mut self,
        header: Header,
        input: &[u8],
        shared: &Shared,
    ) -> Option<Step> {
        let Place::Server(server) = &self.place else {
            return None;
        };
        let may_be = server.owed.is_quiet()
            && server.owed.status() == Status::Idle
            && matches!(header.tag, b'Q' | b'P' | b'B');
        if !may_be {
            return None;
        }
        let known: &Task = self;
        let mut first = None;
        let ahead = look_ahead(input, &known, |run| {
            first.get_or_insert(run);
        });
        let gid = ended(&program(first.flatten().or(ahead.seen)?.text)?)?;
        match self.find_prepared(&gid, header.tag, shared) {
            Ok(Some(node)) if node != self.node() => {
                let report = report::prepared_elsewhere(&gid, &names(shared, &[node]));
                Some(self.refuse_now(header.tag, &report))
            }
            Ok(_) => None,
            Err(step) => Some(step),
        }
    }

    /// Whether the client's next message still waits for that.
    pub(super) fn is_searching(&mut self, cx: &mut Context<'_>) -> bool {
        let Some(routed) = &mut self.routed else {
            return false;
        };
        let Some(search) = routed.search.as_deref_mut() else {
            return false;
        };
        let Search::Asks(gid, asks) = search else {
            return false;
        };
        let Poll::Ready(found) = asks.as_mut().poll(cx) else {
            return true;
        };
        *search = Search::Done(std::mem::take(gid), found);
        false
    }

    /// Answers a message of this type with an error, without a server.
    fn refuse_now(&mut self, tag: u8, report: &ErrorReport) -> Step {
        encode::backend::error(self.to_client.buffer(), report);
        if tag == b'Q' {
            self.ready_for_query();
        } else {
            self.refusing = Refusing::ToSync;
        }
        Step::Drop
    }
}

fn names(shared: &Shared, nodes: &[usize]) -> String {
    let names = nodes.iter().filter_map(|node| shared.nodes.get(*node));
    names.map(|node| node.name()).collect::<Vec<_>>().join(", ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_prepared_transaction_is_where_exactly_one_node_has_it() {
        let (yes, no, silent) = (Some(true), Some(false), None);
        assert_eq!(Found::from(&[no, yes, no]), Found::On(1));
        assert_eq!(Found::from(&[silent, yes, no]), Found::On(1));
        assert_eq!(Found::from(&[no, no]), Found::Nowhere);
        assert_eq!(Found::from(&[yes, no, yes]), Found::Several(vec![0, 2]));
        // It may be committed nowhere yet: nobody must be told that it does not exist.
        assert_eq!(Found::from(&[no, silent]), Found::Unknown(vec![1]));
    }

    #[test]
    fn only_what_ends_a_prepared_transaction_has_to_find_one() {
        for text in ["COMMIT PREPARED 'a''b'", "rollback prepared E'a\\'b';"] {
            assert_eq!(
                program(text.as_bytes()).as_ref().and_then(ended).as_deref(),
                Some("a'b"),
                "{text}"
            );
        }
        for text in [
            "COMMIT",
            "PREPARE TRANSACTION 'a'",
            "SELECT 1; COMMIT PREPARED 'a'",
        ] {
            assert_eq!(
                program(text.as_bytes()).as_ref().and_then(ended),
                None,
                "{text}"
            );
        }
    }
}
