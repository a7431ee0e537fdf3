//! Owns what is decided and checked before anything of a dev cluster is started: directory, configuration, programs, ports,
//! disk. Each thing that is wrong gives one message that says what to change.

use std::{
    collections::HashMap,
    fs, io,
    net::{SocketAddr, TcpListener},
    path::{Path, PathBuf},
    time::Duration,
};

use super::{
    DevError,
    config_text::{ConfigText, Fill},
    install::Install,
    layout::{self, Layout, LayoutError, MarkedNode, Marker, Places, Stage},
    process::{RunAs, listener_of},
    server::{Server, ServerSpec},
    setup,
};
use crate::{
    cli::dev_options::{DevOptions, PgBin},
    config::Config,
};

/// What one node's new data directory, its first WAL and some room take.
const NODE_BYTES: u64 = 200 << 20;

/// What a node that exists already must still find free.
const RESUME_BYTES: u64 = 50 << 20;

/// What one unit of pgbench's scale takes on a node, WAL included (100,000 rows).
const PGBENCH_BYTES: u64 = 32 << 20;

const DEFAULT_RULES: &str = "\
# Written by `tandem dev`. Which node a statement goes to; see the examples directory for rules with keys.
[default]
write = \"home\"
[read]
route = \"nearest\"
";

/// A start may have to replay the WAL of a crash.
const START_LIMIT: Duration = Duration::from_secs(120);

/// One node of the cluster to be.
#[derive(Debug, Clone)]
pub(super) struct NodePlan {
    pub(super) name: String,
    /// Where it is reached: its server's port, or that of the relay in front of it.
    pub(super) port: u16,
    pub(super) spec: ServerSpec,
}

/// All that was decided.
#[derive(Debug)]
pub(super) struct Plan {
    pub(super) layout: Layout,
    pub(super) marker: Marker,
    pub(super) nodes: Vec<NodePlan>,
    pub(super) config: Config,
    /// Client programs of the newest installation among the nodes': the same for all, so that all get the same data.
    pub(super) clients: Install,
}

impl Plan {
    /// Whether the nodes' data is still to be made.
    pub(super) fn is_new(&self) -> bool {
        self.marker.stage == Stage::Making
    }

    /// Decides, checks, and writes `tandem.toml` and `rules.toml`. Blocks. Starts nothing; stops what an unfinished start
    /// left running.
    pub(super) fn prepare(options: &DevOptions) -> Result<Self, DevError> {
        setup::check_database(&options.database)?;
        check_port_numbers(options)?;
        for file in options.init.iter().chain(&options.rules) {
            fs::File::open(file).map_err(|source| DevError::Input {
                path: file.clone(),
                source,
            })?;
        }
        let run_as = RunAs::for_servers().map_err(super::server::ServerError::User)?;
        let (mut layout, marker) = Layout::open(&options.dir)?;
        let earlier = marker
            .as_ref()
            .filter(|marker| marker.stage == Stage::Complete);
        check_same_cluster(&layout, earlier, options)?;

        let (mut config_text, rules) = read_config(&layout, earlier, options)?;
        let names = config_text
            .clone()
            .unwrap_or_default()
            .node_names(options.nodes)?;
        if let Some(marker) =
            earlier.filter(|marker| !marker.nodes.iter().map(|node| &node.name).eq(&names))
        {
            let found = marker.names();
            return Err(DevError::Renamed {
                dir: layout.dir.clone(),
                found,
                wanted: names.join(", "),
            });
        }
        let installs = choose_installs(&names, earlier, &options.pg_bin)?;
        for install in &installs {
            install.check_reach(run_as.as_ref())?;
        }
        let fill = Fill {
            port: options.port,
            admin_port: options.admin_port,
            base_port: options.base_port,
            database: options.database.clone(),
            password_file: layout.password_file(),
            earlier_ports: earlier.map(|marker| (marker.port, marker.admin_port)),
            has_pgbench: options.pgbench.is_some(),
        };
        if let Some(text) = &mut config_text {
            text.fill(&names, &fill)?;
        }
        let nodes_of =
            |layout: &Layout| node_plans(layout, &names, &installs, options, run_as.as_ref());
        check_ports(&nodes_of(&layout), config_text.as_ref(), options)?;
        check_disk(&layout, earlier.is_some(), options)?;

        let new_marker = Marker::new(
            options.database.clone(),
            options.port,
            options.admin_port,
            options.relays,
            marked(&names, &installs),
        );
        let marker = if earlier.is_some() {
            let mut resumed = new_marker;
            resumed.stage = Stage::Complete;
            layout.write_marker(&resumed)?;
            resumed
        } else {
            if marker.is_some() {
                eprintln!("The first start of this cluster was cut short: it is made anew.");
            }
            begin(&mut layout, &new_marker, run_as.as_ref())?;
            new_marker
        };
        write_texts(
            &layout,
            config_text.as_ref(),
            &names,
            &fill,
            rules.as_deref(),
        )?;
        let config = Config::load(&layout.config_file())?;
        let clients = installs
            .iter()
            .max_by_key(|install| install.major)
            .cloned()
            .ok_or(DevError::NoNodes)?;
        Ok(Self {
            nodes: nodes_of(&layout),
            layout,
            marker,
            config,
            clients,
        })
    }
}

