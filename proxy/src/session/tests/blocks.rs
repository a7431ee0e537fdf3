//! Transaction blocks that wait for their first statement.

use super::*;

const BEGUN: &[u8] = b"C\0\0\0\x0aBEGIN\0";
const FAILED: &[u8] = b"Z\0\0\0\x05E";
const ERROR: &[u8] = b"E\0\0\0\x13SERROR\0C57014\0\0";
const SYNC: &[u8] = b"S\0\0\0\x04";
const BOUND: &[u8] = b"2\0\0\0\x04";
const PARSED: &[u8] = b"1\0\0\0\x04";
const NO_DATA: &[u8] = b"n\0\0\0\x04";

fn completed(tag: &str) -> Vec<u8> {
    frame(b'C', &[tag.as_bytes(), b"\0"].concat())
}

fn parse(name: &str, text: &str) -> Vec<u8> {
    frame(b'P', format!("{name}\0{text}\0\0\0").as_bytes())
}

fn bind(name: &str) -> Vec<u8> {
    frame(b'B', format!("\0{name}\0\0\0\0\0\0\0").as_bytes())
}

fn describe() -> Vec<u8> {
    frame(b'D', b"P\0")
}

fn execute() -> Vec<u8> {
    frame(b'E', b"\0\0\0\0\0")
}

#[tokio::test]
async fn a_block_begins_on_a_server_with_its_first_statement() {
    let mut bench = Bench::routed();
    bench.client_sends(&query(b"BEGIN")).await;
    bench.assert_heard(&[BEGUN, IN_TRANSACTION].concat());
    bench.assert_server_got(b"");
    bench
        .client_sends(&query(b"SET TRANSACTION READ WRITE"))
        .await;
    bench.assert_heard(&[&completed("SET")[..], IN_TRANSACTION].concat());
    assert_eq!(bench.idle(), 1);

    bench.client_sends(&query(b"UPDATE t SET a = 1")).await;
    bench.assert_server_got(&query(b"BEGIN; SET TRANSACTION READ WRITE"));
    let begun = [BEGUN, &completed("SET"), IN_TRANSACTION].concat();
    bench.server_answers(&begun).await;
    bench.assert_server_got(&query(b"UPDATE t SET a = 1"));
    bench.assert_heard(b"");
    let updated = [&completed("UPDATE 1")[..], IN_TRANSACTION].concat();
    bench.pass_down(&updated).await;
    bench.pass_up(&query(b"COMMIT")).await;
    bench
        .pass_down(&[&completed("COMMIT")[..], READY].concat())
        .await;
    assert_eq!(bench.idle(), 1);
}

#[tokio::test]
async fn a_block_that_does_nothing_needs_no_server() {
    let mut bench = Bench::routed();
    for (begin, end, tag) in [
        ("BEGIN", "COMMIT", "COMMIT"),
        ("begin;", "END", "COMMIT"),
        ("BEGIN", "ROLLBACK", "ROLLBACK"),
    ] {
        bench.client_sends(&query(begin.as_bytes())).await;
        bench.client_sends(&query(end.as_bytes())).await;
        let ended = completed(tag);
        bench.assert_heard(&[BEGUN, IN_TRANSACTION, &ended, READY].concat());
    }
    bench.assert_server_got(b"");
}

#[tokio::test]
async fn what_a_server_refuses_fails_the_block_and_nothing_of_it_runs() {
    let mut bench = Bench::routed();
    bench.client_sends(&query(b"BEGIN")).await;
    bench.client_sends(&query(b"UPDATE t SET a = 1")).await;
    bench.assert_server_got(&query(b"BEGIN"));
    assert_eq!(bench.heard(), [BEGUN, IN_TRANSACTION].concat());
    bench.server_answers(&[ERROR, READY].concat()).await;
    bench.assert_heard(&[ERROR, FAILED].concat());
    bench.assert_server_got(b"");
    assert_eq!(bench.idle(), 1);

    bench.client_sends(&query(b"SELECT 1")).await;
    let heard = bench.heard();
    assert!(heard.ends_with(FAILED) && heard.windows(5).any(|five| five == b"25P02"));
    bench.client_sends(&query(b"COMMIT")).await;
    bench.assert_heard(&[&completed("ROLLBACK")[..], READY].concat());
    bench.assert_server_got(b"");
}

