use rcgen::{
    BasicConstraints, CertificateParams, CertifiedIssuer, DnType, IsCa, KeyPair,
    PKCS_ECDSA_P384_SHA384, PKCS_ED25519,
};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpListener;

use super::*;

type Ca = CertifiedIssuer<'static, KeyPair>;

fn ca(name: &str) -> Ca {
    let mut params = CertificateParams::new(vec![]).unwrap();
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    params.distinguished_name.push(DnType::CommonName, name);
    CertifiedIssuer::self_signed(params, KeyPair::generate().unwrap()).unwrap()
}

/// Certificate and key, both as PEM.
fn leaf(ca: &Ca, names: &[&str], common_name: &str) -> (String, String) {
    let mut params = CertificateParams::new(
        names
            .iter()
            .map(|&name| name.to_owned())
            .collect::<Vec<_>>(),
    )
    .unwrap();
    params
        .distinguished_name
        .push(DnType::CommonName, common_name);
    let key = KeyPair::generate().unwrap();
    let certificate = params.signed_by(&key, ca).unwrap();
    (certificate.pem(), key.serialize_pem())
}

struct Dir(tempfile::TempDir);

impl Dir {
    fn new() -> Self {
        Self(tempfile::tempdir().unwrap())
    }

    fn put(&self, name: &str, text: &str) -> PathBuf {
        let path = self.0.path().join(name);
        std::fs::write(&path, text).unwrap();
        path
    }
}

/// A handshake, and one byte each way: with TLS 1.3 a client learns of a refused certificate only then.
async fn shake(
    server: &ServerTls,
    client: &ClientTls,
    host: &str,
) -> (Result<Option<String>, String>, Result<(), String>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let (near, far) = tokio::join!(
        TcpStream::connect(listener.local_addr().unwrap()),
        listener.accept()
    );
    let (near, far) = (near.unwrap(), far.unwrap().0);
    let serve = async {
        let mut shaken = server
            .accept(far)
            .await
            .map_err(|error| error.to_string())?;
        shaken
            .tls
            .write_all(b"!")
            .await
            .map_err(|error| error.to_string())?;
        shaken
            .tls
            .flush()
            .await
            .map_err(|error| error.to_string())?;
        let stream = crate::stream::Stream::ServerTls(Box::new(shaken.tls));
        Ok(stream
            .peer_certificate()
            .and_then(|leaf| certificate::common_name(leaf)))
    };
    let dial = async {
        let mut tls = client
            .connect(client.config().unwrap(), host, near)
            .await
            .map_err(|error| error.to_string())?;
        tls.read_u8()
            .await
            .map(drop)
            .map_err(|error| error.to_string())
    };
    tokio::join!(serve, dial)
}

#[test]
fn modes_are_libpqs_words() {
    for word in ["disable", "prefer", "require", "verify-ca", "verify-full"] {
        assert_eq!(word.parse::<SslMode>().unwrap().to_string(), word);
    }
    assert!("allow".parse::<SslMode>().is_err());
    let error = "Require".parse::<ClientTlsMode>().unwrap_err();
    assert_eq!(
        error.to_string(),
        "unknown TLS mode \"Require\": expected one of disable, allow, require"
    );
}