/// Every port of ours is another one, and a valid one.
fn check_port_numbers(options: &DevOptions) -> Result<(), DevError> {
    let last = options.nodes.checked_sub(1).ok_or(DevError::NoNodes)?;
    let last = last + layout::server_offset(options.nodes, options.relays);
    let last = options.base_port.checked_add(last);
    let Some(last) = last else {
        return Err(DevError::PortRange {
            nodes: options.nodes,
            base_port: options.base_port,
        });
    };
    let nodes = options.base_port..=last;
    let clash = [
        ("--port", options.port),
        ("--admin-port", options.admin_port),
    ]
    .into_iter()
    .find(|(_, port)| nodes.contains(port))
    .map(|(flag, port)| (flag, "--base-port", port))
    .or_else(|| {
        (options.port == options.admin_port).then_some(("--port", "--admin-port", options.port))
    });
    match clash {
        Some((first, second, port)) => Err(DevError::SamePort {
            first,
            second,
            port,
        }),
        None => Ok(()),
    }
}

/// A cluster that exists keeps its number of nodes and its database.
fn check_same_cluster(
    layout: &Layout,
    earlier: Option<&Marker>,
    options: &DevOptions,
) -> Result<(), DevError> {
    let Some(marker) = earlier else { return Ok(()) };
    let found = marker.nodes.len();
    if found != usize::from(options.nodes) {
        let (dir, names) = (layout.dir.clone(), marker.names());
        return Err(DevError::NodeCount {
            dir,
            found,
            names,
            wanted: options.nodes,
        });
    }
    if marker.database != options.database {
        let (dir, found) = (layout.dir.clone(), marker.database.clone());
        return Err(DevError::Database {
            dir,
            found,
            wanted: options.database.clone(),
        });
    }
    if !options.init.is_empty() || options.pgbench.is_some() {
        eprintln!(
            "The cluster in {} exists: --init and --pgbench are for its first start only.",
            layout.dir.display()
        );
    }
    Ok(())
}

/// The configuration to start from, and the rules text that replaces the directory's: of `--config` and `--rules`; a
/// cluster that exists goes on with its own file.
fn read_config(
    layout: &Layout,
    earlier: Option<&Marker>,
    options: &DevOptions,
) -> Result<(Option<ConfigText>, Option<String>), DevError> {
    let read = |path: &Path| {
        fs::read_to_string(path).map_err(|source| DevError::Input {
            path: path.to_owned(),
            source,
        })
    };
    let mut rules_path = options.rules.clone();
    let text = if let Some(path) = &options.config {
        let mut text = ConfigText::parse(path, &read(path)?)?;
        text.anchor_paths();
        let rules_of_config = text.take_rules();
        rules_path = rules_path.or(rules_of_config);
        Some(text)
    } else if earlier.is_some() && layout.config_file().exists() {
        Some(ConfigText::parse(
            &layout.config_file(),
            &read(&layout.config_file())?,
        )?)
    } else {
        None
    };
    Ok((text, rules_path.map(|path| read(&path)).transpose()?))
}

