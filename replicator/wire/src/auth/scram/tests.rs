use std::num::NonZeroU32;

use proptest::prelude::*;

use super::message::{BindingFlag, ClientFinal, ClientFirst, ServerFinal, ServerFirst};
use super::*;

fn iterations(n: u32) -> NonZeroU32 {
    NonZeroU32::new(n).unwrap()
}

fn verifier(password: &str) -> ScramVerifier {
    ScramVerifier::derive(
        password.as_bytes(),
        b"0123456789abcdef".to_vec(),
        iterations(4096),
    )
}

fn password(text: &str) -> ClientSecret {
    ClientSecret::Password(Secret::new(text))
}

/// Runs both sides against each other and returns what each ended with.
fn run(mut client: ClientExchange, mut server: ServerExchange) -> Result<ClientKeys, ScramError> {
    let ServerStep::Continue(challenge) = server.handle(&client.first())? else {
        panic!("an exchange has two rounds")
    };
    let ServerStep::Done { message, keys } =
        server.handle(&client.handle_server_first(&challenge)?)?
    else {
        panic!("an exchange has two rounds")
    };
    client.handle_server_final(&message)?;
    assert_eq!(server.handle(b"n,,n=,r=x"), Err(ScramError::OutOfOrder));
    Ok(keys)
}

mod rfc7677 {
    pub(super) const CLIENT_FIRST: &[u8] = b"n,,n=user,r=rOprNGfwEbeRWgbNEkqO";
    pub(super) const SERVER_NONCE: &str = "%hvYDpWUa2RaTCAfuxFIlj)hNlF$k0";
    pub(super) const SERVER_FIRST: &[u8] =
        b"r=rOprNGfwEbeRWgbNEkqO%hvYDpWUa2RaTCAfuxFIlj)hNlF$k0,s=W22ZaJ0SNY7soEsUEjb6gQ==,i=4096";
    pub(super) const CLIENT_FINAL: &[u8] = b"c=biws,r=rOprNGfwEbeRWgbNEkqO%hvYDpWUa2RaTCAfuxFIlj)hNlF$k0,p=dHzbZapWIk4jUhN+Ute9ytag9zjfMHgsqmmiz7AndVQ=";
    pub(super) const SERVER_FINAL: &[u8] = b"v=6rriTRBi23WpRR/wtup+mMhUZUn/dB5nLTJRsjl95G4=";
    pub(super) const STORED: &str = "SCRAM-SHA-256$4096:W22ZaJ0SNY7soEsUEjb6gQ==$WG5d8oPm3OtcPnkdi4Uo7BkeZkBFzpcXkuLmtbsT4qY=:wfPLwcE6nTWhTAmQ7tl2KeoiWGPlZqQxSrmfPwDl2dU=";
}

fn rfc_client(secret: ClientSecret) -> ClientExchange {
    ClientExchange::with_nonce(
        secret,
        ChannelBinding::Unsupported,
        "user",
        "rOprNGfwEbeRWgbNEkqO".to_owned(),
    )
}

#[test]
fn client_says_what_rfc_7677_has_it_say() {
    let mut client = rfc_client(password("pencil"));
    assert_eq!(client.first(), rfc7677::CLIENT_FIRST);
    assert_eq!(
        client.handle_server_first(rfc7677::SERVER_FIRST).unwrap(),
        rfc7677::CLIENT_FINAL
    );
    assert_eq!(client.handle_server_final(rfc7677::SERVER_FINAL), Ok(()));
}

