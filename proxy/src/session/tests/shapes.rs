//! What goes over the wire when a statement comes to a server that does not have it.

use super::*;

const FLUSH: &[u8] = b"H\0\0\0\x04";
const SYNC: &[u8] = b"S\0\0\0\x04";
const NO_STATEMENT: &[u8] = b"SERROR\0VERROR\0C26000\0Mprepared statement does not exist\0\0";
/// Types of columns, by OID.
const INT4: u8 = 23;
const TEXT: u8 = 25;

fn named(tag: u8, name: &str) -> Vec<u8> {
    frame(tag, format!("S{name}\0").as_bytes())
}

fn parse(name: &str) -> Vec<u8> {
    frame(b'P', format!("{name}\0SELECT * FROM t\0\0\0").as_bytes())
}

fn bind(name: &str) -> Vec<u8> {
    frame(b'B', format!("\0{name}\0\0\0\0\0\0\0").as_bytes())
}

/// Bind and Execute of a statement, up to Sync.
fn run(name: &str) -> Vec<u8> {
    let execute = frame(b'E', b"\0\0\0\0\0");
    [&bind(name)[..], &execute, SYNC].concat()
}

/// One column of this type, of a table with this number.
fn rows(table: u8, kind: u8) -> Vec<u8> {
    let column = [
        &b"\0\x01id\0\0\0\x40"[..],
        &[table, 0, 1, 0, 0, 0, kind],
        &[0, 4, 255, 255, 255, 255, 0, 0],
    ];
    frame(b'T', &column.concat())
}

fn parameters() -> Vec<u8> {
    frame(b't', b"\0\0")
}

fn done() -> Vec<u8> {
    [&frame(b'2', b"")[..], &frame(b'C', b"SELECT 0\0"), READY].concat()
}

impl Bench {
    /// The client sends this; the server gets that and nothing more.
    async fn turns_into(&mut self, sent: &[u8], got: &[&[u8]]) {
        self.client.write_all(sent).await.expect("sent");
        assert!(self.run().await.is_none());
        self.server_has(got);
    }

    /// The server has got this, and nothing more.
    fn server_has(&self, expected: &[&[u8]]) {
        let mut got = vec![0; 1 << 16];
        let count = self.server.try_read(&mut got).unwrap_or(0);
        got.truncate(count);
        let expected = expected.concat();
        assert!(
            got == expected,
            "{}\n{}",
            got.escape_ascii(),
            expected.escape_ascii()
        );
    }

    /// The server answers this; the client hears that.
    async fn is_heard_as(&mut self, answer: &[&[u8]], heard: &[&[u8]]) {
        self.server.write_all(&answer.concat()).await.expect("sent");
        assert!(self.run().await.is_none());
        let (got, expected) = (self.heard(), heard.concat());
        assert!(
            got == expected,
            "{}\n{}",
            got.escape_ascii(),
            expected.escape_ascii()
        );
    }

    /// The client has prepared `a`, and was told that it answers one integer.
    async fn prepare(&mut self) {
        let sent = [&parse("a")[..], &named(b'D', "a"), SYNC].concat();
        self.turns_into(
            &sent,
            &[
                &named(b'C', "tandem_s1"),
                &parse("tandem_s1"),
                &named(b'D', "tandem_s1"),
                SYNC,
            ],
        )
        .await;
        let told = [&frame(b'1', b"")[..], &parameters(), &rows(1, INT4), READY];
        let answer = [&frame(b'3', b"")[..]];
        self.is_heard_as(&[&answer[..], &told].concat(), &told)
            .await;
    }

    /// The server is asked what it has just prepared, and nothing of the client's is there.
    fn is_asked(&self) {
        self.server_has(&[
            &named(b'C', "tandem_s1"),
            &parse("tandem_s1"),
            &named(b'D', "tandem_s1"),
            FLUSH,
        ]);
    }
}

fn answer(table: u8, kind: u8) -> Vec<u8> {
    [
        frame(b'3', b""),
        frame(b'1', b""),
        parameters(),
        rows(table, kind),
    ]
    .concat()
}

