//! Owns what a node's backlog means for clients: reads leave a node that lacks what others wrote too long ago, while another one has it.
//!
//! Its keys stay: what is written there is written on what is there, and a home moves by a handoff only.

use std::{sync::Arc, time::Duration};

use tokio::time::{MissedTickBehavior, interval};

use crate::session::Shared;

/// How often the backlogs are looked at.
const INTERVAL: Duration = Duration::from_millis(250);

/// Keeps reads off nodes that are behind, for ever.
pub(crate) async fn keep(shared: Arc<Shared>) {
    let mut ticks = interval(INTERVAL);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        ticks.tick().await;
        let bound = shared.settings.load().config.proxy.read_lag_max;
        for (index, node) in shared.nodes.iter().enumerate() {
            let (lag, before) = (shared.replicator.lag(index), shared.health.lags(index));
            let lags = is_behind(before, lag, bound);
            if lags == before {
                continue;
            }
            shared.health.set_lags(index, lags);
            let (node, lag_ms) = (node.name(), lag.as_millis());
            match lags {
                true => tracing::warn!(node, lag_ms, "node is behind: reads go elsewhere"),
                false => tracing::info!(node, lag_ms, "node takes reads again"),
            }
        }
    }
}

/// Whether a node is too far behind. It is so until it is at half of the bound: it does not go to and fro.
fn is_behind(before: bool, lag: Duration, bound: Duration) -> bool {
    match before {
        _ if bound.is_zero() => false,
        true => lag > bound / 2,
        false => lag > bound,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_node_that_is_behind_is_so_until_it_has_half_of_the_bound() {
        let second = Duration::from_secs(1);
        let mut lags = false;
        for (lag, wanted) in [(10, false), (11, true), (6, true), (5, false), (10, false)] {
            lags = is_behind(lags, lag * second, 10 * second);
            assert_eq!(lags, wanted, "{lag}");
        }
        assert!(!is_behind(true, 100 * second, Duration::ZERO));
    }
}
