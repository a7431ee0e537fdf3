//! Owns which node a unit of work goes to: a transaction, or what runs up to a Sync or with a Query outside of one.
//!
//! What a text does and which keys it names is found once for all texts of its template (`PlanCache`); where it goes then is the
//! rules' decision, among the nodes as they are now.

mod bound;
mod catalog;
mod glance;

use std::{borrow::Cow, cell::RefCell, fmt};

use tandem_routing_rules::{
    ClusterView, Mode, NodeView, Rules, SessionFacts, StatementFacts, StatementReason, Transaction,
    statement::{Class, Evidence, NoKey, Plan, PlanCache, Values},
    template::Template,
};

use catalog::Catalogs;
use xxhash_rust::xxh3::Xxh3;

use crate::{health::HealthBoard, node::Nodes, reload::Settings};

/// Bytes of plans that are kept.
const PLANS_MAX: usize = 32 << 20;

/// What routing needs, shared by all sessions.
#[derive(Debug)]
pub(crate) struct Router {
    plans: PlanCache,
    /// What it has.
    pub(crate) catalogs: Catalogs,
    /// The database that is the same on all nodes.
    replicated: String,
}

/// Something that is to run.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Run<'a> {
    /// Its text.
    pub(crate) text: &'a [u8],
    /// What follows the names in its Bind: formats and values. None: it came in a Query.
    pub(crate) bound: Option<&'a [u8]>,
    /// The types that its Parse gives to parameters, as they stand there, where it is in sight.
    pub(crate) types: &'a [u8],
    /// It begins a transaction block, or something else that keeps the session on its server: what comes then is not known.
    pub(crate) begins: bool,
}

/// How demanding a unit of work is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Demand {
    /// It concerns the session's own state only: any node will do.
    Session,
    /// It leaves everything as it is.
    Read,
    /// It begins something of which nobody knows yet what it will do.
    Begin,
    /// It may change something, or lock it, or keep its server.
    Write,
}

/// Where something goes.
#[derive(Debug, Clone)]
pub(crate) struct Choice {
    pub(crate) demand: Demand,
    /// Index of the node; none: none can be used.
    pub(crate) node: Option<usize>,
}

/// What a choice depends on besides what is to run.
#[derive(Debug)]
pub(crate) struct Chooser<'a> {
    pub(crate) router: &'a Router,
    pub(crate) settings: &'a Settings,
    pub(crate) nodes: &'a Nodes,
    pub(crate) health: &'a HealthBoard,
    /// The session, with what `tandem.key` is now.
    pub(crate) session: SessionFacts<'a>,
    /// Its `search_path`, if it has set one.
    pub(crate) search_path: Option<&'a str>,
    pub(crate) transaction: Transaction,
    pub(crate) serializable: bool,
    /// The node that was chosen at the login.
    pub(crate) near: usize,
    /// Where the session was last.
    pub(crate) last: Option<usize>,
    /// Where it wrote last.
    pub(crate) wrote: Option<usize>,
}

/// Who is told why.
pub(crate) type Tell<'t> = &'t mut dyn FnMut(&dyn fmt::Display);

thread_local! {
    static TEMPLATE: RefCell<Template> = RefCell::default();
}

impl Router {
    /// Of a cluster that keeps this database converged.
    pub(crate) fn new(replicated: String) -> Router {
        Router {
            plans: PlanCache::new(PLANS_MAX),
            catalogs: Catalogs::default(),
            replicated,
        }
    }

    /// Bytes of plans that it keeps.
    pub(crate) fn bytes(&self) -> usize {
        self.plans.bytes()
    }

    /// Looks for ever what the database has.
    pub(crate) async fn keep(&self, nodes: &Nodes, health: &HealthBoard) {
        self.catalogs.keep(nodes, health, &self.replicated).await;
    }
}

