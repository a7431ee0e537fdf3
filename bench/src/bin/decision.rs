//! What it costs to decide where a statement goes: `decision`. Prints a table; nothing else need run. `decision instructions`
//! counts the instructions instead, which do not change with the machine's mood (valgrind's callgrind).
//!
//! *seen*: a text whose template is in the cache, each time with other literals: template, look-up, evidence, decision.
//! *new*: a text whose template is not, through PostgreSQL's grammar. *template*: the first part of both alone.

use std::error::Error;
use std::hint::black_box;
use std::process::Command;
use std::time::Instant;

use tandem_bench::median;
use tandem_routing_rules::{
    ClusterView, NodeInfo, NodeView, Rules, SessionFacts, StatementFacts,
    statement::{Parameter, PlanCache, Values},
    template::Template,
};

/// Samples of a cell; the median counts.
const SAMPLES: usize = 21;
/// Decisions of a sample: of seen templates, of new ones.
const SEEN: usize = 20_000;
const NEW: usize = 500;
/// Texts of a case, which differ in their literals.
const TEXTS: usize = 1_000;

const RULES: &str = r#"
[placement.branch]
strategy = "hash"
[[affinity]]
placement = "branch"
tables = { pgbench_branches = "bid", pgbench_tellers = { column = "tid", key = "(tid - 1) / 10 + 1" }, pgbench_accounts = { column = "aid", key = "(aid - 1) / 100000 + 1" } }
"#;

/// Name and text; `?` is a number.
const CASES: [(&str, &str); 6] = [
    (
        "point select",
        "SELECT abalance FROM pgbench_accounts WHERE aid = ?",
    ),
    (
        "update",
        "UPDATE pgbench_accounts SET abalance = abalance + ? WHERE aid = ?",
    ),
    (
        "update, parameters",
        "UPDATE pgbench_accounts SET abalance = abalance + $1 WHERE aid = $2",
    ),
    (
        "insert",
        "INSERT INTO pgbench_history (tid, bid, aid, delta, mtime) VALUES (?, ?, ?, ?, CURRENT_TIMESTAMP)",
    ),
    (
        "list of 10",
        "DELETE FROM pgbench_accounts WHERE aid IN (?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
    ),
    (
        "join",
        "SELECT b.bid, t.tid, sum(a.abalance) AS total, count(*) FROM pgbench_branches b JOIN pgbench_tellers t ON t.bid = b.bid JOIN pgbench_accounts a ON a.bid = b.bid WHERE b.bid = ? AND t.tid > ? AND a.aid BETWEEN ? AND ? GROUP BY b.bid, t.tid HAVING count(*) > ? ORDER BY total DESC LIMIT ?",
    ),
];

fn main() -> Result<(), Box<dyn Error>> {
    let names = [(1, "paris"), (2, "oslo"), (3, "rome")];
    let infos = names.map(|(id, name)| NodeInfo {
        id,
        name: name.to_owned(),
        zone: None,
    });
    let rules = Rules::parse(RULES, &infos)?;
    let nodes = names.map(|(id, name)| NodeView {
        id,
        name,
        zone: None,
        healthy: true,
        rtt_us: Some(300),
        sessions: 0,
    });
    let cluster = ClusterView {
        nodes: &nodes,
        zone: None,
    };
    let mut bench = Bench {
        rules: &rules,
        cluster: &cluster,
        template: Template::default(),
    };
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
    match arguments[..] {
        [] => times(&mut bench),
        ["instructions"] => instructions(),
        ["count", name, part, times] => {
            let case = CASES.iter().find(|(known, _)| *known == name);
            let (_, form) = case.ok_or("no such case")?;
            bench.count(&texts(form), part, times.parse()?)
        }
        _ => Err("usage: decision [instructions]".into()),
    }
}

/// Texts of one form, with other numbers each.
fn texts(form: &str) -> Vec<String> {
    let mut random = fastrand::Rng::with_seed(7);
    let text = || {
        let mut parts = form.split('?');
        let mut text = parts.next().unwrap_or_default().to_owned();
        for part in parts {
            text.push_str(&random.u32(1..1_000_000).to_string());
            text.push_str(part);
        }
        text
    };
    std::iter::repeat_with(text).take(TEXTS).collect()
}