#[test]
fn server_says_what_rfc_7677_has_it_say_and_learns_keys_that_log_in_elsewhere() {
    let stored = ScramVerifier::parse(rfc7677::STORED).unwrap();
    let mut server =
        ServerExchange::with_nonce(stored, false, None, false, rfc7677::SERVER_NONCE.to_owned());
    assert_eq!(
        server.handle(rfc7677::CLIENT_FIRST),
        Ok(ServerStep::Continue(rfc7677::SERVER_FIRST.to_vec()))
    );
    let Ok(ServerStep::Done { message, keys }) = server.handle(rfc7677::CLIENT_FINAL) else {
        panic!("the proof of the RFC is right")
    };
    assert_eq!(message, rfc7677::SERVER_FINAL);

    let mut client = rfc_client(ClientSecret::Keys(keys));
    assert_eq!(
        client.handle_server_first(rfc7677::SERVER_FIRST).unwrap(),
        rfc7677::CLIENT_FINAL
    );
}

#[test]
fn derived_verifier_is_the_text_postgresql_stores() {
    let salt = BASE64.decode("W22ZaJ0SNY7soEsUEjb6gQ==").unwrap();
    let derived = ScramVerifier::derive(b"pencil", salt, iterations(4096));
    assert_eq!(derived.to_text().expose(), rfc7677::STORED.as_bytes());
    assert_eq!(ScramVerifier::parse(rfc7677::STORED), Some(derived.clone()));
    assert!(derived.matches(b"pencil"));
    assert!(!derived.matches(b"Pencil"));
    assert_ne!(
        ScramVerifier::random_salt().unwrap(),
        ScramVerifier::random_salt().unwrap()
    );
}

#[test]
fn passwords_are_prepared_as_postgresql_prepares_them() {
    // The forms of pg_saslprep: a soft hyphen vanishes, a compatibility character is replaced.
    assert_eq!(&*normalized("I\u{ad}X".as_bytes()), b"IX");
    assert_eq!(&*normalized("\u{2168}".as_bytes()), b"IX");
    // Forbidden (control character), not UTF-8, or nothing left: the bytes as they are.
    for raw in [&b"a\x07b"[..], b"\xff\xfe", "\u{ad}".as_bytes(), b""] {
        assert_eq!(&*normalized(raw), raw);
    }
}

#[test]
fn both_sides_agree_with_and_without_channel_binding() {
    let data = vec![7; 32];
    for (binding, offered, plus) in [
        (ChannelBinding::Unsupported, None, false),
        (ChannelBinding::Unsupported, Some(data.clone()), false),
        (ChannelBinding::NotOffered, None, false),
        (
            ChannelBinding::EndPoint(data.clone()),
            Some(data.clone()),
            true,
        ),
    ] {
        let client = ClientExchange::new(password("s3cret"), binding.clone()).unwrap();
        assert_eq!(client.mechanism() == MECHANISM_PLUS, plus);
        let server = ServerExchange::new(verifier("s3cret"), false, offered.clone(), plus).unwrap();
        let keys = run(client, server).unwrap();

        let again = ClientExchange::new(ClientSecret::Keys(keys), binding).unwrap();
        let server = ServerExchange::new(verifier("s3cret"), false, offered, plus).unwrap();
        run(again, server).unwrap();
    }
}

#[test]
fn wrong_password_and_doomed_user_fail_the_same_way_at_the_end() {
    let wrong = ClientExchange::new(password("guess"), ChannelBinding::Unsupported).unwrap();
    let server = ServerExchange::new(verifier("s3cret"), false, None, false).unwrap();
    assert_eq!(run(wrong, server), Err(ScramError::Rejected));

    let right = ClientExchange::new(password("s3cret"), ChannelBinding::Unsupported).unwrap();
    let doomed = ServerExchange::new(verifier("s3cret"), true, None, false).unwrap();
    assert_eq!(run(right, doomed), Err(ScramError::Rejected));
}

#[test]
fn a_man_in_the_middle_with_another_certificate_is_noticed() {
    let client =
        ClientExchange::new(password("s3cret"), ChannelBinding::EndPoint(vec![1; 32])).unwrap();
    let server = ServerExchange::new(verifier("s3cret"), false, Some(vec![2; 32]), true).unwrap();
    assert!(matches!(
        run(client, server),
        Err(ScramError::ChannelBinding(_))
    ));
}

