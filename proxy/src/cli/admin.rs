//! The command line's side of the admin HTTP port.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::time::Duration;
use std::{fs, io};

use http_body_util::{BodyExt, Full, Limited};
use hyper::body::{Bytes, Incoming};
use hyper::client::conn::http1;
use hyper::header::{AUTHORIZATION, CONTENT_TYPE, HOST, HeaderValue};
use hyper::{Method, Request, Response, StatusCode};
use hyper_util::rt::TokioIo;
use serde::Serialize;
use tokio::net::TcpStream;
use tokio::time::timeout;

use super::args::DaemonArguments;
use super::find_config;
use crate::config::{AdminConfig, ConfigError};

/// Bound on connecting to the daemon.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
/// Largest answer that is read.
const ANSWER_BYTES_MAX: usize = 16 << 20;

/// Why the daemon gave no answer.
#[derive(Debug, thiserror::Error, miette::Diagnostic)]
pub(super) enum AdminError {
    #[error(transparent)]
    #[diagnostic(transparent)]
    Config(#[from] ConfigError),
    #[error("cannot read the admin token `{}`: {source}", path.display())]
    #[diagnostic(help(
        "the daemon writes it when it starts; run as the same user, or name the file with --token-file"
    ))]
    TokenFile {
        path: PathBuf,
        #[source]
        source: io::Error,
    },
    #[error("the admin token in `{}` is not one line of plain text", path.display())]
    TokenText { path: PathBuf },
    #[error("no daemon answers at {address}: {source}")]
    #[diagnostic(help("is it running? `tandem run` or `tandem dev` starts it"))]
    Connect {
        address: String,
        #[source]
        source: io::Error,
    },
    #[error("the daemon at {address} did not answer within {} s", after.as_secs())]
    Timeout { address: String, after: Duration },
    #[error("the daemon at {address} broke off: {reason}")]
    Broken { address: String, reason: String },
    #[error("the daemon at {address} refused the token")]
    #[diagnostic(help(
        "the token file belongs to another daemon, or is older than the daemon's own"
    ))]
    Refused { address: String },
    #[error("the daemon at {address} answered {status}: {body}")]
    Unexpected {
        address: String,
        status: StatusCode,
        body: String,
    },
}

/// A daemon's admin port and the right to use it.
pub(super) struct AdminPort {
    address: String,
    authorization: HeaderValue,
}

/// What came back.
pub(super) struct Answer {
    pub(super) status: StatusCode,
    pub(super) body: Bytes,
}

impl AdminPort {
    /// The port that the command line or the configuration names.
    pub(super) fn find(arguments: &DaemonArguments) -> Result<Self, AdminError> {
        match (&arguments.admin, &arguments.token_file) {
            (Some(address), Some(token_file)) => Self::new(address.clone(), token_file),
            _ => Self::of(&AdminConfig::load(&find_config(&arguments.config.config))?),
        }
    }

    /// The port that a configuration has.
    pub(super) fn of(config: &AdminConfig) -> Result<Self, AdminError> {
        Self::new(reachable(config.listen).to_string(), &config.token_file)
    }

    fn new(address: String, token_file: &Path) -> Result<Self, AdminError> {
        let token = fs::read_to_string(token_file).map_err(|source| AdminError::TokenFile {
            path: token_file.to_owned(),
            source,
        })?;
        let mut authorization =
            HeaderValue::try_from(format!("Bearer {}", token.trim())).map_err(|_| {
                AdminError::TokenText {
                    path: token_file.to_owned(),
                }
            })?;
        authorization.set_sensitive(true);
        Ok(Self {
            address,
            authorization,
        })
    }

    /// Sends a request without a body and reads the whole answer. `within` bounds everything behind connecting.
    ///
    /// # Errors
    /// Also when the token is refused.
    pub(super) async fn ask(
        &self,
        method: Method,
        path: &str,
        within: Duration,
    ) -> Result<Answer, AdminError> {
        self.send(method, path, None, within).await
    }

    /// Posts a JSON document and reads the whole answer.
    ///
    /// # Errors
    /// Also when the token is refused.
    pub(super) async fn tell(
        &self,
        path: &str,
        body: &impl Serialize,
        within: Duration,
    ) -> Result<Answer, AdminError> {
        let body = serde_json::to_string(body).map_err(|error| self.broken(&error))?;
        self.send(Method::POST, path, Some(body), within).await
    }

    async fn send(
        &self,
        method: Method,
        path: &str,
        body: Option<String>,
        within: Duration,
    ) -> Result<Answer, AdminError> {
        let stream = self.connect().await?;
        let request = self.request(method, path, body)?;
        match timeout(within, self.exchange(stream, request, read_whole)).await {
            Ok(answer) => answer,
            Err(_) => Err(self.late(within)),
        }
    }

