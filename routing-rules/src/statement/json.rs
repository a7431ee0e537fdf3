//! SQL/JSON: the expressions in its many forms.

use pg_query::NodeEnum;
use pg_query::protobuf::{
    JsonAggConstructor, JsonBehavior, JsonKeyValue, JsonTable, JsonTablePathSpec, JsonValueExpr,
};

use super::expressions::kind;
use super::{Class, Scan};

impl Scan<'_> {
    /// Looks into an expression of SQL/JSON. Any other is of a kind that is not known.
    pub(super) fn json(&mut self, node: &NodeEnum) {
        match node {
            NodeEnum::JsonValueExpr(value) => self.json_value(Some(value)),
            NodeEnum::JsonIsPredicate(predicate) => self.optional(&predicate.expr),
            NodeEnum::JsonKeyValue(pair) => self.json_pair(Some(pair)),
            NodeEnum::JsonObjectConstructor(object) => self.expressions(&object.exprs),
            NodeEnum::JsonArrayConstructor(array) => self.expressions(&array.exprs),
            NodeEnum::JsonArrayQueryConstructor(array) => self.optional(&array.query),
            NodeEnum::JsonObjectAgg(aggregate) => {
                self.json_aggregate(aggregate.constructor.as_deref());
                self.json_pair(aggregate.arg.as_deref());
            }
            NodeEnum::JsonArrayAgg(aggregate) => {
                self.json_aggregate(aggregate.constructor.as_deref());
                self.json_value(aggregate.arg.as_deref());
            }
            NodeEnum::JsonParseExpr(parse) => self.json_value(parse.expr.as_deref()),
            NodeEnum::JsonScalarExpr(scalar) => self.optional(&scalar.expr),
            NodeEnum::JsonSerializeExpr(serialize) => self.json_value(serialize.expr.as_deref()),
            NodeEnum::JsonFuncExpr(function) => {
                self.json_value(function.context_item.as_deref());
                self.optional(&function.pathspec);
                self.expressions(&function.passing);
                self.json_behaviours([&function.on_empty, &function.on_error]);
            }
            NodeEnum::JsonArgument(argument) => self.json_value(argument.val.as_deref()),
            NodeEnum::JsonTableColumn(column) => {
                self.json_path(column.pathspec.as_deref());
                self.expressions(&column.columns);
                self.json_behaviours([&column.on_empty, &column.on_error]);
            }
            other => self.rise(
                Class::Unknown,
                format!("an expression of kind {}", kind(other)),
            ),
        }
    }

    /// JSON_TABLE, an item of FROM.
    pub(super) fn json_table(&mut self, table: &JsonTable) {
        self.json_value(table.context_item.as_deref());
        self.json_path(table.pathspec.as_deref());
        self.expressions(&table.passing);
        self.expressions(&table.columns);
        self.json_behaviours([&table.on_error]);
    }

    fn json_value(&mut self, value: Option<&JsonValueExpr>) {
        if let Some(value) = value {
            self.optional(&value.raw_expr);
            self.optional(&value.formatted_expr);
        }
    }

    fn json_pair(&mut self, pair: Option<&JsonKeyValue>) {
        if let Some(pair) = pair {
            self.optional(&pair.key);
            self.json_value(pair.value.as_deref());
        }
    }

    fn json_path(&mut self, path: Option<&JsonTablePathSpec>) {
        if let Some(path) = path {
            self.optional(&path.string);
        }
    }

    fn json_aggregate(&mut self, constructor: Option<&JsonAggConstructor>) {
        if let Some(constructor) = constructor {
            self.optional(&constructor.agg_filter);
            self.expressions(&constructor.agg_order);
            self.over(constructor.over.as_deref());
        }
    }

    fn json_behaviours<const N: usize>(&mut self, behaviours: [&Option<Box<JsonBehavior>>; N]) {
        for behaviour in behaviours.into_iter().flatten() {
            self.optional(&behaviour.expr);
        }
    }
}
