//! What a client hears when its server is lost.

use std::sync::OnceLock;

use tandem_routing_rules::state::Modes;

use super::{
    super::{
        outcome::Doubt,
        owed::{By, Item, Sent},
        profile::ServerSettings,
        trace::Control,
    },
    *,
};

const BEGUN: &[u8] = b"C\0\0\0\x0aBEGIN\0";
const FAILED: &[u8] = b"Z\0\0\0\x05E";
const SYNC: &[u8] = b"S\0\0\0\x04";
const ASKED: &[u8] = b"F\0\0\0\x0e\0\0\x13\xc4\0\0\0\0\0\x01";
const WRITE: &[u8] = b"UPDATE t SET a = 1";
const READ: &[u8] = b"SELECT a FROM t";

fn completed(tag: &str) -> Vec<u8> {
    frame(b'C', &[tag.as_bytes(), b"\0"].concat())
}

/// Parse, Bind, Execute.
fn batch(text: &str) -> Vec<u8> {
    [
        frame(b'P', format!("\0{text}\0\0\0").as_bytes()),
        frame(b'B', &[0; 8]),
        frame(b'E', &[0; 5]),
    ]
    .concat()
}

fn lost() -> BytesMut {
    report::bytes(&report::lost_with("n1"))
}

fn in_doubt() -> BytesMut {
    report::bytes(&report::in_doubt("n1"))
}

fn aborted() -> BytesMut {
    report::bytes(&report::aborted())
}

/// A session in a block that has written.
async fn in_block() -> Bench {
    let mut bench = Bench::routed();
    let acknowledged = Arc::clone(&bench.shared.acknowledged);
    bench.task.routed = Some(Box::new(Routed::new(0, Some(acknowledged))));
    bench.client_sends(&query(b"BEGIN")).await;
    bench.assert_heard(&[BEGUN, IN_TRANSACTION].concat());
    bench.client_sends(&query(WRITE)).await;
    bench.assert_server_got(&query(b"BEGIN"));
    bench
        .server_answers(&[BEGUN, IN_TRANSACTION].concat())
        .await;
    bench.assert_server_got(&query(WRITE));
    bench
        .pass_down(&[&completed("UPDATE 1")[..], IN_TRANSACTION].concat())
        .await;
    bench
}

#[tokio::test]
async fn who_waits_for_no_answer_hears_of_it_with_what_it_says_next() {
    for (says, hears) in [
        (&b"COMMIT"[..], [&lost()[..], READY].concat()),
        (WRITE, [&lost()[..], FAILED].concat()),
        (&b"ROLLBACK TO a"[..], [&lost()[..], FAILED].concat()),
        (
            &b"ROLLBACK"[..],
            [&completed("ROLLBACK")[..], READY].concat(),
        ),
    ] {
        let mut bench = in_block().await;
        bench.another_server();
        assert!(bench.run().await.is_none());
        bench.assert_heard(b"");
        bench.client_sends(&query(says)).await;
        bench.assert_heard(&hears);
        bench.assert_server_got(b"");
        if hears.ends_with(FAILED) {
            bench.client_sends(&query(WRITE)).await;
            bench.assert_heard(&[&aborted()[..], FAILED].concat());
            bench.client_sends(&query(b"COMMIT")).await;
            bench.assert_heard(&[&completed("ROLLBACK")[..], READY].concat());
        }
        bench.pass_up(&query(READ)).await;
    }
}

#[tokio::test]
async fn what_is_under_way_in_a_block_fails_and_each_sync_is_answered_once() {
    let both = [
        &batch("UPDATE t SET a = 2")[..],
        SYNC,
        &batch("UPDATE t SET a = 3"),
        SYNC,
    ]
    .concat();
    let open = batch("UPDATE t SET a = 2");
    for (sent, heard) in [
        (query(WRITE), [&lost()[..], FAILED].concat()),
        (both, [&lost()[..], FAILED, &aborted(), FAILED].concat()),
        (open, lost().to_vec()),
        (
            query(b"ROLLBACK"),
            [&completed("ROLLBACK")[..], READY].concat(),
        ),
        // It was given to the socket.
        (query(b"CALL p()"), [&in_doubt()[..], FAILED].concat()),
        (
            query(b"PREPARE TRANSACTION 'a'"),
            [&in_doubt()[..], READY].concat(),
        ),
        (
            query(b"COMMIT AND CHAIN"),
            [&in_doubt()[..], FAILED].concat(),
        ),
    ] {
        let mut bench = in_block().await;
        bench.client_sends(&sent).await;
        bench.assert_heard(b"");
        bench.another_server();
        assert!(bench.run().await.is_none());
        bench.assert_heard(&heard);
        if heard.ends_with(&lost()) {
            bench
                .client_sends(&[&batch("SELECT 1")[..], SYNC].concat())
                .await;
            bench.assert_heard(FAILED);
        }
        assert_eq!(bench.idle(), 1);
    }
}

