//! Owns finding the servers of a dev cluster that another process runs, for those who break them on purpose.

use std::path::Path;

use super::{
    DevError,
    install::Install,
    layout,
    plan::server_spec,
    process::RunAs,
    server::{ServerError, ServerSpec},
};

/// The server of a node, as `tandem dev` would start it, when `config` is the configuration of a dev cluster. The port is
/// the node's own.
pub(crate) fn server_of(
    config: &Path,
    node: &str,
    port: u16,
) -> Result<Option<ServerSpec>, DevError> {
    let dir = config.parent().unwrap_or_else(|| Path::new("."));
    let Some((places, marker)) = layout::look(dir)? else {
        return Ok(None);
    };
    let Some(marked) = marker.nodes.iter().find(|marked| marked.name == node) else {
        return Ok(None);
    };
    let install = Install::at(&marked.bin_dir)?;
    let run_as = RunAs::for_servers().map_err(ServerError::User)?;
    let spec = server_spec(&places, node, &install, port, run_as.as_ref());
    Ok(Some(spec))
}
