//! What goes over the wire where a node has other numbers (OIDs) than the client is told.

use super::*;
use crate::identity::tests::{Example, Oids, array, example};

const SYNC: &[u8] = b"S\0\0\0\x04";
const BOUND: &[u8] = b"2\0\0\0\x04";
const PARSED: &[u8] = b"1\0\0\0\x04";
const CLOSED: &[u8] = b"3\0\0\0\x04";
const EXECUTE: &[u8] = b"E\0\0\0\x09\0\0\0\0\0";

fn bench() -> (Bench, Oids, Oids) {
    let bench = Bench::routed();
    let Example {
        view,
        node,
        reference,
    } = example();
    bench.shared.router.identities.know(view);
    (bench, node, reference)
}

fn parse(name: &str, of: Oids) -> Vec<u8> {
    let text = format!("{name}\0UPDATE t SET moods = $1 RETURNING moods\0\0\x01");
    frame(b'P', &[text.as_bytes(), &of.moods.to_be_bytes()].concat())
}

fn parameters(of: Oids) -> Vec<u8> {
    frame(b't', &[&b"\0\x01"[..], &of.moods.to_be_bytes()].concat())
}

fn rows(of: Oids, format: u8) -> Vec<u8> {
    let column = [
        &b"\0\x01moods\0"[..],
        &of.table.to_be_bytes(),
        &[0, 1],
        &of.moods.to_be_bytes(),
        &[255, 255, 255, 255, 255, 255, 0, format],
    ];
    frame(b'T', &column.concat())
}

fn value(of: Oids) -> Vec<u8> {
    let value = array(of.mood, &[Some(b"sad".to_vec()), None]);
    let len = u32::try_from(value.len()).expect("small");
    [&len.to_be_bytes()[..], &value].concat()
}

fn bind(name: &str, of: Oids) -> Vec<u8> {
    let names = [b"\0", name.as_bytes(), b"\0"].concat();
    let tail = [b"\0\x01\0\x01\0\x01", &value(of)[..], b"\0\x01\0\x01"].concat();
    frame(b'B', &[names, tail].concat())
}

fn row(of: Oids) -> Vec<u8> {
    frame(b'D', &[&b"\0\x01"[..], &value(of)].concat())
}

fn done() -> Vec<u8> {
    [&frame(b'C', b"UPDATE 1\0")[..], READY].concat()
}

#[tokio::test]
async fn what_a_client_was_told_of_a_statement_holds_for_its_values() {
    let (mut bench, node, reference) = bench();
    let named = |tag, name: &str| frame(tag, format!("S{name}\0").as_bytes());
    let prepare = [&parse("a", reference)[..], &named(b'D', "a"), SYNC].concat();
    bench.client_sends(&prepare).await;
    let (close, describe) = (named(b'C', "tandem_s1"), named(b'D', "tandem_s1"));
    let got = [&close[..], &parse("tandem_s1", node), &describe, SYNC].concat();
    bench.assert_server_got(&got);
    let told = |of| [PARSED, &parameters(of), &rows(of, 0), READY].concat();
    bench.server_answers(&[CLOSED, &told(node)].concat()).await;
    bench.assert_heard(&told(reference));

    let run = |name, of| [&bind(name, of)[..], EXECUTE, SYNC].concat();
    bench.client_sends(&run("a", reference)).await;
    bench.assert_server_got(&run("tandem_s1", node));
    let answer = |of| [BOUND, &row(of), &row(of), &done()].concat();
    bench.server_answers(&answer(node)).await;
    bench.assert_heard(&answer(reference));
    assert_eq!(bench.idle(), 1);
}

#[tokio::test]
async fn what_a_client_is_told_of_a_portal_holds_for_its_rows() {
    let (mut bench, node, reference) = bench();
    let describe = frame(b'D', b"P\0");
    let all = |of| [&parse("", of)[..], &bind("", of), &describe, EXECUTE, SYNC].concat();
    bench.client_sends(&all(reference)).await;
    bench.assert_server_got(&all(node));
    let answer = |of| [PARSED, BOUND, &rows(of, 1), &row(of), &done()].concat();
    bench.server_answers(&answer(node)).await;
    bench.assert_heard(&answer(reference));
    assert_eq!(bench.idle(), 1);
}

#[tokio::test]
async fn a_function_is_called_by_the_nodes_number() {
    let (mut bench, node, reference) = bench();
    let call = |of: Oids| frame(b'F', &[&of.function.to_be_bytes()[..], &[0; 6]].concat());
    bench.client_sends(&call(reference)).await;
    bench.assert_server_got(&call(node));
    let result = [&frame(b'V', b"\xff\xff\xff\xff")[..], READY].concat();
    bench.pass_down(&result).await;
}

#[tokio::test]
async fn a_type_that_nobody_knows_is_waited_for_and_then_told_as_it_is() {
    let (mut bench, node, reference) = bench();
    let mut unknown = node;
    unknown.moods = 30_000;
    let run = query(b"UPDATE t SET moods = '{}' RETURNING moods");
    bench.pass_up(&run).await;
    let (answer, rest) = (rows(unknown, 0), done());
    bench.server_answers(&[&answer[..], &rest].concat()).await;
    bench.assert_heard(b"");
    // Somebody makes it known.
    let (numbers, told) = (Example::with_moods(30_000), rows(reference, 0));
    bench.shared.router.identities.know(numbers);
    assert!(bench.run().await.is_none());
    bench.assert_heard(&[told, rest].concat());
    assert_eq!(bench.idle(), 1);
}
