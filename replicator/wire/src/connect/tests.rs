use std::num::NonZeroU32;
use std::path::Path;

use tokio::net::{TcpListener, UnixListener};

use super::*;
use crate::auth::scram::{DEFAULT_ITERATIONS, ScramVerifier};
use crate::auth::{ClientIo, Method, Verifier, authenticate_client};
use crate::encode::{ErrorReport, backend};
use crate::secret::Secret;
use crate::startup::{Accepted, accept};
use crate::tls::{ClientTlsMode, ServerTls};

fn options(port: u16, tls: ClientTls) -> ConnectOptions {
    ConnectOptions {
        host: "localhost".to_owned(),
        port,
        user: "anna".to_owned(),
        database: "app".to_owned(),
        credentials: Credentials::Password(Secret::new("pencil")),
        tls,
        params: vec![("application_name".to_owned(), "wire".to_owned())],
        connect_timeout: Duration::from_secs(20),
    }
}

async fn listener() -> (TcpListener, u16) {
    // By name, so that "localhost" finds it whichever address family comes first.
    let listener = TcpListener::bind("localhost:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    (listener, port)
}

/// A server that sends `bytes` after it has read `expected` bytes, and reads on until the client goes.
async fn scripted(listener: TcpListener, script: Vec<(usize, Vec<u8>)>) -> Vec<u8> {
    let (mut tcp, _) = listener.accept().await.unwrap();
    for (expected, bytes) in script {
        let mut read = vec![0; expected];
        tcp.read_exact(&mut read).await.unwrap();
        tcp.write_all(&bytes).await.unwrap();
    }
    let mut rest = Vec::new();
    let _ = tcp.read_to_end(&mut rest).await;
    rest
}

async fn refused(tls: ClientTls, script: Vec<(usize, Vec<u8>)>) -> (ConnectError, Vec<u8>) {
    let (listener, port) = listener().await;
    let opts = options(port, tls);
    let (server, result) = tokio::join!(tokio::spawn(scripted(listener, script)), connect(&opts));
    (result.unwrap_err(), server.unwrap())
}

fn require() -> ClientTls {
    ClientTls::new(SslMode::Require, None).unwrap()
}

#[tokio::test]
async fn answers_to_the_tls_request_are_not_trusted() {
    let (error, _) = refused(require(), vec![(8, b"SE".to_vec())]).await;
    assert!(
        matches!(error, ConnectError::Tls(TlsError::DataBeforeTls)),
        "{error:?}"
    );
    let (error, sent) = refused(require(), vec![(8, b"N".to_vec())]).await;
    assert!(matches!(
        error,
        ConnectError::Tls(TlsError::NotSupported(SslMode::Require))
    ));
    assert!(sent.is_empty(), "nothing is sent in clear");
    let (error, _) = refused(
        require(),
        vec![(8, b"E\0\0\0\x20Mplease do as I say\0\0".to_vec())],
    )
    .await;
    assert_eq!(
        error.to_string(),
        "the server answered the TLS request with byte 0x45"
    );
}

#[tokio::test]
async fn prefer_goes_on_in_clear_where_the_server_has_no_tls() {
    let prefer = ClientTls::new(SslMode::Prefer, None).unwrap();
    let mut words = BytesMut::new();
    backend::error(&mut words, &ErrorReport::fatal("28P01", "no"));
    let mut startup = BytesMut::new();
    let params = [
        ("user", "anna"),
        ("database", "app"),
        ("application_name", "wire"),
    ];
    encode::startup(&mut startup, PROTOCOL_3_2, params).unwrap();
    let (error, _) = refused(
        prefer,
        vec![(8, b"N".to_vec()), (startup.len(), words.to_vec())],
    )
    .await;
    assert!(matches!(error, ConnectError::Server(error) if error.code == "28P01"));
}

/// What the client makes of a server that answers the startup message with this.
async fn answered(bytes: Vec<u8>) -> (ConnectError, Vec<u8>) {
    refused(ClientTls::disabled(), vec![(8, bytes)]).await
}

#[tokio::test]
async fn a_hostile_server_gets_errors_not_secrets() {
    // Cleartext over a connection that others can read.
    let (error, sent) = answered(b"R\0\0\0\x08\0\0\0\x03".to_vec()).await;
    assert!(matches!(
        error,
        ConnectError::Auth(LoginError::CleartextRefused)
    ));
    assert!(!sent.windows(6).any(|window| window == b"pencil"));
    // A message of 16 MB before anybody is authenticated.
    let (error, _) = answered(b"E\x01\0\0\0".to_vec()).await;
    assert!(matches!(error, ConnectError::Protocol(_)), "{error:?}");
    // No message at all.
    let (error, _) = answered(b"HTTP/1.1 400".to_vec()).await;
    assert!(matches!(error, ConnectError::Protocol(_)), "{error:?}");
    // A result before the login.
    let (error, _) = answered(b"D\0\0\0\x06\0\0".to_vec()).await;
    assert!(matches!(error, ConnectError::Protocol(_)), "{error:?}");
    // An error without an SQLSTATE, and one without anything (CVE-2026-6666).
    for refusal in [&b"E\0\0\0\x0bMoops\0\0"[..], b"E\0\0\0\x05\0"] {
        let (error, _) = answered(refusal.to_vec()).await;
        assert!(matches!(error, ConnectError::Server(_)), "{error:?}");
    }
    // A protocol of the future.
    let (error, _) = answered(b"v\0\0\0\x0c\0\x04\0\0\0\0\0\0".to_vec()).await;
    assert_eq!(
        error.to_string(),
        "protocol violation by the server during the login: the server wants protocol version 4.0"
    );
}

#[tokio::test]
async fn a_silent_server_costs_the_timeout_and_no_more() {
    let (listener, port) = listener().await;
    for tls in [ClientTls::disabled(), require()] {
        let mut opts = options(port, tls);
        opts.connect_timeout = Duration::from_millis(50);
        let error = connect(&opts).await.unwrap_err();
        assert_eq!(
            error.to_string(),
            format!("no connection to localhost:{port} within 50 ms")
        );
        assert!(matches!(
            crate::cancel::cancel(&opts, 1, &[0; 4]).await,
            Err(ConnectError::Timeout { .. })
        ));
    }
    drop(listener);
    assert!(matches!(
        connect(&options(port, ClientTls::disabled())).await,
        Err(ConnectError::Unreachable { .. })
    ));
}

/// A server made of this crate's own server side. Accepts one session and serves one query.
async fn serve(
    stream: Stream,
    tls: Option<&ServerTls>,
    method: Method,
    verifier: Verifier,
    negotiate: Option<i32>,
) {
    let mode = ClientTlsMode::Allow;
    let Ok(Accepted::Session {
        stream,
        startup,
        tls,
    }) = accept(stream, tls, mode).await
    else {
        panic!("a session")
    };
    assert_eq!(startup.protocol, PROTOCOL_3_2);
    assert_eq!(
        startup.params,
        [("application_name".to_owned(), "wire".to_owned())]
    );
    let mut io = ClientIo::new(stream);
    let mut out = BytesMut::new();
    if let Some(newest) = negotiate {
        backend::negotiate_protocol_version(&mut out, newest, []).unwrap();
        io.send(&out).await.unwrap();
        out.clear();
    }
    let binding = tls
        .as_ref()
        .and_then(|info| info.endpoint_binding.as_deref());
    if let Err(error) =
        authenticate_client(&mut io, method, &startup.user, Some(&verifier), binding).await
    {
        backend::error(&mut out, &ErrorReport::fatal("28P01", error.to_string()));
        io.send(&out).await.unwrap();
        return;
    }
    backend::authentication_ok(&mut out);
    backend::parameter_status(&mut out, "server_version", "15.0").unwrap();
    backend::backend_key_data(&mut out, 77, &[5; 32]).unwrap();
    backend::notice(&mut out, &ErrorReport::new("WARNING", "01000", "collation"));
    backend::ready_for_query(&mut out, b'I');
    io.send(&out).await.unwrap();
    let mut query = [0; 14];
    io.stream.read_exact(&mut query).await.unwrap();
    out.clear();
    backend::data_row(&mut out, [Some("1")]).unwrap();
    backend::ready_for_query(&mut out, b'I');
    io.send(&out).await.unwrap();
}

async fn logs_in(connection: Result<Connection, ConnectError>) {
    let mut connection = connection.unwrap();
    assert_eq!(connection.parameter("server_version"), Some("15.0"));
    assert_eq!(
        (connection.backend_pid(), connection.cancel_secret()),
        (77, &[5; 32][..])
    );
    assert_eq!(connection.simple_query("select 1").await.unwrap().len(), 1);
}

fn verifier() -> Verifier {
    let iterations = NonZeroU32::new(DEFAULT_ITERATIONS).unwrap();
    Verifier::Scram(ScramVerifier::derive(b"pencil", vec![1; 16], iterations))
}

#[tokio::test]
async fn logs_in_over_tls_with_every_method_bound_to_the_certificate() {
    let dir = tempfile::tempdir().unwrap();
    let made = rcgen::generate_simple_self_signed(vec!["localhost".to_owned()]).unwrap();
    let (cert, key) = (dir.path().join("c"), dir.path().join("k"));
    std::fs::write(&cert, made.cert.pem()).unwrap();
    std::fs::write(&key, made.signing_key.serialize_pem()).unwrap();
    let server_tls = ServerTls::load(&cert, &key, None).unwrap();
    for method in [Method::Scram, Method::Cleartext, Method::Md5, Method::Trust] {
        let (listener, port) = listener().await;
        let opts = options(
            port,
            ClientTls::new(SslMode::VerifyFull, Some(Path::new(&cert))).unwrap(),
        );
        let serve = async {
            let (tcp, _) = listener.accept().await.unwrap();
            serve(
                Stream::Tcp(tcp),
                Some(&server_tls),
                method,
                verifier(),
                None,
            )
            .await;
        };
        let client = async { logs_in(connect(&opts).await).await };
        tokio::join!(serve, client);
    }
}

#[tokio::test]
async fn logs_in_over_a_unix_socket_and_with_an_older_protocol() {
    for newest in [None, Some(3 << 16), Some(0)] {
        let dir = tempfile::tempdir().unwrap();
        let listener = UnixListener::bind(dir.path().join(".s.PGSQL.5433")).unwrap();
        let mut opts = options(5433, require());
        opts.host = dir.path().to_str().unwrap().to_owned();
        let serve = async {
            let (unix, _) = listener.accept().await.unwrap();
            serve(
                Stream::Unix(unix),
                None,
                Method::Cleartext,
                verifier(),
                newest,
            )
            .await;
        };
        let client = async { logs_in(connect(&opts).await).await };
        tokio::join!(serve, client);
    }
}

#[tokio::test]
async fn a_wrong_password_is_the_servers_error() {
    let (listener, port) = listener().await;
    let mut opts = options(port, ClientTls::disabled());
    opts.credentials = Credentials::Password(Secret::new("crayon"));
    let serve = async {
        let (tcp, _) = listener.accept().await.unwrap();
        serve(Stream::Tcp(tcp), None, Method::Scram, verifier(), None).await;
    };
    let ((), result) = tokio::join!(serve, connect(&opts));
    assert!(matches!(result, Err(ConnectError::Server(error)) if error.code == "28P01"));
}

#[tokio::test]
async fn cancel_sends_the_key_and_waits_for_the_close() {
    let (listener, port) = listener().await;
    let opts = options(port, ClientTls::disabled());
    let serve = async {
        let (tcp, _) = listener.accept().await.unwrap();
        let accepted = accept(Stream::Tcp(tcp), None, ClientTlsMode::Allow)
            .await
            .unwrap();
        let Accepted::Cancel {
            pid,
            secret,
            stream,
        } = accepted
        else {
            panic!("a cancel request")
        };
        assert_eq!((pid, secret.len()), (42, 32));
        drop(stream);
    };
    let (result, ()) = tokio::join!(crate::cancel::cancel(&opts, 42, &[9; 32]), serve);
    result.unwrap();
    let bad = crate::cancel::cancel(&opts, 42, &[9; 3]).await;
    assert!(matches!(bad, Err(ConnectError::Io(_))));
}

#[test]
fn options_do_not_print_the_password() {
    let shown = format!("{:?}", options(1, ClientTls::disabled()));
    assert!(
        shown.contains("anna") && !shown.contains("pencil"),
        "{shown}"
    );
}

#[test]
fn addresses_are_shown_as_one_writes_them() {
    let mut opts = options(5432, ClientTls::disabled());
    assert_eq!(opts.address(), "localhost:5432");
    opts.host = "::1".to_owned();
    assert_eq!(opts.address(), "[::1]:5432");
    opts.host = "/run/postgresql".to_owned();
    assert_eq!(opts.address(), "/run/postgresql/.s.PGSQL.5432");
}
