//! What `tandem dev` was asked to do: the contract between the command line and the dev cluster.

use std::path::PathBuf;

/// The options of `tandem dev`, read from the command line and range-checked.
///
/// Paths are as the user wrote them: a relative one counts from the working directory.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DevOptions {
    /// How many primaries to start, 1 to 16.
    pub nodes: u16,
    /// The data directory; it keeps the cluster over restarts.
    pub dir: PathBuf,
    /// The proxy's TCP port on 127.0.0.1.
    pub port: u16,
    /// The admin HTTP port on 127.0.0.1.
    pub admin_port: u16,
    /// Node i (counted from 1) listens on `base_port + i - 1`.
    pub base_port: u16,
    /// Whether each node is reached through a relay, which can cut it off; its server then listens on
    /// `base_port + nodes + i - 1`.
    pub relays: bool,
    /// Directories with PostgreSQL's programs, in the order given. An entry without a node is the default for
    /// all nodes that no other entry names; a later entry wins over an earlier one.
    pub pg_bin: Vec<PgBin>,
    /// The database to create on every node and to keep converged.
    pub database: String,
    /// Any part of a `tandem.toml`; what it leaves out is filled in.
    pub config: Option<PathBuf>,
    /// A rules file to start from.
    pub rules: Option<PathBuf>,
    /// SQL files to run on every node before the cluster starts, in this order.
    pub init: Vec<PathBuf>,
    /// pgbench's scale factor, when its tables are wanted on every node.
    pub pgbench: Option<u32>,
}

/// One `--pg-bin [NODE=]DIR`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PgBin {
    /// The node meant: its name, or its number counted from 1, as the user wrote it. `None`: every node.
    pub node: Option<String>,
    /// The directory that holds `postgres`, `initdb` and the other programs.
    pub dir: PathBuf,
}

/// Reads `[NODE=]DIR`. What stands before the first `=` is a node only when it has no `/`, so that a directory
/// whose name contains `=` can be given with a leading `./`.
impl std::str::FromStr for PgBin {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let (node, dir) = match text.split_once('=') {
            Some((node, dir)) if !node.contains('/') => (Some(node), dir),
            _ => (None, text),
        };
        if node.is_some_and(str::is_empty) {
            return Err("the node before `=` is missing; write NODE=DIR or only DIR".to_owned());
        }
        if dir.is_empty() {
            return Err("the directory is missing; write NODE=DIR or only DIR".to_owned());
        }
        Ok(Self {
            node: node.map(str::to_owned),
            dir: PathBuf::from(dir),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pg_bin_reads_a_node_only_before_the_first_equals_sign() {
        let both: PgBin = "2=/opt/pg17/bin".parse().unwrap();
        assert_eq!(
            both,
            PgBin {
                node: Some("2".to_owned()),
                dir: PathBuf::from("/opt/pg17/bin")
            }
        );
        let alone: PgBin = "/opt/a=b/bin".parse().unwrap();
        assert_eq!(
            alone,
            PgBin {
                node: None,
                dir: PathBuf::from("/opt/a=b/bin")
            }
        );
        assert!("=x".parse::<PgBin>().unwrap_err().contains("node"));
        assert!("node2=".parse::<PgBin>().unwrap_err().contains("directory"));
    }
}
