//! From the text of a rules file to [`Rules`], or to everything that is wrong with it.

use std::collections::BTreeMap;

use crate::document::{Document, Entry, Problems, Section, Value};
use crate::expression::Expression;
use crate::model::{
    Affinity, ColumnNames, Consistency, CrossHome, DefaultWrite, KeyRange, Lost, Mode, NodeInfo,
    Placement, Policy, ReadRoute, ReadRules, RuleErrors, Rules, Scope, SessionMatch, SessionRule,
    Strategy,
};
use crate::network::Network;
use crate::pattern::Pattern;
use crate::placement::Key;

/// Largest weight of a node in a placement.
const WEIGHT_MAX: u16 = 1_000;

impl Rules {
    /// Parses and validates a rules file against the nodes of the cluster.
    ///
    /// # Errors
    /// All problems at once. Nothing of a file with a problem is used.
    pub fn parse(source: &str, nodes: &[NodeInfo]) -> Result<Self, RuleErrors> {
        let mut reader = Reader {
            source,
            nodes,
            problems: Problems::default(),
        };
        let document = Document::parse(source, &mut reader.problems);
        if !reader.problems.is_empty() {
            // Every further problem would only follow from these.
            return Err(RuleErrors {
                problems: reader.problems.into_sorted(),
            });
        }
        let rules = reader.rules(document.root());
        match reader.problems.is_empty() {
            true => Ok(rules),
            false => Err(RuleErrors {
                problems: reader.problems.into_sorted(),
            }),
        }
    }
}

struct Reader<'a> {
    source: &'a str,
    nodes: &'a [NodeInfo],
    problems: Problems,
}

