//! Hostile bytes against every reader: mutated, cut, spliced and random messages give values or errors, never a panic,
//! and no more work than their length allows.
//!
//! The run is made of a seed, `TANDEM_SEED` or a fixed one, which is printed: the same seed gives the same inputs.
//! `TANDEM_INPUTS` sets another number of inputs for a longer run.

use std::env;
use std::hint::black_box;

use bytes::{Bytes, BytesMut};
use fastrand::Rng;
use tandem_wire::auth::scram::message::{ClientFinal, ClientFirst, ServerFinal, ServerFirst};
use tandem_wire::auth::scram::{
    ChannelBinding, ClientExchange, ClientSecret, ScramVerifier, ServerExchange, ServerStep,
};
use tandem_wire::auth::{Login, Verifier};
use tandem_wire::encode::{ErrorReport, backend as server, frontend as client};
use tandem_wire::startup::{FirstPacket, first_packet};
use tandem_wire::{
    Credentials, Lsn, ReadError, Reader, ReplicationMessage, Scan, Scanner, Secret, Sender,
    backend, frame, frontend,
};

const DEFAULT_SEED: u64 = 0x7461_6e64_656d;
const DEFAULT_INPUTS: u64 = 1_200_000;

/// An iterator over `bytes` bytes of a message cannot yield more items than bytes: every item takes at least one.
fn drain<T>(items: impl Iterator<Item = T>, bytes: usize) {
    let yielded = items.map(black_box).count();
    assert!(yielded <= bytes, "{yielded} items out of {bytes} bytes");
}

/// Drains a view that was read, and counts it.
fn view<T>(parsed: Result<T, ReadError>, drained: impl FnOnce(&T)) -> bool {
    match parsed {
        Ok(value) => {
            drained(&value);
            true
        }
        Err(error) => {
            black_box(error.to_string());
            false
        }
    }
}

fn server_views(body: &[u8]) -> usize {
    let n = body.len();
    let read = [
        view(backend::Authentication::parse(body), |v| {
            if let backend::Authentication::Sasl(names) = v {
                drain(names.clone(), n);
            }
        }),
        view(backend::ErrorFields::parse(body), |v| {
            drain(v.fields(), n);
            let owned = v.to_owned();
            // Each byte that is not UTF-8 becomes three.
            assert!(owned.message.len() <= 3 * n);
            black_box((
                owned.to_string(),
                v.severity(),
                v.code(),
                v.message(),
                v.get(b'D'),
            ));
        }),
        view(backend::ParameterStatus::parse(body), |v| {
            drop(black_box(format!("{v:?}")))
        }),
        view(backend::BackendKeyData::parse(body), |v| {
            assert!((4..=256).contains(&v.secret.len()));
        }),
        view(backend::ReadyForQuery::parse(body), |v| {
            assert!(b"ITE".contains(&v.status));
        }),
        view(backend::CommandComplete::parse(body), |v| {
            assert!(v.tag.len() < n)
        }),
        view(backend::RowDescription::parse(body), |v| {
            assert_eq!(v.columns().count(), v.len());
            drain(v.columns(), n);
        }),
        view(backend::DataRow::parse(body), |v| {
            assert_eq!(v.columns().count(), v.len());
            assert!(v.columns().flatten().map(<[u8]>::len).sum::<usize>() <= n);
        }),
        view(backend::NegotiateProtocolVersion::parse(body), |v| {
            drain(v.unsupported(), n)
        }),
        view(backend::CopyResponse::parse(body), |v| {
            drain(v.columns(), n)
        }),
        view(backend::NotificationResponse::parse(body), |v| {
            assert!(v.channel.len() + v.payload.len() < n);
        }),
        view(backend::ParameterDescription::parse(body), |v| {
            drain(v.types(), n)
        }),
    ];
    read.iter().filter(|&&ok| ok).count()
}

