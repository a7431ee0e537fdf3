//! Owns the host rules: who may come in from where, and how they have to prove who they are. Pure.
//!
//! They are PostgreSQL's (manual, "The pg_hba.conf File"): the first rule that matches decides, and where none does the
//! connection is refused. What a rule says that could not be checked here is refused when the rules are read, never
//! left out: a line that is not understood could be the one that keeps somebody away.

mod parse;
#[cfg(test)]
mod tests;

use std::{fmt, net::IpAddr};

use tandem_routing_rules::network::Network;

use crate::config::AuthMethod;

pub use parse::TlsOffer;
pub(crate) use parse::{parse_host_rule, parse_host_rules};

/// The rules, in order.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct HostRules {
    rules: Vec<HostRule>,
}

/// One rule.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HostRule {
    /// Its line in the file, or its place in the list; from 1.
    pub line: usize,
    /// As it was written, without comment.
    pub text: String,
    connection: ConnectionType,
    databases: Vec<DatabaseMatch>,
    users: Vec<UserMatch>,
    addresses: AddressMatch,
    access: Access,
    certificate: Certificate,
}

/// What a rule says of those it matches.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Access {
    /// They are kept away.
    Reject,
    /// They have to prove who they are in this way.
    Prove(AuthMethod),
}

/// Whether a client certificate is wanted beside the method (`clientcert`).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Certificate {
    /// No.
    #[default]
    NotAsked,
    /// Any that `client_ca` has signed.
    Verified,
    /// One whose common name is the user.
    OfUser,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum ConnectionType {
    Local,
    Host,
    HostSsl,
    HostNoSsl,
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum DatabaseMatch {
    All,
    SameUser,
    /// Replication connections, which never come as far as the rules.
    Replication,
    Name(String),
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum UserMatch {
    All,
    Name(String),
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum AddressMatch {
    Any,
    /// An address of this machine.
    SameHost,
    Network(Network),
}

/// What the rules look at. Nothing of it is proven except the addresses.
#[derive(Debug, Clone, Copy)]
pub struct Arrival<'a> {
    /// The user named in the startup packet.
    pub user: &'a str,
    /// The database named there.
    pub database: &'a str,
    /// Where it comes from; `None`: by a unix socket.
    pub address: Option<IpAddr>,
    /// Which of our addresses it came to; `None`: by a unix socket.
    pub local_address: Option<IpAddr>,
    /// Whether the connection is TLS.
    pub tls: bool,
}

impl HostRules {
    /// One method for everybody from everywhere.
    pub fn of_method(method: AuthMethod) -> HostRules {
        let rule = |line, connection, text: &str| HostRule {
            line,
            text: format!("{text} {method}"),
            connection,
            databases: vec![DatabaseMatch::All],
            users: vec![UserMatch::All],
            addresses: AddressMatch::Any,
            access: Access::Prove(method),
            certificate: Certificate::NotAsked,
        };
        HostRules {
            rules: vec![
                rule(1, ConnectionType::Local, "local all all"),
                rule(2, ConnectionType::Host, "host all all all"),
            ],
        }
    }

    /// The rule that decides; `None`: nobody expects this connection.
    pub fn decide(&self, arrival: &Arrival<'_>) -> Option<&HostRule> {
        self.rules.iter().find(|rule| rule.matches(arrival))
    }

    /// The rules, in order.
    pub fn iter(&self) -> std::slice::Iter<'_, HostRule> {
        self.rules.iter()
    }

    /// Whether some rule needs to know a user's secret.
    pub fn need_secrets(&self) -> bool {
        self.rules.iter().any(|rule| match rule.access {
            Access::Prove(method) => method.needs_secret(),
            Access::Reject => false,
        })
    }
}

impl From<Vec<HostRule>> for HostRules {
    fn from(rules: Vec<HostRule>) -> Self {
        HostRules { rules }
    }
}

impl HostRule {
    /// What it says.
    pub fn access(&self) -> Access {
        self.access
    }

    /// Which certificate it asks for beside the method.
    pub fn certificate(&self) -> Certificate {
        self.certificate
    }

    /// Whether it lets anybody who reaches the port in as any user.
    pub fn is_open(&self) -> bool {
        let anywhere = match self.addresses {
            AddressMatch::Any => true,
            AddressMatch::SameHost => false,
            AddressMatch::Network(network) => network.is_everything(),
        };
        anywhere
            && self.connection != ConnectionType::Local
            && self.access == Access::Prove(AuthMethod::Trust)
            && self.certificate == Certificate::NotAsked
    }

    fn matches(&self, arrival: &Arrival<'_>) -> bool {
        self.connection.matches(arrival)
            && self.addresses.matches(arrival)
            && self
                .databases
                .iter()
                .any(|database| database.matches(arrival))
            && self.users.iter().any(|user| user.matches(arrival.user))
    }
}

impl ConnectionType {
    fn matches(self, arrival: &Arrival<'_>) -> bool {
        match self {
            ConnectionType::Local => arrival.address.is_none(),
            ConnectionType::Host => arrival.address.is_some(),
            ConnectionType::HostSsl => arrival.address.is_some() && arrival.tls,
            ConnectionType::HostNoSsl => arrival.address.is_some() && !arrival.tls,
        }
    }
}

impl DatabaseMatch {
    fn matches(&self, arrival: &Arrival<'_>) -> bool {
        match self {
            DatabaseMatch::All => true,
            DatabaseMatch::SameUser => arrival.database == arrival.user,
            DatabaseMatch::Replication => false,
            DatabaseMatch::Name(name) => name == arrival.database,
        }
    }
}

impl UserMatch {
    fn matches(&self, user: &str) -> bool {
        match self {
            UserMatch::All => true,
            UserMatch::Name(name) => name == user,
        }
    }
}

impl AddressMatch {
    fn matches(&self, arrival: &Arrival<'_>) -> bool {
        let Some(address) = arrival.address.map(|address| address.to_canonical()) else {
            // The type has decided that a unix socket fits.
            return true;
        };
        match self {
            AddressMatch::Any => true,
            // Who connects from this machine does so from the address it connects to, or from the loopback network.
            AddressMatch::SameHost => {
                address.is_loopback()
                    || arrival
                        .local_address
                        .is_some_and(|local| local.to_canonical() == address)
            }
            AddressMatch::Network(network) => network.contains(address),
        }
    }
}

impl fmt::Display for Arrival<'_> {
    /// As in PostgreSQL's message `no pg_hba.conf entry for …`.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.address {
            Some(address) => write!(f, "host \"{}\"", address.to_canonical())?,
            None => f.write_str("host \"[local]\"")?,
        }
        write!(
            f,
            ", user \"{}\", database \"{}\"",
            self.user, self.database
        )?;
        match (self.address, self.tls) {
            (None, _) => Ok(()),
            (Some(_), true) => f.write_str(", TLS encryption"),
            (Some(_), false) => f.write_str(", no encryption"),
        }
    }
}
