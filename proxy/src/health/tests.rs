//! What routing reads of the nodes' health.

use std::pin::pin;

use futures_util::future::poll_immediate;

use super::*;

fn board(nodes: usize) -> HealthBoard {
    let settings = ProbeSettings {
        interval: Duration::from_secs(1),
        timeout: Bound::new(Duration::from_secs(1)),
        restart_wait: Duration::ZERO,
        database: "app".to_owned(),
        slot: None,
    };
    let board = HealthBoard::new(nodes, &settings, &Before::default(), Instant::now());
    for node in 0..nodes {
        let rtt = Duration::from_millis(1);
        board.tell(node, Event::Success { rtt });
    }
    board
}

#[tokio::test]
async fn news_are_a_verdict_or_a_probe_that_begins_later() {
    let board = Arc::new(board(2));
    let ended = |node: usize, number| {
        board.nodes[node].ended.store(number, Ordering::Release);
        board.verdicts.send_modify(|_| {});
    };
    // One is under way when it is asked.
    board.nodes[0].begun.store(1, Ordering::Release);
    let mut news = pin!(board.news(0));
    ended(1, 7);
    assert!(poll_immediate(news.as_mut()).await.is_none());
    ended(0, 1);
    assert!(poll_immediate(news.as_mut()).await.is_none());
    ended(0, 2);
    assert!(poll_immediate(news.as_mut()).await.is_some());
    board.nodes[0].begun.store(2, Ordering::Release);
    let mut news = pin!(board.news(0));
    assert!(poll_immediate(news.as_mut()).await.is_none());
    board.set_fence(1, None);
    assert!(poll_immediate(news.as_mut()).await.is_none());
    board.set_fence(1, Some("its clock is off".to_owned()));
    assert!(poll_immediate(news.as_mut()).await.is_some());
}

#[test]
fn a_fenced_node_gets_sessions_only_while_there_is_no_other() {
    let board = board(3);
    let usable = || [0, 1, 2].map(|node| board.usable(node));
    board.set_fence(1, Some("its clock is off".to_owned()));
    assert_eq!(usable(), [true, false, true]);
    assert_eq!(
        board.fence(1).as_deref().map(String::as_str),
        Some("its clock is off")
    );
    for down in [0, 2] {
        board.tell(down, Event::Refused);
    }
    assert_eq!(usable(), [false, true, false]);
    let rtt = Duration::from_millis(1);
    board.tell(2, Event::Success { rtt });
    board.set_fence(2, Some("too".to_owned()));
    assert_eq!(usable(), [false, true, true]);
    board.set_fence(1, None);
    assert_eq!(usable(), [false, true, false]);
}

#[test]
fn reads_leave_a_node_that_is_behind_as_long_as_another_is_not() {
    let board = board(2);
    let takes = || [0, 1].map(|node| (board.usable(node), board.takes_all(node)));
    let both = (true, true);
    board.set_lags(0, true);
    assert_eq!(takes(), [(true, false), both]);
    board.set_lags(1, true);
    assert_eq!(takes(), [both, both]);
    board.set_lags(1, false);
    // The one that is left.
    board.tell(1, Event::Refused);
    assert_eq!(takes(), [both, (false, false)]);
}

#[test]
fn a_node_on_its_way_out_keeps_its_keys_and_gets_nothing_else() {
    let board = board(2);
    let takes = || [0, 1].map(|node| (board.usable(node), board.takes_all(node)));
    let both = (true, true);
    assert_eq!(takes(), [both, both]);
    board.tell(0, Event::Drain);
    assert_eq!(takes(), [(true, false), both]);
    board.tell(0, Event::Park(true));
    assert_eq!(takes(), [(true, false), both]);
    assert!(board.parks(0) && !board.parks(1));
    board.tell(1, Event::Refused);
    assert_eq!(takes(), [both, (false, false)], "there is no other");
    board.tell(0, Event::Drained);
    assert_eq!(takes(), [(false, false), (false, false)]);
}

#[tokio::test]
async fn each_change_of_what_clients_may_do_begins_an_epoch_and_nothing_else_does() {
    let board = Arc::new(board(2));
    let mut epoch = board.epoch();
    let mut moves = |event: Event| {
        board.tell(1, event);
        let before = std::mem::replace(&mut epoch, board.epoch());
        board.epoch() - before
    };
    for event in [
        Event::Evidence,
        Event::NotTried,
        Event::Failed,
        Event::Fence(false),
    ] {
        assert_eq!(moves(event), 0, "{event:?}");
    }
    for event in [
        Event::Drain,
        Event::Park(true),
        Event::Drained,
        Event::Resumed,
    ] {
        assert_eq!(moves(event), 1, "{event:?}");
    }
    board.later_than(epoch - 1).await;
    let before = Before {
        epoch: board.epoch(),
        drained: vec![true],
    };
    let settings = ProbeSettings {
        interval: Duration::from_secs(1),
        timeout: Bound::new(Duration::from_secs(1)),
        restart_wait: Duration::ZERO,
        database: "app".to_owned(),
        slot: None,
    };
    let next = HealthBoard::new(2, &settings, &before, Instant::now());
    assert!(next.epoch() > board.epoch());
    assert_eq!(next.health(0), Health::Drained);
}