fn times(bench: &mut Bench<'_>) -> Result<(), Box<dyn Error>> {
    eprintln!("| decision, us | bytes | template | seen | new |");
    eprintln!("|---|---|---|---|---|");
    for (name, form) in CASES {
        let texts = texts(form);
        let mut cell = |part, times| {
            let mut samples = Vec::with_capacity(SAMPLES);
            for _ in 0..SAMPLES {
                let started = Instant::now();
                bench.count(&texts, part, times)?;
                samples.push(per_decision(started, times));
            }
            Ok::<_, Box<dyn Error>>(median(&samples).unwrap_or_default())
        };
        let (template, seen, new) = (
            cell("template", SEEN)?,
            cell("seen", SEEN)?,
            cell("new", NEW)?,
        );
        let bytes = texts.first().map_or(0, String::len);
        eprintln!("| {name} | {bytes} | {template:.2} | {seen:.2} | {new:.1} |");
    }
    Ok(())
}

/// The same in instructions: what so many more decisions cost, counted by this program run under callgrind.
fn instructions() -> Result<(), Box<dyn Error>> {
    eprintln!("| decision, instructions | template | seen | new |");
    eprintln!("|---|---|---|---|");
    for (name, _) in CASES {
        let mut cells = String::new();
        for (part, times) in [("template", TEXTS), ("seen", TEXTS), ("new", 50)] {
            let more = instructions_of(name, part, 2 * times)?;
            let each = more.saturating_sub(instructions_of(name, part, times)?) / times as u64;
            cells.push_str(&format!(" {each} |"));
        }
        eprintln!("| {name} |{cells}");
    }
    Ok(())
}

fn instructions_of(name: &str, part: &str, times: usize) -> Result<u64, Box<dyn Error>> {
    let ran = Command::new("valgrind")
        .args(["--tool=callgrind", "--callgrind-out-file=/dev/null"])
        .arg(std::env::current_exe()?)
        .args(["count", name, part, &times.to_string()])
        .output()?;
    let said = String::from_utf8_lossy(&ran.stderr);
    let counted = said
        .lines()
        .find_map(|line| line.split_once("Collected : "));
    let (_, counted) = counted.ok_or_else(|| format!("callgrind counted nothing: {said}"))?;
    Ok(counted.trim().parse()?)
}

struct Bench<'b> {
    rules: &'b Rules,
    cluster: &'b ClusterView<'b>,
    template: Template,
}

impl Bench<'_> {
    /// Takes so many decisions, or as much of them as `part` says.
    fn count(&mut self, texts: &[String], part: &str, times: usize) -> Result<(), Box<dyn Error>> {
        if part == "template" {
            for text in texts.iter().cycle().take(times) {
                let shape = self.template.read(text.as_bytes());
                black_box(shape.ok_or("no template")?);
            }
            return Ok(());
        }
        let facts = StatementFacts {
            session: SessionFacts {
                user: "app",
                database: "app",
                ..SessionFacts::default()
            },
            ..StatementFacts::default()
        };
        let parameter = |value| Parameter {
            value: Some(value),
            binary: false,
            type_oid: 0,
        };
        let parameters: [Parameter<'_>; 2] = [parameter(b"5"), parameter(b"123456")];
        let cache = PlanCache::new(1 << 20);
        for (text, number) in texts.iter().cycle().zip(0..times) {
            let shape = self.template.read(text.as_bytes()).ok_or("no template")?;
            // Another scope each time: the cache never has it.
            let scope = match part {
                "seen" => 0,
                _ => u64::try_from(number)?,
            };
            let found = cache.plan(scope, &shape, self.rules, None, &["public"]);
            let evidence = found.plan.evidence(&Values {
                literals: shape.literals,
                parameters: &parameters,
            });
            let decision =
                self.rules
                    .decide_statement(&facts, &found.plan, evidence, self.cluster)?;
            black_box(decision.node);
        }
        Ok(())
    }
}

#[allow(clippy::cast_precision_loss)]
fn per_decision(started: Instant, times: usize) -> f64 {
    started.elapsed().as_secs_f64() * 1e6 / times as f64
}
