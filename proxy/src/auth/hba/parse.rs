//! From the text of a `pg_hba.conf` to rules, or to everything in it that cannot be followed.
//!
//! Words are taken apart as PostgreSQL does it (`next_token` in hba.c): blanks separate fields, commas the entries of a
//! list, `#` begins a comment, double quotes take the meaning from keywords, and a backslash at the end of a line
//! continues it.

use std::net::IpAddr;
use std::ops::Range;

use tandem_routing_rules::{
    document::{Problems, line_and_column},
    network::{Network, NetworkError},
};

use super::{
    Access, AddressMatch, Certificate, ConnectionType, DatabaseMatch, HostRule, HostRules,
    UserMatch,
};
use crate::config::AuthMethod;

/// What `[proxy.tls]` offers to clients.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct TlsOffer {
    /// Clients can use TLS.
    pub enabled: bool,
    /// Client certificates can be verified (`client_ca`).
    pub client_ca: bool,
}

/// One entry of a field.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Token {
    text: String,
    quoted: bool,
    span: Range<usize>,
}

impl Token {
    /// Whether it is this keyword: quotes make a name of it.
    fn is(&self, keyword: &str) -> bool {
        !self.quoted && self.text == keyword
    }
}

/// The entries of a field. Never empty.
type Field = Vec<Token>;

/// A line that says something.
struct Line {
    span: Range<usize>,
    fields: Vec<Field>,
}

/// Reads a whole file.
pub(crate) fn parse_host_rules(text: &str, tls: TlsOffer, problems: &mut Problems) -> HostRules {
    let lines = split(text, problems);
    let rule = |line: Line| {
        let (number, _) = line_and_column(text, line.span.start);
        RuleReader {
            tls,
            problems: &mut *problems,
        }
        .rule(number, text, &line)
    };
    HostRules {
        rules: lines.into_iter().filter_map(rule).collect(),
    }
}

/// Reads one rule, the `place`th of a list; `None` only when there is a problem.
pub(crate) fn parse_host_rule(
    text: &str,
    place: usize,
    tls: TlsOffer,
    problems: &mut Problems,
) -> Option<HostRule> {
    let lines = split(text, problems);
    let mut reader = RuleReader { tls, problems };
    match lines.as_slice() {
        [line] => reader.rule(place, text, line),
        _ => {
            let hint = "such as \"host all all 10.0.0.0/8 scram-sha-256\"";
            reader
                .problems
                .add_with_hint(0..text.len(), "this is not one rule", hint);
            None
        }
    }
}

/// Takes the text apart.
fn split(text: &str, problems: &mut Problems) -> Vec<Line> {
    let mut lines = Vec::new();
    let mut rest = 0;
    while rest < text.len() {
        let mut words = Words {
            text,
            at: rest,
            problems: &mut *problems,
        };
        let fields = words.fields();
        rest = words.at;
        if let (Some(first), Some(last)) = (
            fields.first().and_then(|field| field.first()),
            fields.last().and_then(|field| field.last()),
        ) {
            lines.push(Line {
                span: first.span.start..last.span.end,
                fields,
            });
        }
    }
    lines
}

/// Walks one line.
struct Words<'t, 'p> {
    text: &'t str,
    at: usize,
    problems: &'p mut Problems,
}

impl Words<'_, '_> {
    /// The next character of the line; a continued line goes on.
    fn peek(&mut self) -> Option<char> {
        loop {
            let rest = self.text.get(self.at..).unwrap_or_default();
            let continued = ["\\\n", "\\\r\n"]
                .iter()
                .find(|end| rest.starts_with(**end));
            match continued {
                Some(end) => self.at += end.len(),
                None => return rest.chars().next().filter(|c| *c != '\n'),
            }
        }
    }

    fn take(&mut self) -> Option<char> {
        let c = self.peek()?;
        self.at += c.len_utf8();
        Some(c)
    }

