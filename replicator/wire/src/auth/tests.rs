use std::num::NonZeroU32;

use tokio::net::UnixStream;
use tokio::net::{TcpListener, TcpStream};

use super::*;
use crate::backend::Authentication;
use crate::encode::frontend as encode;

/// The proxy's end and the client's end of a unix socket.
fn pair() -> (ClientIo, ClientIo) {
    let (a, b) = UnixStream::pair().unwrap();
    (
        ClientIo::new(Stream::Unix(a)),
        ClientIo::new(Stream::Unix(b)),
    )
}

fn scram_verifier(password: &str) -> Verifier {
    let salt = ScramVerifier::random_salt().unwrap();
    let iterations = NonZeroU32::new(scram::DEFAULT_ITERATIONS).unwrap();
    Verifier::Scram(ScramVerifier::derive(password.as_bytes(), salt, iterations))
}

/// Answers authentication requests as [`Login`] does until `rounds` requests are answered.
async fn client(mut io: ClientIo, credentials: Credentials, rounds: usize) -> (Login, ClientIo) {
    let mut login = Login::new("anna", credentials, true, false, None);
    for _ in 0..rounds {
        let body = server_message(&mut io).await;
        let mut out = BytesMut::new();
        login.handle(&body, &mut out).unwrap();
        io.send(&out).await.unwrap();
    }
    (login, io)
}

async fn server_message(io: &mut ClientIo) -> Bytes {
    loop {
        if let Some(header) = frame::peek(&io.rx, Sender::Server).unwrap()
            && io.rx.len() >= header.frame_len()
        {
            assert_eq!(header.tag, b'R');
            return io.rx.split_to(header.frame_len()).freeze().slice(5..);
        }
        assert_ne!(
            io.stream.read_buf(&mut io.rx).await.unwrap(),
            0,
            "the server hung up"
        );
    }
}

async fn outcome(
    method: Method,
    verifier: Option<Verifier>,
    credentials: Credentials,
    rounds: usize,
) -> Result<Credentials, AuthError> {
    let (mut server, io) = pair();
    let (result, _kept) = tokio::join!(
        authenticate_client(&mut server, method, "anna", verifier.as_ref(), None),
        client(io, credentials, rounds)
    );
    result.map(|proven| proven.credentials)
}

fn password(text: &str) -> Credentials {
    Credentials::Password(Secret::new(text))
}

#[test]
fn md5_answers_are_those_of_postgresql() {
    // rolpassword of: SET password_encryption = md5; CREATE ROLE anna PASSWORD 'pencil'
    let stored = "md5984c3e9256f24b08e5b849d2265593b2";
    assert_eq!(md5_stored(b"pencil", "anna"), stored);
    assert_eq!(
        md5_answer(stored.as_bytes(), [1, 2, 3, 4]),
        "md57df77f9b6d18232379434c001cb33f20"
    );
    assert_eq!(md5_hex(&[b""]), "d41d8cd98f00b204e9800998ecf8427e");
    assert_eq!(
        md5_hex(&[b"mess", b"age digest"]),
        "f96b697d7cb7938d525a2f31aaf161d0"
    );
}

#[tokio::test]
async fn trust_asks_nothing() {
    let result = outcome(Method::Trust, None, Credentials::None, 0)
        .await
        .unwrap();
    assert_eq!(result, Credentials::None);
}

#[tokio::test]
async fn scram_yields_keys_that_log_in_to_a_server_with_the_same_verifier() {
    let verifier = scram_verifier("pencil");
    let keys = outcome(Method::Scram, Some(verifier.clone()), password("pencil"), 3)
        .await
        .unwrap();
    assert!(matches!(keys, Credentials::ScramKeys(_)));
    let again = outcome(Method::Scram, Some(verifier), keys.clone(), 3)
        .await
        .unwrap();
    assert_eq!(again, keys);
}

#[tokio::test]
async fn scram_keys_do_not_fit_another_salt() {
    let keys = outcome(
        Method::Scram,
        Some(scram_verifier("pencil")),
        password("pencil"),
        3,
    )
    .await
    .unwrap();
    let other = outcome(Method::Scram, Some(scram_verifier("pencil")), keys, 2).await;
    assert!(matches!(other, Err(AuthError::Rejected)));
}

