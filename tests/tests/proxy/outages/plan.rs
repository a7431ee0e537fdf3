//! What befalls which node, and when: decided by a seed, before anything starts.

use std::time::Duration;

use fastrand::Rng;

/// What befalls a node.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Fault {
    /// SIGKILL to all its processes, as a power cut; it is started again.
    Kill,
    /// SIGSTOP to all of them, then SIGCONT.
    Stop,
    /// Nothing passes between it and the daemon, and nobody is told.
    Silence,
    /// Its connections are reset, new ones too.
    Cut,
    /// `tandem drain`, then `tandem resume`.
    Drain,
}

/// One thing that befalls one node.
#[derive(Debug, Clone, Copy)]
pub(super) struct Blow {
    pub(super) node: usize,
    pub(super) fault: Fault,
    /// How long it lasts.
    pub(super) hold: Duration,
    /// How long after it, or after the one beside it has begun, the next thing happens.
    pub(super) pause: Duration,
}

/// What happens next.
#[derive(Debug, Clone, Copy)]
pub(super) struct Step {
    pub(super) blow: Blow,
    /// What befalls another node meanwhile: only one is left then.
    pub(super) beside: Option<Blow>,
}

/// All that a run's seed decides.
#[derive(Debug, Clone)]
pub(super) struct Plan {
    pub(super) majors: [u32; 3],
    /// How long a probe may take: how soon a node that does not answer is given up.
    pub(super) probe_timeout: Duration,
    /// How long a client may be kept waiting for what has become of its COMMIT.
    pub(super) outcome_wait: Duration,
    /// What becomes of a drain that has to wait for too long.
    pub(super) at_bound: &'static str,
    pub(super) steps: Vec<Step>,
}

const FAULTS: [Fault; 5] = [
    Fault::Kill,
    Fault::Stop,
    Fault::Silence,
    Fault::Cut,
    Fault::Drain,
];

fn between(random: &mut Rng, from_ms: u64, to_ms: u64) -> Duration {
    Duration::from_millis(random.u64(from_ms..to_ms))
}

fn blow(random: &mut Rng, node: usize, fault: Fault) -> Blow {
    let hold = match fault {
        // Shorter and longer than it takes to give a node up.
        Fault::Stop | Fault::Silence => between(random, 100, 2500),
        Fault::Kill | Fault::Cut => between(random, 1, 1500),
        Fault::Drain => between(random, 1, 800),
    };
    // The next one may come before this one has caught up.
    let pause = between(random, 50, 1500);
    Blow {
        node,
        fault,
        hold,
        pause,
    }
}

impl Plan {
    /// Every fault so often, in a random order, on random nodes.
    pub(super) fn of(seed: u64, rounds: usize) -> Self {
        let mut random = Rng::with_seed(seed);
        let majors = [[15, 17, 18], [15, 15, 15], [18, 15, 17]];
        let majors = majors[random.usize(..majors.len())];
        let probe_timeout = Duration::from_millis([200, 500, 2000][random.usize(..3)]);
        let outcome_wait = Duration::from_millis([300, 30_000][random.usize(..2)]);
        let at_bound = ["stay", "abort"][random.usize(..2)];
        let mut faults = FAULTS.repeat(rounds);
        random.shuffle(&mut faults);
        let mut steps = Vec::new();
        for fault in faults {
            let node = random.usize(..majors.len());
            let other = (node + random.usize(1..majors.len())) % majors.len();
            let beside = (random.u32(..4) == 0).then(|| {
                let fault = FAULTS[random.usize(..FAULTS.len())];
                blow(&mut random, other, fault)
            });
            let blow = blow(&mut random, node, fault);
            steps.push(Step { blow, beside });
        }
        Self {
            majors,
            probe_timeout,
            outcome_wait,
            at_bound,
            steps,
        }
    }
}

#[test]
fn a_seed_decides_all_of_it_and_every_fault_comes() {
    for seed in 0..50 {
        let plan = Plan::of(seed, 1);
        assert_eq!(format!("{plan:?}"), format!("{:?}", Plan::of(seed, 1)));
        for fault in FAULTS {
            assert!(plan.steps.iter().any(|step| step.blow.fault == fault));
        }
        for Step { blow, beside } in plan.steps {
            assert!(beside.is_none_or(|beside| beside.node != blow.node && beside.node < 3));
        }
    }
}
