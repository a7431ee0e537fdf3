//! Owns the console's language: from a text to statements, and who may give which. Pure.
//!
//! Verbs are PgBouncer's where it has them (its manual, "Admin console"), and those of Tandem's command line.

use tandem_replicator::operator::{Assignment, ConflictFilter, ItemId};
use tandem_routing_rules::nearest;
use tandem_wire::ErrorReport;

use super::lexer::{Token, statements};

/// What a statement needs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Right {
    /// To look at figures and settings: nobody's rows, no secrets.
    Look,
    /// To change something, or to see rows of tables.
    Operate,
}

impl Right {
    /// The key in `[admin]` that gives it.
    pub(super) fn key(self) -> &'static str {
        match self {
            Right::Look => "readers",
            Right::Operate => "users",
        }
    }
}

/// A statement of the console.
#[derive(Debug, Clone, PartialEq)]
pub(super) enum Statement {
    Help,
    Show(Show),
    /// A setting of the client's that means nothing here.
    Set,
    Reload,
    Shutdown(ShutdownMode),
    /// Gives no servers of a database, or of any.
    Pause {
        database: Option<String>,
    },
    /// Gives them again, or takes a node back into service.
    Resume {
        database: Option<String>,
    },
    /// Takes a node out of service.
    Drain {
        node: String,
    },
    /// Has new connections to a database made, or to all.
    Reconnect {
        database: Option<String>,
    },
    /// Ends the sessions of a database, or all.
    Kill {
        database: Option<String>,
    },
    /// Ends the session with this process number.
    KillClient(i32),
    Quarantine(Quarantine),
    Reapply {
        id: ItemId,
        force: bool,
    },
    /// PgBouncer's, and not there.
    Missing(&'static str),
}

/// What is shown.
#[derive(Debug, Clone, PartialEq)]
pub(super) enum Show {
    Version,
    Config,
    Databases,
    Lists,
    Users,
    State,
    Pools,
    Clients,
    Servers,
    Stats,
    Latency,
    Nodes,
    Lag,
    Rules,
    HostRules,
    Recovery,
    /// Of the last recovery of a node, or of each.
    RecoveryRows {
        node: Option<String>,
    },
    ConflictSummary(ConflictFilter),
    Conflicts(ConflictFilter),
    Route(Route),
}

/// How to end the daemon.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum ShutdownMode {
    Now,
    WaitForServers,
}

/// What is done about transactions that a node refuses.
#[derive(Debug, Clone, PartialEq)]
pub(super) enum Quarantine {
    List {
        node: Option<String>,
    },
    Show(ItemId),
    Retry(Option<ItemId>),
    Skip(ItemId),
    Edit {
        id: ItemId,
        assignments: Vec<Assignment>,
    },
}

/// Whose way is asked for.
#[derive(Debug, Clone, PartialEq, Default)]
pub(super) struct Route {
    pub(super) sql: String,
    pub(super) user: Option<String>,
    pub(super) database: Option<String>,
    pub(super) application_name: Option<String>,
    pub(super) key: Option<String>,
}

/// One line of HELP.
pub(super) struct Verb {
    pub(super) syntax: &'static str,
    pub(super) right: Right,
    pub(super) does: &'static str,
}

const fn look(syntax: &'static str, does: &'static str) -> Verb {
    Verb {
        syntax,
        right: Right::Look,
        does,
    }
}

const fn operate(syntax: &'static str, does: &'static str) -> Verb {
    Verb {
        syntax,
        right: Right::Operate,
        does,
    }
}

