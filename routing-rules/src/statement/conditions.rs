//! Which columns have which values where all of some conditions hold.

use pg_query::NodeEnum;
use pg_query::protobuf::{
    AExpr, AExprKind, BoolExpr, BoolExprType, ColumnRef, Node, TypeName, a_const, node,
};

use super::TableUse;
use super::analyse::Places;
use super::source::{ColumnValues, Origin, Source};
use crate::catalog::ColumnType;

/// Of how many equalities of columns, and of how many values known, account is taken at one level: a text may hold thousands,
/// and each is compared with each.
const CARRIED_MAX: usize = 64;

/// Something that FROM, or the target of a write, brings in.
#[derive(Debug)]
pub(super) struct Relation {
    /// What columns of it are called by.
    pub(super) name: String,
    /// Its place among the uses of tables, if it is one.
    pub(super) table: Option<usize>,
    /// Columns of which every row's value is known: those of VALUES, or of a query without FROM.
    pub(super) constants: Vec<(String, ColumnValues)>,
}

/// The relations of one level of a statement, and what its conditions say.
#[derive(Debug)]
pub(super) struct Level<'c> {
    places: Places<'c>,
    pub(super) relations: Vec<Relation>,
    /// Relation (`None`: any that has the column), column, values.
    found: Vec<(Option<usize>, String, Vec<Source>)>,
    equal: Vec<[(usize, String); 2]>,
}

impl<'c> Level<'c> {
    pub(super) fn new(places: Places<'c>) -> Self {
        Self {
            places,
            relations: Vec::new(),
            found: Vec::new(),
            equal: Vec::new(),
        }
    }

    /// Takes in a condition that holds for every row in question.
    pub(super) fn holds(&mut self, condition: Option<&Node>) {
        let Some(condition) = condition.and_then(|node| node.node.as_ref()) else {
            return;
        };
        match condition {
            NodeEnum::BoolExpr(all) if is_and(all) => {
                for each in &all.args {
                    self.holds(Some(each));
                }
            }
            NodeEnum::AExpr(expression) => self.comparison(expression),
            _ => {}
        }
    }

    fn comparison(&mut self, expression: &AExpr) {
        let (Some(left), Some(right)) = (inner(&expression.lexpr), inner(&expression.rexpr)) else {
            return;
        };
        if !is_equals(expression) {
            return;
        }
        match AExprKind::try_from(expression.kind) {
            Ok(AExprKind::AexprOp | AExprKind::AexprNotDistinct) => self.equals(left, right),
            Ok(AExprKind::AexprIn) => {
                if let NodeEnum::List(list) = right {
                    self.is_in(left, &list.items);
                }
            }
            Ok(AExprKind::AexprOpAny) => {
                let values = self.places.array(right);
                if let (NodeEnum::ColumnRef(column), Some(values)) = (left, values) {
                    self.column_is(column, values);
                }
            }
            _ => {}
        }
    }

    fn equals(&mut self, left: &NodeEnum, right: &NodeEnum) {
        match (left, right) {
            (NodeEnum::ColumnRef(one), NodeEnum::ColumnRef(other)) => {
                self.columns_are_equal(one, other)
            }
            (NodeEnum::ColumnRef(column), value) | (value, NodeEnum::ColumnRef(column)) => {
                if let Some(source) = self.places.source(value) {
                    self.column_is(column, vec![source]);
                }
            }
            (NodeEnum::RowExpr(one), NodeEnum::RowExpr(other)) => {
                for (one, other) in one.args.iter().zip(&other.args) {
                    if let (Some(one), Some(other)) = (&one.node, &other.node) {
                        self.equals(one, other);
                    }
                }
            }
            _ => {}
        }
    }

    fn is_in(&mut self, left: &NodeEnum, items: &[Node]) {
        let places = self.places;
        match left {
            NodeEnum::ColumnRef(column) => {
                let sources = items.iter().map(|item| places.source(item.node.as_ref()?));
                if let Some(sources) = sources.collect() {
                    self.column_is(column, sources);
                }
            }
            NodeEnum::RowExpr(row) => {
                for (place, column) in row.args.iter().enumerate() {
                    let Some(NodeEnum::ColumnRef(column)) = &column.node else {
                        continue;
                    };
                    let sources = items.iter().map(|item| match &item.node {
                        Some(NodeEnum::RowExpr(item)) => {
                            places.source(item.args.get(place)?.node.as_ref()?)
                        }
                        _ => None,
                    });
                    if let Some(sources) = sources.collect() {
                        self.column_is(column, sources);
                    }
                }
            }
            _ => {}
        }
    }

