//! Catch-up of a backlog and lag: Tandem beside native logical replication and pglogical, and the bounds of all of them.
//!
//! Arguments name the cases to run: `single-row`, `tpc-b`, `bulk`, `journal`, `lag`, `returning`, `two-targets` (TPC-B);
//! without any, all. `BENCH_ROUNDS` (5) and `BENCH_SIZE` (1.0, a factor of all sizes) make it shorter; `BENCH_GROUP_APPLY=0`
//! lets Tandem apply transaction by transaction.

use tandem_bench::replication::backlog::Backlog;
use tandem_bench::replication::capture::{self, Capture};
use tandem_bench::replication::floor::Floor;
use tandem_bench::replication::lag::{self, Lag};
use tandem_bench::replication::replay::Replays;
use tandem_bench::replication::report::{CatchUp, lag_table};
use tandem_bench::replication::stage::Stage;

const BACKLOGS: [Backlog; 3] = [Backlog::SingleRow, Backlog::TpcB, Backlog::Bulk];
const LAG_SECONDS: u32 = 8;

/// What was asked for.
struct Plan {
    cases: Vec<String>,
    rounds: usize,
    size: f64,
    group_apply: Option<u32>,
}

impl Plan {
    fn from_surroundings() -> std::io::Result<Self> {
        let known: Vec<_> = BACKLOGS
            .map(Backlog::name)
            .into_iter()
            .chain(["journal", "lag", "returning", "two-targets"])
            .collect();
        let cases: Vec<String> = std::env::args().skip(1).collect();
        if let Some(unknown) = cases.iter().find(|case| !known.contains(&case.as_str())) {
            let known = known.join(", ");
            let problem = format!("there is no case {unknown:?}, only {known}");
            return Err(std::io::Error::other(problem));
        }
        Ok(Self {
            cases,
            rounds: knob("BENCH_ROUNDS")?.unwrap_or(5),
            size: knob("BENCH_SIZE")?.unwrap_or(1.0),
            group_apply: knob("BENCH_GROUP_APPLY")?,
        })
    }

    fn wants(&self, case: &str) -> bool {
        self.cases.is_empty() || self.cases.iter().any(|wanted| wanted == case)
    }

    #[expect(
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        reason = "a number of transactions; `as` saturates"
    )]
    fn size(&self, full: u32) -> u32 {
        (f64::from(full) * self.size).max(1.0) as u32
    }
}

fn knob<T: std::str::FromStr>(name: &str) -> std::io::Result<Option<T>> {
    match std::env::var(name) {
        Err(_) => Ok(None),
        Ok(text) => match text.parse() {
            Ok(value) => Ok(Some(value)),
            Err(_) => Err(std::io::Error::other(format!(
                "{name}={text} is not a number"
            ))),
        },
    }
}

#[tokio::main]
async fn main() -> std::io::Result<()> {
    let plan = Plan::from_surroundings()?;
    let mut catch_up = CatchUp::default();
    let mut lags = Vec::new();
    let backlogs: Vec<_> = BACKLOGS
        .into_iter()
        .filter(|backlog| plan.wants(backlog.name()))
        .collect();
    if !backlogs.is_empty() || plan.wants("lag") {
        let sizes: Vec<_> = backlogs
            .iter()
            .map(|&backlog| (backlog, plan.size(backlog.full_size())))
            .collect();
        eprintln!("recording what is replayed as a floor");
        let replays = Replays::record(&sizes).await?;
        let mut stage = Stage::set_up(1, plan.group_apply).await;
        for round in 0..plan.rounds {
            for &backlog in &backlogs {
                eprintln!("round {} of {}: {}", round + 1, plan.rounds, backlog.name());
                let (made, took) = replays.run(backlog).await?;
                catch_up.time(backlog.name(), "floor, Tandem's statements", made, took);
                bounded(&mut stage, &plan, backlog, round, &mut catch_up).await?;
            }
        }
        // Behind all backlogs, so that no way has rows of the others' runs in its own.
        for round in (0..plan.rounds).filter(|_| plan.wants("lag")) {
            eprintln!("round {} of {}: lag", round + 1, plan.rounds);
            measure_lags(&mut stage, &plan, round, &mut lags).await?;
        }
    }
    if plan.wants("journal") {
        let mut stage = Stage::set_up(1, plan.group_apply).await;
        for round in 0..plan.rounds {
            eprintln!("round {} of {}: journal", round + 1, plan.rounds);
            journalled(&mut stage, &plan, &mut catch_up).await?;
        }
    }
    if plan.wants("returning") {
        let mut stage = Stage::set_up(1, plan.group_apply).await;
        for round in 0..plan.rounds {
            for backlog in BACKLOGS {
                eprintln!(
                    "round {} of {}: {}, returning",
                    round + 1,
                    plan.rounds,
                    backlog.name()
                );
                returning(&mut stage, &plan, backlog, round, &mut catch_up).await?;
            }
        }
    }
    if plan.wants("two-targets") {
        let mut stage = Stage::set_up(2, plan.group_apply).await;
        for round in 0..plan.rounds {
            eprintln!("round {} of {}: two targets", round + 1, plan.rounds);
            let size = plan.size(Backlog::TpcB.full_size());
            let made = stage.make(Backlog::TpcB, size).await?;
            drain_all(&mut stage, "tpc-b, two targets", made, round, &mut catch_up).await?;
        }
    }
    eprintln!("{}\n{}", catch_up.table(), lag_table(&lags));
    Ok(())
}