/// The installation of each node: by `--pg-bin`, else what it last ran with, else what is found or obtained.
fn choose_installs(
    names: &[String],
    earlier: Option<&Marker>,
    pg_bin: &[PgBin],
) -> Result<Vec<Install>, DevError> {
    let is_node = |wanted: &str, (place, name): (usize, &String)| {
        wanted == name || wanted == (place + 1).to_string()
    };
    if let Some(stray) = pg_bin
        .iter()
        .filter_map(|entry| entry.node.as_ref())
        .find(|wanted| !names.iter().enumerate().any(|node| is_node(wanted, node)))
    {
        return Err(DevError::UnknownNode {
            node: stray.clone(),
            names: names.join(", "),
        });
    }
    let mut known: HashMap<PathBuf, Install> = HashMap::new();
    let mut at = |dir: &Path| match known.get(dir) {
        Some(install) => Ok(install.clone()),
        None => {
            Install::at(dir).inspect(|install| drop(known.insert(dir.to_owned(), install.clone())))
        }
    };
    let mut default: Option<Install> = None;
    let mut chosen = Vec::with_capacity(names.len());
    for (place, name) in names.iter().enumerate() {
        let own = |entry: &&PgBin| {
            entry
                .node
                .as_deref()
                .is_some_and(|wanted| is_node(wanted, (place, name)))
        };
        let given = pg_bin
            .iter()
            .rfind(own)
            .or_else(|| pg_bin.iter().rfind(|entry| entry.node.is_none()));
        let marked = earlier.and_then(|marker| marker.nodes.get(place));
        let install = match (given, marked.map(|node| at(&node.bin_dir))) {
            (Some(entry), _) => at(&entry.dir)?,
            (None, Some(Ok(last))) => last,
            (None, _) => match &default {
                Some(install) => install.clone(),
                None => default.insert(Install::find_or_obtain()?).clone(),
            },
        };
        if let Some(node) = marked.filter(|node| node.major != install.major) {
            return Err(DevError::Major {
                node: name.clone(),
                made_by: node.major,
                found: install.major,
            });
        }
        chosen.push(install);
    }
    Ok(chosen)
}

fn marked(names: &[String], installs: &[Install]) -> Vec<MarkedNode> {
    let one = |(name, install): (&String, &Install)| MarkedNode {
        name: name.clone(),
        major: install.major,
        bin_dir: install.bin_dir.clone(),
    };
    names.iter().zip(installs).map(one).collect()
}

fn node_plans(
    layout: &Layout,
    names: &[String],
    installs: &[Install],
    options: &DevOptions,
    run_as: Option<&RunAs>,
) -> Vec<NodePlan> {
    let ports = options.base_port..;
    let behind = layout::server_offset(options.nodes, options.relays);
    let one = |((name, install), port): ((&String, &Install), u16)| NodePlan {
        name: name.clone(),
        port,
        spec: server_spec(layout, name, install, port + behind, run_as),
    };
    names.iter().zip(installs).zip(ports).map(one).collect()
}

/// A node's server, as a dev cluster starts it.
pub(super) fn server_spec(
    places: &Places,
    name: &str,
    install: &Install,
    port: u16,
    run_as: Option<&RunAs>,
) -> ServerSpec {
    ServerSpec {
        install: install.clone(),
        data_dir: places.data_dir(name),
        port,
        log: places.log_file(name),
        settings: Vec::new(),
        environment: Vec::new(),
        run_as: run_as.cloned(),
        start_timeout: START_LIMIT,
    }
}

