//! Owns what the servers of a pool make of the settings of logins: what was asked once is known for all that come later.

use std::{collections::HashMap, sync::Arc};

use super::Params;
use crate::session::profile::{APPLICATION_NAME, Profile};

/// Sets of settings, and profiles, that are remembered.
const KINDS_MAX: usize = 256;

/// What a server says to a set of settings.
#[derive(Debug, Clone)]
pub(crate) enum Kind {
    /// It takes them, and reports this with them.
    Taken(Params),
    /// It does not take these by SET; `lasting`: never.
    Refused { names: Arc<[String]>, lasting: bool },
}

/// What is known of a login's settings.
#[derive(Debug)]
pub(crate) enum Known {
    /// Its session begins with this.
    Begins(Profile),
    /// These cannot be set, but perhaps said at login.
    Refused(Arc<[String]>),
    /// A server has to be asked; it is known by this, and reports that at its login.
    Ask { kind: Params, reported: Params },
    /// There was no server yet.
    Nothing,
}

/// What is known in one pool.
#[derive(Debug, Default)]
pub(super) struct Kinds {
    /// What the newest server reported at login.
    reported: Option<Params>,
    /// By settings without the application's name, on which nothing depends.
    kinds: HashMap<Params, Kind>,
    profiles: HashMap<Params, Profile>,
}

impl Kinds {
    /// A server was opened, and reports this: other ones than before may know and want other things.
    pub(super) fn note_reported(&mut self, reported: &Params) {
        if self.reported.as_ref() != Some(reported) {
            *self = Kinds {
                reported: Some(Arc::clone(reported)),
                ..Kinds::default()
            };
        }
    }

    /// What is known of these settings.
    pub(super) fn know(&mut self, settings: &Params) -> Known {
        if let Some(profile) = self.profiles.get(settings) {
            return Known::Begins(profile.clone());
        }
        let Some(reported) = &self.reported else {
            return Known::Nothing;
        };
        let kind = without_name(settings);
        let reported = match self.kinds.get(&kind) {
            _ if kind.is_empty() => reported,
            Some(Kind::Taken(reported)) => reported,
            Some(Kind::Refused { names, .. }) => return Known::Refused(Arc::clone(names)),
            None => {
                return Known::Ask {
                    kind,
                    reported: Arc::clone(reported),
                };
            }
        };
        let profile = Profile::new(settings, reported);
        make_room(&mut self.profiles);
        self.profiles.insert(Arc::clone(settings), profile.clone());
        Known::Begins(profile)
    }

    /// A server has been asked.
    pub(super) fn learn(&mut self, kind: Params, said: Kind) {
        make_room(&mut self.kinds);
        self.kinds.insert(kind, said);
    }

    /// Whether there was a server.
    pub(super) fn is_any(&self) -> bool {
        self.reported.is_some()
    }
}

fn make_room<T>(map: &mut HashMap<Params, T>) {
    if map.len() >= KINDS_MAX {
        map.clear();
    }
}

fn without_name(settings: &Params) -> Params {
    let others = settings.iter().filter(|(name, _)| name != APPLICATION_NAME);
    others.cloned().collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn params(pairs: &[(&str, &str)]) -> Params {
        let pairs = pairs.iter();
        pairs
            .map(|(name, value)| ((*name).to_owned(), (*value).to_owned()))
            .collect()
    }

    #[test]
    fn a_set_of_settings_is_asked_once_whatever_the_applications_are_called() {
        let mut kinds = Kinds::default();
        let named = |name| params(&[("application_name", name), ("work_mem", "5MB")]);
        assert!(matches!(kinds.know(&named("a")), Known::Nothing));
        let reported = params(&[("application_name", ""), ("TimeZone", "UTC")]);
        kinds.note_reported(&reported);
        let only_name = kinds.know(&params(&[("application_name", "x")]));
        assert!(matches!(only_name, Known::Begins(_)));
        let Known::Ask {
            kind,
            reported: base,
        } = kinds.know(&named("a"))
        else {
            panic!("nobody has asked yet");
        };
        assert_eq!(base, reported);
        kinds.learn(kind, Kind::Taken(reported.clone()));
        let Known::Begins(profile) = kinds.know(&named("b")) else {
            panic!("it was asked");
        };
        assert_eq!(
            *profile.greeting,
            *params(&[("application_name", "b"), ("TimeZone", "UTC")])
        );
        // A server of another version, perhaps.
        kinds.note_reported(&params(&[("TimeZone", "Asia/Tokyo")]));
        assert!(matches!(kinds.know(&named("b")), Known::Ask { .. }));
    }

    #[test]
    fn what_is_remembered_is_bounded() {
        let mut kinds = Kinds::default();
        kinds.note_reported(&params(&[]));
        for n in 0..3 * KINDS_MAX {
            let settings = params(&[("a.b", &n.to_string())]);
            kinds.learn(Arc::clone(&settings), Kind::Taken(params(&[])));
            assert!(matches!(kinds.know(&settings), Known::Begins(_)));
            assert!(kinds.kinds.len() <= KINDS_MAX && kinds.profiles.len() <= KINDS_MAX);
        }
    }
}