#[tokio::test]
async fn a_plain_verifier_serves_every_method_and_yields_the_password() {
    let plain = Verifier::Plain(Secret::new("pencil"));
    for (method, rounds) in [(Method::Cleartext, 1), (Method::Md5, 1), (Method::Scram, 3)] {
        let right = outcome(method, Some(plain.clone()), password("pencil"), rounds).await;
        assert_eq!(right.unwrap(), password("pencil"));
        let wrong = outcome(
            method,
            Some(plain.clone()),
            password("pencil "),
            rounds.min(2),
        )
        .await;
        assert!(matches!(wrong, Err(AuthError::Rejected)), "{method:?}");
    }
}

#[tokio::test]
async fn an_md5_verifier_serves_md5_and_cleartext_but_not_scram() {
    let stored = Secret::new(md5_stored(b"pencil", "anna"));
    let verifier = Verifier::Md5(stored.clone());
    let hash = outcome(Method::Md5, Some(verifier.clone()), password("pencil"), 1)
        .await
        .unwrap();
    assert_eq!(hash, Credentials::Md5Hash(stored));
    outcome(Method::Md5, Some(verifier.clone()), hash, 1)
        .await
        .unwrap();
    outcome(
        Method::Cleartext,
        Some(verifier.clone()),
        password("pencil"),
        1,
    )
    .await
    .unwrap();
    let scram = outcome(Method::Scram, Some(verifier), password("pencil"), 2).await;
    assert!(matches!(scram, Err(AuthError::Rejected)));
}

#[tokio::test]
async fn a_scram_verifier_is_used_under_md5_and_cleartext_too() {
    let verifier = scram_verifier("pencil");
    let keys = outcome(Method::Md5, Some(verifier.clone()), password("pencil"), 3).await;
    assert!(matches!(keys, Ok(Credentials::ScramKeys(_))));
    let clear = outcome(
        Method::Cleartext,
        Some(verifier.clone()),
        password("pencil"),
        1,
    )
    .await;
    assert_eq!(clear.unwrap(), password("pencil"));
    let wrong = outcome(Method::Cleartext, Some(verifier), password("crayon"), 1).await;
    assert!(matches!(wrong, Err(AuthError::Rejected)));
}

#[tokio::test]
async fn an_unknown_user_fails_only_after_the_whole_exchange() {
    for (method, rounds) in [(Method::Cleartext, 1), (Method::Md5, 1), (Method::Scram, 2)] {
        let result = outcome(method, None, password("pencil"), rounds).await;
        assert!(matches!(result, Err(AuthError::Rejected)), "{method:?}");
    }
}

#[tokio::test]
async fn an_empty_password_is_never_right() {
    let empty = Verifier::Plain(Secret::new(""));
    for (method, rounds) in [(Method::Cleartext, 1), (Method::Md5, 1), (Method::Scram, 2)] {
        let result = outcome(method, Some(empty.clone()), password(""), rounds).await;
        assert!(matches!(result, Err(AuthError::Rejected)), "{method:?}");
    }
}

/// The salt a user is shown.
async fn shown_salt(user: &str, verifier: Option<&Verifier>) -> Vec<u8> {
    let (mut server, mut io) = pair();
    let probe = async {
        server_message(&mut io).await;
        let mut out = BytesMut::new();
        encode::sasl_initial(&mut out, scram::MECHANISM, b"n,,n=,r=abc").unwrap();
        io.send(&out).await.unwrap();
        let challenge = server_message(&mut io).await;
        drop(io);
        let Ok(Authentication::SaslContinue(text)) = Authentication::parse(&challenge) else {
            panic!("{challenge:?}")
        };
        scram::message::ServerFirst::parse(text).unwrap().salt
    };
    let (result, salt) = tokio::join!(
        authenticate_client(&mut server, Method::Scram, user, verifier, None),
        probe
    );
    assert!(
        matches!(result, Err(AuthError::Io(error)) if error.kind() == io::ErrorKind::UnexpectedEof)
    );
    salt
}

