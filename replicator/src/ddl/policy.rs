//! Which DDL goes to the other nodes.

use std::collections::BTreeMap;

/// What becomes of a class of DDL.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum DdlRule {
    /// It is carried out on every node.
    #[default]
    Replicate,
    /// It stays on the node where it was given.
    Local,
    /// It fails.
    Refuse,
}

impl DdlRule {
    /// All of them.
    pub const ALL: [Self; 3] = [Self::Replicate, Self::Local, Self::Refuse];

    /// The name that configuration files have.
    pub fn name(self) -> &'static str {
        match self {
            Self::Replicate => "replicate",
            Self::Local => "local",
            Self::Refuse => "refuse",
        }
    }
}

/// A class of DDL.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum DdlClass {
    /// Tables, foreign ones too.
    Table,
    /// Indexes.
    Index,
    /// Views, materialized ones too, and their refresh.
    View,
    /// Functions, procedures and aggregates.
    Function,
    /// Types and domains.
    Type,
    /// Schemas.
    Schema,
    /// Extensions.
    Extension,
    /// Sequences.
    Sequence,
    /// Triggers and rules.
    Trigger,
    /// Policies of row security.
    Policy,
    /// GRANT, REVOKE and default privileges.
    Grant,
    /// Comments and security labels.
    Comment,
    /// ALTERs that rewrite a table with rows in it.
    Rewrite,
    /// Everything else.
    Other,
}

impl DdlClass {
    /// All of them.
    pub const ALL: [Self; 14] = [
        Self::Table,
        Self::Index,
        Self::View,
        Self::Function,
        Self::Type,
        Self::Schema,
        Self::Extension,
        Self::Sequence,
        Self::Trigger,
        Self::Policy,
        Self::Grant,
        Self::Comment,
        Self::Rewrite,
        Self::Other,
    ];

    /// The name that configuration files have, and `capture.sql`.
    pub fn name(self) -> &'static str {
        match self {
            Self::Table => "table",
            Self::Index => "index",
            Self::View => "view",
            Self::Function => "function",
            Self::Type => "type",
            Self::Schema => "schema",
            Self::Extension => "extension",
            Self::Sequence => "sequence",
            Self::Trigger => "trigger",
            Self::Policy => "policy",
            Self::Grant => "grant",
            Self::Comment => "comment",
            Self::Rewrite => "rewrite",
            Self::Other => "other",
        }
    }

    /// What becomes of it where nothing is said. A rewrite gives each row another version on every node, while the others
    /// write.
    pub fn default_rule(self) -> DdlRule {
        match self {
            Self::Rewrite => DdlRule::Refuse,
            _ => DdlRule::Replicate,
        }
    }
}

/// What becomes of each class of DDL.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct DdlPolicy {
    /// Those of which something is said.
    pub rules: BTreeMap<DdlClass, DdlRule>,
}

impl DdlPolicy {
    /// What becomes of a class.
    pub fn rule(&self, class: DdlClass) -> DdlRule {
        let said = self.rules.get(&class).copied();
        said.unwrap_or_else(|| class.default_rule())
    }
}