#[test]
fn a_downgrade_of_channel_binding_is_noticed() {
    let exchange = |offered: Option<Vec<u8>>, plus| {
        ServerExchange::new(verifier("s3cret"), false, offered, plus).unwrap()
    };
    let data = Some(vec![1; 32]);
    let cases: [(&[u8], ServerExchange); 5] = [
        // -PLUS was offered, the client believes it was not.
        (b"y,,n=,r=abc", exchange(data.clone(), false)),
        // -PLUS was chosen without binding data.
        (b"n,,n=,r=abc", exchange(data.clone(), true)),
        (b"y,,n=,r=abc", exchange(data.clone(), true)),
        // Binding data without -PLUS.
        (
            b"p=tls-server-end-point,,n=,r=abc",
            exchange(data.clone(), false),
        ),
        // A type that is not ours.
        (b"p=tls-unique,,n=,r=abc", exchange(data, true)),
    ];
    for (message, mut server) in cases {
        assert!(
            matches!(server.handle(message), Err(ScramError::ChannelBinding(_))),
            "{}",
            message.escape_ascii()
        );
    }
}

#[test]
fn a_server_that_does_not_know_the_password_is_not_trusted() {
    let mut client = rfc_client(password("pencil"));
    client.handle_server_first(rfc7677::SERVER_FIRST).unwrap();
    let forged = b"v=AAAATRBi23WpRR/wtup+mMhUZUn/dB5nLTJRsjl95G4=";
    assert_eq!(
        client.handle_server_final(forged),
        Err(ScramError::ServerSignature)
    );
    assert_eq!(
        client.handle_server_final(rfc7677::SERVER_FINAL),
        Err(ScramError::OutOfOrder)
    );
}

#[test]
fn a_servers_iteration_count_is_capped() {
    for asked in [MAX_ITERATIONS + 1, u32::MAX] {
        let mut client = rfc_client(password("pencil"));
        let challenge = format!("r=rOprNGfwEbeRWgbNEkqOx,s=AAAA,i={asked}");
        assert_eq!(
            client.handle_server_first(challenge.as_bytes()),
            Err(ScramError::TooManyIterations {
                asked: asked.into(),
                cap: MAX_ITERATIONS
            })
        );
    }
    let mut client = rfc_client(password("pencil")).max_iterations(100);
    assert!(
        client
            .handle_server_first(b"r=rOprNGfwEbeRWgbNEkqOx,s=AAAA,i=101")
            .is_err()
    );
}

#[test]
fn a_servers_nonce_must_continue_ours() {
    for nonce in ["rOprNGfwEbeRWgbNEkqO", "other", "rOprNGfwEbeRWgbNEkq"] {
        let mut client = rfc_client(password("pencil"));
        let challenge = format!("r={nonce},s=AAAA,i=4096");
        assert!(matches!(
            client.handle_server_first(challenge.as_bytes()),
            Err(ScramError::Malformed(_))
        ));
    }
}

#[test]
fn a_client_cannot_change_the_nonce_of_its_last_message() {
    let mut server =
        ServerExchange::with_nonce(verifier("x"), false, None, false, "SERVER".to_owned());
    server.handle(b"n,,n=,r=CLIENT").unwrap();
    let last = format!("c=biws,r=CLIENTsERVER,p={}", BASE64.encode([0; 32]));
    assert_eq!(
        server.handle(last.as_bytes()),
        Err(ScramError::Malformed("nonce does not match"))
    );
}