fn client_views(body: &[u8]) -> usize {
    let n = body.len();
    let read = [
        view(frontend::Query::parse(body), |v| assert!(v.sql.len() < n)),
        view(frontend::Parse::parse(body), |v| drain(v.types(), n)),
        view(frontend::Bind::parse(body), |v| {
            assert_eq!(v.params().count(), v.param_count());
            assert!(v.params().flatten().map(<[u8]>::len).sum::<usize>() <= n);
            drain(v.formats(), n);
            drain(v.result_formats(), n);
            black_box((v.format_of(0), v.format_of(usize::MAX), format!("{v:?}")));
        }),
        view(frontend::Describe::parse(body), |v| {
            drop(black_box(format!("{v:?}")))
        }),
        view(frontend::Close::parse(body), |v| {
            drop(black_box(format!("{v:?}")))
        }),
        view(frontend::Execute::parse(body), |v| {
            assert!(v.portal.len() < n)
        }),
        view(frontend::PasswordMessage::parse(body), |v| {
            assert!(v.password.len() < n)
        }),
        view(frontend::SaslInitialResponse::parse(body), |v| {
            assert!(v.mechanism.len() + v.data.map_or(0, <[u8]>::len) < n);
        }),
        view(frontend::SaslResponse::parse(body), |v| {
            assert_eq!(v.data.len(), n)
        }),
        view(frontend::FunctionCall::parse(body), |v| {
            black_box(v.function);
        }),
    ];
    read.iter().filter(|&&ok| ok).count()
}

/// Walks a stream of bytes in chunks as a relay with a small buffer does.
fn walk(bytes: &[u8], from: Sender, rng: &mut Rng) -> usize {
    const BUFFER: usize = 64;
    let mut scanner = Scanner::new(from);
    let (mut start, mut end, mut steps, mut frames) = (0, 0, 0, 0);
    loop {
        steps += 1;
        assert!(
            steps <= 2 * bytes.len() + 8,
            "a scanner that does not get on"
        );
        match scanner.next(&bytes[start..end]) {
            Err(error) => {
                black_box(error.to_string());
                return frames;
            }
            Ok(Scan::Frame(header)) => {
                assert!(header.frame_len() <= end - start && scanner.at_boundary());
                assert_eq!(header.body_len() + frame::HEADER_LEN, header.frame_len());
                start += header.frame_len();
                frames += 1;
            }
            Ok(Scan::Continue(taken)) => {
                assert!((1..=end - start).contains(&taken));
                start += taken;
            }
            Ok(Scan::Incomplete { need }) => {
                if end == bytes.len() {
                    return frames;
                }
                match frame::peek(&bytes[start..end], from) {
                    Ok(Some(header))
                        if scanner.at_boundary() && need.is_some_and(|need| need > BUFFER) =>
                    {
                        scanner.begin_stream(header);
                    }
                    _ => end = bytes.len().min(end + rng.usize(1..=BUFFER)),
                }
            }
        }
    }
}

fn startup(bytes: &[u8]) -> usize {
    let read = match first_packet(bytes) {
        Ok(Some((packet, consumed))) => {
            assert!(consumed <= bytes.len());
            if let FirstPacket::Startup(packet) = packet {
                drain(packet.params(), bytes.len());
                black_box((packet.get("user"), packet.negotiate().is_ok()));
            }
            1
        }
        Ok(None) => 0,
        Err(error) => {
            black_box(error.to_string());
            0
        }
    };
    // More bytes never change what a whole packet says.
    if read == 1 {
        let mut longer = bytes.to_vec();
        longer.push(0);
        assert_eq!(
            first_packet(&longer).map(|p| p.map(|p| p.1)),
            first_packet(bytes).map(|p| p.map(|p| p.1))
        );
    }
    read
}

