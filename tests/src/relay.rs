//! Owns the faults of a network: a TCP relay between the daemon and one node, in this process.
//!
//! It reads the `application_name` of a connection's startup packet (the harness uses no TLS towards nodes), so that a
//! fault can be given to some connections only, such as those that apply one source's changes.

use std::{
    io,
    net::SocketAddr,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicU32, Ordering},
    },
    time::Duration,
};

use bytes::{Bytes, BytesMut};
use tandem_wire::startup::{FirstPacket, first_packet};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{
        TcpListener, TcpStream,
        tcp::{ReadHalf, WriteHalf},
    },
    sync::{mpsc, watch},
    task::{JoinHandle, JoinSet},
    time::Instant,
};

/// Chunks under way in one direction of one connection; bounds what a slow link holds.
const UNDER_WAY: usize = 256;
/// Bytes read at once.
const CHUNK: usize = 64 << 10;

/// What happens to the bytes of some connections.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
enum Fault {
    /// They pass, so much later.
    Delay(Duration),
    /// They stay where they are, as when packets are lost; they pass once the fault is over.
    Silence,
    /// Connections are reset, also new ones.
    Reset,
    /// None.
    #[default]
    None,
}

/// The faults in force: the last whose text the `application_name` contains counts; an empty text is in every name.
#[derive(Debug, Clone, Default)]
struct Faults(Vec<(String, Fault)>);

impl Faults {
    fn of(&self, name: &str) -> Fault {
        self.0
            .iter()
            .rev()
            .find(|(part, _)| name.contains(part.as_str()))
            .map_or(Fault::None, |(_, fault)| *fault)
    }
}

/// What the daemon sends on connections whose `application_name` contains the text, from the end of their startup packets on.
type Tape = Arc<Mutex<Option<(String, Vec<u8>)>>>;

/// How often each direction was half closed since the relay started.
#[derive(Debug, Clone, Copy, Default)]
struct HalfCloses {
    to_node: u32,
    to_daemon: u32,
}

impl HalfCloses {
    fn of(self, direction: Direction) -> u32 {
        match direction {
            Direction::ToNode => self.to_node,
            Direction::ToDaemon => self.to_daemon,
        }
    }
}

/// Which way bytes go.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Direction {
    /// From the daemon to the node.
    ToNode,
    /// From the node to the daemon.
    ToDaemon,
}

/// A relay in front of one node. It listens as long as it lives, also while its links are cut.
#[derive(Debug)]
pub struct Relay {
    address: SocketAddr,
    faults: Arc<watch::Sender<Faults>>,
    half_close: Arc<watch::Sender<HalfCloses>>,
    tape: Tape,
    refused: Arc<AtomicU32>,
    accepting: JoinHandle<()>,
}

impl Drop for Relay {
    fn drop(&mut self) {
        // The connections' tasks belong to it.
        self.accepting.abort();
    }
}

impl Relay {
    /// Listens on a port of the kernel's choice and passes connections on to `target`.
    ///
    /// # Errors
    /// There is no port.
    pub async fn start(target: SocketAddr) -> io::Result<Self> {
        let listener = TcpListener::bind(("127.0.0.1", 0)).await?;
        let address = listener.local_addr()?;
        let faults = Arc::new(watch::Sender::new(Faults::default()));
        let half_close = Arc::new(watch::Sender::new(HalfCloses::default()));
        let tape = Tape::default();
        let refused = Arc::new(AtomicU32::new(0));
        let accepting = tokio::spawn(accept(
            listener,
            target,
            Arc::clone(&faults),
            Arc::clone(&half_close),
            Arc::clone(&tape),
            Arc::clone(&refused),
        ));
        Ok(Self {
            address,
            faults,
            half_close,
            tape,
            refused,
            accepting,
        })
    }

    /// Where it listens.
    #[must_use]
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Begins to keep what the daemon sends on connections whose `application_name` contains `part`.
    pub fn record(&self, part: &str) {
        *self.tape.lock().unwrap_or_else(PoisonError::into_inner) =
            Some((part.to_owned(), Vec::new()));
    }

