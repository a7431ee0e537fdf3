//! Whose journal it is.

use bytes::BufMut;
use tandem_wire::lsn::Lsn;
use tandem_wire::reader::{ReadError, Reader};

/// What positions are counted in: LSNs of another server, another timeline or another slot mean something else.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Source {
    /// The cluster's name.
    pub cluster: String,
    /// The slot that is read.
    pub slot: String,
    /// The server's system identifier.
    pub system: u64,
    /// The server's timeline.
    pub timeline: u32,
}

/// One journal, from its creation to its end.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Identity {
    /// Whose entries it holds.
    pub source: Source,
    /// Told from all other journals by this; the source's `tandem.journal` has it too.
    pub id: u64,
    /// Where it began: nothing that ends at or before this position was ever in it.
    pub origin: Lsn,
}

impl Identity {
    /// Of a journal that begins now.
    pub(super) fn new(source: Source, origin: Lsn) -> Self {
        use std::hash::{BuildHasher, Hasher, RandomState};
        Self {
            source,
            // Seeded by the operating system.
            id: RandomState::new().build_hasher().finish(),
            origin,
        }
    }

    /// 8 id, 8 origin, 8 system identifier, 4 timeline, cluster and slot each as 2 length and text.
    pub(super) fn encode(&self, out: &mut Vec<u8>) {
        out.put_u64(self.id);
        out.put_u64(self.origin.0);
        out.put_u64(self.source.system);
        out.put_u32(self.source.timeline);
        for text in [&self.source.cluster, &self.source.slot] {
            // Names of clusters and slots are at most 63 bytes long.
            let bytes = text.as_bytes();
            let length = u16::try_from(bytes.len()).unwrap_or(u16::MAX);
            out.put_u16(length);
            out.extend(bytes.iter().take(usize::from(length)));
        }
    }

    /// Reads what [`encode`](Self::encode) wrote.
    ///
    /// # Errors
    /// When it is anything else.
    pub(super) fn decode(reader: &mut Reader<'_>) -> Result<Self, ReadError> {
        let (id, origin) = (reader.u64()?, Lsn(reader.u64()?));
        let (system, timeline) = (reader.u64()?, reader.u32()?);
        let mut text = || {
            let length = usize::from(reader.u16()?);
            let bytes = reader.bytes(length)?;
            String::from_utf8(bytes.to_vec()).map_err(|_| ReadError::Invalid("name"))
        };
        Ok(Self {
            id,
            origin,
            source: Source {
                cluster: text()?,
                slot: text()?,
                system,
                timeline,
            },
        })
    }
}