fn scram(bytes: &[u8], exchanges: &Exchanges) -> usize {
    let mut read = 0;
    if let Ok(first) = ClientFirst::parse(bytes) {
        assert_eq!(first.gs2_header.len() + first.bare.len(), bytes.len());
        read += 1;
    }
    if let Ok(first) = ServerFirst::parse(bytes) {
        assert!(first.iterations > 0 && first.salt.len() < bytes.len());
        read += 1;
    }
    if let Ok(last) = ClientFinal::parse(bytes) {
        assert!(last.without_proof.len() < bytes.len());
        read += 1;
    }
    read += usize::from(ServerFinal::parse(bytes).is_ok());

    // The state machines: nothing that was not computed with the keys is ever accepted.
    let mut server = ServerExchange::new(exchanges.verifier.clone(), false, None, false).unwrap();
    if let Ok(ServerStep::Continue(_)) = server.handle(bytes) {
        assert!(!matches!(server.handle(bytes), Ok(ServerStep::Done { .. })));
    }
    let mut client =
        ClientExchange::new(exchanges.keys.clone(), ChannelBinding::Unsupported).unwrap();
    assert!(
        client.handle_server_first(bytes).is_err(),
        "a nonce that continues ours by chance"
    );
    assert!(client.handle_server_final(bytes).is_err());
    read
}

fn login(body: &[u8], out: &mut BytesMut) -> usize {
    let mut login = Login::new(
        "anna",
        Credentials::Password(Secret::new("pencil")),
        true,
        true,
        None,
    );
    out.clear();
    let answered = login.handle(body, out).is_ok();
    let _ = login.handle(body, out);
    assert!(out.len() < 1000);
    usize::from(answered)
}

fn text(bytes: &[u8]) -> usize {
    let Ok(text) = std::str::from_utf8(bytes) else {
        return 0;
    };
    let lsn = text.parse::<Lsn>();
    if let Ok(lsn) = lsn {
        assert_eq!(lsn.to_string().parse(), Ok(lsn));
    }
    // What is taken for a verifier goes back to a text that is taken for the same.
    match Verifier::parse(text) {
        Ok(verifier) => {
            let again = String::from_utf8(verifier.to_text().expose().to_vec()).unwrap();
            assert_eq!(Verifier::parse(&again), Ok(verifier));
            1
        }
        Err(_) => usize::from(lsn.is_ok()),
    }
}

fn cursor(bytes: &[u8], rng: &mut Rng) {
    let mut reader = Reader::new(bytes);
    for _ in 0..8 {
        let before = reader.remaining();
        match rng.u8(0..10) {
            0 => drop(reader.u8()),
            1 => drop(reader.i16()),
            2 => drop(reader.u16()),
            3 => drop(reader.i32()),
            4 => drop(reader.u32()),
            5 => drop(reader.i64()),
            6 => drop(reader.u64()),
            7 => drop(reader.bytes(rng.usize(..))),
            8 => drop(reader.cstr()),
            _ => drop(reader.value()),
        }
        assert!(reader.remaining() <= before);
    }
    let left = reader.remaining();
    assert_eq!(reader.finish().is_ok(), left == 0);
}

struct Exchanges {
    verifier: ScramVerifier,
    keys: ClientSecret,
}

