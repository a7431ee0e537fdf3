use super::*;
use proptest::prelude::*;

/// Versions below this one are of rows that each node loaded for itself.
const SINCE: i64 = 10;

fn at(timestamp: i64, node: u16) -> Version {
    Version { timestamp, node }
}

fn row(content: i64, version: Option<Version>) -> State {
    State {
        row: Some(Row {
            content: (content, 0),
            version,
            counts: version.is_some_and(|version| version.timestamp >= SINCE),
            xmin: "9".to_owned(),
        }),
        deleted: None,
    }
}

fn absent(deleted: Option<Version>) -> State {
    State { row: None, deleted }
}

/// What the nodes have after the choice was carried out.
fn mended(states: &[State], choice: &Choice) -> Vec<State> {
    let winner = choice
        .source
        .and_then(|source| states[source].row.as_ref())
        .map(|winner| winner.content.0);
    let mend = |(state, action): (&State, &Action)| match action {
        Action::Keep => state.clone(),
        Action::Delete => absent(state.deleted.max(Some(choice.version))),
        _ => State {
            deleted: state.deleted,
            ..row(winner.expect("a row wins"), Some(choice.version))
        },
    };
    states.iter().zip(&choice.actions).map(mend).collect()
}

#[test]
fn the_newest_version_wins_and_goes_to_those_who_lack_it() {
    let states = [
        row(1, Some(at(20, 1))),
        row(2, Some(at(21, 3))),
        absent(None),
    ];
    let choice = choose(&[1, 2, 3], &states).expect("they differ");
    assert_eq!((choice.version, choice.source), (at(21, 3), Some(1)));
    assert_eq!(
        choice.actions,
        [Action::Replace, Action::Keep, Action::Insert]
    );
}

#[test]
fn the_same_content_in_an_older_version_gets_the_newer_one() {
    let states = [row(1, Some(at(20, 1))), row(1, Some(at(30, 1)))];
    let choice = choose(&[1, 2], &states).expect("they differ");
    assert_eq!(choice.actions, [Action::Replace, Action::Keep]);
}

#[test]
fn a_remembered_delete_is_a_version() {
    let states = [row(1, Some(at(20, 1))), absent(Some(at(25, 2)))];
    let choice = choose(&[1, 2], &states).expect("they differ");
    assert_eq!((choice.version, choice.source), (at(25, 2), None));
    assert_eq!(choice.actions, [Action::Delete, Action::Keep]);
    let states = [row(1, Some(at(20, 1))), absent(Some(at(15, 2)))];
    let choice = choose(&[1, 2], &states).expect("they differ");
    assert_eq!(choice.actions, [Action::Keep, Action::Insert]);
}

#[test]
fn a_row_beats_a_missing_one_of_which_nothing_is_remembered() {
    let states = [absent(None), row(1, None), absent(None)];
    let choice = choose(&[1, 2, 3], &states).expect("they differ");
    assert_eq!(choice.version, at(UNVERSIONED, 2));
    assert_eq!(
        choice.actions,
        [Action::Insert, Action::Keep, Action::Insert]
    );
}

#[test]
fn without_versions_the_majority_decides_and_then_the_lowest_id() {
    let states = [row(1, None), row(2, None), row(2, None)];
    let choice = choose(&[1, 2, 3], &states).expect("they differ");
    assert_eq!(choice.source, Some(1));
    let choice = choose(&[9, 4], &states[..2]).expect("they differ");
    assert_eq!((choice.source, choice.version.node), (Some(1), 4));
}

#[test]
fn rows_that_each_node_loaded_for_itself_are_compared_by_content() {
    assert!(are_equal(&[row(1, Some(at(3, 1))), row(1, Some(at(4, 2)))]));
    assert!(are_equal(&[
        row(1, None),
        row(1, Some(at(30, 2))),
        row(1, Some(at(30, 2)))
    ]));
    assert!(!are_equal(&[
        row(1, None),
        row(1, Some(at(30, 2))),
        row(1, Some(at(31, 2)))
    ]));
    assert!(!are_equal(&[
        row(1, Some(at(3, 1))),
        row(2, Some(at(4, 2)))
    ]));
}

