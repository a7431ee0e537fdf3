//! The state of one node: what every event makes of it, in virtual time.

use super::*;

const INTERVAL: Duration = Duration::from_secs(1);
const RESTART_WAIT: Duration = Duration::from_secs(2);
const OK: Event = Event::Success {
    rtt: Duration::from_millis(1),
};

/// One that has nobody to catch up with.
fn alone(now: Instant) -> Machine {
    Machine::new(INTERVAL, now, false, false)
}

#[test]
fn transitions() {
    let suspect = Health::Suspect { failures: 1 };
    let table: [(&[Event], Health); 22] = [
        (&[], Health::Unknown),
        (&[OK], Health::Up),
        (&[Event::Failed], Health::Down),
        (&[Event::NotTried], Health::Unknown),
        (&[Event::Untaken], Health::Untaken),
        (&[Event::Untaken, Event::Failed], Health::Down),
        (&[Event::Untaken, OK], Health::Up),
        // Its slot was dropped.
        (&[OK, Event::Untaken], Health::Untaken),
        (&[OK, Event::Failed], suspect),
        (&[OK, Event::Failed, OK], Health::Up),
        (&[OK, Event::Failed, OK, Event::Failed], suspect),
        (&[OK, Event::Failed, Event::Failed], Health::Down),
        (&[OK, Event::Refused], Health::Down),
        (&[OK, Event::Refused, Event::Failed], Health::Down),
        (&[OK, Event::Refused, OK], Health::Up),
        (&[OK, Event::Unready], Health::Down),
        (&[OK, Event::Silent], Health::Down),
        (&[OK, Event::Failed, Event::Silent, OK], Health::Up),
        // Nobody knew it before.
        (&[Event::Crashed, Event::Unready], Health::Down),
        (
            &[OK, Event::NotTried, Event::NotTried, Event::NotTried],
            Health::Up,
        ),
        (
            &[OK, Event::Evidence, Event::Evidence, Event::Evidence],
            Health::Up,
        ),
        (
            &[OK, Event::Failed, Event::NotTried, Event::Evidence],
            suspect,
        ),
    ];
    let start = Instant::now();
    for (events, expected) in table {
        let mut machine = alone(start);
        for (at, event) in (0_u32..).zip(events) {
            machine.on(*event, start + INTERVAL * at);
        }
        assert_eq!(machine.health(), expected, "{events:?}");
    }
}

#[test]
fn a_change_is_reported_once() {
    let now = Instant::now();
    let mut machine = alone(now);
    assert_eq!(machine.on(OK, now), Some(Health::Unknown));
    assert_eq!(machine.on(OK, now), None);
    assert_eq!(machine.on(Event::Refused, now), Some(Health::Up));
    assert_eq!(machine.on(Event::Refused, now), None);
}

#[test]
fn probes_follow_the_interval_and_hurry_where_somebody_waits() {
    let start = Instant::now();
    let mut machine = alone(start);
    assert_eq!(machine.next_probe(), start);
    machine.on(OK, start);
    assert_eq!(machine.next_probe(), start + INTERVAL);
    let later = start + INTERVAL;
    machine.on(Event::Failed, later);
    assert_eq!(machine.next_probe(), later + SHORT_PROBE_GAP);
    machine.on(Event::Failed, later);
    assert_eq!(machine.next_probe(), later + INTERVAL);
    machine.on(Event::Untaken, later);
    assert_eq!(machine.next_probe(), later + SHORT_PROBE_GAP);
}

#[test]
fn evidence_brings_the_probe_forward_but_never_in_a_storm() {
    let start = Instant::now();
    let mut machine = alone(start);
    machine.on(OK, start);
    machine.on(Event::Evidence, start);
    assert_eq!(machine.next_probe(), start + PROBE_GAP_MIN);
    let later = start + Duration::from_millis(700);
    machine.on(OK, start);
    machine.on(Event::Evidence, later);
    assert_eq!(machine.next_probe(), later);
}

#[test]
fn the_published_round_trip_has_hysteresis() {
    let now = Instant::now();
    let mut machine = alone(now);
    assert_eq!(machine.rtt(), None);
    let at = |ms: u64| Event::Success {
        rtt: Duration::from_millis(ms),
    };
    machine.on(at(10), now);
    assert_eq!(machine.rtt(), Some(Duration::from_millis(10)));
    for ms in [11, 9, 10, 11, 9, 11] {
        machine.on(at(ms), now);
        assert_eq!(
            machine.rtt(),
            Some(Duration::from_millis(10)),
            "noise moves nothing"
        );
    }
    for _ in 0..40 {
        machine.on(at(20), now);
    }
    let moved = machine.rtt().expect("measured");
    assert!(
        moved > Duration::from_millis(15),
        "a lasting change shows: {moved:?}"
    );
}