#[tokio::test]
async fn an_unknown_user_is_shown_the_same_salt_every_time() {
    let first = shown_salt("ghost", None).await;
    assert_eq!(first.len(), 16);
    assert_eq!(shown_salt("ghost", None).await, first);
    assert_ne!(shown_salt("spectre", None).await, first);
    let plain = Verifier::Plain(Secret::new("pencil"));
    assert_eq!(
        shown_salt("known", Some(&plain)).await,
        shown_salt("known", Some(&plain)).await
    );
}

#[tokio::test]
async fn cleartext_is_refused_on_plain_tcp_on_both_sides() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let (near, far) = tokio::join!(
        TcpStream::connect(listener.local_addr().unwrap()),
        listener.accept()
    );
    let mut server = ClientIo::new(Stream::Tcp(far.unwrap().0));
    let plain = Verifier::Plain(Secret::new("pencil"));
    let refused =
        authenticate_client(&mut server, Method::Cleartext, "anna", Some(&plain), None).await;
    assert!(matches!(refused, Err(AuthError::Protocol(_))));
    drop(near);

    let mut login = Login::new("anna", password("pencil"), false, false, None);
    let mut out = BytesMut::new();
    let refused = login.handle(&[0, 0, 0, 3], &mut out);
    assert!(matches!(refused, Err(LoginError::CleartextRefused)));
    assert!(out.is_empty());
}

async fn protocol_error(send: impl FnOnce(&mut BytesMut)) -> String {
    let (mut server, mut io) = pair();
    let mut out = BytesMut::new();
    send(&mut out);
    io.send(&out).await.unwrap();
    let verifier = scram_verifier("pencil");
    match authenticate_client(&mut server, Method::Scram, "anna", Some(&verifier), None).await {
        Err(AuthError::Protocol(text)) => text,
        other => panic!("{other:?}"),
    }
}

#[tokio::test]
async fn a_client_that_breaks_the_protocol_is_told_so() {
    let query = protocol_error(|out| encode::query(out, "select 1").unwrap()).await;
    assert!(query.contains("expected password response"), "{query}");
    let garbage = protocol_error(|out| out.extend_from_slice(b"\x00\x00\x00\x00\x00")).await;
    assert!(garbage.contains("unknown message type"), "{garbage}");
    let long =
        protocol_error(|out| encode::sasl_initial(out, scram::MECHANISM, &[b'x'; 2000]).unwrap())
            .await;
    assert!(long.contains("too long"), "{long}");
    let mechanism = protocol_error(|out| {
        encode::sasl_initial(out, "SCRAM-SHA-256-PLUS", b"n,,n=,r=a").unwrap()
    })
    .await;
    assert!(
        mechanism.contains("invalid SASL authentication mechanism"),
        "{mechanism}"
    );
    // CVE-2026-6664: a length inside of the message that does not fit the message.
    let overflow = protocol_error(|out| {
        out.extend_from_slice(b"p\x00\x00\x00\x16SCRAM-SHA-256\0\x7f\xff\xff\xff");
    })
    .await;
    assert!(overflow.contains("message ends early"), "{overflow}");
}

#[tokio::test]
async fn a_client_may_send_its_first_scram_message_when_asked() {
    let (mut server, mut io) = pair();
    let verifier = scram_verifier("pencil");
    let late = async {
        server_message(&mut io).await;
        let secret = scram::ClientSecret::Password(Secret::new("pencil"));
        let mut exchange =
            scram::ClientExchange::new(secret, scram::ChannelBinding::Unsupported).unwrap();
        io.send(b"p\x00\x00\x00\x16SCRAM-SHA-256\0\xff\xff\xff\xff")
            .await
            .unwrap();
        assert_eq!(&server_message(&mut io).await[..], [0, 0, 0, 11]);
        let mut out = BytesMut::new();
        encode::sasl_response(&mut out, &exchange.first()).unwrap();
        io.send(&out).await.unwrap();
        let challenge = server_message(&mut io).await;
        out.clear();
        encode::sasl_response(
            &mut out,
            &exchange.handle_server_first(&challenge[4..]).unwrap(),
        )
        .unwrap();
        io.send(&out).await.unwrap();
        let last = server_message(&mut io).await;
        exchange.handle_server_final(&last[4..]).unwrap();
    };
    let (result, ()) = tokio::join!(
        authenticate_client(&mut server, Method::Scram, "anna", Some(&verifier), None),
        late
    );
    result.unwrap();
}

