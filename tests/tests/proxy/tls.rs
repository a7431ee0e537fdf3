//! TLS towards clients.

use std::{fs, os::unix::fs::PermissionsExt, path::Path, time::Duration};

use rcgen::{
    BasicConstraints, CertificateParams, CertifiedIssuer, DnType, ExtendedKeyUsagePurpose, IsCa,
    KeyPair,
};
use rustix::process::Signal;
use tandem_tests::{
    Cluster, Program, client, cluster::ClusterBuilder, eventually, scratch::Scratch, template,
};

const LIMIT: Duration = Duration::from_secs(20);

pub(crate) type Authority = CertifiedIssuer<'static, KeyPair>;

fn authority(name: &str) -> Authority {
    let mut params = CertificateParams::default();
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    params.distinguished_name.push(DnType::CommonName, name);
    CertifiedIssuer::self_signed(params, KeyPair::generate().expect("a key"))
        .expect("a certificate")
}

/// Writes NAME.crt and NAME.key, signed by `authority`.
fn issue(authority: &Authority, dir: &Path, name: &str, common_name: &str) {
    let mut params = CertificateParams::new(vec!["localhost".to_owned(), "127.0.0.1".to_owned()])
        .expect("names");
    params
        .distinguished_name
        .push(DnType::CommonName, common_name);
    params.extended_key_usages = vec![
        ExtendedKeyUsagePurpose::ServerAuth,
        ExtendedKeyUsagePurpose::ClientAuth,
    ];
    let key = KeyPair::generate().expect("a key");
    let certificate = params.signed_by(&key, authority).expect("a certificate");
    fs::write(dir.join(format!("{name}.crt")), certificate.pem()).expect("a file");
    let key_file = dir.join(format!("{name}.key"));
    fs::write(&key_file, key.serialize_pem()).expect("a file");
    fs::set_permissions(&key_file, fs::Permissions::from_mode(0o600)).expect("a mode");
}

/// A directory with an authority's certificate `ca.crt`, and the server's, signed by it.
pub(crate) fn with_certificates() -> (Scratch, Authority) {
    let scratch = Scratch::new().expect("a directory");
    let authority = authority("tandem test authority");
    fs::write(scratch.path().join("ca.crt"), authority.pem()).expect("a file");
    issue(&authority, scratch.path(), "server", "tandem");
    (scratch, authority)
}

/// A cluster with TLS towards clients, and further lines of its section.
pub(crate) fn tls(builder: ClusterBuilder, more: &str) -> ClusterBuilder {
    builder.sections(&format!(
        "[proxy.tls]\ncert = \"server.crt\"\nkey = \"server.key\"\n{more}"
    ))
}

fn psql(cluster: &Cluster, sslmode: &str) -> Program {
    let ca = cluster.dir().join("ca.crt");
    cluster
        .psql()
        .env("PGSSLMODE", sslmode)
        .env("PGSSLROOTCERT", &ca.to_string_lossy())
}

const CONNINFO: [&str; 2] = ["-c", "\\conninfo"];

