//! What a statement does to the session, and what a session's settings are after it.
//!
//! [`effects`] reads the tokens of one statement; of most texts [`is_plain`] knows before that they do nothing. [`Settings`] is the model of a session's settings: statements are applied
//! to it as they succeed, and it follows transactions and savepoints as the server does. [`difference`] says what to send
//! to a server connection so that it has the settings that a session wants.

mod cursor;
mod difference;
mod effect;
mod functions;
mod homed;
mod parse;
mod pin;
mod plain;
mod restore;
mod set;
mod settings;
mod startup;

#[cfg(test)]
mod settings_tests;
#[cfg(test)]
mod tests;

pub use difference::difference;
pub use effect::{
    Change, Discard, Doubt, Effect, Effects, Isolation, Modes, Names, Scope, Transaction,
};
pub use functions::HARMLESS_FUNCTIONS;
pub use homed::{Homed, LARGE_OBJECT_OIDS, homed};
pub use parse::effects;
pub use pin::{Pin, Pins};
pub use plain::is_plain;
pub use restore::Restoring;
pub use set::is_temporary_first;
pub use settings::{Disagreement, Settings, Status, Value};