/// The bounds, then every way, with one backlog.
async fn bounded(
    stage: &mut Stage,
    plan: &Plan,
    backlog: Backlog,
    round: usize,
    catch_up: &mut CatchUp,
) -> std::io::Result<()> {
    let case = backlog.name();
    let made = stage.make(backlog, plan.size(backlog.full_size())).await?;
    // What the slot is read again from after it was moved, see `Stage::drain`.
    stage.source().execute("CHECKPOINT").await;
    for capture in [Capture::Eager, Capture::Patient] {
        let took = capture.read(&stage.source()).await?;
        catch_up.time(case, capture.name(), made.0, took);
    }
    capture::forget(&stage.source()).await;
    for floor in [Floor::Bare, Floor::Stamped] {
        let took = floor.run(&stage.floor, backlog, made.0).await?;
        catch_up.time(case, floor.name(), made.0, took);
    }
    drain_all(stage, case, made, round, catch_up).await
}

/// What the source can send, what native makes of it, and what Tandem's journal does alone.
async fn journalled(stage: &mut Stage, plan: &Plan, catch_up: &mut CatchUp) -> std::io::Result<()> {
    let case = "TPC-B, captured";
    let backlog = Backlog::TpcB;
    let (size, marks) = stage.make(backlog, plan.size(backlog.full_size())).await?;
    stage.source().execute("CHECKPOINT").await;
    for capture in [Capture::Eager, Capture::Patient] {
        let took = capture.read(&stage.source()).await?;
        catch_up.time(case, capture.name(), size, took);
    }
    capture::forget(&stage.source()).await;
    let native = stage.drain(0, marks).await?;
    catch_up.drain(case, stage.ways[0].name(), size, &native);
    let (took, cpu) = stage.journal().await?;
    catch_up.journal(case, size, took, cpu);
    Ok(())
}

/// Every way in its turn, with a backlog of its own that is written while its target is down; the others drain it untimed.
async fn returning(
    stage: &mut Stage,
    plan: &Plan,
    backlog: Backlog,
    round: usize,
    catch_up: &mut CatchUp,
) -> std::io::Result<()> {
    let case = format!("{}, returning", backlog.name());
    let ways = stage.ways.len();
    for index in (0..ways).map(|turn| (turn + round) % ways) {
        let size = plan.size(backlog.full_size());
        let (size, drain) = stage.returning(index, backlog, size).await?;
        catch_up.drain(&case, stage.ways[index].name(), size, &drain);
        for other in (0..ways).filter(|&other| other != index) {
            stage.start_way(other).await;
            stage.stop_way(other).await;
        }
    }
    Ok(())
}

/// Every way in its turn; who begins changes from round to round.
async fn drain_all(
    stage: &mut Stage,
    case: &str,
    (size, marks): (u32, [i64; 2]),
    round: usize,
    catch_up: &mut CatchUp,
) -> std::io::Result<()> {
    let ways = stage.ways.len();
    for index in (0..ways).map(|turn| (turn + round) % ways) {
        let drain = stage.drain(index, marks).await?;
        catch_up.drain(case, stage.ways[index].name(), size, &drain);
    }
    Ok(())
}

async fn measure_lags(
    stage: &mut Stage,
    plan: &Plan,
    round: usize,
    lags: &mut Vec<(&'static str, Vec<Lag>)>,
) -> std::io::Result<()> {
    let ways = stage.ways.len();
    for index in (0..ways).map(|turn| (turn + round) % ways) {
        stage.start_way(index).await;
        let (source, way) = (stage.source(), &stage.ways[index]);
        let lag = lag::measure(&source, &way.targets[0], plan.size(LAG_SECONDS))
            .await
            .map_err(std::io::Error::other)?;
        let name = way.name();
        match lags.iter_mut().find(|(way, _)| *way == name) {
            Some((_, samples)) => samples.push(lag),
            None => lags.push((name, vec![lag])),
        }
        stage.stop_way(index).await;
    }
    Ok(())
}
