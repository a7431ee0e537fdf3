//! Owns the relays of `tandem dev --relays`: one in front of each node, through which all that reaches the node goes, so
//! that it can be cut off without being harmed.
//!
//! A file says which nodes are cut off, a name on each line. While a node is, the bytes of its connections stay where they
//! are, as when packets are lost, and new connections get no answer; afterwards all of it goes on.

use std::{
    fs, io,
    net::{Ipv4Addr, SocketAddr},
    path::{Path, PathBuf},
    time::Duration,
};

use socket2::SockRef;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{
        TcpListener, TcpStream,
        tcp::{ReadHalf, WriteHalf},
    },
    sync::watch,
    task::JoinSet,
    time::interval,
};

use super::{layout::LayoutError, plan::NodePlan};

/// How often the file is looked at.
const LOOK: Duration = Duration::from_millis(10);
/// Bytes read at once.
const CHUNK: usize = 64 << 10;

/// The relays. They listen as long as this value lives.
#[derive(Debug)]
pub(super) struct Relays {
    /// Ends all that it holds when it goes.
    _tasks: JoinSet<()>,
}

impl Relays {
    /// Listens where each node is reached, and passes connections on to its server. `file` names who is cut off; what an
    /// earlier run left there does not count.
    pub(super) async fn start(nodes: &[NodePlan], file: &Path) -> Result<Self, LayoutError> {
        cut_off(file, &[])?;
        let names: Vec<String> = nodes.iter().map(|node| node.name.clone()).collect();
        let (says, cut) = watch::channel(Vec::new());
        let mut tasks = JoinSet::new();
        for node in nodes {
            let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, node.port))
                .await
                .map_err(LayoutError::io("cannot listen for the relays of", file))?;
            let target = SocketAddr::from((Ipv4Addr::LOCALHOST, node.spec.port));
            let link = Link {
                node: node.name.clone(),
                cut: cut.clone(),
            };
            tasks.spawn(accept(listener, target, link));
        }
        tasks.spawn(look(file.to_owned(), names, says));
        Ok(Self { _tasks: tasks })
    }
}

/// Says in the relays' file who is cut off from now on: these nodes and no others.
pub(crate) fn cut_off(file: &Path, nodes: &[&str]) -> Result<(), LayoutError> {
    let lines: String = nodes.iter().map(|node| format!("{node}\n")).collect();
    super::layout::replace(file, 0o600, &lines)
}

/// Reads the file again and again. One that is not there cuts nobody off.
async fn look(file: PathBuf, names: Vec<String>, says: watch::Sender<Vec<String>>) {
    let mut ticks = interval(LOOK);
    loop {
        ticks.tick().await;
        let text = fs::read_to_string(&file).unwrap_or_default();
        let mut cut: Vec<String> = text.lines().map(str::to_owned).collect();
        cut.retain(|name| names.contains(name));
        says.send_if_modified(|known| {
            let is_new = *known != cut;
            if is_new {
                eprintln!(
                    "Cut off: {}.",
                    if cut.is_empty() {
                        "nobody".to_owned()
                    } else {
                        cut.join(", ")
                    }
                );
                *known = cut;
            }
            is_new
        });
    }
}

/// The way to one node.
#[derive(Debug, Clone)]
struct Link {
    node: String,
    cut: watch::Receiver<Vec<String>>,
}

impl Link {
    /// Waits until the node is not cut off.
    async fn open(&mut self) {
        let node = &self.node;
        // Without a sender the relays are about to end.
        let _ = self.cut.wait_for(|cut| !cut.contains(node)).await;
    }
}

async fn accept(listener: TcpListener, target: SocketAddr, link: Link) {
    let mut connections = JoinSet::new();
    loop {
        while connections.try_join_next().is_some() {}
        match listener.accept().await {
            Ok((client, _)) => drop(connections.spawn(relay(client, target, link.clone()))),
            // No descriptors are left: some come back.
            Err(_) => tokio::time::sleep(LOOK).await,
        }
    }
}

