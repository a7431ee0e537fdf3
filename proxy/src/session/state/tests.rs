use tandem_routing_rules::state::Pin;

use super::*;
use crate::session::program::program;

/// A session and the server that it has.
struct Bench {
    state: State,
    server: ServerSettings,
}

impl Bench {
    fn new() -> Bench {
        Bench {
            state: State::new(Profile::new(&[], &[]), 1, None),
            server: ServerSettings::new(&[], &[]),
        }
    }

    fn sent(&mut self, text: &str) -> Note {
        let program = program(text.as_bytes());
        self.state.sent(program.as_ref(), &mut self.server)
    }

    fn succeeded(&mut self, notes: &[Note]) {
        for note in notes {
            self.state.succeeded(*note, &mut self.server);
        }
        self.state.ready(Status::Idle, false, &mut self.server);
    }
}

#[test]
fn discard_all_lets_the_server_go_and_leaves_it_clean() {
    let mut bench = Bench::new();
    let note = bench.sent("PREPARE p AS SELECT 1; DO 'BEGIN END'");
    bench.succeeded(&[note, note]);
    assert_eq!(bench.state.hold(), Some(Hold::Prepared));
    assert_ne!(bench.server.touched_by, 0);
    let note = bench.sent("DISCARD ALL");
    bench.succeeded(&[note]);
    assert_eq!(bench.state.hold(), None);
    assert_eq!(bench.server.touched_by, 0);
}

#[test]
fn discard_all_does_not_speak_for_what_was_sent_behind_it() {
    for behind in ["DO 'BEGIN END'", "PREPARE q AS SELECT 1", "LISTEN x"] {
        let mut bench = Bench::new();
        let before = bench.sent("PREPARE p AS SELECT 1");
        let discard = bench.sent("DISCARD ALL");
        let note = bench.sent(behind);
        bench.succeeded(&[before, discard, note]);
        let kept = bench.state.hold().is_some() || bench.server.touched_by != 0;
        assert!(kept, "{behind}");
    }
    let mut bench = Bench::new();
    let before = bench.sent("PREPARE p AS SELECT 1");
    let discard = bench.sent("DISCARD ALL");
    bench.state.touch(&mut bench.server);
    bench.succeeded(&[before, discard]);
    assert_ne!(bench.server.touched_by, 0, "a function call");
}

#[test]
fn a_pin_that_comes_behind_its_release_stays() {
    let pinned = Some(Hold::Pin(Pin::Listen));
    let mut bench = Bench::new();
    let note = bench.sent("UNLISTEN *; LISTEN x");
    bench.succeeded(&[note, note]);
    assert_eq!(bench.state.hold(), pinned, "in one message");
    let mut bench = Bench::new();
    let first = bench.sent("LISTEN x");
    let second = bench.sent("UNLISTEN *");
    let third = bench.sent("LISTEN y");
    bench.succeeded(&[first, second, third]);
    assert_eq!(bench.state.hold(), pinned, "in a pipeline");
    let note = bench.sent("UNLISTEN *");
    bench.succeeded(&[note]);
    assert_eq!(bench.state.hold(), None);
}

#[test]
fn what_a_server_has_lost_is_set_again_whatever_was_set_since() {
    let mut bench = Bench::new();
    let login = [("work_mem".to_owned(), "5MB".to_owned())];
    bench.state = State::new(Profile::new(&login, &[]), 1, None);
    let set = [b"SET \"work_mem\" TO '5MB'".to_vec()];
    assert_eq!(bench.state.sync(&mut bench.server, false), set);
    for text in [
        "LISTEN x",
        "SELECT set_config('work_mem', NULL, false)",
        "SET a.b = 'mine'",
        "UNLISTEN *",
    ] {
        let note = bench.sent(text);
        bench.succeeded(&[note]);
    }
    assert_eq!(bench.state.sync(&mut bench.server, false), set);
}

#[test]
fn a_session_has_no_values_of_sequences_before_it_has_run_anything() {
    for (text, forgets) in [
        ("BEGIN", true),
        ("BEGIN; SET LOCAL work_mem = '1MB'", true),
        ("LISTEN x", true),
        ("SELECT 1", false),
        ("INSERT INTO t DEFAULT VALUES", false),
        ("BEGIN; CALL p()", false),
        ("EXECUTE p", false),
    ] {
        let mut bench = Bench::new();
        let mut another = State::new(Profile::new(&[], &[]), 2, None);
        another.sync(&mut bench.server, false);
        bench.state.sync(&mut bench.server, false);
        assert!(bench.state.must_forget(&bench.server));
        bench.sent(text);
        assert_eq!(bench.state.must_forget(&bench.server), forgets, "{text}");
    }
}

#[test]
fn a_server_forgets_values_of_sequences_only_when_it_changes_hands() {
    let mut bench = Bench::new();
    let mut another = State::new(Profile::new(&[], &[]), 2, None);
    let discard = [b"DISCARD SEQUENCES".to_vec()];
    assert!(bench.state.sync(&mut bench.server, true).is_empty());
    assert_eq!(another.sync(&mut bench.server, true), discard);
    assert!(another.sync(&mut bench.server, true).is_empty());
    assert_eq!(bench.state.sync(&mut bench.server, true), discard);
}