#[test]
fn messages_are_taken_apart() {
    let first = ClientFirst::parse(b"p=tls-server-end-point,,n=ignored,r=abc,x=ext").unwrap();
    assert_eq!(first.gs2_header, b"p=tls-server-end-point,,");
    assert_eq!(first.binding, BindingFlag::Type(b"tls-server-end-point"));
    assert_eq!(
        (first.bare, first.nonce),
        (&b"n=ignored,r=abc,x=ext"[..], &b"abc"[..])
    );

    let text = format!("c=biws,r=abc,x=ext,p={}", BASE64.encode([5; 32]));
    let last = ClientFinal::parse(text.as_bytes()).unwrap();
    assert_eq!(last.without_proof, b"c=biws,r=abc,x=ext");
    assert_eq!(last.proof, [5; 32]);

    let server = ServerFirst::parse(b"r=abc,s=AAEC,i=4096").unwrap();
    assert_eq!((server.salt, server.iterations), (vec![0, 1, 2], 4096));
    assert_eq!(
        ServerFinal::parse(b"e=other-error"),
        Ok(ServerFinal::Error(b"other-error"))
    );
}

#[test]
fn malformed_messages_are_errors() {
    for text in [
        "",
        "n",
        "n,",
        "n,,",
        "n,a=me,n=,r=abc",
        "q,,n=,r=abc",
        "p=,,n=,r=abc",
        "n,,m=x,n=,r=abc",
        "n,,r=abc",
        "n,,n=,r=",
        "n,,n=,r=a b",
        "n,,n=,r=abc,",
        "n,,n=,r=abc\0",
    ] {
        assert!(ClientFirst::parse(text.as_bytes()).is_err(), "{text:?}");
    }
    let proof = BASE64.encode([5; 32]);
    for text in [
        "c=biws,r=abc".to_owned(),
        "c=biws,r=abc,p=AAAA".to_owned(),
        format!("c=biws,r=abc,p={proof},x=y"),
        format!("r=abc,c=biws,p={proof}"),
        format!("c=biws,r=abc,=,p={proof}"),
        format!("c=biws,r=abc,p={proof}="),
    ] {
        assert!(ClientFinal::parse(text.as_bytes()).is_err(), "{text:?}");
    }
    for text in [
        "r=abc,s=AAAA",
        "r=abc,s=AAAA,i=0",
        "r=abc,s=AAAA,i=-1",
        "r=abc,s=AAAA,i=+1",
        "r=abc,s=AAAA,i=99999999999999999999",
        "r=abc,s=,i=1",
        "r=abc,s=AA AA,i=1",
        "r=abc,s=AAAA,i=1,x=y",
        "e=unknown-user",
    ] {
        assert!(ServerFirst::parse(text.as_bytes()).is_err(), "{text:?}");
    }
    for text in ["v=", "v=AAAA", "x=y", "e=a,b=c"] {
        assert!(ServerFinal::parse(text.as_bytes()).is_err(), "{text:?}");
    }
}

#[test]
fn nothing_secret_is_printed() {
    let keys = ClientKeys {
        client_key: [211; 32],
        server_key: [212; 32],
    };
    let client = ClientExchange::new(
        ClientSecret::Keys(keys.clone()),
        ChannelBinding::Unsupported,
    )
    .unwrap();
    let shown = format!("{keys:?} {client:?} {:?}", verifier("x"));
    assert!(!shown.contains("211") && !shown.contains("212"), "{shown}");
    assert!(!shown.contains("stored_key"), "{shown}");
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn any_password_proves_itself_and_no_other(text in any::<String>(), other in any::<String>()) {
        let stored = ScramVerifier::derive(text.as_bytes(), vec![1, 2, 3], iterations(2));
        let again = ScramVerifier::parse(std::str::from_utf8(stored.to_text().expose()).unwrap()).unwrap();
        prop_assert_eq!(&again, &stored);
        let client = ClientExchange::new(password(&text), ChannelBinding::Unsupported).unwrap();
        prop_assert!(run(client, ServerExchange::new(stored.clone(), false, None, false).unwrap()).is_ok());
        if normalized(text.as_bytes()) != normalized(other.as_bytes()) {
            let client = ClientExchange::new(password(&other), ChannelBinding::Unsupported).unwrap();
            let outcome = run(client, ServerExchange::new(stored, false, None, false).unwrap());
            prop_assert_eq!(outcome, Err(ScramError::Rejected));
        }
    }
}
