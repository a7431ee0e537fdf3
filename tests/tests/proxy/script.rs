//! Owns clients that send messages one by one, and see all that comes.

use std::time::Duration;

use bytes::BytesMut;
use tandem_tests::template::{APP, DATABASE};
use tandem_wire::{
    ConnectError, ConnectOptions, Connection, Credentials, Secret, connect,
    encode::frontend as put,
    tls::{ClientTls, SslMode},
};

const LIMIT: Duration = Duration::from_secs(10);

/// One thing a client does.
enum Do {
    /// Sends these bytes at once.
    Send(BytesMut),
    /// Reads until the server has been ready so many times.
    Ready(usize),
    /// Reads until a message of this type has come.
    Until(u8),
}

/// Messages, one behind the other.
#[derive(Default)]
pub(crate) struct Script {
    steps: Vec<Do>,
    open: BytesMut,
}

impl Script {
    pub(crate) fn q(mut self, sql: &str) -> Self {
        put::query(&mut self.open, sql).expect("a message");
        self
    }
    pub(crate) fn p(mut self, name: &str, sql: &str) -> Self {
        put::parse(&mut self.open, name, sql, []).expect("a message");
        self
    }
    pub(crate) fn b(mut self, portal: &str, name: &str, values: &[&str]) -> Self {
        let values = values.iter().map(|value| Some(value.as_bytes()));
        put::bind_text(&mut self.open, portal, name, values).expect("a message");
        self
    }
    pub(crate) fn e(mut self, portal: &str, rows: i32) -> Self {
        put::execute(&mut self.open, portal, rows).expect("a message");
        self
    }
    pub(crate) fn ds(mut self, name: &str) -> Self {
        put::describe_statement(&mut self.open, name).expect("a message");
        self
    }
    pub(crate) fn dp(mut self, name: &str) -> Self {
        put::describe_portal(&mut self.open, name).expect("a message");
        self
    }
    pub(crate) fn cs(mut self, name: &str) -> Self {
        put::close_statement(&mut self.open, name).expect("a message");
        self
    }
    pub(crate) fn cp(mut self, name: &str) -> Self {
        put::close_portal(&mut self.open, name).expect("a message");
        self
    }
    pub(crate) fn s(mut self) -> Self {
        put::sync(&mut self.open);
        self
    }
    pub(crate) fn h(mut self) -> Self {
        put::flush(&mut self.open);
        self
    }
    pub(crate) fn d(mut self, data: &str) -> Self {
        put::copy_data(&mut self.open, data.as_bytes()).expect("a message");
        self
    }
    pub(crate) fn c(mut self) -> Self {
        put::copy_done(&mut self.open);
        self
    }
    pub(crate) fn f(mut self, why: &str) -> Self {
        put::copy_fail(&mut self.open, why).expect("a message");
        self
    }
    /// A function call without arguments.
    pub(crate) fn call(mut self, oid: u32) -> Self {
        self.open.extend_from_slice(b"F\0\0\0\x0e");
        self.open.extend_from_slice(&oid.to_be_bytes());
        self.open.extend_from_slice(&[0, 0, 0, 0, 0, 0]);
        self
    }
    pub(crate) fn send(mut self) -> Self {
        let bytes = std::mem::take(&mut self.open);
        self.steps.push(Do::Send(bytes));
        self
    }
    pub(crate) fn ready(mut self, times: usize) -> Self {
        self = self.send();
        self.steps.push(Do::Ready(times));
        self
    }
    pub(crate) fn until(mut self, tag: u8) -> Self {
        self = self.send();
        self.steps.push(Do::Until(tag));
        self
    }
}

pub(crate) fn script() -> Script {
    Script::default()
}

/// A session with these startup parameters.
pub(crate) async fn open(port: u16, params: &[(&str, &str)]) -> Result<Connection, ConnectError> {
    let owned = |(name, value): &(&str, &str)| ((*name).to_owned(), (*value).to_owned());
    let options = ConnectOptions {
        host: "127.0.0.1".to_owned(),
        port,
        user: APP.to_owned(),
        database: DATABASE.to_owned(),
        credentials: Credentials::Password(Secret::new(APP)),
        tls: ClientTls::new(SslMode::Disable, None).expect("no TLS"),
        params: params.iter().map(owned).collect(),
        connect_timeout: LIMIT,
    };
    connect(&options).await
}

/// Plays a script; answers everything that came, one message a line.
pub(crate) async fn play(connection: &mut Connection, script: &Script) -> String {
    let mut heard = String::new();
    for step in &script.steps {
        let (tag, mut times) = match step {
            Do::Send(bytes) => {
                connection.out().extend_from_slice(bytes);
                connection.flush().await.expect("sent");
                continue;
            }
            Do::Ready(times) => (b'Z', *times),
            Do::Until(tag) => (*tag, 1),
        };
        while times > 0 {
            let frame = match tokio::time::timeout(LIMIT, connection.recv()).await {
                Ok(Ok(frame)) => frame,
                Ok(Err(error)) => return format!("{heard}{error}"),
                Err(_) => return format!("{heard}nothing more came"),
            };
            if frame.tag == tag {
                times -= 1;
            }
            let body = frame.body.escape_ascii().to_string();
            heard.push_str(&format!("{} {body}\n", char::from(frame.tag)));
        }
    }
    heard
}