#[test]
fn what_differs_in_the_same_way_twice_is_a_difference_and_lag_is_none() {
    let (old, new, newer) = (
        row(1, Some(at(20, 1))),
        row(2, Some(at(30, 1))),
        row(3, Some(at(40, 2))),
    );
    let before = [new.clone(), old.clone()];
    assert_eq!(judge(&before, &before), Verdict::Differs);
    assert_eq!(judge(&before, &[new.clone(), new.clone()]), Verdict::Equal);
    // Written again in between, and both have what was the newest.
    assert_eq!(
        judge(&before, &[newer.clone(), new.clone()]),
        Verdict::Moving
    );
    // One of them is still behind.
    assert_eq!(judge(&before, &[newer, old.clone()]), Verdict::Unsettled);
    // A row that came and went.
    let gone = absent(Some(at(50, 1)));
    assert_eq!(judge(&before, &[gone.clone(), new]), Verdict::Moving);
    assert_eq!(judge(&before, &[absent(None), old]), Verdict::Unsettled);
}

#[test]
fn one_version_with_two_contents_is_never_taken_for_movement() {
    let before = [row(1, Some(at(20, 1))), row(2, Some(at(20, 1)))];
    let after = [row(1, Some(at(30, 1))), row(2, Some(at(30, 1)))];
    assert_eq!(judge(&before, &after), Verdict::Unsettled);
    assert_eq!(judge(&after, &after), Verdict::Differs);
}

#[test]
fn a_node_that_is_right_is_followed_whatever_the_versions_say() {
    let states = [
        row(1, Some(at(20, 1))),
        row(2, Some(at(30, 1))),
        absent(None),
    ];
    assert_eq!(
        follow(0, &states),
        [Action::Touch, Action::Keep, Action::Keep]
    );
    assert_eq!(
        follow(2, &states),
        [Action::DeleteAnew, Action::DeleteAnew, Action::Keep]
    );
}

fn version() -> impl Strategy<Value = Option<Version>> {
    proptest::option::weighted(0.8, (5i64..15, 1u16..4).prop_map(|(t, node)| at(t, node)))
}

fn state() -> impl Strategy<Value = State> {
    let row = proptest::option::weighted(0.7, (0i64..3, version())).prop_map(|found| {
        found.map_or_else(State::default, |(content, version)| row(content, version))
    });
    (row, version()).prop_map(|(state, deleted)| State { deleted, ..state })
}

proptest! {
    /// One repair is enough, and a second finds nothing to do.
    #[test]
    fn a_repair_makes_the_nodes_equal(states in proptest::collection::vec(state(), 1..6)) {
        let ids: Vec<u16> = (1..).take(states.len()).collect();
        match choose(&ids, &states) {
            None => prop_assert!(are_equal(&states)),
            Some(choice) => {
                let after = mended(&states, &choice);
                prop_assert!(are_equal(&after), "{choice:?} gives {after:?}");
                prop_assert_eq!(choose(&ids, &after), None);
            }
        }
    }

    /// Which node is asked first decides nothing.
    #[test]
    fn the_order_of_the_nodes_is_irrelevant(
        states in proptest::collection::vec(state(), 2..6), seed in any::<u64>(),
    ) {
        let mut nodes: Vec<(u16, State)> = (1..).zip(states).collect();
        let outcome = |nodes: &[(u16, State)]| {
            let (ids, states): (Vec<_>, Vec<_>) = nodes.iter().cloned().unzip();
            choose(&ids, &states).map(|choice| {
                let source = choice.source.map(|source| ids[source]);
                let mut actions: Vec<_> = ids.iter().zip(choice.actions).map(|(id, action)| (*id, action.name())).collect();
                actions.sort_unstable();
                (choice.version, source, actions)
            })
        };
        let first = outcome(&nodes);
        fastrand::Rng::with_seed(seed).shuffle(&mut nodes);
        prop_assert_eq!(first, outcome(&nodes));
    }
}
