//! Owns finding the servers of a dev cluster that another process runs, for those who break them on purpose.

use std::path::{Path, PathBuf};

use super::{
    DevError,
    install::Install,
    layout,
    plan::server_spec,
    process::RunAs,
    server::{ServerError, ServerSpec},
};

/// A node of a dev cluster.
#[derive(Debug, Clone)]
pub(crate) struct DevNode {
    /// Its server, as `tandem dev` would start it.
    pub(crate) server: ServerSpec,
    /// The file in which one says that it is cut off, where a relay stands in front of it.
    pub(crate) cut_file: Option<PathBuf>,
}

/// The node that is reached at `port`, when `config` is the configuration of a dev cluster.
pub(crate) fn node_of(config: &Path, node: &str, port: u16) -> Result<Option<DevNode>, DevError> {
    let dir = config.parent().unwrap_or_else(|| Path::new("."));
    let Some((places, marker)) = layout::look(dir)? else {
        return Ok(None);
    };
    let Some(marked) = marker.nodes.iter().find(|marked| marked.name == node) else {
        return Ok(None);
    };
    let install = Install::at(&marked.bin_dir)?;
    let run_as = RunAs::for_servers().map_err(ServerError::User)?;
    let port = port.saturating_add(marker.server_offset());
    Ok(Some(DevNode {
        server: server_spec(&places, node, &install, port, run_as.as_ref()),
        cut_file: marker.relays.then(|| places.cut_file()),
    }))
}