#[tokio::test]
async fn a_block_that_fails_on_the_way_is_known_to_its_server() {
    let mut bench = Bench::routed();
    bench.client_sends(&query(b"BEGIN")).await;
    bench
        .client_sends(&query(b"SET LOCAL work_mem = 'x'"))
        .await;
    bench.client_sends(&query(b"UPDATE t SET a = 1")).await;
    bench.heard();
    bench.assert_server_got(&query(b"BEGIN; SET LOCAL work_mem = 'x'"));
    bench.server_answers(&[BEGUN, ERROR, FAILED].concat()).await;
    bench.assert_heard(&[ERROR, FAILED].concat());
    bench.pass_up(&query(b"ROLLBACK")).await;
    bench
        .pass_down(&[&completed("ROLLBACK")[..], READY].concat())
        .await;
    assert_eq!(bench.idle(), 1);
}

#[tokio::test]
async fn what_is_prepared_in_a_block_that_has_not_begun_does_not_begin_it() {
    let mut bench = Bench::routed();
    bench.client_sends(&query(b"BEGIN")).await;
    bench.heard();
    let prepare = [&parse("", "SELECT $1"), &frame(b'D', b"S\0")[..], SYNC].concat();
    bench.pass_up(&prepare).await;
    let described = [PARSED, b"t\0\0\0\x06\0\0", NO_DATA].concat();
    bench.server_answers(&[&described, READY].concat()).await;
    bench.assert_heard(&[&described, IN_TRANSACTION].concat());
    assert_eq!(bench.idle(), 1);

    let run = [&bind("")[..], &execute(), SYNC].concat();
    bench.client_sends(&run).await;
    bench.assert_server_got(&query(b"BEGIN"));
    bench
        .server_answers(&[BEGUN, IN_TRANSACTION].concat())
        .await;
    // A Query has ended the unnamed statement.
    let mut got = vec![0; 1 << 16];
    let count = bench.server.try_read(&mut got).expect("something");
    assert!(
        got[..count].starts_with(&parse("", "SELECT $1")),
        "{}",
        got[..count].escape_ascii()
    );
}

#[tokio::test]
async fn what_cannot_be_prepared_in_a_block_that_has_not_begun_fails_it() {
    let mut bench = Bench::routed();
    bench.client_sends(&query(b"BEGIN")).await;
    bench.heard();
    bench
        .pass_up(&[&parse("", "SELEC 1")[..], SYNC].concat())
        .await;
    bench.server_answers(&[ERROR, READY].concat()).await;
    bench.assert_heard(&[ERROR, FAILED].concat());
    // All up to the Sync is refused with it.
    bench
        .client_sends(&[&parse("", "SELECT 1")[..], &bind(""), &execute(), SYNC].concat())
        .await;
    let heard = bench.heard();
    assert!(heard.ends_with(FAILED) && heard.windows(5).any(|five| five == b"25P02"));
    bench
        .client_sends(&[&parse("", "ROLLBACK")[..], &bind(""), &execute(), SYNC].concat())
        .await;
    let ended = completed("ROLLBACK");
    bench.assert_heard(&[PARSED, BOUND, &ended, READY].concat());
    bench.assert_server_got(b"");
}

#[tokio::test]
async fn blocks_begin_in_the_extended_protocol_too() {
    let mut bench = Bench::routed();
    let run = |name: &str| [&bind(name)[..], &describe(), &execute(), SYNC].concat();
    let begun = [BOUND, NO_DATA, BEGUN, IN_TRANSACTION].concat();
    let ended = completed("COMMIT");
    for name in ["", "b"] {
        bench
            .client_sends(&[&parse(name, "BEGIN")[..], &run(name)].concat())
            .await;
        bench.assert_heard(&[PARSED, &begun].concat());
        bench.client_sends(&query(b"COMMIT")).await;
        bench.assert_heard(&[&ended, READY].concat());
    }
    // Prepared once, and run again.
    bench.client_sends(&run("b")).await;
    bench.assert_heard(&begun);
    bench.client_sends(&query(b"ROLLBACK")).await;
    bench.assert_heard(&[&completed("ROLLBACK")[..], READY].concat());
    bench.assert_server_got(b"");
    // With a statement in the same batch it goes as it is.
    let both = [
        &parse("", "BEGIN")[..],
        &bind(""),
        &execute(),
        &parse("", "SELECT 1"),
        &bind(""),
        &execute(),
        SYNC,
    ];
    bench.pass_up(&both.concat()).await;
}