/// What the client hears of an outdated statement.
fn outdated() -> Vec<u8> {
    report::bytes(&report::outdated()).to_vec()
}

#[tokio::test]
async fn a_server_that_has_the_statement_as_it_was_told_is_asked_nothing() {
    let mut bench = Bench::new(PoolMode::Transaction);
    bench.prepare().await;
    for _ in 0..3 {
        bench.turns_into(&run("a"), &[&run("tandem_s1")]).await;
        bench.is_heard_as(&[&done()], &[&done()]).await;
    }
}

#[tokio::test]
async fn a_server_that_breaks_while_it_is_asked_is_replaced_and_the_client_never_hears_of_it() {
    let mut bench = Bench::new(PoolMode::Transaction);
    bench.prepare().await;
    bench.another_server();
    bench.has_served();
    bench.client_sends(&run("a")).await;
    bench.is_asked();
    bench.another_server();
    assert!(bench.run().await.is_none());
    bench.is_asked();
    bench.is_heard_as(&[&answer(2, INT4)], &[]).await;
    bench.server_has(&[&run("tandem_s1")]);
    bench.is_heard_as(&[&done()], &[&done()]).await;
}

#[tokio::test]
async fn another_server_is_asked_once_and_the_clients_message_waits() {
    let mut bench = Bench::new(PoolMode::Transaction);
    bench.prepare().await;
    bench.another_server();
    bench.client.write_all(&run("a")).await.expect("sent");
    assert!(bench.run().await.is_none());
    bench.is_asked();
    // Another table's number is no other shape.
    bench.is_heard_as(&[&answer(2, INT4)], &[]).await;
    bench.server_has(&[&run("tandem_s1")]);
    bench.is_heard_as(&[&done()], &[&done()]).await;
    bench.turns_into(&run("a"), &[&run("tandem_s1")]).await;
}

#[tokio::test]
async fn a_statement_of_another_shape_is_refused_as_by_postgresql_and_never_run() {
    let mut bench = Bench::new(PoolMode::Transaction);
    bench.prepare().await;
    bench.another_server();
    for _ in 0..2 {
        bench.client.write_all(&run("a")).await.expect("sent");
        assert!(bench.run().await.is_none());
        bench.is_asked();
        bench.is_heard_as(&[&answer(1, TEXT)], &[]).await;
        bench.server_has(&[&run("tandem_outdated")]);
        let refusal = frame(b'E', NO_STATEMENT);
        bench
            .is_heard_as(&[&refusal, READY], &[&outdated(), READY])
            .await;
    }
    // Describing it is refused in the same way.
    bench
        .client
        .write_all(&[&named(b'D', "a")[..], SYNC].concat())
        .await
        .expect("sent");
    assert!(bench.run().await.is_none());
    bench.is_asked();
    bench.is_heard_as(&[&answer(1, TEXT)], &[]).await;
    bench.server_has(&[&named(b'D', "tandem_outdated"), SYNC]);
}

#[tokio::test]
async fn an_error_before_or_of_the_question_is_the_clients_and_ends_it() {
    let mut bench = Bench::new(PoolMode::Transaction);
    bench.prepare().await;
    bench.another_server();
    let gone = frame(b'E', b"SERROR\0VERROR\0C42P01\0Mno table\0\0");
    bench.client.write_all(&run("a")).await.expect("sent");
    assert!(bench.run().await.is_none());
    bench.is_asked();
    bench
        .is_heard_as(&[&frame(b'3', b""), &gone], &[&gone])
        .await;
    // The server waits for a Sync: all the rest of the batch is thrown away.
    bench.server_has(&[SYNC]);
    bench.is_heard_as(&[READY], &[READY]).await;
    // An error of an earlier message of the batch.
    let sent = [&frame(b'B', b"\0nothing\0\0\0\0\0\0\0")[..], &run("a")].concat();
    bench.client.write_all(&sent).await.expect("sent");
    assert!(bench.run().await.is_none());
    let refusal = frame(b'E', NO_STATEMENT);
    bench.is_heard_as(&[&refusal], &[&refusal]).await;
    bench.is_heard_as(&[READY], &[READY]).await;
    assert_eq!(bench.task.errand, ready::Errand::None);
}

