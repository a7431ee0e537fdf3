use super::*;

#[test]
fn places_are_limited_and_come_back() {
    let clients = Clients::new(2);
    let (first, second) = (clients.take(), clients.take());
    assert!(first.is_some() && second.is_some() && clients.take().is_none());
    assert_eq!((clients.current(), clients.max()), (2, 2));
    drop(first);
    assert!(clients.take().is_some());
}

#[test]
fn the_state_of_an_idle_session_stays_small() {
    let task = size_of::<Task>();
    assert!(task <= 768, "{task} bytes");
}