    fn column_is(&mut self, column: &ColumnRef, sources: Vec<Source>) {
        let Some((relation, column)) = self.resolve(column) else {
            return;
        };
        self.found.push((relation, column, sources));
    }

    fn columns_are_equal(&mut self, one: &ColumnRef, other: &ColumnRef) {
        let (one, other) = (self.resolve(one), self.resolve(other));
        if let (Some((Some(one), left)), Some((Some(other), right))) = (one, other) {
            self.equal.push([(one, left), (other, right)]);
        }
    }

    /// A column that both have, of the same name, is equal in both.
    pub(super) fn joined_by(&mut self, column: &str, left: usize, right: usize) {
        self.equal
            .push([(left, column.to_owned()), (right, column.to_owned())]);
    }

    /// The relation of a column, where the statement or the lack of others names it. A name that stands alone can only be of
    /// a relation of this level that has such a column, or else of an outer level, and then of none of these.
    fn resolve(&self, column: &ColumnRef) -> Option<(Option<usize>, String)> {
        let mut names = column.fields.iter().map(|field| match &field.node {
            Some(NodeEnum::String(name)) => Some(name.sval.as_str()),
            _ => None,
        });
        let mut names: Vec<&str> = names.by_ref().collect::<Option<_>>()?;
        let column = names.pop()?.to_owned();
        let Some(relation) = names.last() else {
            let only = (self.relations.len() == 1).then_some(0);
            return Some((only, column));
        };
        let place = self
            .relations
            .iter()
            .position(|known| known.name == *relation);
        Some((Some(place?), column))
    }

    /// The values of a column of a relation with constants.
    pub(super) fn constants(&self, column: &ColumnRef) -> Option<&ColumnValues> {
        let (relation, column) = self.resolve(column)?;
        let relation = self.relations.get(relation?)?;
        let found = relation.constants.iter().find(|(name, _)| *name == column);
        found.map(|(_, values)| values)
    }

    /// Gives every table what is known of its columns.
    pub(super) fn settle(mut self, tables: &mut [TableUse]) {
        for (place, relation) in self.relations.iter().enumerate() {
            for (column, values) in &relation.constants {
                if let ColumnValues::Of(sources) = values {
                    let known = (Some(place), column.clone(), sources.clone());
                    self.found.push(known);
                }
            }
        }
        if self.found.len() <= CARRIED_MAX {
            self.carry_over();
        }
        for (place, relation) in self.relations.iter().enumerate() {
            let Some(table) = relation.table.and_then(|table| tables.get_mut(table)) else {
                continue;
            };
            for (of, column, sources) in &self.found {
                if of.is_none_or(|of| of == place) {
                    let values = ColumnValues::Of(sources.clone());
                    table.columns.push((column.clone(), values));
                }
            }
        }
    }
}

impl Level<'_> {
    /// Columns that are equal have the same values.
    fn carry_over(&mut self) {
        self.equal.truncate(CARRIED_MAX);
        let mut before = usize::MAX;
        while before != self.found.len() {
            before = self.found.len();
            for [one, other] in &self.equal {
                for (from, to) in [(one, other), (other, one)] {
                    let is_of =
                        |of: &(usize, String), known: &(Option<usize>, String, Vec<Source>)| {
                            known.0 == Some(of.0) && known.1 == of.1
                        };
                    if self.found.iter().any(|known| is_of(to, known)) {
                        continue;
                    }
                    let known = self.found.iter().find(|known| is_of(from, known));
                    if let Some(values) = known.map(|known| known.2.clone()) {
                        self.found.push((Some(to.0), to.1.clone(), values));
                    }
                }
            }
        }
    }

    /// What is known of a value that is written: of this literal or parameter, of a column with constants, or nothing.
    pub(super) fn written(&self, value: Option<&NodeEnum>) -> ColumnValues {
        let known = match value {
            Some(NodeEnum::ColumnRef(column)) => self.constants(column).cloned(),
            Some(value) => self.places.source(value).map(one),
            None => None,
        };
        known.unwrap_or(ColumnValues::Unknown)
    }
}

