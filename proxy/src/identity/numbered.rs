//! Owns what becomes of the OIDs in one server's messages.

use std::sync::Arc;

use super::{
    Form, Identities, Meeting, Toward, Unknown, View,
    frames::{self, Space},
};

/// The numbers of the node that a server belongs to, where clients are told others.
#[derive(Debug, Clone)]
pub(crate) struct Numbered {
    identities: Arc<Identities>,
    view: Arc<View>,
    node: usize,
    reference: usize,
    /// Something was passed on as it was, because nobody knows what it is.
    is_mixed: bool,
}

impl Numbered {
    pub(super) fn new(
        identities: Arc<Identities>,
        view: Arc<View>,
        node: usize,
        reference: usize,
    ) -> Numbered {
        Numbered {
            identities,
            view,
            node,
            reference,
            is_mixed: false,
        }
    }

    /// The numbers as they are now; none: clients are told them as they are.
    pub(crate) fn renewed(&self) -> Option<Numbered> {
        self.identities.numbered(self.node)
    }

    /// Whether these are the numbers that clients are told.
    pub(crate) fn is_reference(&self) -> bool {
        self.view.is_reference()
    }

    /// The node whose numbers its descriptions have when a client is told them.
    pub(crate) fn told_as(&self) -> usize {
        match self.is_mixed {
            true => self.node,
            false => self.reference,
        }
    }

    /// The form of values of a type that a client was told.
    pub(crate) fn form(&self, oid: u32) -> Option<Form> {
        self.view.form(oid)
    }

    /// A value with other numbers inside. In text format only numbers themselves are any.
    pub(crate) fn renumbered(
        &self,
        value: &[u8],
        is_binary: bool,
        form: Form,
        toward: Toward,
    ) -> Vec<u8> {
        if !is_binary {
            return self.view.renumber_text(value, toward);
        }
        let mut other = value.to_vec();
        self.view.renumber(&mut other, form, toward);
        other
    }

    /// A RowDescription's body as a client is told it.
    ///
    /// # Errors
    /// A type is not known yet: to be asked again after the wait.
    pub(crate) fn rows(&mut self, body: &[u8]) -> Result<Vec<u8>, Meeting> {
        let (mut told, mut unknown) = (body.to_vec(), Unmet::default());
        let view = &self.view;
        frames::in_rows(&mut told, |space, oid| match space {
            // One that is not known may be a temporary table.
            Space::Relation => view.relation(oid).unwrap_or(oid),
            Space::Type => unknown.or_same(oid, view.to_reference(oid)),
        });
        self.settled(told, &unknown)
    }

    /// A ParameterDescription's body as a client is told it.
    ///
    /// # Errors
    /// A type is not known yet: to be asked again after the wait.
    pub(crate) fn parameters(&mut self, body: &[u8]) -> Result<Vec<u8>, Meeting> {
        let (mut told, mut unknown) = (body.to_vec(), Unmet::default());
        let view = &self.view;
        frames::in_parameters(&mut told, |oid| {
            unknown.or_same(oid, view.to_reference(oid))
        });
        self.settled(told, &unknown)
    }

    fn settled(&mut self, told: Vec<u8>, unknown: &Unmet) -> Result<Vec<u8>, Meeting> {
        for oid in &unknown.0 {
            if let Some(meeting) = self.meet(*oid, Toward::Reference) {
                return Err(meeting);
            }
        }
        self.is_mixed |= !unknown.0.is_empty();
        Ok(told)
    }

    fn meet(&self, oid: u32, toward: Toward) -> Option<Meeting> {
        self.identities.meet(Unknown {
            node: self.node,
            oid,
            toward,
        })
    }

    /// Waits for the types of a Parse that are not known; `rest` is its body behind the name.
    pub(crate) fn missing(&self, rest: &[u8]) -> Option<Meeting> {
        frames::types_of_statement(rest)
            .filter(|oid| self.view.to_node(*oid).is_none())
            .find_map(|oid| self.meet(oid, Toward::Node))
    }

    /// Gives the types of a Parse the node's numbers; `rest` is its body behind the name.
    pub(crate) fn statement(&self, rest: &mut [u8]) {
        frames::in_statement(rest, |oid| self.view.to_node(oid).unwrap_or(oid));
    }

    /// The node's number of a function.
    pub(crate) fn function(&self, oid: u32) -> u32 {
        self.view.function(oid)
    }
}

/// Types that are not known.
#[derive(Default)]
struct Unmet(Vec<u32>);

impl Unmet {
    fn or_same(&mut self, oid: u32, known: Option<u32>) -> u32 {
        known.unwrap_or_else(|| {
            self.0.push(oid);
            oid
        })
    }
}
