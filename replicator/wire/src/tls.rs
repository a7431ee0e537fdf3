//! TLS on both sides, by rustls: our certificate with reload, and how we check a server's.

use std::fmt;
use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::sync::Arc;

use rustls::client::Resumption;
use rustls::crypto::{CryptoProvider, aws_lc_rs};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use rustls::server::{NoServerSessionStorage, WebPkiClientVerifier};
use rustls::{ClientConfig, RootCertStore, ServerConfig};
use tokio::net::TcpStream;
use tokio_rustls::{TlsAcceptor, TlsConnector};

pub(crate) mod certificate;
mod verifier;

use verifier::{Check, ServerCertificateVerifier};

/// The ALPN name of PostgreSQL's protocol (manual, "SSL Session Encryption"; registered with IANA).
pub const ALPN: &[u8] = b"postgresql";

/// Makes aws-lc-rs the process-wide crypto provider of rustls. May be called often; the first caller wins. This crate
/// itself does not depend on it.
pub fn install_crypto_provider() {
    // An error says that one is installed already, which is what we want.
    let _ = aws_lc_rs::default_provider().install_default();
}

fn provider() -> Arc<CryptoProvider> {
    Arc::new(aws_lc_rs::default_provider())
}

/// What is wrong with a TLS configuration or handshake.
#[derive(Debug, thiserror::Error)]
pub enum TlsError {
    /// A PEM file cannot be read.
    #[error("cannot read {what} from {}: {source}", path.display())]
    Pem {
        /// What the file should hold.
        what: &'static str,
        /// The file.
        path: PathBuf,
        /// Why not.
        source: rustls::pki_types::pem::Error,
    },
    /// A file holds no certificate.
    #[error("{} holds no certificate", .0.display())]
    NoCertificate(PathBuf),
    /// `verify-ca` and `verify-full` need certificates to trust.
    #[error(
        "sslmode {0} needs a root certificate: set sslrootcert to a file with the certificate of the authority"
    )]
    RootCertMissing(SslMode),
    /// rustls refused: key and certificate do not match, a handshake failed, a certificate is not trusted.
    #[error("{context}: {source}")]
    Rustls {
        /// What was being done.
        context: String,
        /// Why it failed.
        source: rustls::Error,
    },
    /// The certificates of the client authority cannot be used.
    #[error("cannot use the client certificate authority in {}: {reason}", path.display())]
    ClientCa {
        /// The file.
        path: PathBuf,
        /// Why not.
        reason: String,
    },
    /// The handshake failed below or inside TLS.
    #[error("TLS handshake failed: {0}")]
    Handshake(#[source] std::io::Error),
    /// The server does not speak TLS but the mode demands it.
    #[error("the server does not support TLS, but sslmode is {0}")]
    NotSupported(SslMode),
    /// The server answered the TLS request with something else than yes or no.
    #[error("the server answered the TLS request with byte {0:#04x}")]
    UnexpectedAnswer(u8),
    /// Bytes came in clear where only TLS may come. They could be an attacker's (CVE-2021-23222) and are never used.
    #[error("the server sent bytes in clear before the TLS handshake")]
    DataBeforeTls,
    /// The name of the server cannot stand in a certificate.
    #[error("{0:?} is no host name that a certificate could be checked for")]
    ServerName(String),
}

fn rustls_error(context: impl Into<String>) -> impl FnOnce(rustls::Error) -> TlsError {
    |source| TlsError::Rustls {
        context: context.into(),
        source,
    }
}

/// Whether clients may or must use TLS.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum ClientTlsMode {
    /// No TLS: clients that ask are told so.
    Disable,
    /// The client decides.
    #[default]
    Allow,
    /// TCP clients without TLS are refused.
    Require,
}

impl FromStr for ClientTlsMode {
    type Err = UnknownMode;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        match text {
            "disable" => Ok(Self::Disable),
            "allow" => Ok(Self::Allow),
            "require" => Ok(Self::Require),
            _ => Err(UnknownMode {
                text: text.to_owned(),
                known: "disable, allow, require",
            }),
        }
    }
}

/// A word that is no TLS mode.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("unknown TLS mode {text:?}: expected one of {known}")]
pub struct UnknownMode {
    text: String,
    known: &'static str,
}

