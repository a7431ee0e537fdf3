//! Owns the numbers that a node has given to what the database has, and what the reference node calls the same. Pure.

use std::collections::HashMap;

/// OIDs below are PostgreSQL's own, the same on every server of a major version (`FirstNormalObjectId` in access/transam.h).
pub(super) const FIRST_USER_OID: u32 = 16_384;
/// `record`, `record[]` and `anyarray` in pg_type.dat.
const RECORD: u32 = 2249;
const RECORDS: u32 = 2287;
const ANYARRAY: u32 = 2277;

/// The form of a value that has OIDs inside.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Form {
    /// With the type of its elements.
    Array,
    /// With the types of its columns.
    Record,
    /// It is an OID, or an integer that is compared with one.
    Number,
    /// An array of them.
    Numbers,
}

/// What a type is made of, as far as OIDs can be inside of its values.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Made {
    /// Of no other type: enums, ranges, what C code has made.
    Plain,
    /// Of elements, or of columns.
    Of(Form),
    /// It is a domain over the type with this OID.
    Over(u32),
}

/// A type of a node.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Type {
    pub(crate) oid: u32,
    pub(crate) made: Made,
}

/// What a node has, by qualified names.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Numbering {
    /// An array type is called after its elements.
    pub(crate) types: HashMap<Box<str>, Type>,
    /// Relations, functions and schemas: a letter for the catalog, and the name.
    pub(crate) others: HashMap<Box<str>, u32>,
}

impl Numbering {
    /// Whether what both have is numbered alike.
    pub(crate) fn agrees_with(&self, other: &Numbering) -> bool {
        let mut types = self.types.iter();
        let mut others = self.others.iter();
        types.all(|(name, known)| {
            let other = other.types.get(name);
            other.is_none_or(|other| other.oid == known.oid)
        }) && others.all(|(name, oid)| other.others.get(name).is_none_or(|other| other == oid))
    }
}

/// The numbers of a node beside those of the reference node.
#[derive(Debug, Default)]
pub(crate) struct View {
    /// It is the reference node itself.
    is_reference: bool,
    to_reference: HashMap<u32, u32>,
    to_node: HashMap<u32, u32>,
    others_to_reference: HashMap<u32, u32>,
    others_to_node: HashMap<u32, u32>,
    /// Of the reference node's types.
    forms: HashMap<u32, Form>,
}

impl View {
    /// Of a node with these numbers.
    pub(crate) fn new(node: &Numbering, reference: &Numbering) -> View {
        let mut view = View {
            forms: forms(reference),
            ..View::default()
        };
        for (name, own) in &node.types {
            if let Some(other) = reference.types.get(name) {
                view.to_reference.insert(own.oid, other.oid);
                view.to_node.insert(other.oid, own.oid);
            }
        }
        for (name, own) in &node.others {
            if let Some(other) = reference.others.get(name) {
                view.others_to_reference.insert(*own, *other);
                view.others_to_node.insert(*other, *own);
            }
        }
        view
    }

    /// Of the reference node.
    pub(crate) fn of_reference(reference: &Numbering) -> View {
        View {
            is_reference: true,
            forms: forms(reference),
            ..View::default()
        }
    }

    /// Whether its numbers are what clients are told.
    pub(crate) fn is_reference(&self) -> bool {
        self.is_reference
    }

    /// The reference node's number of a type of this node; none: it is not known.
    pub(crate) fn to_reference(&self, oid: u32) -> Option<u32> {
        self.is_same(oid)
            .then_some(oid)
            .or_else(|| self.to_reference.get(&oid).copied())
    }

    /// This node's number of a type of the reference node; none: it is not known.
    pub(crate) fn to_node(&self, oid: u32) -> Option<u32> {
        self.is_same(oid)
            .then_some(oid)
            .or_else(|| self.to_node.get(&oid).copied())
    }

    fn is_same(&self, oid: u32) -> bool {
        oid < FIRST_USER_OID || self.is_reference
    }

    /// The reference node's number of a table of this node; none: it is not known, or it is none of users'.
    pub(crate) fn relation(&self, oid: u32) -> Option<u32> {
        self.others_to_reference.get(&oid).copied()
    }

