//! The decoder of pgoutput beside another one: the same bytes must have the same meaning.

mod generated;
mod oracle;
mod recorded;