/// All that the console does.
pub(super) const VERBS: &[Verb] = &[
    look("HELP", "this list"),
    look("SHOW VERSION", "Tandem's version"),
    look("SHOW STATE", "whether sessions are taken"),
    look("SHOW CONFIG", "settings, without secrets"),
    look("SHOW DATABASES", "the databases and where they are"),
    look(
        "SHOW USERS",
        "users that Tandem knows by name, and what they may do here",
    ),
    look("SHOW LISTS", "how many there are of what"),
    look(
        "SHOW POOLS",
        "clients and servers by database, user and node",
    ),
    look("SHOW CLIENTS", "who is connected, and to what"),
    look("SHOW SERVERS", "connections to nodes"),
    look(
        "SHOW STATS",
        "what went through, by database, since the start; times in microseconds",
    ),
    look(
        "SHOW LATENCY",
        "how long transactions, queries and waits for a server took, by node, in microseconds",
    ),
    look("SHOW NODES", "nodes: health, clock, sessions"),
    look("SHOW LAG", "replication from each node to each other"),
    look(
        "SHOW RULES",
        "routing rules, in the order in which they are looked at",
    ),
    look("SHOW HOST_RULES", "who may connect from where, in order"),
    look(
        "SHOW ROUTE 'SQL' [USER NAME] [DATABASE NAME] [APPLICATION_NAME NAME] [KEY 'PLACEMENT:KEY']",
        "where it would go now, and why",
    ),
    look(
        "SHOW RECOVERY",
        "what nodes that came back had committed and nobody had read, and what became of it",
    ),
    operate(
        "SHOW RECOVERY_ROWS [NODE NAME]",
        "rows of the last of these that met other nodes' writes, with both rows",
    ),
    look(
        "SHOW CONFLICT_SUMMARY [NODE NAME] [TABLE NAME] [SINCE 'TIME'] [TYPE NAME]",
        "losing writes, counted by table and type",
    ),
    operate(
        "SHOW CONFLICTS [NODE NAME] [TABLE NAME] [SINCE 'TIME'] [TYPE NAME] [LIMIT N]",
        "losing writes with both rows, the newest first",
    ),
    look("SHOW QUARANTINE [NODE NAME]", "as QUARANTINE LIST"),
    look(
        "QUARANTINE LIST [NODE NAME]",
        "transactions that a node refuses",
    ),
    operate("QUARANTINE SHOW NODE/ID", "one of them with its changes"),
    operate("QUARANTINE RETRY [NODE/ID]", "has one, or all, tried now"),
    operate("QUARANTINE SKIP NODE/ID", "gives one up on that node"),
    operate(
        "QUARANTINE EDIT NODE/ID SET SCHEMA.TABLE.COLUMN=VALUE",
        "changes what one writes; several assignments are separated by commas",
    ),
    operate(
        "REAPPLY NODE/ID [FORCE]",
        "writes a losing write again, as a new change",
    ),
    operate(
        "PAUSE [DATABASE]",
        "closes the connections to a database, or to all, as their transactions end; new statements wait",
    ),
    operate("RESUME [DATABASE]", "lets them go on"),
    operate(
        "DRAIN NODE",
        "takes a node out of service: its keys move to the others, and its clients' connections are closed",
    ),
    operate("RESUME NODE", "takes a drained node back into service"),
    operate(
        "RECONNECT [DATABASE]",
        "has each connection to a database, or to all, replaced as its transaction ends",
    ),
    operate(
        "KILL [DATABASE]",
        "ends the sessions of a database, or all, at once",
    ),
    operate(
        "KILL_CLIENT ID",
        "ends one session, by its id in SHOW CLIENTS",
    ),
    operate(
        "RELOAD",
        "reads the configuration, rules and certificates again, and says what needs a restart",
    ),
    operate("SHUTDOWN", "ends all sessions, and the daemon"),
    operate(
        "SHUTDOWN WAIT_FOR_SERVERS",
        "ends the daemon after the transactions under way",
    ),
];

/// PgBouncer's verbs that are not there.
const MISSING: &[&str] = &["DISABLE", "ENABLE", "SUSPEND", "WAIT_CLOSE"];

/// What PgBouncer shows and we do not.
const MISSING_SHOW: &[&str] = &[
    "SHOW STATS_TOTALS",
    "SHOW STATS_AVERAGES",
    "SHOW TOTALS",
    "SHOW FDS",
    "SHOW SOCKETS",
    "SHOW ACTIVE_SOCKETS",
    "SHOW MEM",
    "SHOW DNS_HOSTS",
    "SHOW DNS_ZONES",
    "SHOW PEERS",
    "SHOW PEER_POOLS",
];

/// Settings that drivers set at their start.
const CLIENT_SETTINGS: &[&str] = &[
    "application_name",
    "bytea_output",
    "client_encoding",
    "client_min_messages",
    "datestyle",
    "extra_float_digits",
    "idle_in_transaction_session_timeout",
    "intervalstyle",
    "lock_timeout",
    "names",
    "session",
    "standard_conforming_strings",
    "statement_timeout",
    "time",
    "timezone",
];

