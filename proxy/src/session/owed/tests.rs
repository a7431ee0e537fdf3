use super::*;

const ERROR: &[u8] = b"SERROR\0VERROR\0C22012\0Mdivision by zero\0\0";
const FATAL: &[u8] = b"SFATAL\0VFATAL\0C57P01\0Mshutdown\0\0";

/// What a script leaves behind.
#[derive(Debug, PartialEq, Eq)]
enum Left {
    /// Another client may have the connection.
    Settled,
    /// Nothing is owed, but the transaction is not over.
    Quiet,
    /// Answers are owed.
    Busy,
    /// The reply that was no answer.
    Mismatch(usize),
}

/// Runs a script: `>Q` is sent by the client, `>>P` by the proxy; `<T` is a reply, `<Z:I` one with a status, `<E!` a fatal error.
fn run(script: &str) -> (Left, Owed) {
    let mut owed = Owed::new();
    for (place, word) in script.split_whitespace().enumerate() {
        if let Some(sent) = word.strip_prefix('>') {
            let (by, name) = match sent.strip_prefix('>') {
                Some(name) => (By::Proxy, name),
                None => (By::Client, sent),
            };
            let sent = match name {
                "Q" => Sent::Query,
                "F" => Sent::FunctionCall,
                "P" => Sent::Parse,
                "B" => Sent::Bind,
                "Ds" => Sent::DescribeStatement,
                "Dp" => Sent::DescribePortal,
                "E" => Sent::Execute,
                "C" => Sent::Close,
                "S" => Sent::Sync,
                "c" | "f" => Sent::CopyEnd,
                // Copy data and Flush are owed nothing.
                "d" | "H" => continue,
                other => panic!("{other}"),
            };
            let attempt = if sent == Sent::Parse {
                place as u64 + 1
            } else {
                0
            };
            owed.sent(sent, by, attempt);
            continue;
        }
        let reply = word.strip_prefix('<').expect("a reply");
        let tag = reply.as_bytes()[0];
        let body = match (tag, reply.get(1..).unwrap_or_default()) {
            (b'E', "!") => FATAL,
            (b'E', _) => ERROR,
            (_, status) => status.trim_start_matches(':').as_bytes(),
        };
        if owed.reply(tag, body).is_err() {
            return (Left::Mismatch(place), owed);
        }
    }
    let left = if owed.is_settled() {
        Left::Settled
    } else if owed.is_quiet() {
        Left::Quiet
    } else {
        Left::Busy
    };
    (left, owed)
}

