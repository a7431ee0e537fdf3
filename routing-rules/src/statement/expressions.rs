//! Expressions: what they call, and the queries in them.

use pg_query::NodeEnum;
use pg_query::protobuf::{FuncCall, Node, WindowDef};

use super::conditions::string;
use super::{Class, Scan, functions};

impl Scan<'_> {
    pub(super) fn expressions(&mut self, nodes: &[Node]) {
        for node in nodes {
            self.expression(node);
        }
    }

    pub(super) fn optional(&mut self, node: &Option<Box<Node>>) {
        if let Some(node) = node {
            self.expression(node);
        }
    }

    /// Looks into an expression. One of a kind that is not known here makes the statement unknown.
    pub(super) fn expression(&mut self, node: &Node) {
        let Some(node) = &node.node else {
            return;
        };
        match node {
            NodeEnum::AConst(constant) => self.replaceable(constant.location),
            NodeEnum::ParamRef(_)
            | NodeEnum::SqlvalueFunction(_)
            | NodeEnum::SetToDefault(_)
            | NodeEnum::CurrentOfExpr(_)
            | NodeEnum::AStar(_)
            | NodeEnum::String(_)
            | NodeEnum::Integer(_)
            | NodeEnum::MergeSupportFunc(_)
            | NodeEnum::ColumnRef(_)
            | NodeEnum::TypeName(_)
            | NodeEnum::ColumnDef(_)
            | NodeEnum::JsonFormat(_)
            | NodeEnum::JsonReturning(_)
            | NodeEnum::JsonOutput(_) => {}
            NodeEnum::FuncCall(call) => self.call(call),
            NodeEnum::SubLink(link) => {
                self.optional(&link.testexpr);
                self.optional(&link.subselect);
            }
            NodeEnum::SelectStmt(select) => self.query(select),
            NodeEnum::AExpr(expression) => {
                self.optional(&expression.lexpr);
                self.optional(&expression.rexpr);
            }
            NodeEnum::BoolExpr(expression) => self.expressions(&expression.args),
            NodeEnum::TypeCast(cast) => self.optional(&cast.arg),
            NodeEnum::CollateClause(collate) => self.optional(&collate.arg),
            NodeEnum::RowExpr(row) => self.expressions(&row.args),
            NodeEnum::AArrayExpr(array) => self.expressions(&array.elements),
            NodeEnum::List(list) => self.expressions(&list.items),
            NodeEnum::AIndirection(indirection) => {
                self.optional(&indirection.arg);
                self.expressions(&indirection.indirection);
            }
            NodeEnum::AIndices(indices) => {
                self.optional(&indices.lidx);
                self.optional(&indices.uidx);
            }
            NodeEnum::CaseExpr(case) => {
                self.optional(&case.arg);
                self.expressions(&case.args);
                self.optional(&case.defresult);
            }
            NodeEnum::CaseWhen(when) => {
                self.optional(&when.expr);
                self.optional(&when.result);
            }
            NodeEnum::CoalesceExpr(coalesce) => self.expressions(&coalesce.args),
            NodeEnum::MinMaxExpr(minmax) => self.expressions(&minmax.args),
            NodeEnum::NullTest(test) => self.optional(&test.arg),
            NodeEnum::BooleanTest(test) => self.optional(&test.arg),
            NodeEnum::SortBy(sort) => self.optional(&sort.node),
            NodeEnum::ResTarget(target) => {
                self.expressions(&target.indirection);
                self.optional(&target.val);
            }
            // Its columns share one source.
            NodeEnum::MultiAssignRef(assigned) if assigned.colno > 1 => {}
            NodeEnum::MultiAssignRef(assigned) => self.optional(&assigned.source),
            NodeEnum::NamedArgExpr(argument) => self.optional(&argument.arg),
            NodeEnum::WindowDef(window) => self.over(Some(window)),
            NodeEnum::GroupingSet(set) => self.expressions(&set.content),
            NodeEnum::GroupingFunc(function) => self.expressions(&function.args),
            NodeEnum::IndexElem(element) => self.optional(&element.expr),
            NodeEnum::XmlExpr(xml) => {
                self.expressions(&xml.named_args);
                self.expressions(&xml.args);
            }
            NodeEnum::XmlSerialize(xml) => self.optional(&xml.expr),
            _ => self.json(node),
        }
    }

    pub(super) fn over(&mut self, window: Option<&WindowDef>) {
        if let Some(window) = window {
            self.expressions(&window.partition_clause);
            self.expressions(&window.order_clause);
            self.optional(&window.start_offset);
            self.optional(&window.end_offset);
        }
    }

    pub(super) fn call(&mut self, call: &FuncCall) {
        let names: Option<Vec<_>> = call.funcname.iter().map(string).collect();
        let named = match names.as_deref() {
            Some([name]) => Some((None, *name)),
            Some([schema, name] | [_, schema, name]) => Some((Some(*schema), *name)),
            _ => None,
        };
        let keeping = usize::from(named.is_none_or(|(_, name)| functions::depends_on_values(name)));
        self.keeping += keeping;
        self.expressions(&call.args);
        self.keeping -= keeping;
        self.expressions(&call.agg_order);
        self.optional(&call.agg_filter);
        self.over(call.over.as_deref());
        let Some((schema, name)) = named else {
            return self.rise(Class::Unknown, "a call without a name");
        };
        let class = functions::class(schema, name, self.names);
        if class != Class::Read {
            self.rise(class, format!("function {name}"));
        }
    }
}

/// The kind of a node, for people.
pub(super) fn kind(node: &NodeEnum) -> String {
    let text = format!("{node:?}");
    text.split(['(', ' ', '{'])
        .next()
        .unwrap_or_default()
        .to_owned()
}
