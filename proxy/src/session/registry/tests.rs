//! What the table of sessions promises.

use super::*;

fn face(node: usize) -> Arc<Face> {
    Arc::new(Face::of(node, 42, Secret::new([7; 4])))
}

#[test]
fn only_the_right_key_cancels_and_only_while_the_session_lives() {
    let registry = Arc::new(Registry::default());
    let session = registry.enter(4).expect("entered");
    let (pid, key) = (session.pid(), session.key().to_vec());
    assert!(pid > 0);
    let nothing = |pid, key: &[u8]| registry.holder(pid, key).is_none();
    session.entry().attach(&face(1), true);
    session.entry().publish(Activity::Active);
    let entry = registry.holder(pid, &key).expect("its own");
    match entry.cancel() {
        Cancel::Forward(cancel) => {
            assert_eq!(cancel.face().pid, 42);
            cancel.arrived();
        }
        other => panic!("{other:?}"),
    }
    let mut wrong = key.clone();
    wrong[3] ^= 1;
    assert!(nothing(pid, &wrong) && nothing(pid, &key[..3]));
    assert!(nothing(pid, &[]) && nothing(pid ^ 1, &key));
    drop(session);
    assert!(nothing(pid, &key));
    assert_eq!(registry.len(), 0);
}

#[test]
fn a_cancel_for_a_session_that_waits_is_its_own_and_not_its_next_statements() {
    let registry = Arc::new(Registry::default());
    let session = registry.enter(4).expect("entered");
    let entry = session.entry();
    assert!(matches!(entry.cancel(), Cancel::Nothing));
    entry.wait();
    assert!(!entry.is_cancelled(), "the one before came too early");
    assert!(matches!(entry.cancel(), Cancel::Answered));
    assert!(entry.is_cancelled());
    assert!(entry.attach(&face(1), true), "it must not run any more");
    entry.detach();
    entry.wait();
    assert!(!entry.attach(&face(1), true), "the next one may");
    entry.prepare();
    assert!(matches!(entry.cancel(), Cancel::Answered));
    assert!(entry.prepared(), "it must not run any more");
    entry.prepare();
    assert!(!entry.prepared(), "the next one may");
    assert!(matches!(entry.cancel(), Cancel::Nothing));
    entry.publish(Activity::Active);
    assert!(matches!(entry.cancel(), Cancel::Forward(_)));
}

#[test]
fn a_cancel_is_repeated_only_for_the_same_statement() {
    let registry = Arc::new(Registry::default());
    let session = registry.enter(4).expect("entered");
    let entry = session.entry();
    entry.attach(&face(1), true);
    entry.publish(Activity::Active);
    let answered = entry.answered();
    assert!(entry.cancel_again(answered).is_some());
    entry.ready();
    assert!(entry.cancel_again(answered).is_none(), "the next one runs");
    let answered = entry.answered();
    assert!(entry.cancel_again(answered).is_some());
    entry.publish(Activity::InTransaction);
    assert!(entry.cancel_again(answered).is_none(), "nothing runs");
}

#[test]
fn keys_have_the_length_of_the_protocol_and_differ() {
    let registry = Arc::new(Registry::default());
    let old = registry.enter(4).expect("entered");
    let new = registry.enter(32).expect("entered");
    assert_eq!((old.key().len(), new.key().len()), (4, 32));
    assert_ne!(old.pid(), new.pid());
    assert_ne!(old.key(), &new.key()[..4]);
}

#[test]
fn a_stop_reaches_sessions_that_come_later_and_only_grows() {
    let registry = Arc::new(Registry::default());
    let before = registry.enter(4).expect("entered");
    assert_eq!(before.entry().stop(), Stop::No);
    registry.stop_all(Stop::AtOnce);
    registry.stop_all(Stop::WhenIdle);
    let after = registry.enter(4).expect("entered");
    assert_eq!(before.entry().stop(), Stop::AtOnce);
    assert_eq!(after.entry().stop(), Stop::AtOnce);
}

#[test]
fn who_has_just_come_is_not_stopped_with_the_others() {
    let registry = Arc::new(Registry::default());
    let old = registry.enter(4).expect("entered");
    let between = Instant::now();
    let young = registry.enter(4).expect("entered");
    registry.stop_begun_before(between, Stop::WhenIdle);
    let later = registry.enter(4).expect("entered");
    let stops = [&old, &young, &later].map(|each| each.entry().stop());
    assert_eq!(stops, [Stop::WhenIdle, Stop::No, Stop::No]);
}

#[test]
fn only_the_sessions_of_one_node_are_stopped() {
    let registry = Arc::new(Registry::default());
    let sessions: Vec<_> = (0..3)
        .map(|_| registry.enter(4).expect("entered"))
        .collect();
    let here = face(2);
    sessions[0].entry().attach(&face(1), true);
    sessions[1].entry().attach(&here, true);
    // It gives its server back by itself.
    assert_eq!(registry.stop_node(2, Stop::WhenIdle), 0);
    here.set_hold(Some(Hold::Mode));
    let stops = || {
        sessions
            .iter()
            .map(|each| each.entry().stop())
            .collect::<Vec<_>>()
    };
    assert_eq!(registry.stop_node(2, Stop::WhenIdle), 1);
    assert_eq!(stops(), [Stop::No, Stop::WhenIdle, Stop::No]);
    assert_eq!(registry.stop_node(2, Stop::AtOnce), 1);
    assert_eq!(stops(), [Stop::No, Stop::AtOnce, Stop::No]);
}

#[test]
fn activities_are_counted() {
    let registry = Arc::new(Registry::default());
    let sessions: Vec<_> = (0..3)
        .map(|_| registry.enter(4).expect("entered"))
        .collect();
    sessions[1].entry().publish(Activity::Active);
    sessions[2].entry().publish(Activity::InTransaction);
    assert_eq!(registry.activities(), [1, 1, 1]);
}

#[test]
fn each_unit_of_work_is_known_as_another_one_and_may_turn_out_to_write() {
    let registry = Arc::new(Registry::default());
    let session = registry.enter(4).expect("entered");
    let (entry, here) = (session.entry(), face(2));
    let running = || registry.running().first().copied();
    assert_eq!(running(), None);
    entry.attach(&here, false);
    let first = running().expect("it has a server");
    assert_eq!((first.client, first.node), (session.pid(), 2));
    assert_eq!((first.server, first.writes, first.hold), (42, false, None));
    entry.may_write();
    let expected = Running {
        writes: true,
        ..first
    };
    assert_eq!(running(), Some(expected));
    entry.prepare();
    assert_eq!(running(), Some(expected));
    entry.detach();
    assert_eq!(running(), None);
    here.set_hold(Some(Hold::Mode));
    entry.attach(&here, false);
    let second = running().expect("it has a server");
    assert!(second.unit != first.unit && !second.writes);
    assert_eq!(second.hold, Some(Hold::Mode));
}
