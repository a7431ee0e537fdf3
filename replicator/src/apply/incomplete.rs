//! Updates whose stream leaves out unchanged TOAST values.
//!
//! Such an update fits only the row that its source saw. If the row was last written by the source itself, it is that
//! row: whatever else the source had seen was applied before (causal delivery) and would be the newer one. Otherwise the
//! values come from the source, as long as its row still has the change's version. If it has moved on, the update is
//! left out and the key noted in `tandem.incomplete`: the change that moved it on is on its way, and its values have to be
//! fetched too.

use super::params::{Params, Statement};
use super::sql::{ShapeError, TargetTable, Writer, key_expressions, key_param, literal};
use crate::relation::Relation;

/// SQL that is true when row `r` is noted as incomplete.
pub(super) fn incomplete(relation: &Relation, table: &TargetTable) -> String {
    format!(
        "EXISTS (SELECT FROM tandem.incomplete i WHERE i.relation = {} AND i.key = {})",
        literal(relation),
        key_expressions(table)
    )
}

impl Writer {
    /// SQL that is true when row `r` has the values that an update of the source leaves out.
    pub(super) fn keeps_values(&self, relation: &Relation, table: &TargetTable) -> String {
        format!(
            "(r.xmin = pg_current_xact_id()::xid OR {} = {}) AND NOT {}",
            self.written_by(relation, table),
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
        let mut params = Params::one(relation, table);
        let key = key_param(relation, table, &mut params)?;
        let relation_text = literal(relation);
        let sql = if lacks {
            format!(
                "INSERT INTO tandem.incomplete VALUES ({relation_text}, {key}) ON CONFLICT DO NOTHING"
            )
        } else {
            format!(
                "DELETE FROM tandem.incomplete WHERE relation = {relation_text} AND key = {key}"
            )
        };
        Ok(params.statement(sql))
    }
}