#[test]
fn a_node_that_comes_back_gets_nobody_before_it_has_caught_up_from_this_return() {
    let now = Instant::now();
    let mut machine = Machine::new(INTERVAL, now, true, false);
    assert_eq!(machine.catching_up(), None);
    machine.on(OK, now);
    let first = machine.catching_up().expect("it has come");
    assert_eq!(machine.health(), Health::CatchingUp);
    assert_eq!(machine.admission(), Admission::Nobody);
    machine.on(Event::Late { returned: first }, now);
    assert_eq!(machine.admission(), Admission::LastResort);
    machine.on(Event::CaughtUp { returned: first }, now);
    assert_eq!(
        (machine.health(), machine.admission()),
        (Health::Up, Admission::All)
    );
    // A probe that fails once is no absence.
    machine.on(Event::Failed, now);
    machine.on(OK, now);
    assert_eq!(machine.admission(), Admission::All);
    machine.on(Event::Refused, now);
    machine.on(OK, now);
    machine.on(Event::CaughtUp { returned: first }, now);
    assert_eq!(machine.health(), Health::CatchingUp, "that was before");
    let second = machine.catching_up().expect("it has come again");
    machine.on(Event::Park(true), now);
    assert_eq!(machine.admission(), Admission::Parked);
    machine.on(Event::CaughtUp { returned: second }, now);
    assert_eq!(machine.admission(), Admission::All);
}

#[test]
fn a_node_is_drained_step_by_step_and_comes_back_the_same_way() {
    let now = Instant::now();
    let mut machine = alone(now);
    let mut after = |event: Event| {
        machine.on(event, now);
        (machine.health(), machine.admission())
    };
    assert_eq!(after(OK), (Health::Up, Admission::All));
    assert_eq!(after(Event::Stay), (Health::Up, Admission::All));
    assert_eq!(after(Event::Drain), (Health::Draining, Admission::Writes));
    assert_eq!(
        after(Event::Park(true)),
        (Health::Draining, Admission::Parked)
    );
    assert_eq!(
        after(Event::Park(false)),
        (Health::Draining, Admission::Writes)
    );
    assert_eq!(after(Event::Stay), (Health::Up, Admission::All));
    after(Event::Drain);
    after(Event::Park(true));
    assert_eq!(after(Event::Drained), (Health::Drained, Admission::Nobody));
    for event in [Event::Refused, Event::Failed, OK, Event::Drain, Event::Stay] {
        assert_eq!(
            after(event),
            (Health::Drained, Admission::Nobody),
            "{event:?}"
        );
    }
    assert_eq!(
        after(Event::Park(true)),
        (Health::Drained, Admission::Parked)
    );
    assert_eq!(after(Event::Resumed), (Health::Up, Admission::All));
    assert_eq!(
        after(Event::Fence(true)),
        (Health::Fenced, Admission::LastResort)
    );
}

#[test]
fn a_node_that_restarts_after_a_crash_keeps_its_keys_for_a_while_and_no_longer() {
    let start = Instant::now();
    let of = |millis: u64| start + Duration::from_millis(millis);
    let mut machine = Machine::new(INTERVAL, start, true, false);
    machine.set_restart_wait(RESTART_WAIT);
    machine.on(OK, start);
    let returned = machine.catching_up().expect("it has come");
    machine.on(Event::CaughtUp { returned }, start);
    let mut after = |event: Event, millis: u64| {
        machine.on(event, of(millis));
        (machine.health(), machine.admission())
    };
    let restarting = (Health::Restarting, Admission::Parked);
    let up = (Health::Up, Admission::All);
    let down = (Health::Down, Admission::Nobody);
    // Only a probe tells that it is so.
    assert_eq!(after(Event::Crashed, 10), up);
    assert_eq!(after(Event::Unready, 20), restarting);
    for event in [
        Event::Unready,
        Event::Failed,
        Event::NotTried,
        Event::Crashed,
    ] {
        assert_eq!(after(event, 30), restarting, "{event:?}");
    }
    // It need not catch up: nobody has written its keys.
    assert_eq!(after(OK, 300), up);
    // One that takes too long is down, whoever hears of the crash meanwhile.
    assert_eq!(after(Event::Crashed, 5_000), up);
    assert_eq!(after(Event::Unready, 5_010), restarting);
    assert_eq!(after(Event::Crashed, 6_900), restarting);
    assert_eq!(after(Event::Unready, 6_990), restarting);
    assert_eq!(after(Event::Unready, 7_000), down);
    assert_eq!(after(Event::Unready, 7_100), down);
    assert_eq!(after(OK, 8_000), (Health::CatchingUp, Admission::Nobody));
    let returned = machine.catching_up().expect("it has come again");
    let mut after = |event: Event, millis: u64| {
        machine.on(event, of(millis));
        (machine.health(), machine.admission())
    };
    assert_eq!(after(Event::CaughtUp { returned }, 8_100), up);
    // That is another absence than the one that was heard of.
    assert_eq!(after(Event::Unready, 8_200), down);
    after(OK, 9_000);
    let returned = machine.catching_up().expect("it has come again");
    machine.on(Event::CaughtUp { returned }, of(9_000));
    machine.on(Event::Crashed, of(9_100));
    machine.on(Event::Refused, of(9_110));
    assert_eq!(machine.health(), Health::Down, "nobody listens there");
    assert_eq!(machine.lost(), Some(of(9_110)));
}