#[tokio::test]
async fn what_has_come_in_part_waits_for_the_rest() {
    let mut bench = Bench::routed();
    let batch = [
        &parse("", "UPDATE t SET a = 1")[..],
        &bind(""),
        &execute(),
        SYNC,
    ]
    .concat();
    for byte in &batch[..batch.len() - 1] {
        bench.client_sends(&[*byte]).await;
        bench.assert_server_got(b"");
    }
    bench.client_sends(&batch[batch.len() - 1..]).await;
    bench.assert_server_got(&batch);
}

#[tokio::test]
async fn what_comes_behind_an_unanswered_statement_is_sent_where_it_belongs() {
    let mut bench = Bench::routed();
    let selected = [&completed("SELECT 1")[..], READY].concat();
    let both = [query(b"SELECT 1"), query(b"SELECT 2")].concat();
    bench.pass_up(&both).await;
    bench.pass_down(&[&selected[..], &selected].concat()).await;
    // No node can be used here, so nobody knows that it is the same one.
    bench
        .client_sends(&[query(b"SELECT 1"), query(b"UPDATE t SET a = 1")].concat())
        .await;
    bench.assert_server_got(&query(b"SELECT 1"));
    bench.pass_down(&selected).await;
    bench.assert_server_got(&query(b"UPDATE t SET a = 1"));
    bench
        .pass_down(&[&completed("UPDATE 1")[..], READY].concat())
        .await;
    // Nor does a block begin behind it.
    bench
        .client_sends(&[query(b"SELECT 1"), query(b"BEGIN"), query(b"COMMIT")].concat())
        .await;
    bench.assert_server_got(&query(b"SELECT 1"));
    bench.server_answers(&selected).await;
    let committed = completed("COMMIT");
    bench.assert_heard(&[&selected, BEGUN, IN_TRANSACTION, &committed, READY].concat());
    bench.assert_server_got(b"");
}

#[tokio::test]
async fn a_server_that_is_lost_behind_its_begin_is_not_replaced() {
    let mut bench = Bench::routed();
    // The client was told of the statement by another server.
    bench
        .pass_up(&[&parse("", "SELECT $1")[..], &frame(b'D', b"S\0"), SYNC].concat())
        .await;
    let described = [PARSED, b"t\0\0\0\x06\0\0", NO_DATA, READY].concat();
    bench.pass_down(&described).await;
    bench.client_sends(&query(b"BEGIN")).await;
    bench
        .client_sends(&[&bind("")[..], &execute(), SYNC].concat())
        .await;
    bench.heard();
    bench.assert_server_got(&query(b"BEGIN"));
    bench
        .server_answers(&[BEGUN, IN_TRANSACTION].concat())
        .await;
    // It is asked what shape the statement has there, and goes.
    let mut got = vec![0; 1 << 16];
    assert!(bench.server.try_read(&mut got).expect("something") > 0);
    let (server, seated) = seat(&bench.pool);
    let gone = std::mem::replace(&mut bench.server, server);
    release(seated);
    drop(gone);
    assert!(bench.run().await.is_none());
    let lost = report::bytes(&report::lost_with("n1"));
    bench.assert_heard(&[&lost[..], FAILED].concat());
    bench.assert_server_got(b"");
}

#[tokio::test]
async fn what_is_bound_beside_its_execute_is_in_the_block() {
    let mut bench = Bench::routed();
    bench.client_sends(&query(b"BEGIN")).await;
    bench.heard();
    bench
        .client_sends(&[&parse("", "SELECT 1")[..], &bind(""), SYNC].concat())
        .await;
    bench.assert_server_got(&query(b"BEGIN"));
}

#[tokio::test]
async fn what_comes_instead_of_copy_data_does_not_wait_for_its_end() {
    let mut bench = Bench::routed();
    bench.pass_up(&query(b"COPY t FROM STDIN")).await;
    bench.pass_down(b"G\0\0\0\x07\0\0\0").await;
    bench.pass_up(&query(b"BEGIN")).await;
}

#[tokio::test]
async fn who_does_not_take_answers_gets_no_more_of_them() {
    let mut bench = Bench::routed();
    bench.client_sends(&query(b"BEGIN")).await;
    let pair = [query(b"COMMIT"), query(b"BEGIN")].concat();
    let many = pair.repeat(10_000);
    let mut sent = 0;
    while let Ok(more) = bench.client.try_write(&many[sent..]) {
        sent += more;
        assert!(bench.run().await.is_none());
        if sent == many.len() {
            sent = 0;
        }
        assert!(bench.task.held_capacity() < 1 << 20);
    }
}