    /// All fields of the line, which is consumed with its end.
    fn fields(&mut self) -> Vec<Field> {
        let mut fields: Vec<Field> = Vec::new();
        let mut list_goes_on = false;
        while let Some((token, comma)) = self.token() {
            match fields.last_mut() {
                Some(field) if list_goes_on => field.push(token),
                _ => fields.push(vec![token]),
            }
            list_goes_on = comma;
        }
        // The comment, and the end of the line.
        while self.take().is_some() {}
        self.at += 1;
        fields
    }

    /// One entry, and whether a comma follows it.
    fn token(&mut self) -> Option<(Token, bool)> {
        while self.peek().is_some_and(|c| c.is_whitespace() || c == ',') {
            self.take();
        }
        if matches!(self.peek(), None | Some('#')) {
            return None;
        }
        let start = self.at;
        let quoted = self.peek() == Some('"');
        let mut text = String::new();
        let (mut in_quotes, mut was_quote) = (false, false);
        let mut comma = false;
        let mut end = self.at;
        while let Some(c) = self.peek() {
            if !in_quotes && (c.is_whitespace() || c == '#') {
                break;
            }
            self.take();
            if !in_quotes && c == ',' {
                comma = true;
                break;
            }
            // A doubled quote inside of quotes stands for itself.
            if c != '"' || was_quote {
                text.push(c);
            }
            was_quote = in_quotes && c == '"' && !was_quote;
            if c == '"' {
                in_quotes = !in_quotes;
            }
            end = self.at;
        }
        if in_quotes {
            self.problems.add_with_hint(
                start..end,
                "a double quote is missing",
                "close the quoted name in the same line",
            );
        }
        let token = Token {
            text,
            quoted,
            span: start..end,
        };
        Some((token, comma))
    }
}

/// Makes rules of lines.
struct RuleReader<'p> {
    tls: TlsOffer,
    problems: &'p mut Problems,
}

