use std::{cell::RefCell, rc::Rc};

use super::*;

const SECOND: Duration = Duration::from_secs(1);

#[derive(Debug, Clone)]
struct Client {
    name: u32,
    got: Rc<RefCell<Option<u32>>>,
    gone: Rc<RefCell<bool>>,
}

impl Client {
    fn new(name: u32) -> Self {
        Self {
            name,
            got: Rc::default(),
            gone: Rc::default(),
        }
    }

    fn got(&self) -> Option<u32> {
        *self.got.borrow()
    }
}

impl Waiter<u32> for Client {
    fn offer(&self, server: u32) -> Result<(), u32> {
        if *self.gone.borrow() {
            return Err(server);
        }
        *self.got.borrow_mut() = Some(server);
        Ok(())
    }

    fn is(&self, other: &Self) -> bool {
        self.name == other.name
    }
}

fn queue(change: impl FnOnce(&mut PoolConfig)) -> Queue<u32, Client> {
    let mut limits = PoolConfig {
        size: 2,
        ..PoolConfig::default()
    };
    change(&mut limits);
    Queue::new(limits, 2)
}

fn ask(queue: &mut Queue<u32, Client>, now: Duration, client: &Client) -> Asked<u32> {
    queue.ask(0, now, || client.clone())
}

/// Opens a connection for a first client and gives it back.
fn warm(queue: &mut Queue<u32, Client>, server: u32, now: Duration) {
    let client = Client::new(1000 + server);
    assert_eq!(ask(queue, now, &client), Asked::Wait(Job::Open));
    queue.arrived(server, 0, now, now).expect("taken");
    assert_eq!(client.got(), Some(server));
    queue.give(server, 0, now, now).expect("kept");
}

#[test]
fn connections_are_opened_up_to_the_size_and_no_further() {
    let mut queue = queue(|_| {});
    let clients: Vec<_> = (0..4).map(Client::new).collect();
    let asked: Vec<_> = clients
        .iter()
        .map(|client| ask(&mut queue, SECOND, client))
        .collect();
    assert_eq!(
        asked,
        [
            Asked::Wait(Job::Open),
            Asked::Wait(Job::Open),
            Asked::Wait(Job::None),
            Asked::Wait(Job::None)
        ]
    );
    assert_eq!(queue.counts().open, 2);
}

#[test]
fn whoever_waits_longest_is_served_first_and_nobody_overtakes() {
    let mut queue = queue(|limits| limits.size = 1);
    warm(&mut queue, 7, SECOND);
    let clients: Vec<_> = (0..3).map(Client::new).collect();
    assert_eq!(ask(&mut queue, SECOND, &clients[0]), Asked::Have(7));
    assert_eq!(ask(&mut queue, SECOND, &clients[1]), Asked::Wait(Job::None));
    assert_eq!(ask(&mut queue, SECOND, &clients[2]), Asked::Wait(Job::None));
    queue.give(7, 0, SECOND, SECOND).expect("passed on");
    assert_eq!((clients[1].got(), clients[2].got()), (Some(7), None));
    // The first one comes again while another waits.
    assert_eq!(ask(&mut queue, SECOND, &clients[0]), Asked::Wait(Job::None));
    queue.give(7, 0, SECOND, SECOND).expect("passed on");
    assert_eq!((clients[2].got(), clients[0].got()), (Some(7), None));
}

#[test]
fn a_client_that_has_gone_is_passed_over() {
    let mut queue = queue(|limits| limits.size = 1);
    warm(&mut queue, 7, SECOND);
    let clients: Vec<_> = (0..4).map(Client::new).collect();
    assert_eq!(ask(&mut queue, SECOND, &clients[0]), Asked::Have(7));
    for client in &clients[1..] {
        assert_eq!(ask(&mut queue, SECOND, client), Asked::Wait(Job::None));
    }
    assert!(queue.leave(&clients[1]) && !queue.leave(&clients[1]));
    *clients[2].gone.borrow_mut() = true;
    queue.give(7, 0, SECOND, SECOND).expect("passed on");
    assert_eq!(clients[3].got(), Some(7));
    assert_eq!(queue.counts().waiting, 0);
}

