//! `[limits]`: how many clients each user and each database may have.

use std::collections::HashMap;

use tandem_routing_rules::document::Section;

use super::reader::Reader;

/// `[limits]`
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct LimitsConfig {
    /// Clients of each user that is not listed; `None`: as many as there are places.
    pub clients_per_user: Option<usize>,
    /// Clients of each database that is not listed.
    pub clients_per_database: Option<usize>,
    /// `[limits.user]`
    pub users: HashMap<String, usize>,
    /// `[limits.database]`
    pub databases: HashMap<String, usize>,
}

impl LimitsConfig {
    /// Clients that a user may have.
    pub fn of_user(&self, user: &str) -> Option<usize> {
        self.users.get(user).copied().or(self.clients_per_user)
    }

    /// Clients that a database may have.
    pub fn of_database(&self, database: &str) -> Option<usize> {
        let listed = self.databases.get(database).copied();
        listed.or(self.clients_per_database)
    }
}

impl Reader<'_> {
    pub(super) fn limits(&mut self, section: Option<Section<'_>>) -> LimitsConfig {
        let Some(mut section) = section else {
            return LimitsConfig::default();
        };
        let mut of_each = |key| {
            let value = section.take(key)?;
            let limit = value.integer(0..=1_000_000, &mut self.problems)?;
            usize::try_from(limit).ok()
        };
        let clients_per_user = of_each("clients_per_user");
        let clients_per_database = of_each("clients_per_database");
        let mut by_name = |key| {
            let listed = section.take_table(key, &mut self.problems);
            let entries = listed.into_iter().flat_map(Section::entries);
            let limit = |entry: tandem_routing_rules::document::Entry<'_>| {
                let limit = entry.value.integer(0..=1_000_000, &mut self.problems)?;
                Some((entry.name.to_owned(), usize::try_from(limit).ok()?))
            };
            entries.filter_map(limit).collect()
        };
        let users = by_name("user");
        let databases = by_name("database");
        section.finish(&mut self.problems);
        LimitsConfig {
            clients_per_user,
            clients_per_database,
            users,
            databases,
        }
    }
}
