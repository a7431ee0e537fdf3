//! Owns the choice of TCP ports: a block per cluster, below the range that the kernel gives to outgoing connections, so
//! that a server that is down for a while finds its port free when it comes back.

use std::{fs::File, io, net::TcpListener};

use rustix::fs::FlockOperation;

use crate::scratch;

/// The first port of the first block.
const FIRST: u16 = 12_000;
/// Ports in a block.
const SIZE: u16 = 32;
/// How many blocks there are: up to port 31,999.
const BLOCKS: u16 = 625;

/// A block of ports that no other test uses, as long as this value lives.
#[derive(Debug)]
pub struct Ports {
    first: u16,
    used: u16,
    _lock: File,
}

impl Ports {
    /// Takes a block, beginning to look at a random place.
    ///
    /// # Errors
    /// All are taken, or the lock files cannot be written.
    pub fn take() -> io::Result<Self> {
        let dir = scratch::base_dir()?.join(".ports");
        std::fs::create_dir_all(&dir)?;
        let begin = fastrand::u16(..BLOCKS);
        for offset in 0..BLOCKS {
            let block = (begin + offset) % BLOCKS;
            let lock = File::create(dir.join(block.to_string()))?;
            if rustix::fs::flock(&lock, FlockOperation::NonBlockingLockExclusive).is_err() {
                continue;
            }
            let first = FIRST + block * SIZE;
            if (first..first + SIZE).all(is_free) {
                return Ok(Self {
                    first,
                    used: 0,
                    _lock: lock,
                });
            }
        }
        Err(io::Error::new(
            io::ErrorKind::AddrInUse,
            "every block of ports is taken",
        ))
    }

    /// The next port of the block.
    ///
    /// # Panics
    /// The block is used up.
    pub fn port(&mut self) -> u16 {
        self.consecutive(1)
    }

    /// So many consecutive ports; answers the first.
    ///
    /// # Panics
    /// The block is used up.
    pub fn consecutive(&mut self, count: u16) -> u16 {
        assert!(
            count > 0 && self.used + count <= SIZE,
            "a test uses more than {SIZE} ports"
        );
        self.used += count;
        self.first + self.used - count
    }
}

fn is_free(port: u16) -> bool {
    TcpListener::bind(("127.0.0.1", port)).is_ok()
}
