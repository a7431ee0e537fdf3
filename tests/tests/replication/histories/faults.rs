//! Faults at random: of links, of the daemon, of nodes.

use std::{
    sync::atomic::{AtomicBool, Ordering},
    time::Duration,
};

use fastrand::Rng;
use rustix::process::Signal;
use tandem_tests::{Cluster, client};

/// What is disturbed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Faults {
    /// Links, and the daemon is killed so often.
    Links { kills: u32 },
    /// Everything.
    All,
}

/// Disturbs until told to stop; leaves everything whole.
pub(super) async fn disturb(
    cluster: &mut Cluster,
    random: &mut Rng,
    faults: Faults,
    stop: &AtomicBool,
) {
    if let Faults::Links { kills } = faults {
        for _ in 0..kills {
            let pause = AtomicBool::new(false);
            let time = Duration::from_millis(random.u64(200..500));
            let meanwhile = links(cluster, random, &pause);
            // The time over is what it is for.
            let _ = tokio::time::timeout(time, meanwhile).await;
            cluster.daemon.kill9().await;
            cluster.daemon.start().await;
        }
        links(cluster, random, stop).await;
    } else {
        while !stop.load(Ordering::Relaxed) {
            let pause = AtomicBool::new(false);
            let time = Duration::from_millis(random.u64(100..400));
            let _ = tokio::time::timeout(time, links(cluster, random, &pause)).await;
            part(cluster, random).await;
        }
    }
    cluster.relays.iter().for_each(|relay| relay.heal());
}

/// Delays, holds back and cuts random links.
async fn links(cluster: &Cluster, random: &mut Rng, stop: &AtomicBool) {
    while !stop.load(Ordering::Relaxed) {
        let relay = &cluster.relays[random.usize(..cluster.relays.len())];
        let part = ["apply 1", "apply 2", "apply 3", "capture", "apply"][random.usize(..5)];
        match random.u32(..6) {
            0..=1 => relay.delay(part, Duration::from_millis(random.u64(1..80))),
            2 => relay.silence_only(part),
            3 => relay.cut_only(part),
            _ => relay.heal(),
        }
        tokio::time::sleep(Duration::from_millis(random.u64(5..60))).await;
    }
    cluster.relays.iter().for_each(|relay| relay.heal());
}

/// One fault of a whole part.
async fn part(cluster: &mut Cluster, random: &mut Rng) {
    let node = cluster.nodes[random.usize(..cluster.nodes.len())].clone();
    let while_it_stands = Duration::from_millis(random.u64(50..600));
    match random.u32(..9) {
        0 => {
            cluster.daemon.kill9().await;
            cluster.daemon.start().await;
        }
        1 => {
            cluster.daemon.signal(Signal::STOP);
            tokio::time::sleep(while_it_stands).await;
            cluster.daemon.signal(Signal::CONT);
        }
        2 => {
            cluster.daemon.restart().await;
        }
        3 => {
            node.kill9().await;
            node.start_again().await;
        }
        4 => {
            node.stop_immediately().await;
            node.start_again().await;
        }
        5 => {
            node.pause().await;
            tokio::time::sleep(while_it_stands).await;
            node.resume().await;
        }
        6 => {
            let client = node.connect().await;
            client::execute(&client, "VACUUM (FREEZE, DISABLE_PAGE_SKIPPING)").await;
        }
        7 => {
            // The whole node is away, and nobody is told.
            let relay = &cluster.relays[usize::from(node.id - 1)];
            relay.silence();
            tokio::time::sleep(while_it_stands).await;
            relay.heal();
        }
        _ => {
            let relay = &cluster.relays[usize::from(node.id - 1)];
            relay.cut();
            tokio::time::sleep(while_it_stands).await;
            relay.heal();
        }
    }
}