/// Every port is free, or held by the very server that we shall adopt.
fn check_ports(
    nodes: &[NodePlan],
    config: Option<&ConfigText>,
    options: &DevOptions,
) -> Result<(), DevError> {
    let mut wanted: Vec<(String, &'static str)> = match config {
        None => vec![
            (format!("127.0.0.1:{}", options.port), "--port"),
            (format!("127.0.0.1:{}", options.admin_port), "--admin-port"),
        ],
        Some(config) => config.listen_addresses(),
    };
    for node in nodes {
        let ours = Server::adopt(&node.spec.data_dir, &node.spec.log)
            .is_some_and(|server| server.port() == node.spec.port);
        if !ours {
            wanted.push((format!("127.0.0.1:{}", node.spec.port), "--base-port"));
        }
        if node.port != node.spec.port {
            wanted.push((format!("127.0.0.1:{}", node.port), "--base-port"));
        }
    }
    for (address, flag) in wanted {
        let Ok(address) = address.parse::<SocketAddr>() else {
            continue;
        };
        match TcpListener::bind(address) {
            Err(error) if error.kind() == io::ErrorKind::AddrInUse => {
                let holder = listener_of(address.port())
                    .unwrap_or_else(|| "another user's process".to_owned());
                return Err(DevError::PortInUse {
                    address,
                    holder,
                    flag,
                });
            }
            Err(source) => {
                return Err(DevError::Bind {
                    address,
                    flag,
                    source,
                });
            }
            Ok(_) => {}
        }
    }
    Ok(())
}

/// There is room for the data.
fn check_disk(layout: &Layout, resumes: bool, options: &DevOptions) -> Result<(), DevError> {
    let per_node = if resumes {
        RESUME_BYTES
    } else {
        NODE_BYTES + u64::from(options.pgbench.unwrap_or(0)) * PGBENCH_BYTES
    };
    let needed = per_node * u64::from(options.nodes);
    let dir = if layout.nodes.exists() {
        &layout.nodes
    } else {
        &layout.dir
    };
    let stat = rustix::fs::statvfs(dir)
        .map_err(|errno| LayoutError::io("cannot ask for the free space of", dir)(errno.into()))?;
    let free = stat.f_bavail.saturating_mul(stat.f_frsize);
    if free < needed {
        return Err(DevError::DiskFull {
            dir: dir.clone(),
            free_mb: free >> 20,
            needed_mb: needed >> 20,
        });
    }
    Ok(())
}

/// Marks the directory as one that is being made, and clears what an earlier try left.
fn begin(layout: &mut Layout, marker: &Marker, run_as: Option<&RunAs>) -> Result<(), DevError> {
    layout.write_marker(marker)?;
    for dir in [Some(layout.nodes.clone()), layout.left_elsewhere()]
        .into_iter()
        .flatten()
    {
        super::cluster::stop_all_below(&dir)?;
    }
    layout.make_anew(run_as)?;
    layout::replace(
        &layout.password_file(),
        0o600,
        &format!("{}\n", setup::random_password()?),
    )?;
    Ok(())
}

/// Writes `tandem.toml` and `rules.toml`; a file that says the same already keeps its comments.
fn write_texts(
    layout: &Layout,
    config: Option<&ConfigText>,
    names: &[String],
    fill: &Fill,
    rules: Option<&str>,
) -> Result<(), DevError> {
    let path = layout.config_file();
    match config {
        None => layout::replace(&path, 0o644, &ConfigText::fresh_text(names, fill))?,
        Some(text) if fs::read_to_string(&path).is_ok_and(|old| text.is_said_by(&old)) => {}
        Some(text) if text.is_said_by(&ConfigText::fresh_text(names, fill)) => {
            layout::replace(&path, 0o644, &ConfigText::fresh_text(names, fill))?;
        }
        Some(text) => layout::replace(
            &path,
            if text.holds_secret() { 0o600 } else { 0o644 },
            &text.to_text(),
        )?,
    }
    let path = layout.rules_file();
    match rules {
        Some(text) => layout::replace(&path, 0o644, text)?,
        None if path.exists() => {}
        None => layout::replace(&path, 0o644, DEFAULT_RULES)?,
    }
    Ok(())
}

#[cfg(test)]
mod tests;
