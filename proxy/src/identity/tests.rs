//! A node and its reference node, for tests; and which node that is.

use std::{fs, sync::Arc};

use super::{
    Identities,
    read::Said,
    view::{Form, Made, Numbering, Type, View},
};
use crate::{
    config::Config,
    node::{self, Nodes},
};

/// The numbers that one node has given.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Oids {
    pub(crate) mood: u32,
    pub(crate) moods: u32,
    pub(crate) pair: u32,
    pub(crate) feeling: u32,
    pub(crate) table: u32,
    pub(crate) function: u32,
}

/// A node beside its reference node.
pub(crate) struct Example {
    pub(crate) view: View,
    pub(crate) node: Oids,
    pub(crate) reference: Oids,
}

pub(super) fn oids(from: u32) -> Oids {
    Oids {
        mood: from,
        moods: from + 1,
        pair: from + 2,
        feeling: from + 3,
        table: from + 4,
        function: from + 5,
    }
}

pub(super) fn numbering(of: Oids) -> Numbering {
    let types = [
        ("public.mood", of.mood, Made::Plain),
        ("public.mood[]", of.moods, Made::Of(Form::Array)),
        ("public.pair", of.pair, Made::Of(Form::Record)),
        ("public.feeling", of.feeling, Made::Over(of.moods)),
    ];
    let types = types.map(|(name, oid, made)| (name.into(), Type { oid, made }));
    Numbering {
        types: types.into(),
        others: [
            ("c public.person".into(), of.table),
            ("f public.f(public.mood)".into(), of.function),
        ]
        .into(),
    }
}

/// Numbers that overlap: what is one type there is another one here.
pub(crate) fn example() -> Example {
    let (node, reference) = (oids(20_002), oids(20_000));
    Example {
        view: View::new(&numbering(node), &numbering(reference)),
        node,
        reference,
    }
}

impl Example {
    /// The same node, where `mood[]` has this number.
    pub(crate) fn with_moods(moods: u32) -> View {
        let Example {
            node, reference, ..
        } = example();
        View::new(&numbering(Oids { moods, ..node }), &numbering(reference))
    }
}

/// An array of one dimension in binary format.
pub(crate) fn array(element: u32, values: &[Option<Vec<u8>>]) -> Vec<u8> {
    let count = u32::try_from(values.len()).expect("few");
    let head = [1, 0, element, count, 1].map(u32::to_be_bytes);
    let mut out = head.concat();
    values
        .iter()
        .for_each(|value| put(&mut out, value.as_deref()));
    out
}

/// A value and its length.
pub(super) fn put(out: &mut Vec<u8>, value: Option<&[u8]>) {
    let len = value.map_or(-1, |value| i32::try_from(value.len()).expect("small"));
    out.extend(len.to_be_bytes());
    out.extend(value.unwrap_or_default());
}

/// Three nodes, the last with the lowest id.
fn nodes() -> Nodes {
    let mut text = "cluster = \"test\"\n[admin]\nlisten = \"127.0.0.1:1\"\n".to_owned();
    text.push_str("[replication]\ndatabase = \"app\"\n[proxy]\nlisten = [\"127.0.0.1:0\"]\n");
    for id in (1..=3).rev() {
        let node = format!(
            "[[node]]\nname = \"n{id}\"\nid = {id}\nhost = \"127.0.0.1\"\nport = {id}\nuser = \"tandem\"\n"
        );
        text.push_str(&node);
    }
    let dir = tempfile::tempdir().expect("a directory");
    let path = dir.path().join("tandem.toml");
    fs::write(&path, text).expect("written");
    let config = Config::load(&path).expect("valid");
    node::nodes(&config.nodes).expect("no certificates")
}

fn said(version: &str, numbers: u32) -> Option<Said> {
    Some(Said {
        numbering: numbering(oids(numbers)),
        server_version: version.to_owned(),
    })
}

#[test]
fn the_reference_node_is_the_lowest_that_answers_and_stays_it() {
    let (identities, nodes) = (Arc::new(Identities::default()), nodes());
    identities.put(&[None, None, None], &nodes);
    assert_eq!(identities.server_version(), None);
    identities.put(&[said("15.4", 20_000), None, said("17.1", 20_100)], &nodes);
    assert_eq!(identities.reference(), Some(0));
    let all = [
        said("15.4", 20_000),
        said("15.4", 20_001),
        said("14.9", 20_100),
    ];
    identities.put(&all, &nodes);
    assert_eq!(identities.reference(), Some(0));
    assert_eq!(identities.server_version().as_deref(), Some("15.4"));
    let is_reference = |node| identities.numbered(node).map(|own| own.is_reference());
    assert_eq!(
        [0, 1, 2].map(is_reference),
        [Some(true), Some(false), Some(false)]
    );
    // Who begins with all of them takes another one.
    let later = Identities::default();
    later.put(&all, &nodes);
    assert_eq!(later.reference(), Some(2));
}

#[test]
fn while_numbers_agree_nothing_is_looked_at() {
    let (identities, nodes) = (Arc::new(Identities::default()), nodes());
    let same = || said("15.4", 20_000);
    identities.put(&[same(), same(), same()], &nodes);
    assert_eq!(identities.reference(), None);
    assert!((0..3).all(|node| identities.numbered(node).is_none()));
    // Catalogs say which version it is.
    identities.put(&[said("18.0", 20_000), same(), same()], &nodes);
    assert_eq!(identities.reference(), Some(2));
    assert!((0..3).all(|node| identities.numbered(node).is_none()));
    // Of one that has not answered nothing is known.
    identities.put(&[same(), None, same()], &nodes);
    assert!(identities.numbered(1).is_some());
}
