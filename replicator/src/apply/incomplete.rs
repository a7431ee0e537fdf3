//! Updates whose stream leaves out unchanged TOAST values.
//!
//! Such an update fits only the row that its source saw. If the row was last written by the source itself, it is that
//! row: whatever else the source had seen was applied before (causal delivery) and would be the newer one. Otherwise the
//! values come from the source, as long as its row still has the change's version. If it has moved on, the update is
//! left out and the key noted in `tandem.incomplete`: the change that moved it on is on its way, and its values have to be
//! fetched too.

use super::sql::{ShapeError, Source, Statement, TargetTable, Writer, key_places, literal, quote};
use crate::relation::Relation;

/// SQL that is true when row `r` is noted as incomplete.
pub(super) fn incomplete(relation: &Relation, table: &TargetTable) -> String {
    let key: Vec<_> = table
        .key
        .iter()
        .map(|column| format!("r.{}", quote(column)))
        .collect();
    format!(
        "EXISTS (SELECT FROM tandem.incomplete i WHERE i.relation = {} AND i.key = jsonb_build_array({}))",
        literal(relation),
        key.join(", ")
    )
}

impl Writer {
    /// SQL that is true when row `r` has the values that an update of the source leaves out.
    pub(super) fn keeps_values(&self, relation: &Relation, table: &TargetTable) -> String {
        format!(
            "(r.xmin = pg_current_xact_id()::xid OR (SELECT {} = {} FROM pg_xact_commit_timestamp_origin(r.xmin) v)) \
             AND NOT {}",
            self.node_of,
            self.source,
            incomplete(relation, table)
        )
    }

    /// Notes that the row under the old key lacks what an update left out; `lacks` false: that it does not any more.
    ///
    /// # Errors
    /// When the target's table has no key, or not the source's.
    pub(super) fn mark(
        &self,
        relation: &Relation,
        table: &TargetTable,
        lacks: bool,
    ) -> Result<Statement, ShapeError> {
        let params: Vec<_> = key_places(relation, table)?
            .into_iter()
            .map(Source::Key)
            .collect();
        let key: Vec<_> = (1..=params.len())
            .map(|number| format!("${number}"))
            .collect();
        let (relation_text, key) = (literal(relation), key.join(", "));
        let sql = if lacks {
            format!(
                "INSERT INTO tandem.incomplete VALUES ({relation_text}, jsonb_build_array({key})) ON CONFLICT DO NOTHING"
            )
        } else {
            format!(
                "DELETE FROM tandem.incomplete WHERE relation = {relation_text} AND key = jsonb_build_array({key})"
            )
        };
        Ok(Statement::new(sql, params, relation, table))
    }
}
