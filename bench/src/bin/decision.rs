//! What it costs to decide where a statement goes: `decision`. Prints a table; nothing else need run.
//!
//! *seen*: a text whose template is in the cache, each time with other literals: template, look-up, evidence, decision.
//! *new*: a text whose template is not, through PostgreSQL's grammar. *template*: the first part of both alone.

use std::error::Error;
use std::hint::black_box;
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
    eprintln!("| decision, us | bytes | template | seen | new |");
    eprintln!("|---|---|---|---|---|");
    let mut random = fastrand::Rng::with_seed(7);
    for (name, form) in CASES {
        let texts: Vec<String> = (0..TEXTS)
            .map(|_| {
                let mut parts = form.split('?');
                let mut text = parts.next().unwrap_or_default().to_owned();
                for part in parts {
                    text.push_str(&random.u32(1..1_000_000).to_string());
                    text.push_str(part);
                }
                text
            })
            .collect();
        let (template, seen, new) = (
            bench.template(&texts)?,
            bench.decisions(&texts, true, SEEN)?,
            bench.decisions(&texts, false, NEW)?,
        );
        let bytes = texts.first().map_or(0, String::len);
        eprintln!("| {name} | {bytes} | {template:.2} | {seen:.2} | {new:.1} |");
    }
    Ok(())
}

struct Bench<'b> {
    rules: &'b Rules,
    cluster: &'b ClusterView<'b>,
    template: Template,
}

impl Bench<'_> {
    fn template(&mut self, texts: &[String]) -> Result<f64, Box<dyn Error>> {
        let mut samples = Vec::with_capacity(SAMPLES);
        for _ in 0..SAMPLES {
            let started = Instant::now();
            for text in texts.iter().cycle().take(SEEN) {
                let shape = self.template.read(text.as_bytes());
                black_box(shape.ok_or("no template")?);
            }
            samples.push(per_decision(started, SEEN));
        }
        Ok(median(&samples).unwrap_or_default())
    }

    /// Microseconds of a decision.
    fn decisions(
        &mut self,
        texts: &[String],
        seen: bool,
        times: usize,
    ) -> Result<f64, Box<dyn Error>> {
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
        let mut samples = Vec::with_capacity(SAMPLES);
        for sample in 0..SAMPLES {
            let started = Instant::now();
            for (text, number) in texts.iter().cycle().zip(0..times) {
                let shape = self.template.read(text.as_bytes()).ok_or("no template")?;
                // Another scope each time: the cache never has it.
                let scope = match seen {
                    true => 0,
                    false => u64::try_from(sample * times + number)?,
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
            samples.push(per_decision(started, times));
        }
        Ok(median(&samples).unwrap_or_default())
    }
}

#[allow(clippy::cast_precision_loss)]
fn per_decision(started: Instant, times: usize) -> f64 {
    started.elapsed().as_secs_f64() * 1e6 / times as f64
}