#[tokio::test]
async fn each_mode_checks_what_it_says() {
    let dir = Dir::new();
    let (good, other) = (ca("good"), ca("other"));
    let (cert, key) = leaf(&good, &["db.example", "127.0.0.1"], "db");
    let server = ServerTls::load(&dir.put("c", &cert), &dir.put("k", &key), None).unwrap();
    let good = dir.put("good", &good.pem());
    let other = dir.put("other", &other.pem());
    for (mode, root, host, fits) in [
        (SslMode::Prefer, None, "anything", true),
        (SslMode::Require, None, "anything", true),
        (SslMode::Require, Some(&good), "anything", true),
        (SslMode::Require, Some(&other), "db.example", false),
        (SslMode::VerifyCa, Some(&good), "anything", true),
        (SslMode::VerifyCa, Some(&good), "not a host name", true),
        (SslMode::VerifyCa, Some(&other), "db.example", false),
        (SslMode::VerifyFull, Some(&good), "db.example", true),
        (SslMode::VerifyFull, Some(&good), "127.0.0.1", true),
        (SslMode::VerifyFull, Some(&good), "127.0.0.2", false),
        // With alternative names the common name does not count.
        (SslMode::VerifyFull, Some(&good), "db", false),
        (SslMode::VerifyFull, Some(&other), "db.example", false),
        (SslMode::VerifyFull, Some(&good), "not a host name", false),
    ] {
        let client = ClientTls::new(mode, root.map(PathBuf::as_path)).unwrap();
        let (_, outcome) = shake(&server, &client, host).await;
        assert_eq!(outcome.is_ok(), fits, "{mode} {root:?} {host}: {outcome:?}");
    }
}

#[tokio::test]
async fn a_self_signed_certificate_can_be_its_own_root_and_a_common_name_its_name() {
    let dir = Dir::new();
    let mut params = CertificateParams::new(vec![]).unwrap();
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    params
        .distinguished_name
        .push(DnType::CommonName, "localhost");
    let key = KeyPair::generate().unwrap();
    let cert = dir.put("c", &params.self_signed(&key).unwrap().pem());
    let server = ServerTls::load(&cert, &dir.put("k", &key.serialize_pem()), None).unwrap();
    for (mode, host, fits) in [
        (SslMode::VerifyCa, "elsewhere", true),
        (SslMode::VerifyFull, "LocalHost", true),
        (SslMode::VerifyFull, "elsewhere", false),
    ] {
        let client = ClientTls::new(mode, Some(&cert)).unwrap();
        let (_, outcome) = shake(&server, &client, host).await;
        assert_eq!(outcome.is_ok(), fits, "{mode} {host}: {outcome:?}");
    }
}

#[tokio::test]
async fn an_expired_certificate_is_not_trusted_even_as_its_own_root() {
    let dir = Dir::new();
    let mut params = CertificateParams::new(vec!["localhost".to_owned()]).unwrap();
    params.not_before = rcgen::date_time_ymd(2020, 1, 1);
    params.not_after = rcgen::date_time_ymd(2021, 1, 1);
    let key = KeyPair::generate().unwrap();
    let cert = dir.put("c", &params.self_signed(&key).unwrap().pem());
    let server = ServerTls::load(&cert, &dir.put("k", &key.serialize_pem()), None).unwrap();
    let client = ClientTls::new(SslMode::VerifyCa, Some(&cert)).unwrap();
    assert!(shake(&server, &client, "localhost").await.1.is_err());
}

#[tokio::test]
async fn a_certificate_is_taken_with_its_own_key_only() {
    let dir = Dir::new();
    let authority = ca("ca");
    let (cert, key) = leaf(&authority, &["a.example"], "a");
    let (cert_path, key_path) = (dir.put("c", &cert), dir.put("k", &key));
    let root = dir.put("root", &authority.pem());
    let server = ServerTls::load(&cert_path, &key_path, None).unwrap();
    let before = server.endpoint_binding().unwrap();
    let client = ClientTls::new(SslMode::VerifyFull, Some(&root)).unwrap();

    // A new certificate with the old key is refused; what was read before is not touched.
    let (new_cert, new_key) = leaf(&authority, &["b.example"], "b");
    dir.put("c", &new_cert);
    let error = ServerTls::load(&cert_path, &key_path, None).unwrap_err();
    assert!(
        error.to_string().contains("cannot use certificate"),
        "{error}"
    );
    assert_eq!(server.endpoint_binding().unwrap(), before);
    assert!(shake(&server, &client, "a.example").await.1.is_ok());

    dir.put("k", &new_key);
    let renewed = ServerTls::load(&cert_path, &key_path, None).unwrap();
    assert_ne!(renewed.endpoint_binding().unwrap(), before);
    let server = renewed;
    assert!(shake(&server, &client, "b.example").await.1.is_ok());
    assert!(shake(&server, &client, "a.example").await.1.is_err());
}