/// How we use TLS towards a server; the words are libpq's `sslmode`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum SslMode {
    /// Never.
    Disable,
    /// Where the server offers it. A handshake that fails is an error, there is no second try in clear.
    #[default]
    Prefer,
    /// Always; the certificate is checked only where a root certificate is given (as libpq does).
    Require,
    /// Always, and the certificate must come from the authority.
    VerifyCa,
    /// Always, from the authority, and for the host name.
    VerifyFull,
}

impl FromStr for SslMode {
    type Err = UnknownMode;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        match text {
            "disable" => Ok(Self::Disable),
            "prefer" => Ok(Self::Prefer),
            "require" => Ok(Self::Require),
            "verify-ca" => Ok(Self::VerifyCa),
            "verify-full" => Ok(Self::VerifyFull),
            _ => Err(UnknownMode {
                text: text.to_owned(),
                known: "disable, prefer, require, verify-ca, verify-full",
            }),
        }
    }
}

impl fmt::Display for SslMode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Disable => "disable",
            Self::Prefer => "prefer",
            Self::Require => "require",
            Self::VerifyCa => "verify-ca",
            Self::VerifyFull => "verify-full",
        })
    }
}

/// Our side of TLS towards clients: certificate, key, and optionally the authority of client certificates.
#[derive(Clone)]
pub struct ServerTls {
    config: Arc<ServerConfig>,
    endpoint_binding: Option<Vec<u8>>,
}

impl fmt::Debug for ServerTls {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ServerTls").finish_non_exhaustive()
    }
}

/// A client's TLS connection and the channel binding of the certificate it was shown.
pub(crate) struct ServerHandshake {
    pub(crate) tls: tokio_rustls::server::TlsStream<TcpStream>,
    pub(crate) endpoint_binding: Option<Vec<u8>>,
}

impl ServerTls {
    /// Reads the PEM files and checks that key and certificate belong together. With `client_ca` clients may show a
    /// certificate; one that this authority did not sign ends the handshake. Whether one is demanded is decided by
    /// the caller from [`crate::startup::TlsInfo`].
    ///
    /// # Errors
    /// [`TlsError`] when a file cannot be read or used.
    pub fn load(cert: &Path, key: &Path, client_ca: Option<&Path>) -> Result<Self, TlsError> {
        let chain = read_certificates(cert)?;
        let endpoint_binding = chain
            .first()
            .and_then(|leaf| certificate::endpoint_binding(leaf));
        let private = PrivateKeyDer::from_pem_file(key).map_err(|source| TlsError::Pem {
            what: "a private key",
            path: key.to_owned(),
            source,
        })?;
        let builder = ServerConfig::builder_with_provider(provider())
            .with_safe_default_protocol_versions()
            .map_err(rustls_error("TLS versions"))?;
        let builder = match client_ca {
            None => builder.with_no_client_auth(),
            Some(path) => {
                let roots = root_store(path, &read_certificates(path)?)?;
                let verifier =
                    WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider())
                        .allow_unauthenticated()
                        .build()
                        .map_err(|error| TlsError::ClientCa {
                            path: path.to_owned(),
                            reason: error.to_string(),
                        })?;
                builder.with_client_cert_verifier(verifier)
            }
        };
        let mut config = builder
            .with_single_cert(chain, private)
            .map_err(rustls_error(format!(
                "cannot use certificate {} with key {}",
                cert.display(),
                key.display()
            )))?;
        config.alpn_protocols = vec![ALPN.to_vec()];
        // As PostgreSQL: no resumption, so that every session is checked against the certificates in use now.
        config.session_storage = Arc::new(NoServerSessionStorage {});
        config.send_tls13_tickets = 0;
        Ok(Self {
            config: Arc::new(config),
            endpoint_binding,
        })
    }

    /// The `tls-server-end-point` channel binding (RFC 5929) of the certificate: its hash. `None` where the
    /// certificate's signature has no single hash (Ed25519).
    pub fn endpoint_binding(&self) -> Option<&[u8]> {
        self.endpoint_binding.as_deref()
    }

    pub(crate) async fn accept(&self, tcp: TcpStream) -> Result<ServerHandshake, TlsError> {
        let tls = TlsAcceptor::from(Arc::clone(&self.config))
            .accept(tcp)
            .await
            .map_err(TlsError::Handshake)?;
        Ok(ServerHandshake {
            tls,
            endpoint_binding: self.endpoint_binding.clone(),
        })
    }
}