#[tokio::test]
async fn what_a_portal_has_told_counts_too() {
    let mut bench = Bench::new(PoolMode::Transaction);
    let (describe, execute) = (frame(b'D', b"P\0"), frame(b'E', b"\0\0\0\0\0"));
    let with = |name: &str| [&bind(name)[..], &describe, &execute, SYNC].concat();
    let sent = [&parse("a")[..], &with("a")].concat();
    bench
        .turns_into(
            &sent,
            &[
                &named(b'C', "tandem_s1"),
                &parse("tandem_s1"),
                &with("tandem_s1"),
            ],
        )
        .await;
    let told = [&frame(b'1', b"")[..], &frame(b'2', b""), &rows(1, INT4)];
    let rest = [&frame(b'C', b"SELECT 0\0")[..], READY];
    let heard = [&told[..], &rest].concat();
    let closed = frame(b'3', b"");
    bench
        .is_heard_as(&[&[&closed[..]][..], &heard].concat(), &heard)
        .await;
    bench.turns_into(&run("a"), &[&run("tandem_s1")]).await;
    bench.is_heard_as(&[&done()], &[&done()]).await;
    bench.another_server();
    bench.client.write_all(&run("a")).await.expect("sent");
    assert!(bench.run().await.is_none());
    bench.is_asked();
    bench.is_heard_as(&[&answer(1, TEXT)], &[]).await;
    bench.server_has(&[&run("tandem_outdated")]);
}

#[tokio::test]
async fn the_unnamed_statement_is_compared_too() {
    let mut bench = Bench::new(PoolMode::Transaction);
    let sent = [&parse("")[..], &named(b'D', ""), SYNC].concat();
    bench.pass_up(&sent).await;
    let told = [&frame(b'1', b"")[..], &parameters(), &rows(1, INT4), READY].concat();
    bench.pass_down(&told).await;
    bench.pass_up(&run("")).await;
    bench.pass_down(&done()).await;
    let asked = [&parse("")[..], &named(b'D', ""), FLUSH];
    for (kind, kept) in [(INT4, true), (TEXT, false), (TEXT, false)] {
        bench.another_server();
        bench.turns_into(&run(""), &asked).await;
        let answer = [frame(b'1', b""), parameters(), rows(1, kind)].concat();
        bench.is_heard_as(&[&answer], &[]).await;
        if kept {
            bench.server_has(&[&run("")]);
            bench.is_heard_as(&[&done()], &[&done()]).await;
            continue;
        }
        bench.server_has(&[&named(b'C', ""), &run("tandem_outdated")]);
        let refused = [&frame(b'3', b"")[..], &frame(b'E', NO_STATEMENT), READY];
        bench.is_heard_as(&refused, &[&outdated(), READY]).await;
    }
}

#[tokio::test]
async fn a_statement_that_is_gone_from_its_server_ends_that_server() {
    let mut bench = Bench::new(PoolMode::Transaction);
    bench.prepare().await;
    bench.turns_into(&run("a"), &[&run("tandem_s1")]).await;
    let gone = frame(b'E', NO_STATEMENT);
    bench.is_heard_as(&[&gone], &[&gone]).await;
    // Nothing that it had is taken to be there.
    bench.client.write_all(&run("a")).await.expect("sent");
    assert!(bench.run().await.is_none());
    bench.is_asked();
    bench
        .is_heard_as(&[READY, &answer(1, INT4)], &[READY])
        .await;
    bench.server_has(&[&run("tandem_s1")]);
    bench.is_heard_as(&[&done()], &[&done()]).await;
    assert_eq!(bench.shared.pools.figures().pools[0].servers_idle, 0);
    let mut rest = Vec::new();
    bench.server.read_to_end(&mut rest).await.expect("read");
    assert_eq!(rest, TERMINATE);
}