#[test]
fn a_worker_takes_its_own_servers_first_and_the_one_used_last() {
    let mut queue = queue(|limits| limits.size = 3);
    for server in [1, 2] {
        warm_on(&mut queue, server, 0);
    }
    warm_on(&mut queue, 3, 1);
    assert_eq!(queue.ask(1, SECOND, || Client::new(9)), Asked::Have(3));
    assert_eq!(queue.ask(1, SECOND, || Client::new(9)), Asked::Have(2));
    assert_eq!(queue.ask(0, SECOND, || Client::new(9)), Asked::Have(1));
}

fn warm_on(queue: &mut Queue<u32, Client>, server: u32, worker: usize) {
    queue.open += 1;
    queue.give(server, worker, SECOND, SECOND).expect("kept");
}

#[test]
fn a_lost_connection_is_replaced_when_somebody_waits() {
    let mut queue = queue(|limits| limits.size = 1);
    warm(&mut queue, 7, SECOND);
    let clients: Vec<_> = (0..2).map(Client::new).collect();
    assert_eq!(ask(&mut queue, SECOND, &clients[0]), Asked::Have(7));
    assert_eq!(ask(&mut queue, SECOND, &clients[1]), Asked::Wait(Job::None));
    assert_eq!(queue.lost(SECOND), Job::Open);
    assert_eq!(queue.counts().open, 1);
    queue.arrived(8, 0, SECOND, SECOND).expect("taken");
    assert_eq!(clients[1].got(), Some(8));
    assert_eq!(queue.lost(SECOND), Job::None);
    assert_eq!(queue.counts().open, 0);
}

#[test]
fn a_failed_attempt_concerns_nobody_while_another_connection_is_there() {
    let mut queue = queue(|limits| limits.retry_after = SECOND);
    warm(&mut queue, 7, SECOND);
    let clients: Vec<_> = (0..3).map(Client::new).collect();
    assert_eq!(ask(&mut queue, SECOND, &clients[0]), Asked::Have(7));
    assert_eq!(ask(&mut queue, SECOND, &clients[1]), Asked::Wait(Job::Open));
    assert!(queue.failed(SECOND).is_empty());
    // And the node is not asked again at once.
    assert_eq!(ask(&mut queue, SECOND, &clients[2]), Asked::Wait(Job::None));
    assert_eq!(queue.tick(SECOND * 3).open, 1);
    // Without any other connection everybody hears of it.
    assert_eq!(queue.lost(SECOND * 3), Job::Open);
    assert!(queue.failed(SECOND * 3).is_empty());
    let told = queue.failed(SECOND * 3);
    let names: Vec<_> = told.iter().map(|client| client.name).collect();
    assert_eq!(names, [1, 2]);
    assert_eq!(queue.counts().open, 0);
}

#[test]
fn a_wait_is_told_of_once_and_bounded() {
    let mut queue = queue(|limits| {
        limits.size = 1;
        limits.wait_max = SECOND * 10;
        limits.notice_after = SECOND * 5;
    });
    warm(&mut queue, 7, SECOND);
    let clients: Vec<_> = (0..3).map(Client::new).collect();
    assert_eq!(ask(&mut queue, SECOND, &clients[0]), Asked::Have(7));
    assert_eq!(ask(&mut queue, SECOND, &clients[1]), Asked::Wait(Job::None));
    assert_eq!(
        ask(&mut queue, SECOND * 3, &clients[2]),
        Asked::Wait(Job::None)
    );
    let names = |clients: &[Client]| clients.iter().map(|each| each.name).collect::<Vec<_>>();
    let due = queue.tick(SECOND * 6);
    assert_eq!((names(&due.told), names(&due.expired)), (vec![1], vec![]));
    let due = queue.tick(SECOND * 9);
    assert_eq!((names(&due.told), names(&due.expired)), (vec![2], vec![]));
    let due = queue.tick(SECOND * 11);
    assert_eq!((names(&due.told), names(&due.expired)), (vec![], vec![1]));
    assert_eq!(queue.counts().waiting, 1);
}

#[test]
fn the_reserve_is_for_those_who_have_waited() {
    let mut queue = queue(|limits| {
        limits.size = 1;
        limits.reserve = 1;
        limits.reserve_after = SECOND * 5;
    });
    warm(&mut queue, 7, SECOND);
    let clients: Vec<_> = (0..3).map(Client::new).collect();
    assert_eq!(ask(&mut queue, SECOND, &clients[0]), Asked::Have(7));
    assert_eq!(ask(&mut queue, SECOND, &clients[1]), Asked::Wait(Job::None));
    assert_eq!(ask(&mut queue, SECOND, &clients[2]), Asked::Wait(Job::None));
    assert_eq!(queue.tick(SECOND * 2).open, 0);
    assert_eq!(queue.tick(SECOND * 6).open, 1);
    assert_eq!(queue.tick(SECOND * 7).open, 0);
}