/// Any order of events, in virtual time.
#[test]
fn whatever_happens_the_state_says_what_is_so() {
    for seed in 0..3_000 {
        let mut random = fastrand::Rng::with_seed(seed);
        let start = Instant::now();
        let mut now = start;
        let catches_up = random.bool();
        let was_drained = random.bool();
        let mut machine = Machine::new(INTERVAL, start, catches_up, was_drained);
        machine.set_restart_wait(RESTART_WAIT);
        let mut is_drained = was_drained;
        let mut answers = false;
        let mut failures = 0;
        let mut crashed = None;
        for _ in 0..40 {
            now += Duration::from_millis(random.u64(0..400));
            let returned = machine.catching_up().unwrap_or_else(|| random.u32(0..3));
            let event = match random.u8(0..19) {
                0..=3 => OK,
                4 => Event::Untaken,
                5 => Event::Refused,
                6 | 7 => Event::Failed,
                8 => Event::NotTried,
                9 => Event::Evidence,
                10 => Event::CaughtUp { returned },
                11 => Event::Late { returned },
                12 => Event::Fence(random.bool()),
                13 => Event::Park(random.bool()),
                14 => [Event::Drain, Event::Stay][random.usize(0..2)],
                15 => Event::Crashed,
                16 => Event::Unready,
                17 => Event::Silent,
                _ => [Event::Drained, Event::Resumed][random.usize(0..2)],
            };
            let before = (machine.health(), machine.admission());
            let changed = machine.on(event, now);
            let after = (machine.health(), machine.admission());
            let told = format!("seed {seed}: {event:?} in {before:?} makes {after:?}");
            match event {
                Event::Success { .. } => (answers, failures) = (true, 0),
                Event::Failed => {
                    failures += 1;
                    answers &= failures < FAILURES_TO_DOWN;
                }
                Event::Refused | Event::Untaken | Event::Silent => answers = false,
                Event::Unready => {
                    let was_there = answers || before.0 == Health::Restarting;
                    let since = crashed.map(|at: Instant| now - at);
                    let restarts = since.is_some_and(|since| since < RESTART_WAIT) && was_there;
                    if !is_drained {
                        assert_eq!(after.0 == Health::Restarting, restarts, "{told}");
                    }
                    answers = false;
                }
                Event::Crashed => {
                    assert_eq!(before, after, "{told}");
                    if answers {
                        crashed = Some(now);
                    }
                }
                Event::Drained => is_drained = true,
                Event::Resumed => is_drained = false,
                Event::NotTried | Event::Evidence => assert_eq!(before, after, "{told}"),
                _ => {}
            }
            if !answers {
                failures = 0;
            }
            assert_eq!(machine.answers(), answers, "{told}");
            assert_eq!(after.0 == Health::Drained, is_drained, "{told}");
            let kinds = [before.0, after.0].map(|health| std::mem::discriminant(&health));
            assert_eq!(changed.is_some(), kinds[0] != kinds[1], "{told}");
            match after.1 {
                Admission::All => assert!(
                    matches!(after.0, Health::Up | Health::Suspect { .. }),
                    "{told}"
                ),
                Admission::Writes => assert_eq!(after.0, Health::Draining, "{told}"),
                Admission::Parked => {
                    assert!(answers || after.0 == Health::Restarting, "{told}");
                }
                Admission::LastResort => assert!(answers && !is_drained, "{told}"),
                Admission::Nobody => assert!(
                    is_drained || !answers || machine.catching_up().is_some(),
                    "{told}"
                ),
            }
            if event.is_of_probe() {
                assert!(machine.next_probe() <= now + INTERVAL, "{told}");
            }
        }
        machine.on(OK, now);
        if let Some(returned) = machine.catching_up() {
            machine.on(Event::CaughtUp { returned }, now);
        }
        for event in [Event::Park(false), Event::Fence(false), Event::Stay] {
            machine.on(event, now);
        }
        let expected = match is_drained {
            true => (Health::Drained, Admission::Nobody),
            false => (Health::Up, Admission::All),
        };
        let end = (machine.health(), machine.admission());
        assert_eq!(end, expected, "seed {seed}");
        machine.on(Event::Resumed, now);
        assert_eq!(machine.admission(), Admission::All, "seed {seed}");
    }
}
