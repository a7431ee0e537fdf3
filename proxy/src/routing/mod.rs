//! Owns which node a unit of work goes to: a transaction, or what runs up to a Sync or with a Query outside of one.
//!
//! What a text does and which keys it names is found once for all texts of its template (`PlanCache`); where it goes then is the
//! rules' decision, among the nodes as they are now.

mod bound;
mod catalog;
pub(crate) mod counts;
mod glance;
mod policy;
mod reference;
pub(crate) mod views;

use std::{borrow::Cow, cell::RefCell, sync::Arc};

use tandem_routing_rules::{
    ClusterView, Consistency, Mode, ReadRoute, ReadRules, SessionFacts, StatementFacts,
    StatementReason, Transaction,
    state::Homed,
    statement::{Class, Evidence, NoKey, Plan, PlanCache, Values},
    template::{Literals, Shape, Template},
};

use catalog::{Catalogs, Numbered as NumberedCatalog};
use counts::{Counts, Reason, Rule, Why};
pub(crate) use policy::Found;
pub(crate) use reference::is_possible as may_read_catalogs;
use xxhash_rust::xxh3::xxh3_64_with_seed;

use crate::{
    health::HealthBoard,
    identity::{Identities, Numbered},
    node::Nodes,
    reload::Settings,
    texts::Texts,
};

/// Bytes of plans that are kept.
const PLANS_MAX: usize = 32 << 20;

/// What routing needs, shared by all sessions.
#[derive(Debug)]
pub(crate) struct Router {
    plans: PlanCache,
    /// What it has.
    pub(crate) catalogs: Catalogs,
    /// What was decided so far.
    pub(crate) counts: Box<Counts>,
    /// What each node calls it, by numbers.
    pub(crate) identities: Arc<Identities>,
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
    /// What it uses that all sessions have to use on one node.
    pub(crate) homed: Option<Homed>,
}

/// What is known of a [`Run`] besides its plan.
#[derive(Debug, Clone, Copy, Default)]
struct Traits {
    begins: bool,
    homed: Option<Homed>,
}

impl From<Run<'_>> for Traits {
    fn from(run: Run<'_>) -> Traits {
        Traits {
            begins: run.begins,
            homed: run.homed,
        }
    }
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
#[derive(Debug)]
pub(crate) struct Choice {
    pub(crate) demand: Demand,
    /// Index of the node; none: none can be used.
    pub(crate) node: Option<usize>,
    /// The reason, for counters.
    pub(crate) why: Why,
    /// The policies of the rules have nothing to say of it.
    pub(crate) is_clear: bool,
    /// Which node and why, for people, where the chooser tells.
    pub(crate) line: Option<Box<str>>,
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
    /// Whether somebody wants to be told why.
    pub(crate) tells: bool,
    /// What reads catalogs only may run outside of the transaction that has begun.
    pub(crate) may_go_beside: bool,
}

/// A plan, and the key of a leading comment.
type Known = (Arc<Plan>, Option<Arc<str>>);

thread_local! {
    static KNOWN: RefCell<Texts<Option<Known>>> = const { RefCell::new(Texts::new()) };
    static TEMPLATE: RefCell<Template> = RefCell::default();
}

impl Router {
    /// Of a cluster that keeps this database converged.
    pub(crate) fn new(replicated: String) -> Router {
        Router {
            plans: PlanCache::new(PLANS_MAX),
            catalogs: Catalogs::default(),
            counts: Box::default(),
            identities: Arc::default(),
            replicated,
        }
    }

    /// Whether a database of this name is the same on all nodes.
    pub(crate) fn is_replicated(&self, database: &str) -> bool {
        self.replicated == database
    }

    /// Bytes of plans that it keeps.
    pub(crate) fn bytes(&self) -> usize {
        self.plans.bytes()
    }

    /// Looks for ever what the database has.
    pub(crate) async fn keep(&self, nodes: &Nodes, health: &HealthBoard) {
        tokio::join!(
            self.catalogs.keep(nodes, health, &self.replicated),
            self.identities.keep(nodes, health, &self.replicated),
        );
    }

    /// What becomes of a node's numbers for a client of this database.
    pub(crate) fn numbered(&self, node: usize, database: &str) -> Option<Numbered> {
        let numbered = self.identities.numbered(node)?;
        (database == self.replicated).then_some(numbered)
    }
}