impl RuleReader<'_> {
    fn refuse<T>(&mut self, at: &Token, message: impl Into<String>, hint: &str) -> Option<T> {
        self.problems
            .add_with_hint(at.span.clone(), message.into(), hint);
        None
    }

    /// The only entry of a field.
    fn single<'f>(&mut self, field: &'f Field) -> Option<&'f Token> {
        match field.as_slice() {
            [token] => Some(token),
            [_, second, ..] => self.refuse(second, "no list can stand here", "write one value"),
            [] => None,
        }
    }

    fn rule(&mut self, number: usize, text: &str, line: &Line) -> Option<HostRule> {
        let mut fields = line.fields.iter();
        let connection = self.connection(fields.next()?)?;
        let mut next = |what: &str, problems: &mut Problems| {
            let field = fields.next();
            if field.is_none() {
                let hint = match connection {
                    ConnectionType::Local => "write: local DATABASE USER METHOD",
                    _ => "write: host DATABASE USER ADDRESS METHOD",
                };
                problems.add_with_hint(
                    line.span.clone(),
                    format!("the rule ends before its {what}"),
                    hint,
                );
            }
            field
        };
        let databases = next("database", self.problems)?;
        let users = next("user", self.problems)?;
        let address = match connection {
            ConnectionType::Local => None,
            _ => Some(next("address", self.problems)?),
        };
        let mut method = next("method", self.problems)?;
        // All of a line's problems at once.
        let databases = self.databases(databases);
        let users = self.users(users);
        let addresses = match address {
            None => Some(AddressMatch::Any),
            Some(address) => {
                let address = self.single(address)?;
                match bare_address(address) {
                    // `10.0.0.0 255.0.0.0`: the mask has a field of its own.
                    Some(ip) => {
                        let mask = self.single(method)?;
                        let masked = self.masked(ip, mask)?;
                        method = next("method", self.problems)?;
                        Some(masked)
                    }
                    None => self.address(address),
                }
            }
        };
        let method = self.single(method)?;
        let access = self.access(method, connection);
        let mut certificate = Some(Certificate::NotAsked);
        for option in fields.flatten() {
            certificate = self.option(option, connection);
        }
        self.ssl_type(connection, line);
        Some(HostRule {
            line: number,
            text: text.get(line.span.clone()).unwrap_or_default().to_owned(),
            connection,
            databases: databases?,
            users: users?,
            addresses: addresses?,
            access: access?,
            certificate: certificate?,
        })
    }

    fn connection(&mut self, field: &Field) -> Option<ConnectionType> {
        let token = self.single(field)?;
        match token.text.as_str() {
            "local" => Some(ConnectionType::Local),
            // Nobody encrypts by GSSAPI here, so this is everybody.
            "host" | "hostnogssenc" => Some(ConnectionType::Host),
            "hostssl" => Some(ConnectionType::HostSsl),
            "hostnossl" => Some(ConnectionType::HostNoSsl),
            "hostgssenc" => self.refuse(
                token,
                "Tandem does not encrypt by GSSAPI",
                "use hostssl, or take the rule out",
            ),
            "include" | "include_if_exists" | "include_dir" => self.refuse(
                token,
                "other files are not included",
                "copy the rules of that file here",
            ),
            _ => {
                self.problems.add_unknown_word(
                    token.span.clone(),
                    "type of connection",
                    &token.text,
                    &["local", "host", "hostssl", "hostnossl"],
                );
                None
            }
        }
    }

    fn ssl_type(&mut self, connection: ConnectionType, line: &Line) {
        if connection == ConnectionType::HostSsl && !self.tls.enabled {
            let at = line.fields.first().and_then(|field| field.first());
            if let Some(at) = at {
                self.refuse::<()>(
                    at,
                    "hostssl never matches: clients cannot use TLS",
                    "add `[proxy.tls]`, or use host",
                );
            }
        }
    }

    fn databases(&mut self, field: &Field) -> Option<Vec<DatabaseMatch>> {
        let databases: Vec<_> = field.iter().map(|token| self.database(token)).collect();
        databases.into_iter().collect()
    }

    fn database(&mut self, token: &Token) -> Option<DatabaseMatch> {
        if token.is("all") {
            return Some(DatabaseMatch::All);
        }
        if token.is("sameuser") {
            return Some(DatabaseMatch::SameUser);
        }
        if token.is("replication") {
            return Some(DatabaseMatch::Replication);
        }
        if token.is("samerole") || token.is("samegroup") {
            return self.refuse(
                token,
                format!(
                    "`{}` asks for members of a role, which Tandem does not know",
                    token.text
                ),
                "list the databases, or use sameuser",
            );
        }
        self.name(token).map(DatabaseMatch::Name)
    }

    fn users(&mut self, field: &Field) -> Option<Vec<UserMatch>> {
        let users: Vec<_> = field
            .iter()
            .map(|token| {
                if token.is("all") {
                    return Some(UserMatch::All);
                }
                if !token.quoted && token.text.starts_with('+') {
                    return self.refuse(
                        token,
                        format!(
                            "`{}` asks for members of a role, which Tandem does not know",
                            token.text
                        ),
                        "list the users",
                    );
                }
                self.name(token).map(UserMatch::Name)
            })
            .collect();
        users.into_iter().collect()
    }

    fn name(&mut self, token: &Token) -> Option<String> {
        if !token.quoted && token.text.starts_with('@') {
            return self.refuse(
                token,
                "names are not read from another file",
                "write the names here, separated by commas",
            );
        }
        if token.text.starts_with('/') {
            return self.refuse(
                token,
                "regular expressions are not understood",
                "list the names",
            );
        }
        if token.text.is_empty() {
            return self.refuse(token, "a name is empty", "write `all` for every name");
        }
        Some(token.text.clone())
    }

    fn address(&mut self, token: &Token) -> Option<AddressMatch> {
        if token.is("all") {
            return Some(AddressMatch::Any);
        }
        if token.is("samehost") {
            return Some(AddressMatch::SameHost);
        }
        if token.is("samenet") {
            return self.refuse(
                token,
                "`samenet` is not understood",
                "write the network, such as 10.0.0.0/8",
            );
        }
        if !token.text.contains('/') {
            return self.refuse(
                token,
                format!("`{}` is not an address", token.text),
                "write a network such as 10.0.0.0/8 or ::1/128, `all` or `samehost`; names are not looked up",
            );
        }
        match token.text.parse() {
            Ok(network) => Some(AddressMatch::Network(network)),
            Err(error @ NetworkError::Address(_)) => self.refuse(
                token,
                error.to_string(),
                "write a network such as 10.0.0.0/8 or ::1/128",
            ),
            Err(error @ NetworkError::Length(_)) => self.refuse(
                token,
                error.to_string(),
                "an IPv4 prefix has 0 to 32 bits, an IPv6 prefix 0 to 128",
            ),
        }
    }

    fn masked(&mut self, address: IpAddr, mask: &Token) -> Option<AddressMatch> {
        let found = bare_address(mask).and_then(|mask| Network::masked(address, mask));
        match found {
            Some(network) => Some(AddressMatch::Network(network)),
            None => self.refuse(
                mask,
                format!("`{}` is not a mask for the address before it", mask.text),
                "write the network with its length, such as 10.0.0.0/8",
            ),
        }
    }

    fn access(&mut self, token: &Token, connection: ConnectionType) -> Option<Access> {
        let method = match token.text.as_str() {
            "reject" => return Some(Access::Reject),
            "trust" => AuthMethod::Trust,
            "scram-sha-256" => AuthMethod::ScramSha256,
            "md5" => AuthMethod::Md5,
            "cert" => AuthMethod::Cert,
            "password" => {
                return self.refuse(
                    token,
                    "method `password` would have the client send its password as it is",
                    "use scram-sha-256: it works with every password that is stored",
                );
            }
            "peer" | "ident" => {
                return self.refuse(
                    token,
                    format!("method `{}` is not there: Tandem does not ask the client's system who it is", token.text),
                    "use scram-sha-256, or cert over TLS",
                );
            }
            "gss" | "sspi" | "ldap" | "radius" | "pam" | "bsd" | "oauth" => {
                return self.refuse(
                    token,
                    format!("method `{}` is not there", token.text),
                    "use scram-sha-256, or cert over TLS",
                );
            }
            _ => {
                self.problems.add_unknown_word(
                    token.span.clone(),
                    "method",
                    &token.text,
                    &["scram-sha-256", "md5", "cert", "trust", "reject"],
                );
                return None;
            }
        };
        if method == AuthMethod::Cert {
            if connection != ConnectionType::HostSsl {
                return self.refuse(token, "method `cert` needs TLS", "make it a hostssl rule");
            }
            self.client_ca(token)?;
        }
        Some(Access::Prove(method))
    }

    fn client_ca(&mut self, token: &Token) -> Option<()> {
        if self.tls.client_ca {
            return Some(());
        }
        self.refuse(
            token,
            "client certificates cannot be verified",
            "set `client_ca` in `[proxy.tls]`",
        )
    }

    fn option(&mut self, token: &Token, connection: ConnectionType) -> Option<Certificate> {
        let Some(("clientcert", wanted)) = token.text.split_once('=') else {
            let name = token.text.split('=').next().unwrap_or_default();
            return self.refuse(
                token,
                format!("option `{name}` is not understood"),
                "known: clientcert=verify-ca, clientcert=verify-full",
            );
        };
        let certificate = match wanted {
            "verify-ca" => Certificate::Verified,
            "verify-full" => Certificate::OfUser,
            _ => {
                self.problems.add_unknown_word(
                    token.span.clone(),
                    "value of `clientcert`:",
                    wanted,
                    &["verify-ca", "verify-full"],
                );
                return None;
            }
        };
        if connection != ConnectionType::HostSsl {
            return self.refuse(token, "`clientcert` needs TLS", "make it a hostssl rule");
        }
        self.client_ca(token)?;
        Some(certificate)
    }
}

/// An address without the length of a prefix.
fn bare_address(token: &Token) -> Option<IpAddr> {
    token.text.parse().ok()
}