/// What a well-behaved peer sends: frames with header, packets, and texts.
fn corpus(exchanges: &Exchanges) -> Vec<Vec<u8>> {
    let mut all = Vec::new();
    let mut add = |write: &dyn Fn(&mut BytesMut)| {
        let mut buf = BytesMut::new();
        write(&mut buf);
        all.push(buf.to_vec());
    };
    add(&|b| client::query(b, "select 1; select 'x'").unwrap());
    add(&|b| client::parse(b, "s1", "select $1, $2", [23, 0, 25]).unwrap());
    add(&|b| client::bind_text(b, "p", "s1", [Some(&b"12"[..]), None, Some(b"")]).unwrap());
    add(&|b| {
        b.extend_from_slice(
            b"B\0\0\0\x1fp\0s\0\0\x02\0\x01\0\0\0\x02\0\0\0\x01x\xff\xff\xff\xff\0\x01\0\x01",
        )
    });
    add(&|b| client::execute(b, "p", 10).unwrap());
    add(&|b| client::describe_portal(b, "p").unwrap());
    add(&|b| client::close_statement(b, "s1").unwrap());
    add(&client::sync);
    add(&|b| client::password(b, b"md5a3556571e93b0d20722ba62be61e8c2d").unwrap());
    add(&|b| client::sasl_initial(b, "SCRAM-SHA-256", b"n,,n=,r=rOprNGfwEbeRWgbNEkqO").unwrap());
    add(&|b| client::copy_data(b, &[7; 200]).unwrap());
    add(&|b| {
        client::startup(
            b,
            (3, 2),
            [("user", "anna"), ("database", "app"), ("_pq_.x", "1")],
        )
        .unwrap()
    });
    add(&|b| client::cancel_request(b, 42, &[7; 32]).unwrap());
    add(&client::ssl_request);
    add(&|b| b.extend_from_slice(b"F\0\0\0\x14\0\0\x04\0\0\0\0\x01\0\0\0\0\0\0"));
    add(&server::authentication_ok);
    add(&|b| server::authentication_md5(b, [1, 2, 3, 4]));
    add(&|b| server::authentication_sasl(b, &["SCRAM-SHA-256-PLUS", "SCRAM-SHA-256"]));
    add(&|b| server::sasl_continue(b, b"r=abcdef,s=W22ZaJ0SNY7soEsUEjb6gQ==,i=4096").unwrap());
    add(&|b| server::sasl_final(b, b"v=6rriTRBi23WpRR/wtup+mMhUZUn/dB5nLTJRsjl95G4=").unwrap());
    add(&|b| server::parameter_status(b, "TimeZone", "UTC").unwrap());
    add(&|b| server::backend_key_data(b, 42, &[7; 32]).unwrap());
    add(&|b| server::ready_for_query(b, b'T'));
    add(&|b| server::negotiate_protocol_version(b, 3 << 16 | 2, ["_pq_.a", "_pq_.b"]).unwrap());
    add(&|b| {
        let report = ErrorReport::error("23505", "duplicate key")
            .with_detail("Key (id)=(1)")
            .with_hint("none");
        server::error(b, &report);
    });
    add(&|b| server::row_description(b, &["id", "name", "a longer name"]).unwrap());
    add(&|b| server::data_row(b, [Some("1"), None, Some("some text")]).unwrap());
    add(&|b| server::command_complete(b, "INSERT 0 1").unwrap());
    add(&|b| b.extend_from_slice(b"A\0\0\0\x13\0\0\0\x05channel\0pay\0"));
    add(&|b| b.extend_from_slice(b"t\0\0\0\x0e\0\x02\0\0\0\x17\0\0\0\x19"));
    add(&|b| b.extend_from_slice(b"W\0\0\0\x0b\0\0\x02\0\0\0\x01"));
    add(&|b| {
        b.extend_from_slice(
            b"d\0\0\0\x22w\0\0\0\0\0\0\0\x01\0\0\0\0\0\0\0\x02\0\0\0\0\0\0\0\x03BEGIN",
        )
    });
    add(&|b| b.extend_from_slice(b"d\0\0\0\x16k\0\0\0\0\0\0\0\x01\0\0\0\0\0\0\0\x02\x01"));
    for text in [
        "n,,n=user,r=rOprNGfwEbeRWgbNEkqO",
        "p=tls-server-end-point,,n=,r=rOprNGfwEbeRWgbNEkqO",
        "r=rOprNGfwEbeRWgbNEkqO%hvYDpWUa2RaTCAfuxFIlj)hNlF$k0,s=W22ZaJ0SNY7soEsUEjb6gQ==,i=4096",
        "c=biws,r=rOprNGfwEbeRWgbNEkqO%hvYDpWUa2RaTCAfuxFIlj)hNlF$k0,p=dHzbZapWIk4jUhN+Ute9ytag9zjfMHgsqmmiz7AndVQ=",
        "v=6rriTRBi23WpRR/wtup+mMhUZUn/dB5nLTJRsjl95G4=",
        "e=other-error",
        "16/B374D848",
        "md5a3556571e93b0d20722ba62be61e8c2d",
    ] {
        all.push(text.as_bytes().to_vec());
    }
    all.push(exchanges.verifier.to_text().expose().to_vec());
    all
}