#[tokio::test(flavor = "multi_thread")]
async fn clients_may_use_tls_with_a_verified_certificate_and_channel_binding() {
    let (scratch, _) = with_certificates();
    let cluster = tls(Cluster::of(&[15, 15]), "mode = \"allow\"")
        .start_in(scratch)
        .await;
    let ran = psql(&cluster, "verify-full")
        .env("PGCHANNELBINDING", "require")
        .args(CONNINFO)
        .run(LIMIT)
        .await
        .expect_success();
    assert!(ran.stdout.contains("TLSv1.3"), "{}", ran.all());
    let ran = psql(&cluster, "disable")
        .args(CONNINFO)
        .run(LIMIT)
        .await
        .expect_success();
    assert!(!ran.stdout.contains("TLS"), "{}", ran.all());
    let ran = psql(&cluster, "verify-full")
        .env("PGPASSWORD", "wrong")
        .args(CONNINFO)
        .run(LIMIT)
        .await
        .expect_failure();
    assert!(
        ran.stderr.contains("password authentication failed"),
        "{}",
        ran.all()
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn where_tls_is_required_a_client_without_is_refused() {
    let (scratch, _) = with_certificates();
    let cluster = tls(Cluster::of(&[15]), "mode = \"require\"")
        .start_in(scratch)
        .await;
    psql(&cluster, "require")
        .args(["-c", "SELECT 1"])
        .run(LIMIT)
        .await
        .expect_success();
    let error = cluster.try_proxy().await.expect_err("a refusal");
    assert_eq!(client::sqlstate(&error), "28000");
    psql(&cluster, "disable")
        .args(["-c", "SELECT 1"])
        .run(LIMIT)
        .await
        .expect_failure();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_client_of_17_may_begin_with_tls_at_once() {
    let (scratch, _) = with_certificates();
    let cluster = tls(Cluster::of(&[17]), "mode = \"require\"")
        .start_in(scratch)
        .await;
    let psql17 = Program::psql(&template::install(17)).port(cluster.proxy_port);
    let ca = cluster.dir().join("ca.crt").to_string_lossy().into_owned();
    let direct = psql17
        .env("PGSSLMODE", "verify-full")
        .env("PGSSLROOTCERT", &ca)
        .env("PGSSLNEGOTIATION", "direct");
    let ran = direct.args(CONNINFO).run(LIMIT).await.expect_success();
    assert!(
        ran.stdout.contains("TLSv1.3") && ran.stdout.contains("postgresql"),
        "ALPN: {}",
        ran.all()
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_new_certificate_is_taken_on_sighup_and_a_bad_one_is_not() {
    let (scratch, _) = with_certificates();
    let cluster = tls(Cluster::of(&[15]), "mode = \"allow\"")
        .start_in(scratch)
        .await;
    psql(&cluster, "verify-full")
        .args(CONNINFO)
        .run(LIMIT)
        .await
        .expect_success();
    fs::write(cluster.dir().join("server.crt"), "this is no certificate").expect("a file");
    cluster.daemon.signal(Signal::HUP);
    eventually(
        "the daemon says that it keeps the old one",
        LIMIT,
        async || {
            if cluster.daemon.log().contains("the old certificates stay") {
                Ok(())
            } else {
                Err("not yet")
            }
        },
    )
    .await;
    psql(&cluster, "verify-full")
        .args(CONNINFO)
        .run(LIMIT)
        .await
        .expect_success();

    let other = authority("another authority");
    issue(&other, cluster.dir(), "server", "tandem");
    fs::write(cluster.dir().join("other.crt"), other.pem()).expect("a file");
    cluster.daemon.signal(Signal::HUP);
    let by_other = || {
        psql(&cluster, "verify-full").env(
            "PGSSLROOTCERT",
            &cluster.dir().join("other.crt").to_string_lossy(),
        )
    };
    eventually("the new certificate is shown", LIMIT, async || {
        let ran = by_other().args(CONNINFO).run(LIMIT).await;
        if ran.status.success() {
            Ok(())
        } else {
            Err(ran.all())
        }
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_client_certificate_stands_for_the_user_that_it_names() {
    let (scratch, authority) = with_certificates();
    issue(&authority, scratch.path(), "client", "app");
    issue(&authority, scratch.path(), "other", "somebody");
    // A node is not asked for a certificate: the users file says what to log in with there.
    let users = scratch.path().join("users.txt");
    fs::write(&users, "\"app\" \"app\"\n").expect("a users file");
    fs::set_permissions(&users, fs::Permissions::from_mode(0o600)).expect("a mode");
    let builder = tls(
        Cluster::of(&[15]),
        "client_ca = \"ca.crt\"\nmode = \"require\"\n[auth]\nmethod = \"cert\"\nusers_file = \"users.txt\"",
    );
    let cluster = builder.start_in(scratch).await;
    let with = |name: &str| {
        let file = |ending: &str| {
            cluster
                .dir()
                .join(format!("{name}.{ending}"))
                .to_string_lossy()
                .into_owned()
        };
        psql(&cluster, "verify-full")
            .env("PGSSLCERT", &file("crt"))
            .env("PGSSLKEY", &file("key"))
            .args(["-c", "SELECT current_user"])
    };
    let ran = with("client")
        .env("PGPASSWORD", "")
        .run(LIMIT)
        .await
        .expect_success();
    assert_eq!(ran.stdout.trim(), "app");
    with("other").run(LIMIT).await.expect_failure();
    psql(&cluster, "verify-full")
        .args(["-c", "SELECT 1"])
        .run(LIMIT)
        .await
        .expect_failure();
}

#[tokio::test(flavor = "multi_thread")]
async fn host_rules_tell_tls_from_clear_and_ask_for_certificates() {
    let (scratch, authority) = with_certificates();
    issue(&authority, scratch.path(), "client", "app");
    issue(&authority, scratch.path(), "other", "somebody");
    let rules = "client_ca = \"ca.crt\"\nmode = \"allow\"\n[auth]\nhba = [\n\
                 \"hostssl app app 127.0.0.1/32 scram-sha-256 clientcert=verify-full\",\n\
                 \"hostnossl app app 127.0.0.1/32 reject\",\n]";
    let cluster = tls(Cluster::of(&[15]), rules).start_in(scratch).await;
    let with = |name: &str| {
        let file = |ending: &str| {
            let path = cluster.dir().join(format!("{name}.{ending}"));
            path.to_string_lossy().into_owned()
        };
        psql(&cluster, "verify-full")
            .env("PGHOST", "127.0.0.1")
            .env("PGSSLCERT", &file("crt"))
            .env("PGSSLKEY", &file("key"))
            .args(["-c", "SELECT current_user"])
    };
    let ran = with("client").run(LIMIT).await.expect_success();
    assert_eq!(ran.stdout.trim(), "app");
    for (program, wanted) in [
        (
            with("client").env("PGPASSWORD", "wrong"),
            "password authentication failed",
        ),
        (
            with("other"),
            "certificate authentication failed for user \"app\"",
        ),
        (
            with("missing"),
            "connection requires a valid client certificate",
        ),
        (
            psql(&cluster, "disable").args(["-c", "SELECT 1"]),
            "a host rule rejects host \"127.0.0.1\", user \"app\", database \"app\", no encryption",
        ),
    ] {
        let ran = program.run(LIMIT).await.expect_failure();
        assert!(ran.stderr.contains(wanted), "{wanted}: {}", ran.all());
    }
}
