//! `pgbench -S` directly, through Tandem, and through PgBouncer in session mode where it is installed: transactions a
//! second, and CPU microseconds of the proxy per transaction.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::path::{Path, PathBuf};
use std::time::Duration;

use tandem_bench::{child_named, cpu_time, median};
use tandem_tests::template::{APP, DATABASE};
use tandem_tests::{Cluster, Program};
use tokio::process::{Child, Command};

const ROUNDS: usize = 5;
const SECONDS: u32 = 4;
const MODES: [&str; 3] = ["simple", "extended", "prepared"];
const CLIENTS: [&str; 2] = ["8", "32"];

/// A way to the server.
struct Way {
    name: &'static str,
    port: u16,
    /// The proxy's process.
    pid: Option<u32>,
}

/// Figures of one cell, by round.
#[derive(Default)]
struct Cell {
    tps: Vec<f64>,
    cpu_us: Vec<f64>,
}

#[tokio::main]
async fn main() -> std::io::Result<()> {
    let mut cluster = Cluster::of(&[15]).pgbench(10).start().await;
    let node = cluster.nodes[0].port();
    let mut ways = vec![
        Way {
            name: "direct",
            port: node,
            pid: None,
        },
        Way {
            name: "tandem",
            port: cluster.proxy_port,
            pid: child_named("tandem-under-test")?,
        },
    ];
    let bouncer_port = cluster.port();
    let bouncer = start_pgbouncer(cluster.dir(), bouncer_port, node)?;
    match bouncer.as_ref().and_then(Child::id) {
        Some(pid) => ways.push(Way {
            name: "pgbouncer",
            port: bouncer_port,
            pid: Some(pid),
        }),
        None => eprintln!("SKIP: pgbouncer is not installed"),
    }
    let mut cells: BTreeMap<(&str, &str, &str), Cell> = BTreeMap::new();
    for round in 1..=ROUNDS {
        eprintln!("round {round} of {ROUNDS}");
        for clients in CLIENTS {
            for mode in MODES {
                for way in &ways {
                    let cell = cells.entry((clients, mode, way.name)).or_default();
                    run(&cluster, way, clients, mode, cell).await?;
                }
            }
        }
    }
    let mut table = String::from(
        "| clients | mode | way | TPS | of direct | proxy CPU us per transaction |\n|---|---|---|---|---|---|\n",
    );
    for ((clients, mode, way), cell) in &cells {
        let tps = median(&cell.tps).unwrap_or_default();
        let direct = cells
            .get(&(*clients, *mode, "direct"))
            .and_then(|cell| median(&cell.tps))
            .unwrap_or(tps);
        let cpu = median(&cell.cpu_us).map_or_else(|| "-".to_owned(), |cpu| format!("{cpu:.1}"));
        let _ = writeln!(
            table,
            "| {clients} | {mode} | {way} | {tps:.0} | {:.2} | {cpu} |",
            tps / direct
        );
    }
    eprintln!("{table}");
    Ok(())
}

async fn run(
    cluster: &Cluster,
    way: &Way,
    clients: &str,
    mode: &str,
    cell: &mut Cell,
) -> std::io::Result<()> {
    let before = way.pid.map(cpu_time).transpose()?;
    let seconds = SECONDS.to_string();
    let arguments = [
        "-n", "-S", "-c", clients, "-j", "2", "-T", &seconds, "-M", mode,
    ];
    let program = Program::pgbench(cluster.nodes[0].install())
        .port(way.port)
        .args(arguments);
    let ran = program.run(Duration::from_secs(60)).await.expect_success();
    let number = |label: &str| {
        let line = ran
            .stdout
            .lines()
            .find_map(|line| line.strip_prefix(label))?;
        line.split_whitespace().next()?.parse::<f64>().ok()
    };
    cell.tps.extend(number("tps = "));
    let transactions = number("number of transactions actually processed: ");
    if let (Some(before), Some(pid), Some(transactions)) = (before, way.pid, transactions) {
        let spent = cpu_time(pid)?.saturating_sub(before);
        cell.cpu_us.push(spent.as_secs_f64() * 1e6 / transactions);
    }
    Ok(())
}

/// PgBouncer in session mode, as a user that it accepts to run as.
fn start_pgbouncer(dir: &Path, port: u16, node: u16) -> std::io::Result<Option<Child>> {
    let program = std::env::var_os("PGBOUNCER")
        .map_or_else(|| PathBuf::from("/usr/sbin/pgbouncer"), PathBuf::from);
    if !program.exists() {
        return Ok(None);
    }
    let config = dir.join("pgbouncer.ini");
    let users = dir.join("pgbouncer.users");
    std::fs::write(&users, format!("\"{APP}\" \"{APP}\"\n"))?;
    std::fs::write(
        &config,
        format!(
            "[databases]\n{DATABASE} = host=127.0.0.1 port={node}\n[pgbouncer]\nlisten_addr = 127.0.0.1\nlisten_port = {port}\n\
             pool_mode = session\ndefault_pool_size = 100\nmax_client_conn = 500\nauth_type = scram-sha-256\n\
             auth_file = {}\nunix_socket_dir =\nlog_connections = 0\nlog_disconnections = 0\n",
            users.display()
        ),
    )?;
    let mut command = Command::new(program);
    command
        .arg("-q")
        .arg("-u")
        .arg("nobody")
        .arg(&config)
        .kill_on_drop(true);
    Ok(Some(command.spawn()?))
}