impl Statement {
    /// What it needs.
    pub(super) fn right(&self) -> Right {
        match self {
            Statement::Help | Statement::Set | Statement::Missing(_) => Right::Look,
            Statement::Show(Show::Conflicts(_) | Show::RecoveryRows { .. }) => Right::Operate,
            Statement::Show(
                Show::Version
                | Show::Config
                | Show::Databases
                | Show::Lists
                | Show::Users
                | Show::State
                | Show::Pools
                | Show::Clients
                | Show::Servers
                | Show::Stats
                | Show::Latency
                | Show::Nodes
                | Show::Lag
                | Show::Rules
                | Show::HostRules
                | Show::Recovery
                | Show::ConflictSummary(_)
                | Show::Route(_),
            ) => Right::Look,
            Statement::Quarantine(Quarantine::List { .. }) => Right::Look,
            Statement::Quarantine(
                Quarantine::Show(_)
                | Quarantine::Retry(_)
                | Quarantine::Skip(_)
                | Quarantine::Edit { .. },
            ) => Right::Operate,
            Statement::Reload
            | Statement::Shutdown(_)
            | Statement::Pause { .. }
            | Statement::Resume { .. }
            | Statement::Drain { .. }
            | Statement::Reconnect { .. }
            | Statement::Kill { .. }
            | Statement::KillClient(_)
            | Statement::Reapply { .. } => Right::Operate,
        }
    }
}

/// Reads a text of statements separated by semicolons. Empty ones do not count.
pub(super) fn parse(text: &str) -> Result<Vec<Statement>, ErrorReport> {
    let statements = statements(text)?;
    let parsed = statements.iter().map(|tokens| {
        let mut words = Words {
            tokens,
            all: tokens,
        };
        let statement = words.statement()?;
        words.end()?;
        Ok(statement)
    });
    parsed.collect()
}

fn syntax(message: impl Into<String>) -> ErrorReport {
    ErrorReport::error("42601", message).with_hint("HELP lists what there is.")
}

/// The words of one statement that are left.
struct Words<'t> {
    tokens: &'t [Token],
    all: &'t [Token],
}