#[tokio::test]
async fn what_is_answered_but_for_its_end_is_known() {
    let batch = |text: &str| [&batch(text)[..], SYNC].concat();
    let answers = |tag: &str| [frame(b'1', b""), frame(b'2', b""), completed(tag)].concat();
    for (sent, answered, heard) in [
        (query(b"COMMIT"), completed("COMMIT"), READY.to_vec()),
        (batch("COMMIT"), answers("COMMIT"), READY.to_vec()),
        (query(b"ROLLBACK"), completed("ROLLBACK"), READY.to_vec()),
        (
            batch("UPDATE t SET a = 2"),
            answers("UPDATE 1"),
            [&lost()[..], FAILED].concat(),
        ),
    ] {
        let mut bench = in_block().await;
        bench.client_sends(&sent).await;
        if sent == query(b"COMMIT") || sent == batch("COMMIT") {
            let number = frame(b'V', b"\0\0\0\x08\0\0\0\0\0\0\0\x07");
            bench
                .server_answers(&[&number, IN_TRANSACTION].concat())
                .await;
        }
        bench.server_answers(&answered).await;
        bench.assert_heard(&answered);
        bench.another_server();
        assert!(bench.run().await.is_none());
        bench.assert_heard(&heard);
    }
    // Its Sync was to commit it.
    let mut bench = Bench::routed();
    bench.pass_up(&batch("UPDATE t SET a = 2")).await;
    bench.pass_down(&answers("UPDATE 1")).await;
    bench.another_server();
    assert!(bench.run().await.is_none());
    bench.assert_heard(&[&in_doubt()[..], READY].concat());
}

#[tokio::test]
async fn a_read_is_sent_once_more_and_no_more_than_that() {
    for read in [query(READ), [&batch("SELECT a FROM t")[..], SYNC].concat()] {
        let mut bench = Bench::routed();
        bench.pass_up(&read).await;
        bench.another_server();
        assert!(bench.run().await.is_none());
        bench.assert_server_got(&read);
        bench.assert_heard(b"");
        bench.another_server();
        assert!(bench.run().await.is_none());
        bench.assert_heard(&[&lost()[..], READY].concat());
        assert_eq!(bench.idle(), 1);
    }
}

#[tokio::test]
async fn a_read_of_which_the_client_has_heard_is_not_sent_once_more() {
    let mut bench = Bench::routed();
    bench.pass_up(&query(READ)).await;
    bench.pass_down(&frame(b'T', b"\0\0")).await;
    bench.another_server();
    assert!(bench.run().await.is_none());
    bench.assert_heard(&[&lost()[..], READY].concat());
    bench.assert_server_got(b"");
}

#[tokio::test]
async fn a_write_outside_of_a_block_is_in_doubt() {
    let mut bench = Bench::routed();
    bench.pass_up(&query(WRITE)).await;
    bench.another_server();
    assert!(bench.run().await.is_none());
    bench.assert_heard(&[&in_doubt()[..], READY].concat());
    bench.assert_server_got(b"");
}

#[tokio::test]
async fn a_commit_is_sent_with_a_question_ahead_of_it_and_waits_for_the_answer() {
    let commit = [&batch("COMMIT")[..], SYNC].concat();
    for commit in [query(b"COMMIT"), commit] {
        let mut bench = in_block().await;
        bench.client_sends(&commit).await;
        bench.assert_server_got(&[ASKED, &commit].concat());
        let number = frame(b'V', b"\0\0\0\x08\0\0\0\0\0\0\0\x07");
        bench
            .server_answers(&[&number, IN_TRANSACTION].concat())
            .await;
        bench.assert_heard(b"");
        bench.another_server();
        assert!(bench.run().await.is_none());
        bench.assert_heard(b"");
        // Its client need not wait for ever.
        let entry = Arc::clone(bench.task.registered.entry());
        assert!(matches!(entry.cancel(), Cancel::Answered));
        assert!(bench.run().await.is_none());
        bench.assert_heard(&[&in_doubt()[..], READY].concat());
    }
}

