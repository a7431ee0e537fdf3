//! What the policies of the rules refuse.

use super::*;

const SYNC: &[u8] = b"S\0\0\0\x04";
const PARSED: &[u8] = b"1\0\0\0\x04";
const NOT_PREPARED: &[u8] = b"E\0\0\0\x13SERROR\0C26000\0\0";
const ERROR: &[u8] = b"E\0\0\0\x13SERROR\0C57014\0\0";
const RULES: &str = r#"
[placement.p]
strategy = "hash"
[[affinity]]
placement = "p"
tables = { a = "id", b = "id" }
require_key = true
"#;

/// A session under rules by which writes to `a` and `b` have to name their key.
fn bench() -> Bench {
    let bench = Bench::routed();
    let dir = tempfile::tempdir().expect("a directory");
    let path = dir.path().join("tandem.toml");
    let config = CONFIG.replace("[proxy]\n", "[proxy]\nrules = \"rules.toml\"\n");
    fs::write(&path, config).expect("written");
    fs::write(dir.path().join("rules.toml"), RULES).expect("written");
    let config = Config::load(&path).expect("valid");
    let settings = Settings::of(config, None);
    bench.shared.settings.store(Arc::new(settings));
    bench
}

fn write(table: &str) -> Vec<u8> {
    format!("UPDATE {table} SET n = 1").into_bytes()
}

/// Parse, Bind, Execute of a write to this table.
fn batch(table: &str) -> [Vec<u8>; 3] {
    let text = write(table);
    [
        frame(b'P', &[b"\0", &text[..], b"\0\0\0"].concat()),
        frame(b'B', &[0; 8]),
        frame(b'E', &[0; 5]),
    ]
}

/// The refusal of a write to this table.
fn assert_refusal(heard: &[u8], table: &str, behind: &[u8]) {
    let text = heard.escape_ascii().to_string();
    let wanted = format!("DIt does not say which key of table {table}.");
    assert!(text.contains("C0A000") && text.contains(&wanted), "{text}");
    assert!(!text.contains("26000") && heard.ends_with(behind), "{text}");
}

#[tokio::test]
async fn a_refused_query_fails_in_its_place_and_the_session_goes_on() {
    let mut bench = bench();
    bench.client_sends(&query(&write("a"))).await;
    bench.assert_server_got(&query(b"EXECUTE tandem_refused"));
    bench.assert_heard(b"");
    bench.server_answers(&[NOT_PREPARED, READY].concat()).await;
    assert_refusal(&bench.heard(), "a", READY);
    assert_eq!(bench.idle(), 1);
    // What names its key goes there.
    let update = b"UPDATE a SET n = 1 WHERE id = 1";
    bench.pass_up(&query(update)).await;
    bench
        .pass_down(&[&frame(b'C', b"UPDATE 1\0"), READY].concat())
        .await;
}

#[tokio::test]
async fn a_refused_bind_is_answered_in_its_turn() {
    let mut bench = bench();
    let [parse, bind, execute] = batch("b");
    let sent = [&parse[..], &bind, &execute, SYNC].concat();
    bench.client_sends(&sent).await;
    let instead = frame(b'B', b"\0tandem_refused\0\0\0\0\0\0\0");
    bench.assert_server_got(&[&parse[..], &instead, &execute, SYNC].concat());
    bench
        .server_answers(&[PARSED, NOT_PREPARED, READY].concat())
        .await;
    let heard = bench.heard();
    assert!(heard.starts_with(PARSED), "{}", heard.escape_ascii());
    assert_refusal(&heard, "b", READY);
    assert_eq!(bench.idle(), 1);
}

#[tokio::test]
async fn a_refusal_that_was_thrown_away_is_never_told() {
    let mut bench = bench();
    let [parse, bind, execute] = batch("a");
    bench
        .client_sends(&[&parse[..], &bind, &execute, SYNC].concat())
        .await;
    // Its batch fails before it.
    bench.heard();
    bench.server_answers(&[ERROR, READY].concat()).await;
    bench.assert_heard(&[ERROR, READY].concat());
    bench.client_sends(&query(&write("b"))).await;
    bench.server_answers(&[NOT_PREPARED, READY].concat()).await;
    assert_refusal(&bench.heard(), "b", READY);
    // An error that comes instead is the client's.
    bench.client_sends(&query(&write("a"))).await;
    bench.server_answers(&[ERROR, READY].concat()).await;
    bench.assert_heard(&[ERROR, READY].concat());
}

#[tokio::test]
async fn a_failed_block_says_what_it_says_to_anything() {
    let mut bench = bench();
    bench.client_sends(&query(b"BEGIN")).await;
    bench.client_sends(&query(&write("a"))).await;
    bench.heard();
    bench.assert_server_got(&query(b"BEGIN"));
    let begun = frame(b'C', b"BEGIN\0");
    bench
        .server_answers(&[&begun[..], IN_TRANSACTION].concat())
        .await;
    bench.assert_server_got(&query(b"EXECUTE tandem_refused"));
    let failed = b"Z\0\0\0\x05E";
    bench.server_answers(&[NOT_PREPARED, failed].concat()).await;
    assert_refusal(&bench.heard(), "a", failed);
    // The server knows by itself.
    bench.pass_up(&query(&write("a"))).await;
    bench.pass_down(&[ERROR, failed].concat()).await;
    bench.pass_up(&query(b"ROLLBACK")).await;
}