fn read_certificates(path: &Path) -> Result<Vec<CertificateDer<'static>>, TlsError> {
    let pem_error = |source| TlsError::Pem {
        what: "certificates",
        path: path.to_owned(),
        source,
    };
    let certificates = CertificateDer::pem_file_iter(path)
        .map_err(pem_error)?
        .collect::<Result<Vec<_>, _>>()
        .map_err(pem_error)?;
    if certificates.is_empty() {
        return Err(TlsError::NoCertificate(path.to_owned()));
    }
    Ok(certificates)
}

fn root_store(
    path: &Path,
    certificates: &[CertificateDer<'static>],
) -> Result<RootCertStore, TlsError> {
    let mut roots = RootCertStore::empty();
    for certificate in certificates {
        roots
            .add(certificate.clone())
            .map_err(rustls_error(format!(
                "cannot trust a certificate in {}",
                path.display()
            )))?;
    }
    Ok(roots)
}

/// Our side of TLS towards a server. A clone shares the configuration.
#[derive(Clone)]
pub struct ClientTls {
    mode: SslMode,
    config: Option<Arc<ClientConfig>>,
}

impl fmt::Debug for ClientTls {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ClientTls")
            .field("mode", &self.mode)
            .finish_non_exhaustive()
    }
}

impl ClientTls {
    /// Builds the configuration once. `root_cert` is a PEM file with the certificates to trust. Given with `prefer`
    /// or `require` the certificate is checked as with `verify-ca`, which is what libpq does.
    ///
    /// # Errors
    /// [`TlsError`] when the file is missing though the mode needs it, or cannot be used.
    pub fn new(mode: SslMode, root_cert: Option<&Path>) -> Result<Self, TlsError> {
        if mode == SslMode::Disable {
            return Ok(Self::disabled());
        }
        let check = match (mode, root_cert) {
            (SslMode::VerifyCa | SslMode::VerifyFull, None) => {
                return Err(TlsError::RootCertMissing(mode));
            }
            (_, None) => Check::Nothing,
            (_, Some(path)) => {
                let trusted = read_certificates(path)?;
                Check::Chain {
                    roots: root_store(path, &trusted)?,
                    trusted,
                    name: mode == SslMode::VerifyFull,
                }
            }
        };
        let provider = provider();
        let verifier =
            ServerCertificateVerifier::new(check, provider.signature_verification_algorithms);
        let mut config = ClientConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .map_err(rustls_error("TLS versions"))?
            .dangerous()
            .with_custom_certificate_verifier(Arc::new(verifier))
            .with_no_client_auth();
        config.alpn_protocols = vec![ALPN.to_vec()];
        config.resumption = Resumption::disabled();
        Ok(Self {
            mode,
            config: Some(Arc::new(config)),
        })
    }

    /// No TLS.
    pub fn disabled() -> Self {
        Self {
            mode: SslMode::Disable,
            config: None,
        }
    }

    /// The mode.
    pub fn mode(&self) -> SslMode {
        self.mode
    }

    pub(crate) fn config(&self) -> Option<&Arc<ClientConfig>> {
        self.config.as_ref()
    }

    pub(crate) async fn connect(
        &self,
        config: &Arc<ClientConfig>,
        host: &str,
        tcp: TcpStream,
    ) -> Result<tokio_rustls::client::TlsStream<TcpStream>, TlsError> {
        let name = match ServerName::try_from(host.to_owned()) {
            Ok(name) => name,
            Err(_) if self.mode == SslMode::VerifyFull => {
                return Err(TlsError::ServerName(host.to_owned()));
            }
            // The name is not checked; an address keeps it out of the handshake.
            Err(_) => {
                ServerName::IpAddress(tcp.peer_addr().map_err(TlsError::Handshake)?.ip().into())
            }
        };
        TlsConnector::from(Arc::clone(config))
            .connect(name, tcp)
            .await
            .map_err(TlsError::Handshake)
    }
}

#[cfg(test)]
mod tests;