impl Reader<'_> {
    fn rules(&mut self, mut root: Section<'_>) -> Rules {
        let modes = [("enforce", Mode::Enforce), ("advise", Mode::Advise)];
        let mode = root
            .take("mode")
            .and_then(|value| value.choice(&modes, &mut self.problems));
        let placements = match root.take_table("placement", &mut self.problems) {
            Some(section) => section
                .entries()
                .into_iter()
                .filter_map(|entry| self.placement(&entry))
                .collect(),
            None => Vec::new(),
        };
        // A placement that is itself wrong still has its name, so that its uses are not reported as well.
        let names: Vec<&str> = match root
            .take("placement")
            .and_then(|value| value.table(&mut Problems::default()))
        {
            Some(section) => section.entries().iter().map(|entry| entry.name).collect(),
            None => Vec::new(),
        };
        let (default_write, policy) = self.default(&mut root);
        let affinities = self.affinities(&mut root, &names, policy);
        let sessions = self.sessions(&mut root);
        let read = self.read(&mut root);
        root.finish(&mut self.problems);
        Rules {
            mode: mode.unwrap_or_default(),
            placements,
            affinities,
            sessions,
            default_write,
            policy,
            read,
        }
    }

    fn placement(&mut self, entry: &Entry<'_>) -> Option<Placement> {
        if entry.name.is_empty() || entry.name.contains(':') {
            let hint = "`tandem.key = 'placement:key'` ends the name at the first colon";
            self.problems.add_with_hint(
                entry.value.key_span(),
                "a placement's name is not empty and has no `:`",
                hint,
            );
        }
        let mut section = entry.value.table(&mut self.problems)?;
        let names = ["hash", "map", "range", "column", "single"];
        let choices = names.map(|name| (name, name));
        let strategy = section
            .require("strategy", &mut self.problems)
            .and_then(|value| value.choice(&choices, &mut self.problems));
        let strategy = match strategy? {
            "hash" => self.hash(&mut section),
            "map" => self.map(&mut section),
            "range" => self.range(&mut section),
            "column" => self.column(&mut section),
            _ => Some(Strategy::Single {
                node: section.take("node").and_then(|value| self.node(&value)),
            }),
        };
        section.finish(&mut self.problems);
        Some(Placement {
            name: entry.name.to_owned(),
            strategy: strategy?,
        })
    }

    fn hash(&mut self, section: &mut Section<'_>) -> Option<Strategy> {
        let mut chosen: Option<Vec<u16>> = None;
        if let Some(listed) = section
            .take("nodes")
            .and_then(|value| value.array(&mut self.problems))
        {
            let mut ids = Vec::new();
            for value in &listed {
                match self.node(value) {
                    Some(id) if ids.contains(&id) => {
                        self.problems.add_with_hint(
                            value.span(),
                            "this node is listed twice",
                            "remove one of the two",
                        );
                    }
                    Some(id) => ids.push(id),
                    None => {}
                }
            }
            chosen = Some(ids);
        }
        let mut weights: BTreeMap<u16, u16> = BTreeMap::new();
        if let Some(given) = section.take_table("weights", &mut self.problems) {
            for Entry { name, value } in given.entries() {
                let id = self.node_called(name, value.key_span());
                let weight = value.integer(1..=i64::from(WEIGHT_MAX), &mut self.problems);
                let (Some(id), Some(Ok(weight))) = (id, weight.map(u16::try_from)) else {
                    continue;
                };
                if chosen.as_ref().is_some_and(|chosen| !chosen.contains(&id)) {
                    let hint = format!("add \"{name}\" to `nodes` or remove its weight");
                    self.problems.add_with_hint(
                        value.key_span(),
                        "this node has a weight but is not in `nodes`",
                        hint,
                    );
                }
                weights.insert(id, weight);
            }
        }
        let eligible = match chosen {
            Some(chosen) => chosen,
            None if weights.is_empty() => Vec::new(),
            None => self.nodes.iter().map(|node| node.id).collect(),
        };
        let weights = eligible
            .into_iter()
            .map(|id| (id, weights.get(&id).copied().unwrap_or(1)))
            .collect();
        Some(Strategy::Hash { weights })
    }

    fn map(&mut self, section: &mut Section<'_>) -> Option<Strategy> {
        let otherwise = self.otherwise(section);
        let listed = section
            .require("map", &mut self.problems)?
            .table(&mut self.problems)?;
        let mut homes = BTreeMap::new();
        for Entry { name, value } in listed.entries() {
            let Some(node) = self.node(&value) else {
                continue;
            };
            let key = Key::from_text(name).to_string();
            if homes.insert(key.clone(), node).is_some() {
                let hint = "remove one of the two; `7` and `007` are one key";
                self.problems.add_with_hint(
                    value.key_span(),
                    format!("the key `{key}` is listed twice"),
                    hint,
                );
            }
        }
        Some(Strategy::Map { homes, otherwise })
    }

    fn range(&mut self, section: &mut Section<'_>) -> Option<Strategy> {
        let otherwise = self.otherwise(section);
        let listed = section
            .require("ranges", &mut self.problems)?
            .tables(&mut self.problems)?;
        let mut ranges = Vec::new();
        for mut listed in listed {
            let span = listed.span();
            let from = listed.take("from").and_then(|value| self.key(&value));
            let to = listed.take("to").and_then(|value| self.key(&value));
            let node = listed
                .require("node", &mut self.problems)
                .and_then(|value| self.node(&value));
            listed.finish(&mut self.problems);
            if let (Some(from), Some(to)) = (&from, &to) {
                if !from.is_like(to) {
                    let hint = "write both as integers or both as strings";
                    self.problems.add_with_hint(
                        span,
                        "`from` and `to` are of different types",
                        hint,
                    );
                    continue;
                }
                if from >= to {
                    let hint = "`from` is inside the range, `to` is the first key above it";
                    self.problems
                        .add_with_hint(span, "the range is empty", hint);
                    continue;
                }
            }
            if let Some(node) = node {
                ranges.push((KeyRange { from, to, node }, span));
            }
        }
        // No bound sorts first as `from`, which is its meaning.
        ranges.sort_by(|(left, _), (right, _)| left.from.cmp(&right.from));
        for pair in ranges.windows(2) {
            let [(lower, _), (upper, span)] = pair else {
                continue;
            };
            if overlap(lower, upper) {
                let hint = "let each range begin where the one before it ends";
                self.problems
                    .add_with_hint(span.clone(), "the range overlaps another one", hint);
            }
        }
        Some(Strategy::Range {
            ranges: ranges.into_iter().map(|(range, _)| range).collect(),
            otherwise,
        })
    }

    fn column(&mut self, section: &mut Section<'_>) -> Option<Strategy> {
        let otherwise = self.otherwise(section);
        let choices = [("node", ColumnNames::Node), ("zone", ColumnNames::Zone)];
        let names = section.take("names");
        let chosen = names
            .as_ref()
            .and_then(|value| value.choice(&choices, &mut self.problems))
            .unwrap_or_default();
        if let (ColumnNames::Zone, Some(names)) = (chosen, names)
            && self.nodes.iter().all(|node| node.zone.is_none())
        {
            let hint = "give the nodes a `zone` in the configuration";
            self.problems
                .add_with_hint(names.span(), "no node has a zone", hint);
        }
        Some(Strategy::Column {
            names: chosen,
            otherwise,
        })
    }

    /// `default`: what is asked of writes where a rule does not say otherwise.
    fn affinities(
        &mut self,
        root: &mut Section<'_>,
        placements: &[&str],
        default: Policy,
    ) -> Vec<Affinity> {
        let mut affinities: Vec<Affinity> = Vec::new();
        let listed = root
            .take("affinity")
            .and_then(|value| value.tables(&mut self.problems));
        for mut section in listed.unwrap_or_default() {
            let placement = section
                .require("placement", &mut self.problems)
                .and_then(|value| {
                    let name = value.string(&mut self.problems)?;
                    if !placements.contains(&name) {
                        self.problems
                            .add_unknown_word(value.span(), "placement", name, placements);
                        return None;
                    }
                    Some(name)
                });
            let tables = section
                .require("tables", &mut self.problems)
                .and_then(|value| value.table(&mut self.problems));
            let policy = self.policy(&mut section, default);
            section.finish(&mut self.problems);
            for entry in tables.map(Section::entries).unwrap_or_default() {
                let Some((column, key)) = self.table_key(&entry) else {
                    continue;
                };
                if affinities.iter().any(|known| known.table == entry.name) {
                    let message = format!("the table `{}` has a key already", entry.name);
                    self.problems.add_with_hint(
                        entry.value.key_span(),
                        message,
                        "keep one of the two",
                    );
                    continue;
                }
                let placement = placement.unwrap_or_default().to_owned();
                affinities.push(Affinity {
                    table: entry.name.to_owned(),
                    placement,
                    column,
                    key,
                    policy,
                });
            }
        }
        affinities
    }

    /// `table = "column"` or `table = { column = "..", key = ".." }`.
    fn table_key(&mut self, entry: &Entry<'_>) -> Option<(String, Option<Expression>)> {
        let parts: Vec<&str> = entry.name.split('.').collect();
        if parts.len() > 2 || parts.iter().any(|part| part.is_empty()) {
            let hint = "write `table` or `\"schema.table\"`";
            let message = format!("`{}` is not a table's name", entry.name);
            self.problems
                .add_with_hint(entry.value.key_span(), message, hint);
            return None;
        }
        if let Some(column) = entry.value.as_str() {
            return entry
                .value
                .string(&mut self.problems)
                .map(|_| (column.to_owned(), None));
        }
        let Some(mut section) = entry.value.table(&mut Problems::default()) else {
            return entry.value.wrong_type(
                "a column's name or { column = \"...\", key = \"...\" }",
                &mut self.problems,
            );
        };
        let column = section
            .require("column", &mut self.problems)
            .and_then(|value| value.string(&mut self.problems));
        let key = section.take("key");
        section.finish(&mut self.problems);
        let column = column?;
        let key = match key {
            Some(value) => Some(self.expression(&value, column)?),
            None => None,
        };
        Some((column.to_owned(), key))
    }

    fn expression(&mut self, value: &Value<'_>, column: &str) -> Option<Expression> {
        let text = value.string(&mut self.problems)?;
        match Expression::parse(text, column) {
            Ok(expression) => Some(expression),
            Err(error) => {
                // Inside a string without escapes the very bytes can be shown.
                let whole = value.span();
                let inner = whole.start + 1..whole.end.saturating_sub(1);
                let span = match self.source.get(inner.clone()) {
                    Some(written) if written == text => {
                        let start = inner.start + error.span.start;
                        start..(inner.start + error.span.end).max(start + 1)
                    }
                    _ => whole,
                };
                let hint = format!(
                    "a key is integer arithmetic (+ - * / %, parentheses) over the column, such as `({column} - 1) / 10`"
                );
                self.problems.add_with_hint(
                    span,
                    format!("bad key expression: {}", error.message),
                    hint,
                );
                None
            }
        }
    }

    fn sessions(&mut self, root: &mut Section<'_>) -> Vec<SessionRule> {
        let mut rules: Vec<SessionRule> = Vec::new();
        let listed = root
            .take("session")
            .and_then(|value| value.tables(&mut self.problems));
        for mut section in listed.unwrap_or_default() {
            let span = section.span();
            let matches = section
                .require("match", &mut self.problems)
                .and_then(|value| value.table(&mut self.problems))
                .and_then(|section| self.session_match(section));
            let node = section
                .require("node", &mut self.problems)
                .and_then(|value| self.node(&value));
            section.finish(&mut self.problems);
            let (Some(matches), Some(node)) = (matches, node) else {
                continue;
            };
            if let Some(earlier) = rules
                .iter()
                .position(|earlier| earlier.matches.covers(&matches))
            {
                let message = format!(
                    "this rule is never reached: session rule {} matches all it matches",
                    earlier + 1
                );
                self.problems
                    .add_with_hint(span, message, "put the narrower rule first");
            }
            rules.push(SessionRule { matches, node });
        }
        rules
    }

    /// `None`: something in it is wrong, so that what it matches is not known.
    fn session_match(&mut self, mut section: Section<'_>) -> Option<SessionMatch> {
        let before = self.problems.len();
        let mut pattern = |key| {
            section
                .take(key)
                .and_then(|value| value.string(&mut self.problems).map(Pattern::new))
        };
        let matches = SessionMatch {
            user: pattern("user"),
            database: pattern("database"),
            application_name: pattern("application_name"),
            client: section
                .take("client")
                .and_then(|value| self.network(&value)),
            options: self.options(&mut section),
        };
        let is_right = self.problems.len() == before;
        if is_right && matches == SessionMatch::default() {
            let hint = "give `user`, `database`, `application_name`, `client` or `options`; `*` matches any";
            self.problems
                .add_with_hint(section.span(), "`match` says nothing", hint);
        }
        section.finish(&mut self.problems);
        is_right.then_some(matches)
    }

    fn network(&mut self, value: &Value<'_>) -> Option<Network> {
        let text = value.string(&mut self.problems)?;
        let network = text.parse::<Network>();
        if let Err(error) = &network {
            let hint = "write a network such as \"10.0.0.0/8\" or \"2001:db8::/32\", or one address; names are not looked up";
            self.problems
                .add_with_hint(value.span(), error.to_string(), hint);
        }
        network.ok()
    }

    /// `options = { name = "pattern" }`
    fn options(&mut self, section: &mut Section<'_>) -> BTreeMap<String, Pattern> {
        let mut options = BTreeMap::new();
        let listed = section.take_table("options", &mut self.problems);
        for Entry { name, value } in listed.map(Section::entries).unwrap_or_default() {
            let lower = name.to_ascii_lowercase();
            if ["user", "database", "options", "replication"].contains(&lower.as_str()) {
                self.problems.add_with_hint(
                    value.key_span(),
                    format!("`{name}` is no setting"),
                    "`user` and `database` stand beside `options`, in `match`",
                );
            }
            let Some(pattern) = value.string(&mut self.problems) else {
                continue;
            };
            if options.insert(lower, Pattern::new(pattern)).is_some() {
                let hint = "remove one of the two; the case of a setting's name means nothing";
                self.problems
                    .add_with_hint(value.key_span(), "this setting is listed twice", hint);
            }
        }
        options
    }

    fn default(&mut self, root: &mut Section<'_>) -> (DefaultWrite, Policy) {
        let Some(mut section) = root.take_table("default", &mut self.problems) else {
            return Default::default();
        };
        let choices = [
            ("home", DefaultWrite::Home),
            ("nearest", DefaultWrite::Nearest),
        ];
        let write = section
            .take("write")
            .and_then(|value| value.choice(&choices, &mut self.problems));
        let policy = self.policy(&mut section, Policy::default());
        section.finish(&mut self.problems);
        (write.unwrap_or_default(), policy)
    }

    /// What is asked of writes here; `default` where it does not say.
    fn policy(&mut self, section: &mut Section<'_>, default: Policy) -> Policy {
        let choices = [
            ("allow", CrossHome::Allow),
            ("notice", CrossHome::Notice),
            ("reject", CrossHome::Reject),
        ];
        let cross_home = section.take("cross_home");
        let cross_home = cross_home.and_then(|value| value.choice(&choices, &mut self.problems));
        let require_key = section.take("require_key");
        let require_key = require_key.and_then(|value| value.boolean(&mut self.problems));
        Policy {
            cross_home: cross_home.unwrap_or(default.cross_home),
            require_key: require_key.unwrap_or(default.require_key),
        }
    }

    fn read(&mut self, root: &mut Section<'_>) -> ReadRules {
        let Some(mut section) = root.take_table("read", &mut self.problems) else {
            return ReadRules::default();
        };
        let routes = [("nearest", ReadRoute::Nearest), ("home", ReadRoute::Home)];
        let consistencies = [
            ("eventual", Consistency::Eventual),
            ("session", Consistency::Session),
            ("home", Consistency::Home),
        ];
        let scopes = [("session", Scope::Session), ("database", Scope::Database)];
        let losts = [("notice", Lost::Notice), ("error", Lost::Error)];
        let problems = &mut self.problems;
        let read = ReadRules {
            route: section
                .take("route")
                .and_then(|value| value.choice(&routes, problems))
                .unwrap_or_default(),
            consistency: section
                .take("consistency")
                .and_then(|value| value.choice(&consistencies, problems))
                .unwrap_or_default(),
            scope: section
                .take("scope")
                .and_then(|value| value.choice(&scopes, problems))
                .unwrap_or_default(),
            lost: section
                .take("lost")
                .and_then(|value| value.choice(&losts, problems))
                .unwrap_or_default(),
        };
        section.finish(problems);
        read
    }

    fn otherwise(&mut self, section: &mut Section<'_>) -> Option<u16> {
        section
            .take("otherwise")
            .and_then(|value| self.node(&value))
    }

    fn key(&mut self, value: &Value<'_>) -> Option<Key> {
        if value.is_integer() {
            return value
                .integer(i64::MIN..=i64::MAX, &mut self.problems)
                .map(Key::Integer);
        }
        match value.as_str() {
            Some(text) => Some(Key::from_text(text)),
            None => value.wrong_type("an integer or a string", &mut self.problems),
        }
    }

    fn node(&mut self, value: &Value<'_>) -> Option<u16> {
        let name = value.string(&mut self.problems)?;
        self.node_called(name, value.span())
    }

    fn node_called(&mut self, name: &str, span: core::ops::Range<usize>) -> Option<u16> {
        let node = self.nodes.iter().find(|node| node.name == name);
        if node.is_none() {
            let known: Vec<&str> = self.nodes.iter().map(|node| node.name.as_str()).collect();
            self.problems.add_unknown_word(span, "node", name, &known);
        }
        node.map(|node| node.id)
    }
}

/// Whether two ranges, the first of which begins no later, share a key. Ranges of different types never do, except
/// that one without any bound holds every key.
fn overlap(lower: &KeyRange, upper: &KeyRange) -> bool {
    match (&lower.to, &upper.from) {
        (Some(to), Some(from)) => to.is_like(from) && from < to,
        (None, Some(from)) => lower
            .from
            .as_ref()
            .is_none_or(|lower_from| lower_from.is_like(from)),
        (Some(to), None) => upper
            .to
            .as_ref()
            .is_none_or(|upper_to| upper_to.is_like(to)),
        (None, None) => true,
    }
}

#[cfg(test)]
mod tests;
