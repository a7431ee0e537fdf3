//! Addresses to listen on: `127.0.0.1:6432`, `[::1]:6432`, `unix:/dir`, `unix:/dir:6432`.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};

use super::Listen;

/// Longest path of a unix socket (`sun_path` on Linux holds 108 bytes with the final NUL).
const SOCKET_PATH_MAX: usize = 107;

/// Reads an address. A relative directory counts from `base`; a unix socket without a port gets `default_port`.
///
/// # Errors
/// What is wrong and how to mend it.
pub(super) fn parse_listen(
    text: &str,
    base: &Path,
    default_port: u16,
) -> Result<Listen, (String, String)> {
    if let Some(path) = text.strip_prefix("unix:") {
        return parse_unix(path, base, default_port);
    }
    if let Ok(address) = text.parse() {
        return Ok(Listen::Tcp(address));
    }
    let port = text.rsplit_once(':').map_or("6432", |(_, port)| port);
    let hint = match text.rsplit_once(':').map(|(host, _)| host) {
        Some("localhost") => format!("write `127.0.0.1:{port}` or `[::1]:{port}`"),
        Some("*" | "") => format!("write `0.0.0.0:{port}` for IPv4, `[::]:{port}` for IPv6"),
        _ => format!(
            "write an IP address and a port, such as `127.0.0.1:{port}`, or `unix:/directory`"
        ),
    };
    Err((format!("`{text}` is not an address to listen on"), hint))
}

fn parse_unix(path: &str, base: &Path, default_port: u16) -> Result<Listen, (String, String)> {
    let (dir, port) = match path.rsplit_once(':') {
        Some((dir, port)) => match port.parse::<u16>() {
            Ok(port) => (dir, port),
            Err(_) => {
                return Err((
                    format!("`{port}` is not a port"),
                    "write `unix:/directory:6432`".to_owned(),
                ));
            }
        },
        None => (path, default_port),
    };
    if dir.is_empty() {
        return Err((
            "the directory is missing".to_owned(),
            "write `unix:/directory`".to_owned(),
        ));
    }
    let dir: PathBuf = base.join(dir);
    let length = dir.join(format!(".s.PGSQL.{port}")).as_os_str().len();
    if length > SOCKET_PATH_MAX {
        let message = format!("the socket's path would be {length} bytes long");
        return Err((
            message,
            format!("the system allows {SOCKET_PATH_MAX}; choose a shorter directory"),
        ));
    }
    Ok(Listen::Unix { dir, port })
}

/// Whether both cannot be listened on at once. Port 0 means any free one and clashes with nothing.
pub(super) fn clashes(left: &Listen, right: &Listen) -> bool {
    let any_port = matches!(left, Listen::Tcp(address) if address.port() == 0);
    let same_port_everywhere = |one: &SocketAddr, other: &SocketAddr| {
        one.port() == other.port() && one.ip().is_unspecified() && one.is_ipv4() == other.is_ipv4()
    };
    match (left, right) {
        _ if any_port => false,
        (Listen::Tcp(left), Listen::Tcp(right)) => {
            left == right || same_port_everywhere(left, right) || same_port_everywhere(right, left)
        }
        _ => left == right,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parsed(text: &str) -> Result<Listen, (String, String)> {
        parse_listen(text, Path::new("/etc/tandem"), 6_432)
    }

    #[test]
    fn tcp_and_unix_addresses_are_read() {
        assert_eq!(
            parsed("127.0.0.1:6432"),
            Ok(Listen::Tcp("127.0.0.1:6432".parse().unwrap()))
        );
        assert_eq!(
            parsed("[::1]:7"),
            Ok(Listen::Tcp("[::1]:7".parse().unwrap()))
        );
        assert_eq!(
            parsed("unix:/run/t"),
            Ok(Listen::Unix {
                dir: "/run/t".into(),
                port: 6_432
            })
        );
        assert_eq!(
            parsed("unix:run:7000"),
            Ok(Listen::Unix {
                dir: "/etc/tandem/run".into(),
                port: 7_000
            })
        );
    }

    #[test]
    fn what_is_no_address_says_what_would_be() {
        assert!(
            parsed("localhost:6432")
                .unwrap_err()
                .1
                .contains("`127.0.0.1:6432`")
        );
        assert!(parsed("*:9000").unwrap_err().1.contains("`0.0.0.0:9000`"));
        assert!(parsed(":9000").unwrap_err().1.contains("`[::]:9000`"));
        assert!(
            parsed("6432")
                .unwrap_err()
                .1
                .contains("IP address and a port")
        );
        assert!(parsed("unix:").unwrap_err().0.contains("directory"));
        assert!(
            parsed("unix:/a:b")
                .unwrap_err()
                .0
                .contains("`b` is not a port")
        );
        assert!(
            parsed(&format!("unix:/{}", "d".repeat(120)))
                .unwrap_err()
                .1
                .contains("107")
        );
    }

    #[test]
    fn addresses_clash_when_one_covers_the_other() {
        let clash =
            |left: &str, right: &str| clashes(&parsed(left).unwrap(), &parsed(right).unwrap());
        assert!(clash("127.0.0.1:1", "127.0.0.1:1"));
        assert!(clash("0.0.0.0:1", "127.0.0.1:1"));
        assert!(clash("unix:/a:1", "unix:/a:1"));
        assert!(!clash("127.0.0.1:1", "127.0.0.1:2"));
        assert!(!clash("127.0.0.1:0", "127.0.0.1:0"));
        assert!(!clash("unix:/a:1", "unix:/a:2"));
        assert!(!clash("[::]:1", "127.0.0.1:1"));
    }
}
