//! Which tables are kept converged.

use crate::conflict::resolver::Resolver;
use crate::ddl::DdlPolicy;

/// The schema that holds Tandem's own tables; it is never replicated.
pub(crate) const OWN_SCHEMA: &str = "tandem";

/// Quotes an identifier.
pub(crate) fn quote(name: &str) -> String {
    format!("\"{}\"", name.replace('"', "\"\""))
}

/// How the changes of one table are brought together.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct TablePolicy {
    /// Columns whose value is the sum of what all nodes have contributed. Invariant: NOT NULL, of an exact number type.
    pub counters: Vec<String>,
    /// Who wins a conflict.
    pub resolver: Resolver,
}

/// Which tables are kept converged, and how.
#[derive(Debug, Clone, Default)]
pub struct Tables {
    /// Which.
    pub filter: TableFilter,
    /// How, by schema and table; the default for all others.
    pub policies: std::collections::HashMap<(String, String), TablePolicy>,
    /// Which DDL goes to the other nodes.
    pub ddl: DdlPolicy,
}

impl Tables {
    /// The policy of a table.
    pub(crate) fn policy(&self, schema: &str, table: &str) -> &TablePolicy {
        static DEFAULT: TablePolicy = TablePolicy {
            counters: Vec::new(),
            resolver: Resolver::LastUpdateWins,
        };
        let key = (schema.to_owned(), table.to_owned());
        self.policies.get(&key).unwrap_or(&DEFAULT)
    }
}

/// SQL over `pg_class c`: the columns of the primary key, in the key's order; empty where there is none. (INCLUDE columns
/// stand in `indkey` behind them.)
pub(crate) const KEY_COLUMNS: &str = "ARRAY(SELECT a.attname::text FROM pg_index i, \
    unnest(i.indkey::int2[]) WITH ORDINALITY k(attnum, place) JOIN pg_attribute a ON a.attnum = k.attnum \
    WHERE i.indrelid = c.oid AND i.indisprimary AND a.attrelid = c.oid AND k.place <= i.indnkeyatts ORDER BY k.place)";

/// SQL over `pg_class c`: the operators that the primary key's index compares its columns with. An extension's type has
/// its own, outside the search path.
pub(crate) const KEY_EQUALS: &str = "ARRAY(SELECT format('OPERATOR(%I.%s)', n.nspname, p.oprname) FROM pg_index i, \
    unnest(i.indclass::oid[]) WITH ORDINALITY k(opclass, place) JOIN pg_opclass o ON o.oid = k.opclass \
    JOIN pg_amop a ON a.amopfamily = o.opcfamily AND a.amoplefttype = o.opcintype \
      AND a.amoprighttype = o.opcintype AND a.amopstrategy = 3 \
    JOIN pg_operator p ON p.oid = a.amopopr JOIN pg_namespace n ON n.oid = p.oprnamespace \
    WHERE i.indrelid = c.oid AND i.indisprimary ORDER BY k.place)";

/// SQL over `pg_class c`: whether there is a primary key, and keys that are equal have equal bytes, so equal texts: their
/// operator classes say so (support function 4, `equalimage`), and their collations are deterministic.
pub(crate) const KEY_IS_PLAIN: &str = "coalesce((SELECT bool_and(EXISTS (SELECT FROM pg_opclass o JOIN pg_amproc p \
      ON p.amprocfamily = o.opcfamily AND p.amproclefttype = o.opcintype AND p.amprocrighttype = o.opcintype \
      WHERE o.oid = k.opclass AND p.amprocnum = 4) \
      AND NOT EXISTS (SELECT FROM pg_collation l WHERE l.oid = k.coll AND NOT l.collisdeterministic)) \
    FROM pg_index i, unnest(i.indclass::oid[], i.indcollation::oid[]) k(opclass, coll) \
    WHERE i.indrelid = c.oid AND i.indisprimary), false)";

/// SQL over `pg_class c`: the identity columns that an UPDATE may not write (GENERATED ALWAYS).
pub(crate) const FIXED_COLUMNS: &str = "ARRAY(SELECT a.attname::text FROM pg_attribute a \
    WHERE a.attrelid = c.oid AND a.attidentity = 'a')";