/// Passes bytes both ways until one side is done for.
async fn relay(mut client: TcpStream, target: SocketAddr, mut link: Link) {
    link.open().await;
    let carried = async {
        let mut server = TcpStream::connect(target).await?;
        client.set_nodelay(true)?;
        server.set_nodelay(true)?;
        let (mut from_client, mut to_client) = client.split();
        let (mut from_server, mut to_server) = server.split();
        tokio::try_join!(
            pump(&mut from_client, &mut to_server, link.clone()),
            pump(&mut from_server, &mut to_client, link.clone()),
        )
    };
    if carried.await.is_err() {
        // A server that is not there refuses; so do we, as far as that can still be said.
        let _ = SockRef::from(&client).set_linger(Some(Duration::ZERO));
    }
}

async fn pump(from: &mut ReadHalf<'_>, to: &mut WriteHalf<'_>, mut link: Link) -> io::Result<()> {
    let mut chunk = vec![0; CHUNK];
    loop {
        let read = from.read(&mut chunk).await?;
        link.open().await;
        match chunk.get(..read) {
            Some(bytes) if !bytes.is_empty() => to.write_all(bytes).await?,
            _ => return to.shutdown().await,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::dev::{install::Install, server::ServerSpec};
    use std::time::Instant;

    /// A node whose server echoes what it gets.
    async fn echo(dir: &Path) -> NodePlan {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        tokio::spawn(async move {
            while let Ok((mut stream, _)) = listener.accept().await {
                tokio::spawn(async move {
                    let (mut read, mut write) = stream.split();
                    tokio::io::copy(&mut read, &mut write).await
                });
            }
        });
        let free = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let install = Install {
            bin_dir: dir.to_owned(),
            major: 15,
            version: "15.1".to_owned(),
        };
        NodePlan {
            name: "paris".to_owned(),
            port: free.local_addr().unwrap().port(),
            spec: ServerSpec::new(install, &dir.join("paris"), port).unwrap(),
        }
    }

    async fn answers(stream: &mut TcpStream, within: Duration) -> bool {
        let mut byte = [0];
        let read = tokio::time::timeout(within, stream.read_exact(&mut byte)).await;
        matches!(read, Ok(Ok(_)))
    }

    const SOON: Duration = Duration::from_secs(20);

    #[tokio::test]
    async fn a_node_that_is_cut_off_is_silent_and_everything_goes_on_once_it_is_not() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("cut");
        fs::write(&file, "paris\n").unwrap();
        let node = echo(dir.path()).await;
        let relays = Relays::start(std::slice::from_ref(&node), &file)
            .await
            .unwrap();
        // What an earlier run left there does not count.
        let mut stream = TcpStream::connect(("127.0.0.1", node.port)).await.unwrap();
        stream.write_all(b"a").await.unwrap();
        assert!(answers(&mut stream, SOON).await);

        cut_off(&file, &["paris", "nobody"]).unwrap();
        // The file is looked at every few milliseconds: until then bytes may pass.
        let begun = Instant::now();
        loop {
            stream.write_all(b"b").await.unwrap();
            if !answers(&mut stream, LOOK * 20).await {
                break;
            }
            assert!(begun.elapsed() < SOON, "bytes go on passing");
        }
        let mut second = TcpStream::connect(("127.0.0.1", node.port)).await.unwrap();
        second.write_all(b"c").await.unwrap();
        assert!(!answers(&mut second, LOOK * 20).await);

        cut_off(&file, &[]).unwrap();
        assert!(answers(&mut stream, SOON).await && answers(&mut second, SOON).await);
        drop(relays);
        let mut byte = [0];
        let ended = tokio::time::timeout(SOON, stream.read(&mut byte)).await;
        assert!(matches!(ended, Ok(Ok(0) | Err(_))), "{ended:?}");
    }
}