#[test]
fn every_message_flow_ends_when_its_last_answer_is_there() {
    let table = [
        // Simple protocol.
        ("", Left::Settled),
        (">Q", Left::Busy),
        (">Q <T <D <C", Left::Busy),
        (">Q <T <D <D <C <Z:I", Left::Settled),
        (">Q <I <Z:I", Left::Settled),
        (">Q <C <T <D <C <Z:I", Left::Settled),
        (">Q <T <D <E <Z:I", Left::Settled),
        (">Q <C <Z:T", Left::Quiet),
        (">Q <E <Z:E", Left::Quiet),
        (">Q <C <Z:T >Q <C <Z:I", Left::Settled),
        (">Q >Q <C <Z:I", Left::Busy),
        (">Q >Q <E <Z:I <C <Z:I", Left::Settled),
        // Extended protocol.
        (">P >B >Dp >E >S <1 <2 <T <D <C", Left::Busy),
        (">P >B >Dp >E >S <1 <2 <T <D <C <Z:I", Left::Settled),
        (">P >Ds >S <1 <t <n <Z:I", Left::Settled),
        (">P >Ds >S <1 <t", Left::Busy),
        (">B >E >C >S <2 <s <3 <Z:I", Left::Settled),
        (">B >E >S <2 <D <s <Z:T >E >S <D <C <Z:T", Left::Quiet),
        (">B >E >S <2 <I <Z:I", Left::Settled),
        (">S <Z:I", Left::Settled),
        // Flush ends nothing: the implicit transaction goes on.
        (">P >H <1", Left::Busy),
        (">P >H <1 >B >E >S <2 <C <Z:I", Left::Settled),
        // Pipelines.
        (">P >B >E >S >P >B >E >S <1 <2 <C <Z:I", Left::Busy),
        (
            ">P >B >E >S >P >B >E >S <1 <2 <C <Z:I <1 <2 <C <Z:I",
            Left::Settled,
        ),
        (">P >B >E >S >P <1 <2 <C <Z:I", Left::Busy),
        // An error throws away what comes before the Sync, Queries included.
        (">P >B >E >S <E <Z:I", Left::Settled),
        (">P >B >E >B >E >S <1 <2 <E <Z:I", Left::Settled),
        (">B >E >S >B >E >S <E <Z:I <2 <C <Z:I", Left::Settled),
        (">B >E >Q >S <2 <E <Z:I", Left::Settled),
        (">B >H <E >E >Q >F >B", Left::Busy),
        (">B >H <E >E >Q >F >B >S <Z:I", Left::Settled),
        // An error at the commit of an implicit transaction.
        (">B >E >S <2 <C <E <Z:I", Left::Settled),
        // Mixed: a Query in an open batch ends it.
        (">P >B >E >Q <1 <2 <C <C <Z:I", Left::Settled),
        (">P >B >E >Q >S <1 <2 <C <E <Z:I <Z:I", Left::Settled),
        // Function calls.
        (">F <V <Z:I", Left::Settled),
        (">F <E <Z:I", Left::Settled),
        // Whenever the server likes.
        ("<N <S <A", Left::Settled),
        (">Q <N <C <S <Z:I <A", Left::Settled),
    ];
    for (script, expected) in table {
        assert_eq!(run(script).0, expected, "{script}");
    }
}

#[test]
fn copies_end_with_their_command_and_swallow_what_they_meet() {
    let table = [
        (">Q <H <d <d <c <C <Z:I", Left::Settled),
        (">Q <H <d <E <Z:I", Left::Settled),
        (">B >E >S <2 <H <d <c <C <Z:I", Left::Settled),
        (">Q <G >d >d >c", Left::Busy),
        (">Q <G >d >c <C <Z:I", Left::Settled),
        (">Q <G >f <E <Z:I", Left::Settled),
        // The server gives up early; what still comes is owed nothing.
        (">Q <G >d <E <Z:I >d >c", Left::Settled),
        (">Q <G >d >c <E <Z:I", Left::Settled),
        // The data comes along with the Query, and it fails before the COPY begins, or not.
        (">Q >d >c <G <C <Z:I", Left::Settled),
        (">Q >d >c <E <Z:I", Left::Settled),
        (">Q >d >c >Q <G <C <Z:I <C <Z:I", Left::Settled),
        (">Q >d >c >Q <E <Z:I <C <Z:I", Left::Settled),
        // Several in one Query.
        (">Q <G >c <C <G >c <C <Z:I", Left::Settled),
        (">Q <H <c <C <G >c <C <Z:I", Left::Settled),
        // The Sync that comes before the driver knows of the COPY is ignored.
        (">P >B >E >S <1 <2 <G >d >c >S <C <Z:I", Left::Settled),
        (">P >B >E >S <1 <2 <G >d >S >c >S <C <Z:I", Left::Settled),
        (">B >E <2 <G >d >c >S <C <Z:I", Left::Settled),
        // Without it the error is followed by the one Sync behind the data.
        (">B >E >H <2 <G >d >c >S <E <Z:I", Left::Settled),
        (">B >E >H <2 <G >d <E >d >c >S <Z:I", Left::Settled),
        // Anything else makes the server give up.
        (">Q <G >Q <E <Z:I", Left::Settled),
        (">B >E >H <2 <G >B >E >S <E <Z:I", Left::Settled),
        (">B >E >B >E >S <2 <G <E <Z:I", Left::Settled),
    ];
    for (script, expected) in table {
        assert_eq!(run(script).0, expected, "{script}");
    }
}