/// The one value of a column.
pub(super) fn one(source: Source) -> ColumnValues {
    ColumnValues::Of(vec![source])
}

pub(super) fn inner(node: &Option<Box<Node>>) -> Option<&NodeEnum> {
    node.as_ref().and_then(|node| node.node.as_ref())
}

fn is_and(expression: &BoolExpr) -> bool {
    expression.boolop == BoolExprType::AndExpr as i32
}

fn is_equals(expression: &AExpr) -> bool {
    let names: Vec<_> = expression.name.iter().filter_map(string).collect();
    matches!(names[..], ["="] | ["pg_catalog", "="])
}

/// The text of a node that is a string.
pub(super) fn string(node: &Node) -> Option<&str> {
    match &node.node {
        Some(node::Node::String(text)) => Some(&text.sval),
        _ => None,
    }
}

impl Places<'_> {
    /// Where the one value of an expression stands.
    pub(super) fn source(self, node: &NodeEnum) -> Option<Source> {
        let (origin, cast) = match node {
            NodeEnum::ParamRef(parameter) => {
                let number = u16::try_from(parameter.number).ok()?;
                (Origin::Parameter(number), None)
            }
            NodeEnum::TypeCast(cast) => {
                let inside = self.source(inner(&cast.arg)?)?;
                return cast_to(inside, cast_type(cast.type_name.as_ref()?, false)?);
            }
            NodeEnum::AConst(constant) => match &constant.val {
                Some(a_const::Val::Ival(_) | a_const::Val::Sval(_) | a_const::Val::Fval(_)) => {
                    let (place, negative) = self.at(constant.location)?;
                    (Origin::Literal { place, negative }, None)
                }
                Some(a_const::Val::Boolval(value)) => (
                    Origin::Constant(value.boolval.to_string().into()),
                    Some(ColumnType::Bool),
                ),
                Some(a_const::Val::Bsval(_)) | None => return None,
            },
            _ => return None,
        };
        Some(Source {
            origin,
            array: false,
            cast,
        })
    }

    /// The elements of an array: ARRAY[..], a literal, a parameter.
    fn array(self, node: &NodeEnum) -> Option<Vec<Source>> {
        match node {
            NodeEnum::AArrayExpr(array) => {
                let elements = array.elements.iter();
                elements
                    .map(|element| self.source(element.node.as_ref()?))
                    .collect()
            }
            NodeEnum::TypeCast(cast) => {
                let to = cast_type(cast.type_name.as_ref()?, true)?;
                let inside = self.array(inner(&cast.arg)?)?.into_iter();
                inside.map(|source| cast_to(source, to)).collect()
            }
            other => {
                let source = self.source(other)?;
                Some(vec![Source {
                    array: true,
                    ..source
                }])
            }
        }
    }
}

/// A cast to one type does not change which key a value is, as far as both types have keys; of several casts nothing is said.
fn cast_to(source: Source, to: ColumnType) -> Option<Source> {
    source
        .cast
        .is_none_or(|known| known == to)
        .then_some(Source {
            cast: Some(to),
            ..source
        })
}

/// The type of a cast, or of its elements, if it is one that has keys and has no length.
fn cast_type(name: &TypeName, array: bool) -> Option<ColumnType> {
    if name.setof || !name.typmods.is_empty() || name.array_bounds.is_empty() == array {
        return None;
    }
    let names: Option<Vec<_>> = name.names.iter().map(string).collect();
    let ([name] | ["pg_catalog", name]) = names?[..] else {
        return None;
    };
    Some(match name {
        "int2" | "int4" | "int8" => ColumnType::Integer,
        "text" | "varchar" => ColumnType::Text {
            deterministic: true,
        },
        "uuid" => ColumnType::Uuid,
        "bool" => ColumnType::Bool,
        "date" => ColumnType::Date,
        "bytea" => ColumnType::Bytea,
        _ => return None,
    })
}