    /// This node's number of a function of the reference node, or the same if that is not known.
    pub(crate) fn function(&self, oid: u32) -> u32 {
        self.others_to_node.get(&oid).copied().unwrap_or(oid)
    }

    /// The reference node's number of whatever has this one in a catalog of this node; none: it is not known. One counter
    /// numbers all of them (`GetNewObjectId` in varsup.c), so they hardly ever meet.
    pub(crate) fn any_to_reference(&self, oid: u32) -> Option<u32> {
        let types = self.to_reference.get(&oid);
        types
            .or_else(|| self.others_to_reference.get(&oid))
            .copied()
    }

    /// The same the other way.
    pub(crate) fn any_to_node(&self, oid: u32) -> Option<u32> {
        let types = self.to_node.get(&oid);
        types.or_else(|| self.others_to_node.get(&oid)).copied()
    }

    /// The form of values of a type of the reference node; none: there are no users' types inside.
    pub(crate) fn form(&self, oid: u32) -> Option<Form> {
        match oid {
            RECORD => Some(Form::Record),
            RECORDS | ANYARRAY => Some(Form::Array),
            _ => self.forms.get(&oid).copied(),
        }
    }
}

fn forms(reference: &Numbering) -> HashMap<u32, Form> {
    let types = reference.types.values();
    let made: HashMap<u32, Made> = types.map(|each| (each.oid, each.made)).collect();
    let form = |mut oid: u32| {
        // A domain cannot be over itself, so this ends; a row read in between may say otherwise.
        for _ in 0..made.len() {
            match made.get(&oid)? {
                Made::Plain => return None,
                Made::Of(form) => return Some(*form),
                Made::Over(base) => oid = *base,
            }
        }
        None
    };
    made.keys()
        .filter_map(|oid| Some((*oid, form(*oid)?)))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::identity::tests::{Example, example, numbering, oids};

    #[test]
    fn what_has_the_same_name_is_the_same() {
        let Example {
            view,
            node,
            reference,
        } = example();
        for (own, other) in [
            (node.mood, reference.mood),
            (node.moods, reference.moods),
            (node.pair, reference.pair),
            (23, 23),
        ] {
            assert_eq!(view.to_reference(own), Some(other));
            assert_eq!(view.to_node(other), Some(own));
        }
        assert_eq!(view.relation(node.table), Some(reference.table));
        assert_eq!(view.function(reference.function), node.function);
        assert_eq!(view.to_reference(30_000), None);
        assert_eq!(view.to_node(30_000), None);
        assert_eq!((view.relation(30_000), view.relation(0)), (None, None));
        assert_eq!(view.any_to_reference(node.table), Some(reference.table));
        assert_eq!(view.any_to_node(reference.mood), Some(node.mood));
        assert_eq!(view.any_to_node(23), None);
    }

    #[test]
    fn the_form_of_a_domain_is_that_of_what_is_below() {
        let Example {
            view, reference, ..
        } = example();
        assert_eq!(view.form(reference.mood), None);
        assert_eq!(view.form(reference.moods), Some(Form::Array));
        assert_eq!(view.form(reference.feeling), Some(Form::Array));
        assert_eq!(view.form(reference.pair), Some(Form::Record));
        assert_eq!(
            (view.form(RECORD), view.form(23)),
            (Some(Form::Record), None)
        );
    }

    #[test]
    fn numbers_agree_unless_one_name_has_two() {
        let one = numbering(oids(20_000));
        let mut more = one.clone();
        more.others.insert("c public.new".into(), 30_000);
        assert!(one.agrees_with(&more) && more.agrees_with(&one));
        assert!(!one.agrees_with(&numbering(oids(20_001))));
        more.others.insert("f public.f(public.mood)".into(), 30_001);
        assert!(!one.agrees_with(&more) && !more.agrees_with(&one));
    }

    #[test]
    fn the_reference_nodes_numbers_stay() {
        let reference = oids(20_000);
        let view = View::of_reference(&numbering(reference));
        assert_eq!(view.to_reference(30_000), Some(30_000));
        assert_eq!(view.form(reference.moods), Some(Form::Array));
        assert!(view.is_reference());
    }
}