impl Chooser<'_> {
    /// Where this goes. None: what it is cannot be told.
    pub(crate) fn choose(&self, run: Option<Run<'_>>) -> Choice {
        let traits = run.map(Traits::from).unwrap_or_default();
        self.with_plan(run, |plan, evidence, comment| {
            match run.and_then(|run| self.to_reference(plan, run)) {
                Some(choice) => choice,
                None => self.decide(plan, evidence, comment, traits),
            }
        })
    }

    /// Finds out what this does, which keys it names, and what its leading comment says of them.
    fn with_plan<R>(
        &self,
        run: Option<Run<'_>>,
        then: impl FnOnce(&Plan, Evidence<'_>, Option<&str>) -> R,
    ) -> R {
        let rules = &self.settings.config.rules;
        let nothing = Evidence::None(NoKey::NoRule);
        let Some(run) = run else {
            return then(glance::unknown(), nothing, None);
        };
        let catalog = self.router.catalogs.now();
        let catalog = catalog.as_deref();
        let has_views = catalog.is_some_and(|catalog| catalog.has_views);
        let reference = self
            .reference()
            .filter(|_| reference::is_possible(run.text));
        // What is read at home depends on the tables that are named, which is not told at a glance.
        let ReadRules {
            route, consistency, ..
        } = rules.read;
        let at_home = route == ReadRoute::Home || consistency == Consistency::Home;
        let is_alike = |class| {
            rules.affinities.is_empty() && !(at_home && class == Class::Read)
                || self.reads_alike(class, run.into())
        };
        // Texts that come with a Bind come again.
        if run.bound.is_none()
            && !has_views
            && reference.is_none()
            && let Some(class) = glance::class(run.text)
            && is_alike(class)
        {
            return then(glance::plan(class), nothing, None);
        }
        let scope = self.scope(catalog);
        let known = || self.known(scope, run, catalog);
        let known = KNOWN.with_borrow_mut(|texts| texts.get(scope, run.text, known));
        if let Some((plan, comment)) = known {
            return self.with_literals(&plan, run, Literals::default(), comment.as_deref(), then);
        }
        TEMPLATE.with_borrow_mut(|template| {
            let Some(shape) = template.read(run.text) else {
                return then(glance::unknown(), nothing, None);
            };
            let plan = self.plan(scope, &shape, catalog);
            self.with_literals(&plan, run, shape.literals, shape.key, then)
        })
    }

    fn with_literals<R>(
        &self,
        plan: &Plan,
        run: Run<'_>,
        literals: Literals<'_>,
        comment: Option<&str>,
        then: impl FnOnce(&Plan, Evidence<'_>, Option<&str>) -> R,
    ) -> R {
        if plan.class == Class::Ddl {
            self.router.catalogs.note_change();
            self.router.identities.note_change();
        }
        let has_no_use = self.reads_alike(plan.class, run.into());
        let parameters = match run.bound.filter(|_| !has_no_use) {
            Some(bound) => bound::parameters(Some(bound), run.types),
            None => Vec::new(),
        };
        let evidence = match has_no_use {
            true => Evidence::None(NoKey::NoRule),
            false => plan.evidence(&Values {
                literals,
                parameters: &parameters,
            }),
        };
        then(plan, evidence, comment)
    }

    /// Whether what is of this class goes to the nearest node whatever it reads.
    fn reads_alike(&self, class: Class, Traits { begins, homed }: Traits) -> bool {
        class == Class::Read
            && !begins
            && homed.is_none()
            && self.transaction != Transaction::ReadWrite
            && self.settings.config.rules.read_nearest()
    }

    /// Another number for each set of rules, catalog, and search path.
    fn scope(&self, catalog: Option<&NumberedCatalog>) -> u64 {
        let number = catalog.map_or(0, |catalog| catalog.number);
        let seed = self.settings.rules_id.rotate_left(32) ^ number;
        let user = xxh3_64_with_seed(self.session.user.as_bytes(), seed);
        match self.search_path {
            Some(path) => xxh3_64_with_seed(path.as_bytes(), user),
            None => user,
        }
    }

    fn plan(&self, scope: u64, shape: &Shape<'_>, catalog: Option<&NumberedCatalog>) -> Arc<Plan> {
        let plans = &self.router.plans;
        plans.known(scope, shape).unwrap_or_else(|| {
            let path = self.search_path();
            let path: Vec<&str> = path.iter().map(|schema| &**schema).collect();
            let catalog = catalog.map(|known| &known.catalog);
            let rules = &self.settings.config.rules;
            plans.plan(scope, shape, rules, catalog, &path).plan
        })
    }

    /// The plan of a text for which its literals make no difference, and the key of its leading comment.
    fn known(&self, scope: u64, run: Run<'_>, catalog: Option<&NumberedCatalog>) -> Option<Known> {
        TEMPLATE.with_borrow_mut(|template| {
            let shape = template.read(run.text)?;
            let plan = self.plan(scope, &shape, catalog);
            let comment = shape.key.map(Into::into);
            (!plan.needs_literals() && plan.refused.is_none()).then_some((plan, comment))
        })
    }

    /// Whether a text reads nothing but catalogs.
    pub(crate) fn reads_catalogs(&self, text: &[u8]) -> bool {
        let catalog = self.router.catalogs.now();
        let catalog = catalog.as_deref();
        TEMPLATE.with_borrow_mut(|template| {
            let shape = template.read(text);
            shape.is_some_and(|shape| {
                let plan = self.plan(self.scope(catalog), &shape, catalog);
                reference::reads_catalogs(&plan, text)
            })
        })
    }

    /// The node whose numbers (OIDs) clients are told, where others have others.
    fn reference(&self) -> Option<usize> {
        let node = self.router.identities.reference()?;
        let is_ours = self.session.database == self.router.replicated;
        (is_ours && self.health.usable(node)).then_some(node)
    }

    /// The reference node, where this is to run there.
    fn to_reference(&self, plan: &Plan, run: Run<'_>) -> Option<Choice> {
        let node = self.reference()?;
        if run.homed.is_some() || !reference::is_possible(run.text) {
            return None;
        }
        let may = match self.transaction {
            Transaction::Autocommit => !run.begins,
            Transaction::ReadOnly => true,
            Transaction::ReadWrite => self.may_go_beside && !run.begins,
        };
        if !may || self.serializable || !reference::reads_catalogs(plan, run.text) {
            return None;
        }
        let name = || self.nodes.get(node).map_or("?", |node| node.name());
        let line = || format!("node {}: it reads catalogs: the reference node", name()).into();
        Some(Choice {
            demand: Demand::Read,
            node: Some(node),
            why: Why::only(Reason::Catalogs),
            is_clear: true,
            line: self.tells.then(line),
        })
    }

    /// Where a statement is prepared that nothing runs yet.
    pub(crate) fn prepares(&self, run: Option<Run<'_>>) -> Choice {
        let reference = self.reference();
        let may_read = |run: &Run<'_>| reference::is_possible(run.text);
        let of_catalogs = || {
            let choice = self.choose(run.filter(may_read));
            choice.demand == Demand::Read && choice.node == reference
        };
        match reference.is_some() && run.as_ref().is_some_and(may_read) && of_catalogs() {
            true => Choice {
                node: reference,
                ..self.anywhere()
            },
            false => self.anywhere(),
        }
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

    /// The node on which all use what is [`Homed`]; none: none can be used.
    pub(crate) fn home(&self, homed: Homed) -> Option<usize> {
        let traits = Traits {
            begins: false,
            homed: Some(homed),
        };
        let nothing = Evidence::None(NoKey::NoRule);
        let choice = self.decide(glance::unknown(), nothing, None, traits);
        choice.node
    }

    /// Where what does nothing yet goes.
    pub(crate) fn anywhere(&self) -> Choice {
        let usable = |node: &usize| self.health.takes_all(*node);
        let known = self.last.filter(usable);
        let node = known.or_else(|| Some(self.near).filter(usable));
        Choice {
            demand: Demand::Session,
            node: node.or_else(|| (0..self.nodes.len()).find(usable)),
            why: Why::only(Reason::Session),
            is_clear: true,
            line: self
                .tells
                .then(|| "it concerns the session only, which goes where it is".into()),
        }
    }

    fn decide(
        &self,
        plan: &Plan,
        evidence: Evidence<'_>,
        comment: Option<&str>,
        Traits { begins, homed }: Traits,
    ) -> Choice {
        let rules = &self.settings.config.rules;
        let transaction = match self.transaction {
            // What ends one that was prepared has to be where that is, as far as the session knows.
            Transaction::Autocommit if begins || plan.class == Class::Transaction => {
                Transaction::ReadWrite
            }
            known => known,
        };
        let demand = match plan.class {
            Class::Session | Class::Transaction if leaves_nothing(&plan.because, begins) => {
                Demand::Session
            }
            Class::Transaction if begins => Demand::Begin,
            Class::Read if begins => Demand::Begin,
            Class::Read => Demand::Read,
            _ => Demand::Write,
        };
        if demand == Demand::Session
            && self.transaction == Transaction::Autocommit
            && homed.is_none()
        {
            return self.anywhere();
        }
        if self.reads_alike(plan.class, Traits { begins, homed })
            && self.is_replicated()
            && self.health.takes_all(self.near)
            && !(self.serializable || self.tells || comment.is_some())
        {
            return Choice {
                demand: Demand::Read,
                node: Some(self.near),
                why: Why::only(Reason::Nearest),
                is_clear: true,
                line: None,
            };
        }
        let demand = match self.transaction {
            // It is nowhere else what it says that it is.
            _ if self.serializable || homed.is_some() => Demand::Write,
            Transaction::Autocommit => demand,
            Transaction::ReadOnly => Demand::Read,
            Transaction::ReadWrite => Demand::Write,
        };
        let usable = |node: usize| match demand {
            // Reads leave a node before its keys do.
            Demand::Read => self.health.takes_all(node),
            _ => self.health.usable(node),
        };
        let views = views::live(self.nodes, self.health, usable);
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
            homed,
        };
        let near = Some(self.near).filter(|node| usable(*node));
        // Nobody keeps other databases the same everywhere, so each has one home for all.
        // A session that keeps its server from now on may write there.
        let keeps = plan.class == Class::Session && demand == Demand::Write;
        let (plan, evidence) = match self.is_replicated() && !keeps {
            true => (plan, evidence),
            false => (glance::unknown(), Evidence::None(NoKey::NoRule)),
        };
        let decision = match rules.decide_statement(&facts, plan, evidence, &cluster) {
            Ok(decision) => decision,
            Err(none) => {
                return Choice {
                    demand,
                    node: near,
                    why: Why::only(Reason::Nowhere),
                    is_clear: false,
                    line: self.tells.then(|| none.to_string().into()),
                };
            }
        };
        let advised = near.filter(|_| rules.mode == Mode::Advise && homed.is_none());
        let node = match &decision.reason {
            _ if advised.is_some() => advised,
            // The same one for a session as long as it serves.
            StatementReason::Nearest(_) if near.is_some() => near,
            _ => views.iter().position(|view| view.id == decision.node),
        };
        let line = self.tells.then(|| match advised {
            Some(node) => {
                let name = views.get(node).map_or("?", |view| view.name);
                format!("node {name}: advise: would go to {decision}").into()
            }
            None => decision.to_string().into(),
        });
        let has_key = matches!(decision.reason, StatementReason::Key { .. });
        Choice {
            demand,
            node,
            why: Why {
                reason: Reason::from(&decision.reason),
                rule: Rule::of(&decision.reason, rules),
                overruled: !decision.passed_over.is_empty(),
                advised: advised.is_some() && decision.write,
            },
            is_clear: !decision.write || has_key && decision.split.is_none(),
            line,
        }
    }

    /// Whether what looks like a table may be a view, and so do more than it says.
    fn has_views(&self) -> bool {
        let catalog = self.router.catalogs.now();
        catalog.is_some_and(|catalog| catalog.has_views)
    }

    /// Whether its database is the one that is the same on all nodes.
    fn is_replicated(&self) -> bool {
        self.session.database == self.router.replicated
    }
}

/// Whether a statement about the session leaves nothing on its server that keeps the session there.
/// `begins`: it is one that keeps it there.
fn leaves_nothing(because: &str, begins: bool) -> bool {
    match because {
        "SET" | "SHOW" | "DISCARD" | "DEALLOCATE" | "UNLISTEN" | "no statement" => true,
        "LISTEN" => !begins,
        _ => false,
    }
}