    /// Ends that and answers what was sent.
    #[must_use]
    pub fn recorded(&self) -> Vec<u8> {
        let tape = self
            .tape
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .take();
        tape.map(|(_, bytes)| bytes).unwrap_or_default()
    }

    /// Resets all connections, and every new one until [`Self::heal`].
    pub fn cut(&self) {
        self.add("", Fault::Reset);
    }

    /// Resets the connections whose `application_name` contains `part`, and every new one.
    pub fn cut_only(&self, part: &str) {
        self.add(part, Fault::Reset);
    }

    /// How many connections were reset when they were opened.
    #[must_use]
    pub fn refused(&self) -> u32 {
        self.refused.load(Ordering::Relaxed)
    }

    /// Nothing passes any more, and nobody is told.
    pub fn silence(&self) {
        self.add("", Fault::Silence);
    }

    /// The same for connections whose `application_name` contains `part`.
    pub fn silence_only(&self, part: &str) {
        self.add(part, Fault::Silence);
    }

    /// Every byte of connections whose `application_name` contains `part` takes so long, each way.
    pub fn delay(&self, part: &str, by: Duration) {
        self.add(part, Fault::Delay(by));
    }

    /// Resets all connections and every new one, but for those whose `application_name` contains `part`: of these every byte
    /// takes so long.
    pub fn cut_but_delay(&self, part: &str, by: Duration) {
        let faults = [
            (String::new(), Fault::Reset),
            (part.to_owned(), Fault::Delay(by)),
        ];
        self.faults.send_modify(|known| known.0.extend(faults));
    }

    /// Ends one direction of every connection there is, in order (FIN); the other goes on.
    pub fn half_close(&self, direction: Direction) {
        self.half_close.send_modify(|closes| match direction {
            Direction::ToNode => closes.to_node += 1,
            Direction::ToDaemon => closes.to_daemon += 1,
        });
    }

    /// Ends the faults that were given to exactly this part.
    pub fn heal_only(&self, part: &str) {
        self.faults
            .send_modify(|faults| faults.0.retain(|(other, _)| other != part));
    }

    /// Ends all faults. What was held back passes now.
    pub fn heal(&self) {
        self.faults.send_replace(Faults::default());
    }

    fn add(&self, part: &str, fault: Fault) {
        self.faults
            .send_modify(|faults| faults.0.push((part.to_owned(), fault)));
    }
}

async fn accept(
    listener: TcpListener,
    target: SocketAddr,
    faults: Arc<watch::Sender<Faults>>,
    half_close: Arc<watch::Sender<HalfCloses>>,
    tape: Tape,
    refused: Arc<AtomicU32>,
) {
    let mut connections = JoinSet::new();
    loop {
        tokio::select! {
            accepted = listener.accept() => {
                if let Ok((client, _)) = accepted {
                    let (tape, refused) = (Arc::clone(&tape), Arc::clone(&refused));
                    connections.spawn(relay(client, target, faults.subscribe(), half_close.subscribe(), tape, refused));
                }
            }
            Some(_) = connections.join_next() => {}
        }
    }
}

/// One connection, to its end.
async fn relay(
    mut client: TcpStream,
    target: SocketAddr,
    mut faults: watch::Receiver<Faults>,
    half_close: watch::Receiver<HalfCloses>,
    tape: Tape,
    refused: Arc<AtomicU32>,
) {
    let (name, first) = match startup(&mut client).await {
        Ok(read) => read,
        Err(_) => return,
    };
    let at_start = faults.borrow_and_update().of(&name);
    if at_start == Fault::Reset {
        refused.fetch_add(1, Ordering::Relaxed);
        reset(&client);
        return;
    }
    if at_start == Fault::Silence
        && wait_until(&mut faults, &name, |fault| fault != Fault::Silence).await == Fault::Reset
    {
        reset(&client);
        return;
    }
    let Ok(mut node) = TcpStream::connect(target).await else {
        reset(&client);
        return;
    };
    // Small messages must not wait for one another.
    let passed = client.set_nodelay(true).is_ok()
        && node.set_nodelay(true).is_ok()
        && node.write_all(&first).await.is_ok();
    let mut faults_of_whole = faults.clone();
    let ended_in_order = passed && {
        let (from_client, to_client) = client.split();
        let (from_node, to_node) = node.split();
        let pumps = async {
            let forth = pump(
                from_client,
                to_node,
                Direction::ToNode,
                &name,
                faults.clone(),
                half_close.clone(),
                Some(tape),
            );
            let back = pump(
                from_node,
                to_client,
                Direction::ToDaemon,
                &name,
                faults.clone(),
                half_close.clone(),
                None,
            );
            tokio::try_join!(forth, back).is_ok()
        };
        tokio::select! {
            in_order = pumps => in_order,
            _ = wait_until(&mut faults_of_whole, &name, |fault| fault == Fault::Reset) => false,
        }
    };
    if !ended_in_order {
        reset(&client);
        reset(&node);
    }
}

