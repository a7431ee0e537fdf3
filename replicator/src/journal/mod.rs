//! The transactions of one source that some target still needs, on disk.

#[cfg_attr(
    not(test),
    expect(dead_code, reason = "nothing is written to disk yet")
)]
pub(crate) mod codec;
