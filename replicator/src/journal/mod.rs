//! The transactions of one source that some target still needs, on disk.

pub(crate) mod codec;