fn login(credentials: Credentials) -> Login {
    Login::new("anna", credentials, true, true, Some(vec![1; 32]))
}

fn sasl_request(mechanisms: &[&str]) -> Vec<u8> {
    let mut body = vec![0, 0, 0, 10];
    for name in mechanisms {
        body.extend(name.as_bytes());
        body.push(0);
    }
    body.push(0);
    body
}

#[test]
fn login_prefers_channel_binding_and_tells_when_it_was_not_offered() {
    for (offered, begins) in [
        (
            &["SCRAM-SHA-256-PLUS", "SCRAM-SHA-256"][..],
            "p=tls-server-end-point,,",
        ),
        (&["SCRAM-SHA-256"][..], "y,,"),
    ] {
        let mut out = BytesMut::new();
        login(password("x"))
            .handle(&sasl_request(offered), &mut out)
            .unwrap();
        let initial = crate::frontend::SaslInitialResponse::parse(&out[5..]).unwrap();
        assert!(initial.data.unwrap().starts_with(begins.as_bytes()));
        assert_eq!(initial.mechanism, offered[0].as_bytes());
    }
    let mut out = BytesMut::new();
    let unknown = login(password("x")).handle(&sasl_request(&["OAUTHBEARER"]), &mut out);
    assert!(matches!(unknown, Err(LoginError::NoMechanism)));
}

#[test]
fn a_server_cannot_skip_its_part_of_scram() {
    let mut out = BytesMut::new();
    let mut skipped = login(password("x"));
    skipped
        .handle(&sasl_request(&["SCRAM-SHA-256"]), &mut out)
        .unwrap();
    assert!(matches!(
        skipped.handle(&[0, 0, 0, 0], &mut out),
        Err(LoginError::OutOfOrder)
    ));
    assert!(!skipped.is_done());
    // Once failed, nothing brings it back.
    assert!(skipped.handle(&[0, 0, 0, 0], &mut out).is_err());
}

#[test]
fn a_second_authentication_request_is_refused() {
    let mut out = BytesMut::new();
    let mut twice = login(password("x"));
    twice.handle(&[0, 0, 0, 3], &mut out).unwrap();
    assert!(matches!(
        twice.handle(&[0, 0, 0, 3], &mut out),
        Err(LoginError::OutOfOrder)
    ));
}

#[test]
fn credentials_that_do_not_fit_are_named() {
    let md5 = Credentials::Md5Hash(Secret::new("md5aa"));
    let keys = Credentials::ScramKeys(ClientKeys {
        client_key: [0; 32],
        server_key: [0; 32],
    });
    let scram = sasl_request(&["SCRAM-SHA-256"]);
    let mut out = BytesMut::new();
    assert!(matches!(
        login(Credentials::None).handle(&scram, &mut out),
        Err(LoginError::NoCredentials("scram-sha-256"))
    ));
    assert!(matches!(
        login(md5.clone()).handle(&scram, &mut out),
        Err(LoginError::WrongCredentials { .. })
    ));
    assert!(matches!(
        login(keys).handle(&[0, 0, 0, 5, 1, 2, 3, 4], &mut out),
        Err(LoginError::WrongCredentials { .. })
    ));
    assert!(matches!(
        login(md5).handle(&[0, 0, 0, 7], &mut out),
        Err(LoginError::Unsupported(7))
    ));
    assert!(out.is_empty());
}

#[test]
fn credentials_do_not_print() {
    assert_eq!(format!("{:?}", password("hunter2")), "Password(***)");
    assert!(!format!("{:?}", login(password("hunter2"))).contains("hunter2"));
}
