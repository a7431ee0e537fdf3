//! Reads `[replication]`: what is kept converged, and how.

use std::collections::HashMap;
use std::time::Duration;

use tandem_replicator::{DdlClass, DdlPolicy, DdlRule, Resolver, TablePolicy};
use tandem_routing_rules::NodeInfo;
use tandem_routing_rules::document::{Section, Value};

use super::reader::Reader;
use super::{LargeObjects, ReplicationConfig};
use crate::console;

/// A journal that may hold less than this would fill with a few changes.
const JOURNAL_MIN: u64 = 1 << 20;
/// The default of `group_apply`: fewer transactions than this wait for a link that keeps up.
const GROUP_APPLY: usize = 256;

impl Reader<'_> {
    /// `[replication]`. `None` only when there is a problem.
    pub(super) fn replication(
        &mut self,
        mut section: Section<'_>,
        nodes: &[NodeInfo],
    ) -> Option<ReplicationConfig> {
        let database = section
            .require("database", &mut self.problems)
            .and_then(|value| {
                let name = value.string(&mut self.problems)?;
                if name == console::DATABASE {
                    let message = format!("`{name}` is the name of Tandem's console");
                    let hint = "clients could not reach a database of this name; call it otherwise";
                    self.problems.add_with_hint(value.span(), message, hint);
                }
                Some(name.to_owned())
            });
        let mut patterns = |key| {
            section
                .take(key)
                .map_or_else(Vec::new, |value| self.table_patterns(&value))
        };
        let include = patterns("include");
        let exclude = patterns("exclude");
        let mut policies = HashMap::new();
        if let Some(tables) = section.take_table("table", &mut self.problems) {
            for entry in tables.entries() {
                self.table_pattern(entry.name, entry.value.key_span());
                if let (Some(section), Some((schema, table))) = (
                    entry.value.table(&mut self.problems),
                    entry.name.split_once('.'),
                ) {
                    let policy = self.replication_table(section, nodes);
                    policies.insert((schema.to_owned(), table.to_owned()), policy);
                }
            }
        }
        let ddl = section.take_table("ddl", &mut self.problems);
        let ddl = ddl.map(|section| self.replication_ddl(section));
        let journal_dir = section
            .take("journal_dir")
            .and_then(|value| self.path(&value));
        let journal_max = self.size(&mut section, "journal_max", 16 << 30, JOURNAL_MIN);
        let journal_carry_bytes = self.size(&mut section, "journal_carry_bytes", 64 << 20, 0);
        let journal_carry_after = self.duration(
            &mut section,
            "journal_carry_after",
            Duration::from_secs(10),
            Duration::from_millis(100),
        );
        let clock_offset_max = self.duration(
            &mut section,
            "clock_offset_max",
            Duration::from_millis(500),
            Duration::from_millis(10),
        );
        let group_apply = section
            .take("group_apply")
            .and_then(|value| value.integer(0..=1_000_000, &mut self.problems));
        let large_objects = section.take("large_objects");
        let choices = [
            ("refuse", LargeObjects::Refuse),
            ("home", LargeObjects::Home),
        ];
        let large_objects =
            large_objects.and_then(|value| value.choice(&choices, &mut self.problems));
        section.finish(&mut self.problems);
        Some(ReplicationConfig {
            database: database?,
            large_objects: large_objects.unwrap_or_default(),
            include,
            exclude,
            policies,
            ddl: ddl.unwrap_or_default(),
            journal_dir: journal_dir.unwrap_or_else(|| self.base.join("journal")),
            journal_max,
            journal_carry_bytes,
            journal_carry_after,
            clock_offset_max,
            group_apply: group_apply
                .and_then(|count| usize::try_from(count).ok())
                .unwrap_or(GROUP_APPLY),
        })
    }

    /// `[replication.ddl]`
    fn replication_ddl(&mut self, mut section: Section<'_>) -> DdlPolicy {
        let mut policy = DdlPolicy::default();
        for class in DdlClass::ALL {
            let Some(value) = section.take(class.name()) else {
                continue;
            };
            // Rows that one node has rewritten by itself would be newer there than what the others write.
            let fits = |rule: &&DdlRule| class != DdlClass::Rewrite || **rule != DdlRule::Local;
            let choices = DdlRule::ALL.iter().filter(fits);
            let choices: Vec<_> = choices.map(|rule| (rule.name(), *rule)).collect();
            let rule = value.choice(&choices, &mut self.problems);
            if let Some(rule) = rule.filter(|rule| *rule != class.default_rule()) {
                policy.rules.insert(class, rule);
            }
        }
        section.finish(&mut self.problems);
        policy
    }

    fn replication_table(&mut self, mut section: Section<'_>, nodes: &[NodeInfo]) -> TablePolicy {
        let counters = section.take("counters");
        let counters = counters.and_then(|counters| {
            let columns = counters.strings(&mut self.problems)?;
            Some(
                columns
                    .into_iter()
                    .map(|(name, _)| name.to_owned())
                    .collect(),
            )
        });
        let resolver = self.resolver(&mut section, nodes);
        section.finish(&mut self.problems);
        TablePolicy {
            counters: counters.unwrap_or_default(),
            resolver: resolver.unwrap_or_default(),
        }
    }

    /// `resolver`, and `priority` where it is `node_priority`.
    fn resolver(&mut self, section: &mut Section<'_>, nodes: &[NodeInfo]) -> Option<Resolver> {
        let by_priority = Resolver::NodePriority(Vec::new());
        let resolvers = [
            Resolver::LastUpdateWins,
            Resolver::FirstUpdateWins,
            by_priority.clone(),
        ];
        let choices: Vec<_> = resolvers
            .iter()
            .map(|known| (known.name(), known))
            .collect();
        let priority = section.take("priority");
        let resolver = section.take("resolver");
        let chosen = match &resolver {
            Some(value) => value.choice(&choices, &mut self.problems)?.clone(),
            None => Resolver::default(),
        };
        match (priority, resolver) {
            (Some(priority), _) if chosen == by_priority => {
                Some(Resolver::NodePriority(self.node_ids(&priority, nodes)))
            }
            (None, Some(resolver)) if chosen == by_priority => {
                let hint = "add priority = [\"NODE\", …], the node whose writes win first";
                self.problems.add_with_hint(
                    resolver.span(),
                    "nothing says which node goes first",
                    hint,
                );
                None
            }
            (Some(priority), _) => {
                let hint = "add resolver = \"node_priority\", or take it out";
                self.problems.add_with_hint(
                    priority.key_span(),
                    "`priority` is for resolver = \"node_priority\"",
                    hint,
                );
                None
            }
            (None, _) => Some(chosen),
        }
    }

    /// The ids of nodes that are listed by name, each at most once.
    fn node_ids(&mut self, value: &Value<'_>, nodes: &[NodeInfo]) -> Vec<u16> {
        let mut ids = Vec::new();
        for (name, element) in value.strings(&mut self.problems).unwrap_or_default() {
            let Some(node) = nodes.iter().find(|node| node.name == name) else {
                let known: Vec<_> = nodes.iter().map(|node| node.name.as_str()).collect();
                self.problems
                    .add_unknown_word(element.span(), "node", name, &known);
                continue;
            };
            if ids.contains(&node.id) {
                let hint = "name each node once; those that are left out come last";
                self.problems.add_with_hint(
                    element.span(),
                    format!("`{name}` stands here twice"),
                    hint,
                );
            } else {
                ids.push(node.id);
            }
        }
        ids
    }

    fn table_patterns(&mut self, value: &Value<'_>) -> Vec<String> {
        let listed = value.strings(&mut self.problems).unwrap_or_default();
        for (text, element) in &listed {
            self.table_pattern(text, element.span());
        }
        listed
            .into_iter()
            .map(|(text, _)| text.to_owned())
            .collect()
    }

    fn table_pattern(&mut self, text: &str, span: std::ops::Range<usize>) {
        let both = text.split_once('.').is_some_and(|(schema, table)| {
            !schema.is_empty() && !table.is_empty() && !table.contains('.')
        });
        if !both {
            let hint = format!(
                "write schema and table, such as \"public.{}\"",
                text.trim_matches('.')
            );
            self.problems
                .add_with_hint(span, format!("`{text}` is not `schema.table`"), hint);
        }
    }
}