#[test]
fn an_idle_connection_is_checked_before_it_is_used_again() {
    let mut queue = queue(|limits| limits.check_after = SECOND * 30);
    warm(&mut queue, 7, SECOND);
    let client = Client::new(1);
    assert_eq!(
        ask(&mut queue, SECOND * 40, &client),
        Asked::Wait(Job::Check(7))
    );
    queue.arrived(7, 0, SECOND, SECOND * 40).expect("taken");
    assert_eq!(client.got(), Some(7));
    queue.give(7, 0, SECOND, SECOND * 41).expect("kept");
    // One that is dead is replaced.
    let client = Client::new(2);
    assert_eq!(
        ask(&mut queue, SECOND * 80, &client),
        Asked::Wait(Job::Check(7))
    );
    queue.check_failed();
    assert_eq!(queue.lost(SECOND * 80), Job::Open);
    assert_eq!(
        queue.counts(),
        Counts {
            open: 1,
            opening: 1,
            idle: 0,
            waiting: 1,
            waiting_since: Some(SECOND * 80),
        }
    );
}

#[test]
fn connections_end_when_they_are_old_or_not_needed_and_some_are_kept_warm() {
    let mut queue = queue(|limits| {
        limits.size = 3;
        limits.min = 1;
        limits.idle_max = SECOND * 10;
        limits.lifetime_max = SECOND * 100;
    });
    for server in [1, 2, 3] {
        warm_on(&mut queue, server, 0);
    }
    assert_eq!(queue.tick(SECOND * 5).surplus, Vec::<u32>::new());
    assert_eq!(queue.tick(SECOND * 12).surplus, [1, 2]);
    assert_eq!(queue.lost(SECOND * 12), Job::None);
    assert_eq!(queue.lost(SECOND * 12), Job::None);
    // The last one is kept, until it is too old; then another is opened in its place.
    assert_eq!(queue.tick(SECOND * 90).surplus, Vec::<u32>::new());
    let due = queue.tick(SECOND * 101);
    assert_eq!((due.surplus, due.open), (vec![3], 0));
    assert_eq!(queue.lost(SECOND * 101), Job::None);
    assert_eq!(queue.tick(SECOND * 102).open, 1);
    queue
        .arrived(4, 0, SECOND * 102, SECOND * 102)
        .expect("kept");
    assert_eq!(
        queue.give(5, 0, SECOND, SECOND * 102),
        Err(5),
        "too old when it comes back"
    );
}

#[test]
fn a_pool_that_was_made_smaller_comes_down_as_connections_become_free() {
    let mut queue = queue(|limits| limits.size = 3);
    let clients: Vec<_> = (0..5).map(Client::new).collect();
    for client in &clients {
        ask(&mut queue, SECOND, client);
    }
    for server in [1, 2, 3] {
        queue.arrived(server, 0, SECOND, SECOND).expect("wanted");
    }
    let smaller = PoolConfig {
        size: 1,
        ..queue.limits().clone()
    };
    queue.set_limits(smaller);
    // Two are too many, though somebody waits.
    for server in [1, 2] {
        assert_eq!(queue.give(server, 0, SECOND, SECOND), Err(server));
        assert_eq!(queue.lost(SECOND), Job::None);
    }
    assert_eq!(clients[3].got(), None);
    queue
        .give(3, 0, SECOND, SECOND)
        .expect("the one that stays");
    assert_eq!((clients[3].got(), queue.counts().open), (Some(3), 1));

    // A larger one is opened for who waits.
    let larger = PoolConfig {
        size: 2,
        ..queue.limits().clone()
    };
    queue.set_limits(larger);
    assert_eq!(queue.tick(SECOND).open, 1);
}