/// SQL over `pg_class c`: something of each column that can be written, in the table's order.
macro_rules! writable {
    ($what:literal) => {
        concat!(
            "ARRAY(SELECT ",
            $what,
            " FROM pg_attribute a JOIN pg_type t ON t.oid = a.atttypid JOIN pg_namespace n ON n.oid = t.typnamespace \
             WHERE a.attrelid = c.oid AND a.attnum > 0 AND NOT a.attisdropped AND a.attgenerated = '' ORDER BY a.attnum)"
        )
    };
}

/// The names of the columns that can be written.
pub(crate) const WRITABLE_NAMES: &str = writable!("a.attname::text");
/// The OIDs of their types.
pub(crate) const WRITABLE_OIDS: &str = writable!("t.oid");
/// The types, quoted.
pub(crate) const WRITABLE_TYPES: &str = writable!("format('%I.%I', n.nspname, t.typname)");
/// Whether a cast from text to the type is its input function, and nothing else (a domain's is that of its base type).
pub(crate) const WRITABLE_READ: &str = writable!(
    "NOT EXISTS (SELECT FROM pg_cast x WHERE x.castsource = 'text'::regtype AND x.casttarget IN (t.oid, t.typbasetype) \
       AND x.castmethod = 'f') AND NOT EXISTS (SELECT FROM pg_type b WHERE b.oid = t.typbasetype AND b.typtype = 'd')"
);

/// Include and exclude patterns over `schema.table`; `*` stands for any run of characters.
#[derive(Debug, Clone, Default)]
pub struct TableFilter {
    /// A table must match one of these; empty means every table.
    pub include: Vec<String>,
    /// A table that matches one of these is left out, whatever `include` says.
    pub exclude: Vec<String>,
}

impl TableFilter {
    /// Only tables that match one of `include`; empty means every table.
    pub(crate) fn only(include: Vec<String>) -> Self {
        Self {
            include,
            exclude: Vec::new(),
        }
    }

    /// Whether the table is kept converged.
    pub fn allows(&self, schema: &str, table: &str) -> bool {
        if schema == OWN_SCHEMA {
            return false;
        }
        let name = format!("{schema}.{table}");
        let any = |patterns: &[String]| {
            patterns
                .iter()
                .any(|pattern| glob(pattern.as_bytes(), name.as_bytes()))
        };
        (self.include.is_empty() || any(&self.include)) && !any(&self.exclude)
    }
}

/// Matches with `*` only, without backtracking further than the last star: linear in practice, quadratic at worst.
fn glob(pattern: &[u8], text: &[u8]) -> bool {
    let (mut p, mut t) = (0, 0);
    let mut star = None;
    while t < text.len() {
        if pattern.get(p) == Some(&b'*') {
            star = Some((p, t));
            p += 1;
        } else if pattern.get(p) == text.get(t) {
            p += 1;
            t += 1;
        } else if let Some((star_p, star_t)) = star {
            star = Some((star_p, star_t + 1));
            p = star_p + 1;
            t = star_t + 1;
        } else {
            return false;
        }
    }
    pattern[p..].iter().all(|&byte| byte == b'*')
}

#[cfg(test)]
mod tests {
    use super::*;

    fn filter(include: &[&str], exclude: &[&str]) -> TableFilter {
        let owned = |patterns: &[&str]| patterns.iter().map(ToString::to_string).collect();
        TableFilter {
            include: owned(include),
            exclude: owned(exclude),
        }
    }

    #[test]
    fn without_patterns_every_table_but_our_own_is_replicated() {
        assert!(filter(&[], &[]).allows("public", "t"));
        assert!(!filter(&[], &[]).allows("tandem", "owner"));
    }

    #[test]
    fn exclude_wins_over_include() {
        let rules = filter(&["public.*"], &["public.log_*"]);
        assert!(rules.allows("public", "bikes"));
        assert!(!rules.allows("public", "log_2026"));
        assert!(!rules.allows("audit", "bikes"));
    }

    #[test]
    fn a_star_in_the_middle_matches_any_run() {
        assert!(glob(b"a*c*e", b"abbcdde"));
        assert!(!glob(b"a*c*e", b"abbcdd"));
        assert!(glob(b"*", b""));
        assert!(!glob(b"a", b""));
    }
}