#[tokio::test]
async fn what_was_in_doubt_is_answered_as_its_node_would_have_answered_it() {
    let chained = [&completed("COMMIT")[..], IN_TRANSACTION].concat();
    for (control, found, heard) in [
        (
            Control::Commits,
            Some(true),
            [&completed("COMMIT")[..], READY].concat(),
        ),
        (Control::Chains, Some(true), chained.clone()),
        (
            Control::Prepares,
            Some(true),
            [&completed("PREPARE TRANSACTION")[..], READY].concat(),
        ),
        (Control::Commits, Some(false), [&lost()[..], READY].concat()),
        (
            Control::Prepares,
            Some(false),
            [&lost()[..], READY].concat(),
        ),
        (Control::Chains, Some(false), [&lost()[..], FAILED].concat()),
        (Control::Commits, None, [&in_doubt()[..], READY].concat()),
        (Control::Prepares, None, [&in_doubt()[..], READY].concat()),
        (Control::Chains, None, [&in_doubt()[..], FAILED].concat()),
    ] {
        let mut bench = Bench::routed();
        let doubt = Doubt {
            node: 0,
            items: vec![Item {
                sent: Sent::Query,
                by: By::Client,
                note: 0,
                portal: 0,
                control,
            }],
            settings: ServerSettings::new(&[], &[]),
            modes: Modes::default(),
            found: Arc::new(found.map_or_else(OnceLock::new, OnceLock::from)),
        };
        bench.task.resolve(Box::new(doubt), &bench.shared);
        assert!(bench.run().await.is_none());
        bench.assert_heard(&heard);
        if heard == chained {
            bench.client_sends(&query(WRITE)).await;
            bench.assert_server_got(&query(b"BEGIN"));
        }
        let counted: u64 = bench.shared.losses.counts().map(|(_, count)| count).sum();
        assert_eq!(counted, 1);
    }
}

#[tokio::test]
async fn what_a_server_says_when_another_one_has_crashed_is_not_the_clients() {
    let crashed =
        b"SWARNING\0VWARNING\0C57P02\0Mterminating connection\0Fpostgres.c\0L1\0Rquickdie\0\0";
    let raised = b"SWARNING\0VWARNING\0C57P02\0Mraised\0Fpl_exec.c\0L1\0Rexec_stmt_raise\0\0";
    let mut bench = Bench::routed();
    bench.pass_up(&query(READ)).await;
    bench.server_answers(&frame(b'N', crashed)).await;
    bench.assert_heard(b"");
    bench.another_server();
    assert!(bench.run().await.is_none());
    // Nothing has come back of it, so it is sent once more.
    bench.assert_server_got(&query(READ));
    bench.pass_down(&frame(b'N', raised)).await;
}

#[tokio::test]
async fn a_question_goes_only_ahead_of_the_commit_of_what_has_written() {
    let mut bench = in_block().await;
    bench.client_sends(&query(b"ROLLBACK")).await;
    bench.assert_server_got(&query(b"ROLLBACK"));
    let mut bench = Bench::routed();
    let acknowledged = Arc::clone(&bench.shared.acknowledged);
    bench.task.routed = Some(Box::new(Routed::new(0, Some(acknowledged))));
    bench.client_sends(&query(b"BEGIN")).await;
    bench.client_sends(&query(READ)).await;
    bench
        .server_answers(&[BEGUN, IN_TRANSACTION].concat())
        .await;
    bench
        .server_answers(&[&completed("SELECT 0")[..], IN_TRANSACTION].concat())
        .await;
    bench.assert_server_got(&[query(b"BEGIN"), query(READ)].concat());
    bench.client_sends(&query(b"COMMIT")).await;
    bench.assert_server_got(&query(b"COMMIT"));
}