/// Reads up to the end of the startup packet; answers the `application_name` in it and all that was read. What is no
/// startup packet has no name.
async fn startup(client: &mut TcpStream) -> io::Result<(String, BytesMut)> {
    let mut read = BytesMut::new();
    loop {
        if client.read_buf(&mut read).await? == 0 {
            return Ok((String::new(), read));
        }
        match first_packet(&read) {
            Ok(None) => {}
            Ok(Some((FirstPacket::Startup(packet), _))) => {
                return Ok((
                    packet
                        .get("application_name")
                        .unwrap_or_default()
                        .to_owned(),
                    read,
                ));
            }
            Ok(Some(_)) | Err(_) => return Ok((String::new(), read)),
        }
    }
}

async fn wait_until(
    faults: &mut watch::Receiver<Faults>,
    name: &str,
    wanted: impl Fn(Fault) -> bool,
) -> Fault {
    let found = faults
        .wait_for(|faults| wanted(faults.of(name)))
        .await
        .map(|faults| faults.of(name))
        .ok();
    match found {
        Some(fault) => fault,
        // The relay is gone, and this task with it.
        None => std::future::pending().await,
    }
}

/// The kernel answers a socket that is closed without lingering with RST.
fn reset(stream: &TcpStream) {
    // A socket that has failed already needs no reset.
    let _ = stream.set_zero_linger();
}

/// Moves bytes one way until their end, which is passed on too. An error is the connection's.
async fn pump(
    mut from: ReadHalf<'_>,
    mut to: WriteHalf<'_>,
    direction: Direction,
    name: &str,
    faults: watch::Receiver<Faults>,
    mut half_close: watch::Receiver<HalfCloses>,
    tape: Option<Tape>,
) -> io::Result<()> {
    let at_start = half_close.borrow_and_update().of(direction);
    let (sender, mut under_way) = mpsc::channel::<(Instant, Bytes)>(UNDER_WAY);
    let mut faults_read = faults.clone();
    let mut faults_written = faults;
    let reading = async move {
        let mut buffer = BytesMut::new();
        loop {
            buffer.reserve(CHUNK);
            if from.read_buf(&mut buffer).await? == 0 {
                return Ok::<_, io::Error>(());
            }
            let delay = match faults_read.borrow_and_update().of(name) {
                Fault::Delay(by) => by,
                _ => Duration::ZERO,
            };
            let chunk = buffer.split().freeze();
            if let Some(tape) = &tape
                && let Some((part, bytes)) =
                    tape.lock().unwrap_or_else(PoisonError::into_inner).as_mut()
                && name.contains(part.as_str())
            {
                bytes.extend_from_slice(&chunk);
            }
            if sender.send((Instant::now() + delay, chunk)).await.is_err() {
                // Half closed: the rest is thrown away.
                return Ok(());
            }
        }
    };
    let writing = async move {
        loop {
            let next = tokio::select! {
                next = under_way.recv() => next,
                Ok(_) = half_close.wait_for(|closes| closes.of(direction) > at_start) => None,
            };
            let Some((due, chunk)) = next else { break };
            tokio::select! {
                () = tokio::time::sleep_until(due) => {}
                _ = wait_until(&mut faults_written, name, |fault| !matches!(fault, Fault::Delay(_))) => {}
            }
            wait_until(&mut faults_written, name, |fault| fault != Fault::Silence).await;
            to.write_all(&chunk).await?;
        }
        to.shutdown().await
    };
    tokio::try_join!(reading, writing).map(drop)
}