#[test]
fn a_failed_copy_with_a_sync_under_way_leaves_a_doubt() {
    // The server may have met the first Sync while it read data, or behind the error.
    for script in [">P >B >E >S <1 <2 <G >d >c >S <E <Z:I", ">Q <G >S <E <Z:I"] {
        let (left, owed) = run(script);
        assert_eq!(left, Left::Quiet, "{script}");
        assert!(owed.is_doubtful(), "{script}");
        let (left, _) = run(&format!("{script} <Z:I"));
        assert_eq!(left, Left::Settled, "{script}");
        let (left, _) = run(&format!("{script} <Z:I <Z:I"));
        assert!(matches!(left, Left::Mismatch(_)), "{script}");
        // The next statement's own answer ends the doubt; an answer to the Sync that comes late is noticed.
        let (left, owed) = run(&format!("{script} >Q <T <D <C <Z:I"));
        assert_eq!(left, Left::Settled, "{script}");
        assert!(!owed.is_doubtful(), "{script}");
        let (left, _) = run(&format!("{script} >Q <Z:I <T"));
        assert!(matches!(left, Left::Mismatch(_)), "{script}");
    }
}

#[test]
fn a_reply_that_nobody_is_owed_is_a_mismatch() {
    for script in [
        "<Z:I",
        "<C",
        "<D",
        "<1",
        "<2",
        "<3",
        "<n",
        "<t",
        "<V",
        "<G",
        "<H",
        "<E",
        ">Q <1",
        ">Q <s",
        ">Q <V",
        ">Q <d",
        ">Q <Z:I <Z:I",
        ">Q <Z:X",
        ">Q <C <Z:I <D",
        ">P >S <2",
        ">P >S <Z:I",
        ">B >S <1",
        ">B >S <D",
        ">E >S <T",
        ">E >S <C <C",
        ">E >S <s <D",
        ">C >S <1",
        ">Ds >S <T",
        ">Dp >S <t",
        ">S <C",
        ">F <C",
        ">F <D",
        ">B >E >S <E <2",
        ">Q <H <d <D",
        ">Q <G <D",
        ">Q <W",
        ">Q <R",
        ">Q <K",
        ">B >E >H <E <Z:I",
    ] {
        let (left, _) = run(script);
        let last = script.split_whitespace().count() - 1;
        assert_eq!(left, Left::Mismatch(last), "{script}");
    }
}

#[test]
fn replies_go_to_whoever_sent_the_message() {
    let mut owed = Owed::new();
    for (sent, by) in [
        (Sent::Close, By::Proxy),
        (Sent::Parse, By::Proxy),
        (Sent::Bind, By::Client),
        (Sent::Sync, By::Client),
    ] {
        owed.sent(sent, by, 0);
    }
    let to: Vec<By> = [
        (b'3', &b""[..]),
        (b'1', b""),
        (b'N', b""),
        (b'2', b""),
        (b'Z', b"I"),
    ]
    .into_iter()
    .map(|(tag, body)| owed.reply(tag, body).expect("owed").to)
    .collect();
    assert_eq!(
        to,
        [By::Proxy, By::Proxy, By::Client, By::Client, By::Client]
    );
    assert!(owed.is_settled());
}

#[test]
fn attempts_to_prepare_that_come_to_nothing_are_named() {
    // The number of an attempt is its place in the script, from 1.
    let table: [(&str, &[Attempt]); 6] = [
        (">P >S <1 <Z:I", &[]),
        (">P >S <E <Z:I", &[1]),
        (">P >P >P >S <1 <E <Z:I", &[2, 3]),
        (">P >S >P >S <E <Z:I", &[1]),
        (">>P >B >S <E <Z:I", &[1]),
        (">B >E >P >S <2 <G", &[3]),
    ];
    for (script, undone) in table {
        assert_eq!(run(script).1.take_undone(), undone, "{script}");
    }
    let mut owed = run(">B >H <E").1;
    assert!(!owed.sent(Sent::Parse, By::Client, 9), "it is thrown away");
}

#[test]
fn a_fatal_error_is_never_settled() {
    for script in ["<E!", ">Q <E!", ">P >B >E >S <1 <E!"] {
        let (left, owed) = run(script);
        assert!(owed.is_fatal() && left != Left::Settled, "{script}");
    }
}