impl<'t> Words<'t> {
    fn peek(&self) -> Option<&'t Token> {
        self.tokens.first()
    }

    fn next(&mut self) -> Option<&'t Token> {
        let (first, rest) = self.tokens.split_first()?;
        self.tokens = rest;
        Some(first)
    }

    /// Takes a keyword if it is next.
    fn takes(&mut self, keyword: &str) -> bool {
        let is_next = self.peek().is_some_and(|token| token.is(keyword));
        if is_next {
            self.next();
        }
        is_next
    }

    fn end(&self) -> Result<(), ErrorReport> {
        match self.peek() {
            None => Ok(()),
            Some(token) => Err(syntax(format!("syntax error at \"{}\"", token.text))),
        }
    }

    /// The next word, which has to be there.
    fn word(&mut self, what: &str) -> Result<&'t Token, ErrorReport> {
        self.next().ok_or_else(|| {
            let before: Vec<&str> = self.all.iter().map(|token| token.text.as_str()).collect();
            syntax(format!("{} needs {what}", before.join(" ")))
        })
    }

    fn name(&mut self, what: &str) -> Result<String, ErrorReport> {
        Ok(self.word(what)?.name())
    }

    fn id(&mut self) -> Result<ItemId, ErrorReport> {
        let token = self.word("NODE/ID")?;
        token
            .text
            .parse()
            .map_err(|error| syntax(format!("\"{}\": {error}", token.text)))
    }

    fn statement(&mut self) -> Result<Statement, ErrorReport> {
        let verb = self.word("a verb")?;
        let keyword = verb.keyword();
        match keyword.as_str() {
            "HELP" => Ok(Statement::Help),
            "SHOW" => self.show(),
            "QUARANTINE" => self.quarantine(),
            "REAPPLY" => Ok(Statement::Reapply {
                id: self.id()?,
                force: self.takes("FORCE"),
            }),
            "RELOAD" => Ok(Statement::Reload),
            "PAUSE" => Ok(Statement::Pause {
                database: self.next().map(Token::name),
            }),
            "RESUME" => Ok(Statement::Resume {
                database: self.next().map(Token::name),
            }),
            "DRAIN" => Ok(Statement::Drain {
                node: self.name("a node")?,
            }),
            "RECONNECT" => Ok(Statement::Reconnect {
                database: self.next().map(Token::name),
            }),
            "KILL" => Ok(Statement::Kill {
                database: self.next().map(Token::name),
            }),
            "KILL_CLIENT" => {
                let id = self.word("an id")?;
                let pid = id.text.parse();
                let pid =
                    pid.map_err(|_| syntax(format!("\"{}\" is not the id of a client", id.text)))?;
                Ok(Statement::KillClient(pid))
            }
            "SHUTDOWN" => self.shutdown(),
            "SET" => self.set(),
            "BEGIN" | "START" | "COMMIT" | "ROLLBACK" | "END" | "ABORT" => Err(ErrorReport::error(
                "0A000",
                "the console has no transactions",
            )
            .with_hint("Switch autocommit on.")),
            other => {
                if let Some(missing) = MISSING.iter().find(|known| **known == other) {
                    self.tokens = &[];
                    return Ok(Statement::Missing(missing));
                }
                let known = [
                    "DRAIN",
                    "HELP",
                    "KILL",
                    "KILL_CLIENT",
                    "SHOW",
                    "PAUSE",
                    "QUARANTINE",
                    "REAPPLY",
                    "RECONNECT",
                    "RELOAD",
                    "RESUME",
                    "SHUTDOWN",
                    "SET",
                ];
                Err(unknown("statement", &verb.text, &keyword, &known))
            }
        }
    }

    fn show(&mut self) -> Result<Statement, ErrorReport> {
        let what = self.word("a word that says what")?;
        let keyword = what.keyword();
        let show = match keyword.as_str() {
            "HELP" => return Ok(Statement::Help),
            "VERSION" => Show::Version,
            "CONFIG" => Show::Config,
            "DATABASES" => Show::Databases,
            "LISTS" => Show::Lists,
            "USERS" => Show::Users,
            "STATE" => Show::State,
            "POOLS" => Show::Pools,
            "CLIENTS" => Show::Clients,
            "SERVERS" => Show::Servers,
            "STATS" => Show::Stats,
            "LATENCY" => Show::Latency,
            "NODES" => Show::Nodes,
            "LAG" => Show::Lag,
            "RULES" => Show::Rules,
            "HOST_RULES" => Show::HostRules,
            "RECOVERY" => Show::Recovery,
            "RECOVERY_ROWS" => Show::RecoveryRows {
                node: self.of_node()?,
            },
            "CONFLICT_SUMMARY" => Show::ConflictSummary(self.conflict_filter(false)?),
            "CONFLICTS" => Show::Conflicts(self.conflict_filter(true)?),
            "QUARANTINE" => return self.list(),
            "ROUTE" => Show::Route(self.route()?),
            other => {
                let full = format!("SHOW {other}");
                if let Some(missing) = MISSING_SHOW.iter().find(|known| **known == full) {
                    self.tokens = &[];
                    return Ok(Statement::Missing(missing));
                }
                let known: Vec<&str> = VERBS
                    .iter()
                    .filter_map(|verb| verb.syntax.strip_prefix("SHOW ")?.split(' ').next())
                    .collect();
                return Err(unknown("SHOW", &what.text, &keyword, &known));
            }
        };
        Ok(Statement::Show(show))
    }

    fn conflict_filter(&mut self, limited: bool) -> Result<ConflictFilter, ErrorReport> {
        let mut filter = ConflictFilter::default();
        while let Some(token) = self.peek() {
            let keyword = token.keyword();
            self.next();
            match keyword.as_str() {
                "NODE" => filter.node = Some(self.name("a node")?),
                // A part with a dot in it keeps its quotes.
                "TABLE" => filter.table = Some(self.word("a table")?.text.clone()),
                "SINCE" => filter.since = Some(self.name("a time")?),
                "TYPE" => filter.kind = Some(self.name("a type")?),
                "LIMIT" if limited => {
                    let number = self.word("a number")?;
                    let limit = number.text.parse().map_err(|_| {
                        syntax(format!("LIMIT: \"{}\" is not a number", number.text))
                    })?;
                    filter.limit = Some(limit);
                }
                _ => return Err(syntax(format!("syntax error at \"{}\"", token.text))),
            }
        }
        Ok(filter)
    }

    fn route(&mut self) -> Result<Route, ErrorReport> {
        let mut route = Route {
            sql: self.name("a statement in single quotes")?,
            ..Route::default()
        };
        while let Some(token) = self.next() {
            let place = match token.keyword().as_str() {
                "USER" => &mut route.user,
                "DATABASE" => &mut route.database,
                "APPLICATION_NAME" => &mut route.application_name,
                "KEY" => &mut route.key,
                _ => {
                    return Err(
                        syntax(format!("syntax error at \"{}\"", token.text)).with_hint(
                            "Write the statement in single quotes, a quote in it doubled.",
                        ),
                    );
                }
            };
            *place = Some(self.name("a value")?);
        }
        Ok(route)
    }

    /// `[NODE name]`
    fn of_node(&mut self) -> Result<Option<String>, ErrorReport> {
        match self.takes("NODE") {
            true => Ok(Some(self.name("a node")?)),
            false => Ok(None),
        }
    }

    fn list(&mut self) -> Result<Statement, ErrorReport> {
        let node = self.of_node()?;
        Ok(Statement::Quarantine(Quarantine::List { node }))
    }

    fn quarantine(&mut self) -> Result<Statement, ErrorReport> {
        let verb = self.word("LIST, SHOW, RETRY, SKIP or EDIT")?;
        let keyword = verb.keyword();
        let quarantine = match keyword.as_str() {
            "LIST" => return self.list(),
            "SHOW" => Quarantine::Show(self.id()?),
            "RETRY" if self.peek().is_none() => Quarantine::Retry(None),
            "RETRY" => Quarantine::Retry(Some(self.id()?)),
            "SKIP" => Quarantine::Skip(self.id()?),
            "EDIT" => Quarantine::Edit {
                id: self.id()?,
                assignments: self.assignments()?,
            },
            _ => {
                let known = ["LIST", "SHOW", "RETRY", "SKIP", "EDIT"];
                return Err(unknown("QUARANTINE", &verb.text, &keyword, &known));
            }
        };
        Ok(Statement::Quarantine(quarantine))
    }

    /// `SET name=value [, name=value …]`; an unquoted NULL is no text.
    fn assignments(&mut self) -> Result<Vec<Assignment>, ErrorReport> {
        if !self.takes("SET") {
            return Err(syntax("QUARANTINE EDIT NODE/ID needs SET"));
        }
        let mut assignments = Vec::new();
        while !self.tokens.is_empty() {
            let end = self.tokens.iter().position(|token| token.is(","));
            let (tokens, rest) = match end {
                Some(end) => {
                    let (tokens, rest) = self.tokens.split_at(end);
                    (tokens, rest.get(1..).unwrap_or_default())
                }
                None => (self.tokens, &[][..]),
            };
            self.tokens = rest;
            assignments.push(assignment(tokens)?);
        }
        match assignments.is_empty() {
            true => Err(syntax("SET needs schema.table.column=value")),
            false => Ok(assignments),
        }
    }

    fn shutdown(&mut self) -> Result<Statement, ErrorReport> {
        if self.takes("WAIT_FOR_SERVERS") {
            return Ok(Statement::Shutdown(ShutdownMode::WaitForServers));
        }
        if self.takes("WAIT_FOR_CLIENTS") {
            return Ok(Statement::Missing("SHUTDOWN WAIT_FOR_CLIENTS"));
        }
        Ok(Statement::Shutdown(ShutdownMode::Now))
    }

    fn set(&mut self) -> Result<Statement, ErrorReport> {
        let token = self.word("a setting")?;
        let name = token.text.split('=').next().unwrap_or_default();
        let lower = name.to_ascii_lowercase();
        if !CLIENT_SETTINGS.contains(&lower.as_str()) {
            return Err(ErrorReport::error(
                "42704",
                format!("the console has no setting \"{name}\""),
            )
            .with_hint("Tandem's settings are in tandem.toml; RELOAD reads some of them again."));
        }
        self.tokens = &[];
        Ok(Statement::Set)
    }
}

fn assignment(tokens: &[Token]) -> Result<Assignment, ErrorReport> {
    let text: String = tokens.iter().map(|token| token.text.as_str()).collect();
    let is_null =
        |token: &Token| !token.quoted && token.text.to_ascii_uppercase().ends_with("NULL");
    let without_value = text
        .get(..text.len().saturating_sub("NULL".len()))
        .and_then(|text| text.strip_suffix('='));
    let read = match without_value {
        Some(name) if tokens.last().is_some_and(is_null) => Assignment::null(name),
        _ => text.parse(),
    };
    read.map_err(|error| {
        ErrorReport::error("42601", format!("\"{text}\" is no assignment"))
            .with_hint(error.to_string())
    })
}

fn unknown(what: &str, text: &str, keyword: &str, known: &[&str]) -> ErrorReport {
    let hint = match nearest(keyword, known) {
        Some(nearest) => format!("Did you mean {nearest}? HELP lists what there is."),
        None => format!("Known: {}. HELP says more.", known.join(", ")),
    };
    ErrorReport::error("42601", format!("unknown {what}: \"{text}\"")).with_hint(hint)
}

#[cfg(test)]
#[path = "statement_tests.rs"]
mod tests;