impl Chooser<'_> {
    /// Where this goes. None: what it is cannot be told.
    pub(crate) fn choose(&self, run: Option<Run<'_>>) -> Choice {
        self.choose_and_tell(run, &mut |_| ())
    }

    /// Where this goes; `tell` is told why, in words.
    pub(crate) fn choose_and_tell(&self, run: Option<Run<'_>>, tell: Tell<'_>) -> Choice {
        let rules = &self.settings.config.rules;
        let Some(run) = run else {
            return self.unknown(rules, tell);
        };
        let catalog = self.router.catalogs.now();
        let has_views = catalog.as_ref().is_some_and(|catalog| catalog.has_views);
        if rules.affinities.is_empty()
            && !has_views
            && let Some(class) = glance::class(run.text)
        {
            let nothing = Evidence::None(NoKey::NoRule);
            return self.decide(rules, glance::plan(class), nothing, None, false, tell);
        }
        TEMPLATE.with_borrow_mut(|template| {
            let Some(shape) = template.read(run.text) else {
                return self.unknown(rules, tell);
            };
            let path = self.search_path();
            let path: Vec<&str> = path.iter().map(|schema| &**schema).collect();
            let mut scope = Xxh3::new();
            scope.update(&self.settings.rules_id.to_le_bytes());
            let number = catalog.as_ref().map_or(0, |catalog| catalog.number);
            scope.update(&number.to_le_bytes());
            for schema in &path {
                scope.update(schema.as_bytes());
                scope.update(&[0]);
            }
            let plans = &self.router.plans;
            let catalog = catalog.as_ref().map(|known| &known.catalog);
            let found = plans.plan(scope.digest(), &shape, rules, catalog, &path);
            if found.plan.class == Class::Ddl {
                self.router.catalogs.note_change();
            }
            let plan = &found.plan;
            if plan.keys.is_empty() {
                let evidence = plan.evidence(&Values::default());
                return self.decide(rules, plan, evidence, shape.key, run.begins, tell);
            }
            let parameters = bound::parameters(run.bound, run.types);
            let evidence = plan.evidence(&Values {
                literals: shape.literals,
                parameters: &parameters,
            });
            self.decide(rules, plan, evidence, shape.key, run.begins, tell)
        })
    }

    /// The schemas in which names are looked for.
    fn search_path(&self) -> Vec<Cow<'_, str>> {
        let Some(path) = self.search_path else {
            return vec![self.session.user.into(), "public".into()];
        };
        let elements = path.split(',').map(str::trim);
        elements
            .map(
                |element| match element.strip_prefix('"').and_then(|e| e.strip_suffix('"')) {
                    Some("$user") => self.session.user.into(),
                    Some(quoted) => quoted.replace("\"\"", "\"").into(),
                    None if element == "$user" => self.session.user.into(),
                    None => element.to_ascii_lowercase().into(),
                },
            )
            .collect()
    }

    /// Where what cannot be told goes.
    fn unknown(&self, rules: &Rules, tell: Tell<'_>) -> Choice {
        let nothing = Evidence::None(NoKey::NoRule);
        self.decide(rules, glance::unknown(), nothing, None, false, tell)
    }

    /// Where what does nothing yet goes.
    pub(crate) fn anywhere(&self) -> Choice {
        let usable = |node: &usize| self.health.usable(*node);
        let known = self.last.filter(usable);
        let node = known.or_else(|| Some(self.near).filter(usable));
        Choice {
            demand: Demand::Session,
            node: node.or_else(|| (0..self.nodes.len()).find(usable)),
        }
    }

    fn decide<'p>(
        &self,
        rules: &'p Rules,
        plan: &Plan,
        evidence: Evidence<'p>,
        comment: Option<&str>,
        begins: bool,
        tell: Tell<'_>,
    ) -> Choice {
        let transaction = match self.transaction {
            // What ends one that was prepared has to be where that is, as far as the session knows.
            Transaction::Autocommit if begins || plan.class == Class::Transaction => {
                Transaction::ReadWrite
            }
            known => known,
        };
        let demand = match plan.class {
            Class::Session | Class::Transaction if leaves_nothing(&plan.because) => Demand::Session,
            Class::Transaction if begins => Demand::Begin,
            Class::Read if begins => Demand::Begin,
            Class::Read => Demand::Read,
            _ => Demand::Write,
        };
        if demand == Demand::Session && self.transaction == Transaction::Autocommit {
            tell(&"it concerns the session only, which goes where it is");
            return self.anywhere();
        }
        let usable = |node: usize| self.health.usable(node);
        let views: Vec<NodeView<'_>> = self
            .nodes
            .iter()
            .enumerate()
            .map(|(index, node)| NodeView {
                id: node.config().id,
                name: node.name(),
                zone: node.config().zone.as_deref(),
                healthy: usable(index),
                rtt_us: self.health.rtt_us(index),
                sessions: node.sessions(),
            })
            .collect();
        let cluster = ClusterView {
            nodes: &views,
            zone: self.settings.config.proxy.zone.as_deref(),
        };
        let id = |node: usize| views.get(node).map(|view| view.id);
        let facts = StatementFacts {
            session: self.session,
            comment,
            transaction,
            serializable: self.serializable,
            last_home: self.wrote.and_then(id),
        };
        let near = Some(self.near).filter(|node| usable(*node));
        let demand = match self.transaction {
            // It is nowhere else what it says that it is.
            _ if self.serializable => Demand::Write,
            Transaction::Autocommit => demand,
            Transaction::ReadOnly => Demand::Read,
            Transaction::ReadWrite => Demand::Write,
        };
        if rules.mode == Mode::Advise && near.is_some() {
            return Choice { demand, node: near };
        }
        // Nobody keeps other databases the same everywhere, so each has one home for all.
        // A session that keeps its server from now on may write there.
        let keeps = plan.class == Class::Session && demand == Demand::Write;
        let plan = match self.session.database == self.router.replicated && !keeps {
            true => plan,
            false => glance::unknown(),
        };
        let decision = rules.decide_statement(&facts, plan, evidence, &cluster);
        match &decision {
            Ok(decision) => tell(decision),
            Err(none) => tell(none),
        }
        let node = decision.ok().and_then(|decision| match decision.reason {
            // The same one for a session as long as it serves.
            StatementReason::Nearest(_) if near.is_some() => near,
            _ => views.iter().position(|view| view.id == decision.node),
        });
        Choice { demand, node }
    }
}

/// Whether a statement about the session leaves nothing on its server that keeps the session there.
fn leaves_nothing(because: &str) -> bool {
    matches!(
        because,
        "SET" | "SHOW" | "DISCARD" | "DEALLOCATE" | "UNLISTEN" | "no statement"
    )
}