    /// Posts a JSON document and hands each line of the answer to `line`, as it comes; no pause is longer than `pause`.
    /// The answer that comes back has no body where the status is 200.
    ///
    /// # Errors
    /// Also when the token is refused. What `line` fails with is the inner error.
    pub(super) async fn ask_lines<E>(
        &self,
        path: &str,
        body: String,
        pause: Duration,
        line: impl FnMut(&[u8]) -> Result<(), E>,
    ) -> Result<Result<Answer, E>, AdminError> {
        let stream = self.connect().await?;
        let request = self.request(Method::POST, path, Some(body))?;
        let read = async |response| read_lines(response, pause, line).await;
        match self.exchange(stream, request, read).await? {
            Some(answer) => Ok(answer),
            None => Err(self.late(pause)),
        }
    }

    async fn connect(&self) -> Result<TcpStream, AdminError> {
        match timeout(CONNECT_TIMEOUT, TcpStream::connect(&self.address)).await {
            Ok(Ok(stream)) => Ok(stream),
            Ok(Err(source)) => Err(AdminError::Connect {
                address: self.address.clone(),
                source,
            }),
            Err(_) => Err(self.late(CONNECT_TIMEOUT)),
        }
    }

    /// Says that an answer is none that this command knows.
    pub(super) fn unexpected(&self, answer: &Answer) -> AdminError {
        let body: String = String::from_utf8_lossy(&answer.body)
            .chars()
            .take(500)
            .collect();
        let body = body.escape_debug().to_string();
        AdminError::Unexpected {
            address: self.address.clone(),
            status: answer.status,
            body,
        }
    }

    fn request(
        &self,
        method: Method,
        path: &str,
        json: Option<String>,
    ) -> Result<Request<Full<Bytes>>, AdminError> {
        let mut request = Request::builder()
            .method(method)
            .uri(path)
            .header(HOST, &self.address)
            .header(AUTHORIZATION, &self.authorization);
        if json.is_some() {
            request = request.header(CONTENT_TYPE, "application/json");
        }
        let body = Full::new(Bytes::from(json.unwrap_or_default()));
        request.body(body).map_err(|error| self.broken(&error))
    }

    /// Sends the only request of a connection, and gives up the connection with the answer read.
    async fn exchange<T>(
        &self,
        stream: TcpStream,
        request: Request<Full<Bytes>>,
        read: impl AsyncFnOnce(Response<Incoming>) -> Result<T, ReadError>,
    ) -> Result<T, AdminError> {
        let (mut sender, connection) = http1::handshake(TokioIo::new(stream))
            .await
            .map_err(|error| self.broken(&error))?;
        let talk = async move {
            let response = sender.send_request(request).await?;
            if response.status() == StatusCode::UNAUTHORIZED {
                return Ok(None);
            }
            Ok::<_, ReadError>(Some(read(response).await?))
        };
        // The connection ends when the sender is gone; its own error, if any, is the sender's as well.
        let (answer, _) = tokio::join!(talk, connection);
        match answer {
            Ok(Some(answer)) => Ok(answer),
            Ok(None) => Err(AdminError::Refused {
                address: self.address.clone(),
            }),
            Err(error) => Err(self.broken(&error)),
        }
    }

    fn broken(&self, reason: &impl ToString) -> AdminError {
        AdminError::Broken {
            address: self.address.clone(),
            reason: reason.to_string(),
        }
    }

    fn late(&self, after: Duration) -> AdminError {
        AdminError::Timeout {
            address: self.address.clone(),
            after,
        }
    }
}

/// What can go wrong while an answer is read.
type ReadError = Box<dyn std::error::Error + Send + Sync>;

async fn read_whole(response: Response<Incoming>) -> Result<Answer, ReadError> {
    let status = response.status();
    let body = Limited::new(response.into_body(), ANSWER_BYTES_MAX)
        .collect()
        .await?
        .to_bytes();
    Ok(Answer { status, body })
}

/// `None` after a pause that was too long.
async fn read_lines<E>(
    response: Response<Incoming>,
    pause: Duration,
    mut line: impl FnMut(&[u8]) -> Result<(), E>,
) -> Result<Option<Result<Answer, E>>, ReadError> {
    let status = response.status();
    if status != StatusCode::OK {
        return Ok(Some(Ok(read_whole(response).await?)));
    }
    let mut body = response.into_body();
    let mut rest = Vec::new();
    loop {
        let frame = match timeout(pause, body.frame()).await {
            Ok(frame) => frame,
            Err(_) => return Ok(None),
        };
        let Some(frame) = frame else { break };
        let Ok(data) = frame?.into_data() else {
            continue;
        };
        rest.extend_from_slice(&data);
        while let Some(end) = rest.iter().position(|&byte| byte == b'\n') {
            let whole: Vec<u8> = rest.drain(..=end).collect();
            if let Err(error) = line(whole.strip_suffix(b"\n").unwrap_or(&whole)) {
                return Ok(Some(Err(error)));
            }
        }
    }
    let body = Bytes::new();
    Ok(Some(Ok(Answer { status, body })))
}