/// Changes a message in a few places: bits, interesting integers, cuts, repeats, splices with another one.
fn mutate(seed: &[u8], other: &[u8], rng: &mut Rng) -> Vec<u8> {
    let mut bytes = seed.to_vec();
    for _ in 0..rng.usize(0..6) {
        let at = rng
            .usize(..bytes.len().max(1))
            .min(bytes.len().saturating_sub(1));
        match rng.u8(0..9) {
            0 if !bytes.is_empty() => bytes[at] ^= 1 << rng.u8(..8),
            1 if !bytes.is_empty() => bytes[at] = rng.u8(..),
            2 => {
                const INTERESTING: [u32; 8] = [
                    0,
                    1,
                    3,
                    4,
                    0x7fff_ffff,
                    0x8000_0000,
                    0xffff_fffe,
                    0xffff_ffff,
                ];
                let value = rng.choice(INTERESTING).unwrap_or(0).to_be_bytes();
                for (target, byte) in bytes.iter_mut().skip(at).zip(value) {
                    *target = byte;
                }
            }
            3 => bytes.truncate(at),
            4 => drop(bytes.drain(..at)),
            5 => {
                let piece = bytes[at..].to_vec();
                bytes.extend(piece);
            }
            6 => {
                let from = rng.usize(..=other.len());
                bytes.truncate(at);
                bytes.extend(&other[from..]);
            }
            7 => bytes.insert(at, *rng.choice(b"\0,=:$/\xff0").unwrap_or(&0)),
            _ => bytes.extend((0..rng.usize(..16)).map(|_| rng.u8(..))),
        }
        bytes.truncate(2000);
    }
    bytes
}

#[test]
fn every_reader_survives_hostile_bytes() {
    let number = |name: &str, default| {
        env::var(name)
            .ok()
            .and_then(|text| text.parse().ok())
            .unwrap_or(default)
    };
    let seed: u64 = number("TANDEM_SEED", DEFAULT_SEED);
    let inputs: u64 = number("TANDEM_INPUTS", DEFAULT_INPUTS);
    let mut rng = Rng::with_seed(seed);
    let exchanges = Exchanges {
        verifier: ScramVerifier {
            iterations: 4096,
            salt: vec![1; 16],
            stored_key: [2; 32],
            server_key: [3; 32],
        },
        keys: ClientSecret::Keys(tandem_wire::auth::ClientKeys {
            client_key: [4; 32],
            server_key: [5; 32],
        }),
    };
    let corpus = corpus(&exchanges);
    let mut out = BytesMut::new();
    let mut read = 0_u64;
    for number in 0..inputs {
        let seed = &corpus[rng.usize(..corpus.len())];
        let other = &corpus[rng.usize(..corpus.len())];
        let bytes = mutate(seed, other, &mut rng);
        // As a body: what follows a header, or all of it.
        let body = if rng.bool() {
            bytes.get(5..).unwrap_or_default()
        } else {
            &bytes
        };
        let understood = match number % 8 {
            0 => walk(&bytes, Sender::Client, &mut rng) + walk(&bytes, Sender::Server, &mut rng),
            1 | 2 => server_views(body),
            3 | 4 => client_views(body),
            5 => startup(&bytes),
            6 => {
                cursor(&bytes, &mut rng);
                let body = Bytes::copy_from_slice(body);
                let replication = ReplicationMessage::parse(&body).is_ok();
                text(&bytes) + usize::from(replication)
            }
            _ if number % 16 == 7 => scram(&bytes, &exchanges),
            _ => login(body, &mut out),
        };
        read += u64::from(understood > 0);
    }
    eprintln!("hostile bytes: {inputs} inputs, {read} of them readable, seed {seed}, no panic");
    // A run whose inputs are all refused at the first byte would prove nothing, nor one that mutates nothing.
    assert!(
        read > inputs / 20 && read < inputs * 19 / 20,
        "{read} of {inputs} readable"
    );
}