#[tokio::test]
async fn client_certificates_are_optional_but_must_be_the_authoritys() {
    let dir = Dir::new();
    let (servers, clients, strangers) = (ca("servers"), ca("clients"), ca("strangers"));
    let (cert, key) = leaf(&servers, &["localhost"], "db");
    let client_ca = dir.put("clients", &clients.pem());
    let server =
        ServerTls::load(&dir.put("c", &cert), &dir.put("k", &key), Some(&client_ca)).unwrap();
    let plain = ClientTls::new(SslMode::Require, None).unwrap();
    assert_eq!(shake(&server, &plain, "localhost").await.0, Ok(None));

    for (authority, fits) in [(&clients, true), (&strangers, false)] {
        let (cert, key) = leaf(authority, &[], "anna");
        let chain = vec![CertificateDer::from_pem_slice(cert.as_bytes()).unwrap()];
        let key = PrivateKeyDer::from_pem_slice(key.as_bytes()).unwrap();
        let verifier = ServerCertificateVerifier::new(
            Check::Nothing,
            provider().signature_verification_algorithms,
        );
        let config = ClientConfig::builder_with_provider(provider())
            .with_safe_default_protocol_versions()
            .unwrap()
            .dangerous()
            .with_custom_certificate_verifier(Arc::new(verifier))
            .with_client_auth_cert(chain, key)
            .unwrap();
        let client = ClientTls {
            mode: SslMode::Require,
            config: Some(Arc::new(config)),
        };
        let (seen, _) = shake(&server, &client, "localhost").await;
        if fits {
            assert_eq!(seen, Ok(Some("anna".to_owned())));
        } else {
            assert!(seen.is_err(), "{seen:?}");
        }
    }
}

#[test]
fn endpoint_binding_uses_the_hash_of_the_signature() {
    let bind = |key: KeyPair| {
        let params = CertificateParams::new(vec!["localhost".to_owned()]).unwrap();
        let certificate = params.self_signed(&key).unwrap();
        certificate::endpoint_binding(certificate.der()).map(|hash| hash.len())
    };
    assert_eq!(bind(KeyPair::generate().unwrap()), Some(32));
    assert_eq!(
        bind(KeyPair::generate_for(&PKCS_ECDSA_P384_SHA384).unwrap()),
        Some(48)
    );
    assert_eq!(bind(KeyPair::generate_for(&PKCS_ED25519).unwrap()), None);
    assert_eq!(certificate::endpoint_binding(b"no certificate"), None);
    assert_eq!(certificate::common_name(b""), None);
}

#[test]
fn a_common_name_with_a_zero_byte_is_no_name() {
    let mut params = CertificateParams::new(vec![]).unwrap();
    params
        .distinguished_name
        .push(DnType::CommonName, "admin\0.evil.example");
    let certificate = params.self_signed(&KeyPair::generate().unwrap()).unwrap();
    assert_eq!(certificate::common_name(certificate.der()), None);
}

#[test]
fn unusable_files_are_named() {
    let dir = Dir::new();
    let (cert, key) = leaf(&ca("ca"), &["a"], "a");
    let (cert, key, empty) = (
        dir.put("c", &cert),
        dir.put("k", &key),
        dir.put("empty", ""),
    );
    let missing = dir.0.path().join("missing");
    assert!(matches!(
        ServerTls::load(&missing, &key, None),
        Err(TlsError::Pem {
            what: "certificates",
            ..
        })
    ));
    assert!(matches!(
        ServerTls::load(&cert, &empty, None),
        Err(TlsError::Pem {
            what: "a private key",
            ..
        })
    ));
    assert!(matches!(
        ServerTls::load(&empty, &key, None),
        Err(TlsError::NoCertificate(path)) if path == empty
    ));
    assert!(matches!(
        ClientTls::new(SslMode::VerifyFull, None),
        Err(TlsError::RootCertMissing(SslMode::VerifyFull))
    ));
    assert!(ClientTls::new(SslMode::Disable, Some(&missing)).is_ok());
}