/// Where to connect to reach a listening address: one that means every interface is reached over loopback.
fn reachable(listen: SocketAddr) -> SocketAddr {
    let ip = match listen.ip() {
        IpAddr::V4(ip) if ip.is_unspecified() => Ipv4Addr::LOCALHOST.into(),
        IpAddr::V6(ip) if ip.is_unspecified() => Ipv6Addr::LOCALHOST.into(),
        ip => ip,
    };
    SocketAddr::new(ip, listen.port())
}

#[cfg(test)]
mod tests {
    use std::io::{Read, Write};
    use std::net::TcpListener;
    use std::thread::JoinHandle;

    use super::*;

    /// Answers one connection with `answer`, and gives back what was asked.
    fn serve(answer: &'static str) -> (String, JoinHandle<String>) {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap().to_string();
        let server = std::thread::spawn(move || {
            let (mut stream, _) = listener.accept().unwrap();
            let mut asked = Vec::new();
            while !asked.ends_with(b"\r\n\r\n") {
                let mut byte = [0];
                stream.read_exact(&mut byte).unwrap();
                asked.extend(byte);
            }
            stream.write_all(answer.as_bytes()).unwrap();
            String::from_utf8(asked).unwrap()
        });
        (address, server)
    }

    fn port(address: String) -> AdminPort {
        let file = tempfile::NamedTempFile::new().unwrap();
        fs::write(file.path(), "s3cret\n").unwrap();
        AdminPort::new(address, file.path()).unwrap()
    }

    async fn ask(answer: &'static str) -> (Result<Answer, AdminError>, String) {
        let (address, server) = serve(answer);
        let answer = port(address)
            .ask(Method::GET, "/api/status", Duration::from_secs(5))
            .await;
        (answer, server.join().unwrap())
    }

    #[tokio::test]
    async fn the_token_travels_as_a_bearer_and_the_body_comes_back() {
        let (answer, asked) = ask("HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n{}").await;
        let answer = answer.unwrap();
        assert_eq!(
            (answer.status, answer.body.as_ref()),
            (StatusCode::OK, b"{}".as_slice())
        );
        assert!(asked.starts_with("GET /api/status HTTP/1.1\r\n"), "{asked}");
        assert!(
            asked.contains("authorization: Bearer s3cret\r\n"),
            "{asked}"
        );
    }

    #[tokio::test]
    async fn a_refused_token_a_broken_answer_and_a_closed_port_are_told_apart() {
        let (refused, _) = ask("HTTP/1.1 401 Unauthorized\r\nContent-Length: 0\r\n\r\n").await;
        assert!(matches!(refused, Err(AdminError::Refused { .. })));
        let (broken, _) = ask("HTTP/1.1 200 OK\r\nContent-Length: 20\r\n\r\nshort").await;
        assert!(matches!(broken, Err(AdminError::Broken { .. })));
        let closed = TcpListener::bind("127.0.0.1:0")
            .unwrap()
            .local_addr()
            .unwrap()
            .to_string();
        let nobody = port(closed)
            .ask(Method::GET, "/", Duration::from_secs(5))
            .await;
        assert!(matches!(nobody, Err(AdminError::Connect { .. })));
    }

    #[tokio::test]
    async fn a_daemon_that_says_nothing_is_left_after_the_time() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap().to_string();
        let late = port(address)
            .ask(Method::GET, "/", Duration::from_millis(20))
            .await;
        assert!(matches!(late, Err(AdminError::Timeout { .. })));
    }

    #[tokio::test]
    async fn lines_come_one_by_one_however_they_are_cut() {
        let (address, server) = serve(
            "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3\r\n{}\n\r\n3\r\n{\"a\r\n4\r\n\":1}\r\n1\r\n\n\r\n0\r\n\r\n",
        );
        let mut lines = Vec::new();
        let line = |line: &[u8]| {
            lines.push(String::from_utf8_lossy(line).into_owned());
            Ok::<(), ()>(())
        };
        let answer = port(address)
            .ask_lines("/api/diff", String::new(), Duration::from_secs(5), line)
            .await;
        assert!(matches!(
            answer,
            Ok(Ok(Answer {
                status: StatusCode::OK,
                ..
            }))
        ));
        assert_eq!(lines, ["{}", r#"{"a":1}"#]);
        assert!(
            server
                .join()
                .unwrap()
                .contains("content-type: application/json\r\n")
        );
    }

    #[test]
    fn an_address_that_means_every_interface_is_reached_over_loopback() {
        let reached = |text: &str| reachable(text.parse().unwrap()).to_string();
        assert_eq!(reached("0.0.0.0:7"), "127.0.0.1:7");
        assert_eq!(reached("[::]:7"), "[::1]:7");
        assert_eq!(reached("10.0.0.1:7"), "10.0.0.1:7");
    }

    #[test]
    fn a_missing_token_file_is_named() {
        let missing = AdminPort::new("127.0.0.1:1".to_owned(), Path::new("/no/such/token"));
        assert!(matches!(missing, Err(AdminError::TokenFile { .. })));
    }
}
