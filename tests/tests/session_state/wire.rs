//! Owns a plain connection on which each answer of the server is seen as it comes.

use std::{
    io::{self, Read, Write},
    net::TcpStream,
    time::Duration,
};

use tandem_routing_rules::state::Status;

/// How long the server may take for an answer.
const ANSWER_LIMIT: Duration = Duration::from_secs(20);

/// A session of superuser `postgres`, over a blocking socket.
#[derive(Debug)]
pub(crate) struct Connection {
    socket: TcpStream,
    /// The ParameterStatus messages of the login.
    pub(crate) parameters: Vec<(String, String)>,
}

/// All that comes up to ReadyForQuery.
#[derive(Debug, Default)]
pub(crate) struct Answer {
    /// Statements that were completed.
    pub(crate) completed: usize,
    /// The first column of each row; NULL is empty.
    pub(crate) values: Vec<Vec<u8>>,
    /// SQLSTATE and message.
    pub(crate) error: Option<(String, String)>,
    pub(crate) parameters: Vec<(String, String)>,
    pub(crate) status: Option<Status>,
}

impl Connection {
    pub(crate) fn login(port: u16) -> Self {
        let socket = TcpStream::connect(("127.0.0.1", port)).expect("the server listens");
        socket
            .set_read_timeout(Some(ANSWER_LIMIT))
            .expect("a time limit");
        socket.set_nodelay(true).expect("no delay");
        let mut connection = Self {
            socket,
            parameters: Vec::new(),
        };
        let mut startup = 196_608_i32.to_be_bytes().to_vec();
        startup.extend(b"user\0postgres\0database\0app\0\0");
        connection.send(None, &startup);
        let answer = connection.answer().expect("the server answers");
        assert_eq!(answer.error, None);
        connection.parameters = answer.parameters;
        connection
    }

    /// One simple query.
    pub(crate) fn query(&mut self, sql: &[u8]) -> Answer {
        self.try_query(sql).expect("the server answers")
    }

    /// The same where the server may end the connection, or take too long.
    pub(crate) fn try_query(&mut self, sql: &[u8]) -> io::Result<Answer> {
        self.send(Some(b'Q'), &[sql, b"\0"].concat());
        self.answer()
    }

    /// All statements in one pipeline, with one Sync behind the last.
    pub(crate) fn pipeline(&mut self, statements: &[&[u8]]) -> Answer {
        for statement in statements {
            self.send(Some(b'P'), &[b"\0", *statement, b"\0\0\0"].concat());
            self.send(Some(b'B'), b"\0\0\0\0\0\0\0\0");
            self.send(Some(b'E'), b"\0\0\0\0\0");
        }
        self.send(Some(b'S'), b"");
        self.answer().expect("the server answers")
    }

    fn send(&mut self, kind: Option<u8>, body: &[u8]) {
        let length = u32::try_from(body.len() + 4).expect("a short message");
        let mut message: Vec<u8> = kind.into_iter().collect();
        message.extend(length.to_be_bytes());
        message.extend(body);
        self.socket.write_all(&message).expect("the server reads");
    }

    fn answer(&mut self) -> io::Result<Answer> {
        let mut answer = Answer::default();
        while answer.status.is_none() {
            let mut header = [0; 5];
            self.socket.read_exact(&mut header)?;
            let [kind, length @ ..] = header;
            let length = usize::try_from(u32::from_be_bytes(length)).expect("a length");
            let mut body = vec![0; length - 4];
            self.socket.read_exact(&mut body)?;
            if kind == b'G' {
                // A COPY that wants rows.
                self.send(Some(b'f'), b"there are none\0");
            }
            answer.take(kind, &body);
        }
        Ok(answer)
    }
}

impl Answer {
    fn take(&mut self, kind: u8, body: &[u8]) {
        match kind {
            b'C' => self.completed += 1,
            // A row may have no column.
            b'D' if body.len() < 6 => self.values.push(Vec::new()),
            b'D' => {
                let length = i32::from_be_bytes(body[2..6].try_into().expect("four bytes"));
                let length = usize::try_from(length).unwrap_or_default();
                self.values.push(body[6..6 + length].to_vec());
            }
            b'E' => {
                let field = |code: u8| {
                    let mut fields = body.split(|&byte| byte == 0);
                    let found = fields.find(|field| field.first() == Some(&code));
                    String::from_utf8_lossy(found.unwrap_or_default().get(1..).unwrap_or_default())
                        .into_owned()
                };
                self.error = Some((field(b'C'), field(b'M')));
            }
            b'S' => {
                let mut texts = body
                    .split(|&byte| byte == 0)
                    .map(|text| String::from_utf8_lossy(text).into_owned());
                let pair = texts.next().zip(texts.next());
                self.parameters.push(pair.expect("a name and a value"));
            }
            b'Z' => self.status = Status::from_byte(body[0]),
            _ => {}
        }
    }
}