#[test]
fn idle_connections_beyond_a_smaller_size_are_closed_at_once() {
    let mut queue = queue(|limits| limits.size = 3);
    let clients: Vec<_> = (0..3).map(Client::new).collect();
    for client in &clients {
        ask(&mut queue, SECOND, client);
    }
    for server in [1, 2, 3] {
        queue.arrived(server, 0, SECOND, SECOND).expect("wanted");
    }
    for server in [1, 2, 3] {
        queue.give(server, 0, SECOND, SECOND).expect("kept");
    }
    assert!(queue.tick(SECOND).surplus.is_empty());
    let smaller = PoolConfig {
        size: 1,
        ..queue.limits().clone()
    };
    queue.set_limits(smaller);
    assert_eq!(queue.tick(SECOND).surplus.len(), 2);
}

#[test]
fn while_it_is_paused_nobody_is_served_and_nothing_is_kept() {
    let mut queue = queue(|limits| {
        limits.size = 3;
        limits.min = 1;
    });
    let clients: Vec<_> = (0..4).map(Client::new).collect();
    warm(&mut queue, 1, SECOND);
    assert_eq!(ask(&mut queue, SECOND, &clients[0]), Asked::Have(1));
    warm(&mut queue, 2, SECOND);
    assert_eq!(queue.pause(), [2]);
    queue.lost(SECOND);
    assert_eq!(ask(&mut queue, SECOND, &clients[1]), Asked::Wait(Job::None));
    assert_eq!(queue.give(1, 0, SECOND, SECOND), Err(1));
    assert_eq!(queue.lost(SECOND), Job::None);
    let due = queue.tick(SECOND);
    assert_eq!(
        (due.open, due.expired.len(), queue.counts().open),
        (0, 0, 0)
    );
    assert_eq!(clients[1].got(), None);
    queue.resume();
    assert_eq!(queue.tick(SECOND).open, 1);
    queue.arrived(3, 0, SECOND, SECOND).expect("wanted");
    assert_eq!(clients[1].got(), Some(3));
}

#[test]
fn a_server_that_could_not_be_opened_is_no_error_for_who_waits_while_it_is_paused() {
    let mut queue = queue(|_| {});
    let client = Client::new(1);
    assert_eq!(ask(&mut queue, SECOND, &client), Asked::Wait(Job::Open));
    queue.pause();
    assert!(queue.failed(SECOND).is_empty());
    assert_eq!(queue.counts().waiting, 1);
}

#[test]
fn what_was_opened_before_a_reconnect_is_closed_when_it_is_free() {
    let mut queue = queue(|limits| limits.size = 3);
    let client = Client::new(1);
    warm(&mut queue, 1, SECOND);
    assert_eq!(ask(&mut queue, SECOND, &client), Asked::Have(1));
    warm(&mut queue, 2, SECOND);
    assert_eq!(queue.renew(2 * SECOND), [2]);
    queue.lost(2 * SECOND);
    assert_eq!(queue.give(1, 0, SECOND, 3 * SECOND), Err(1));
    queue.lost(3 * SECOND);
    warm(&mut queue, 3, 3 * SECOND);
    assert_eq!(queue.counts().idle, 1);
}

#[test]
fn while_its_node_is_out_of_service_nothing_is_kept_and_who_needs_it_is_served() {
    let mut queue = queue(|limits| {
        limits.size = 3;
        limits.min = 1;
    });
    let clients: Vec<_> = (0..3).map(Client::new).collect();
    warm(&mut queue, 1, SECOND);
    assert_eq!(ask(&mut queue, SECOND, &clients[0]), Asked::Have(1));
    warm(&mut queue, 2, SECOND);
    assert_eq!(queue.retire(false).0, [0; 0]);
    let (idle, waiting) = queue.retire(true);
    assert_eq!((idle.as_slice(), waiting.len()), (&[2][..], 0));
    queue.lost(SECOND);
    assert_eq!(queue.give(1, 0, SECOND, SECOND), Err(1));
    assert_eq!(queue.lost(SECOND), Job::None);
    assert_eq!((queue.tick(SECOND).open, queue.counts().open), (0, 0));
    // The end of a prepared transaction, say.
    assert_eq!(ask(&mut queue, SECOND, &clients[1]), Asked::Wait(Job::Open));
    queue.arrived(3, 0, SECOND, SECOND).expect("wanted");
    assert_eq!(clients[1].got(), Some(3));
    assert_eq!(queue.give(3, 0, SECOND, SECOND), Err(3));
    queue.lost(SECOND);
    queue.retire(false);
    assert_eq!(queue.tick(SECOND).open, 1);
    ask(&mut queue, SECOND, &clients[2]);
    assert_eq!(queue.retire(true).1.len(), 1, "who waits is told");
}
