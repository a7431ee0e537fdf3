//! Proves which schemas have which risks under which rules.

use super::*;
use crate::catalog::ColumnType;

fn column(name: &str) -> Column {
    Column {
        name: name.to_owned(),
        type_name: "bigint".to_owned(),
        column_type: ColumnType::Integer,
        sequence: None,
        is_counter: false,
    }
}

fn key(name: &str, is_primary: bool, columns: &[&str]) -> UniqueKey {
    UniqueKey {
        name: name.to_owned(),
        is_primary,
        columns: columns.iter().map(|&name| name.to_owned()).collect(),
    }
}

/// `table`, whose columns are `columns` and whose primary key is the first.
fn table(name: &str, columns: &[&str]) -> Table {
    Table {
        schema: "public".to_owned(),
        name: name.to_owned(),
        is_view: false,
        is_partition: false,
        columns: columns.iter().map(|name| column(name)).collect(),
        unique_keys: vec![key(&format!("{name}_pkey"), true, &columns[..1])],
        foreign_keys: Vec::new(),
    }
}

fn references(columns: &[&str], table: &str, referenced: &[&str]) -> ForeignKey {
    ForeignKey {
        name: format!("to_{table}"),
        columns: columns.iter().map(|&name| name.to_owned()).collect(),
        table: ("public".to_owned(), table.to_owned()),
        referenced: referenced.iter().map(|&name| name.to_owned()).collect(),
    }
}

const BY_SHOP: &str = "[placement.shop]\nstrategy = \"hash\"\n[placement.one]\nstrategy = \"single\"\n[[affinity]]\nplacement = \"shop\"\n\
    tables = { shops = \"id\", orders = \"shop_id\", stock = \"shop_id\" }\n[[affinity]]\nplacement = \"one\"\ntables = { users = \"id\" }\n";

struct Found {
    rules: Rules,
    tables: Vec<Table>,
    nodes: usize,
    by_session: bool,
    #[cfg(feature = "grammar")]
    self_updates: Vec<SelfUpdate>,
}

fn of(rules: &str, tables: Vec<Table>) -> Found {
    Found {
        rules: Rules::parse(rules, &[]).unwrap(),
        tables,
        nodes: 3,
        by_session: false,
        #[cfg(feature = "grammar")]
        self_updates: Vec::new(),
    }
}

impl Found {
    /// `table: the beginning of what is said`, for each.
    fn told(&self) -> Vec<String> {
        let found = risks(&Circumstances {
            rules: &self.rules,
            tables: &self.tables,
            nodes: self.nodes,
            by_session: self.by_session,
            #[cfg(feature = "grammar")]
            self_updates: &self.self_updates,
        });
        assert!(found.iter().all(|risk| !risk.mend.is_empty()));
        let told = |risk: Risk| {
            let words: Vec<&str> = risk.what.split(' ').take(4).collect();
            let table = risk.table.as_deref().unwrap_or("all").to_owned();
            format!("{table}: {}", words.join(" "))
        };
        found.into_iter().map(told).collect()
    }
}

fn with_sequence(mut table: Table, name: &str) -> Table {
    for column in table
        .columns
        .iter_mut()
        .filter(|column| column.name == name)
    {
        column.sequence = Some(Sequence {
            name: format!("public.{}_{name}_seq", table.name),
            increment: 1,
        });
    }
    table
}

#[test]
fn a_sequence_is_a_risk_where_rows_of_several_homes_take_their_key_from_it() {
    let orders = with_sequence(table("orders", &["id", "shop_id"]), "id");
    let sequence = ["public.orders: id comes from sequence"];
    assert_eq!(of(BY_SHOP, vec![orders.clone()]).told(), sequence);

    let mut beside_key = orders.clone();
    beside_key.unique_keys = vec![key("orders_pkey", true, &["shop_id", "id"])];
    assert!(of(BY_SHOP, vec![beside_key]).told().is_empty());
    let mut in_no_key = orders.clone();
    in_no_key.unique_keys = vec![key("orders_pkey", true, &["shop_id"])];
    assert!(of(BY_SHOP, vec![in_no_key]).told().is_empty());
    let mut in_steps = orders.clone();
    for sequence in in_steps.columns.iter_mut().flat_map(|c| &mut c.sequence) {
        sequence.increment = 3;
    }
    assert!(of(BY_SHOP, vec![in_steps]).told().is_empty());
    // One home for all its rows.
    assert!(of("", vec![orders.clone()]).told().is_empty());
    let users = with_sequence(table("users", &["id"]), "id");
    assert!(of(BY_SHOP, vec![users]).told().is_empty());
    let mut alone = of(BY_SHOP, vec![orders]);
    alone.nodes = 1;
    assert!(alone.told().is_empty());
}

#[test]
fn a_unique_key_is_a_risk_where_it_does_not_contain_the_key_of_the_home() {
    let mut orders = table("orders", &["shop_id", "number", "token"]);
    orders.unique_keys = vec![
        key("orders_pkey", true, &["shop_id", "number"]),
        key("orders_number", false, &["number"]),
        key("orders_token", false, &["token"]),
    ];
    orders.columns[2].type_name = "uuid".to_owned();
    assert_eq!(
        of(BY_SHOP, vec![orders]).told(),
        ["public.orders: rows of several homes"]
    );
    let by_another = table("stock", &["id", "shop_id"]);
    let found = of(BY_SHOP, vec![by_another]);
    assert_eq!(found.told(), ["public.stock: rows of several homes"]);
    let mut partition = table("stock", &["id", "shop_id"]);
    partition.is_partition = true;
    assert!(of(BY_SHOP, vec![partition]).told().is_empty());
}

#[test]
fn where_writes_go_anywhere_it_is_said_once_of_all_tables() {
    let mut items = with_sequence(table("items", &["id", "code"]), "id");
    items.unique_keys.push(key("items_code", false, &["code"]));
    let natural = table("colours", &["code"]);
    let mut refers = table("prices", &["code"]);
    refers.foreign_keys = vec![references(&["code"], "colours", &["code"])];
    let tables = vec![natural, items, refers];
    let of_items = [
        "public.items: id comes from sequence",
        "public.items: rows of several homes",
    ];
    let mut wanted = vec!["all: writes without a key"];
    wanted.extend(of_items);
    let nearest = of("[default]\nwrite = \"nearest\"\n", tables.clone());
    assert_eq!(nearest.told(), wanted);
    wanted[0] = "all: mode = \"advise\" only";
    assert_eq!(of("mode = \"advise\"\n", tables.clone()).told(), wanted);
    wanted[0] = "all: whole sessions go to";
    let mut by_session = of(BY_SHOP, tables);
    by_session.by_session = true;
    assert_eq!(by_session.told(), wanted);
}

#[test]
fn a_reference_is_a_risk_unless_both_rows_have_one_home() {
    let shops = table("shops", &["id"]);
    let mut orders = table("orders", &["shop_id", "user_id"]);
    let to_shops = references(&["shop_id"], "shops", &["id"]);
    orders.foreign_keys = vec![to_shops.clone()];
    let users = table("users", &["id"]);
    let of_orders = |orders: &Table| {
        let tables = vec![shops.clone(), users.clone(), orders.clone()];
        of(BY_SHOP, tables).told()
    };
    assert!(of_orders(&orders).is_empty());
    orders.foreign_keys = vec![references(&["user_id"], "users", &["id"])];
    assert_eq!(
        of_orders(&orders),
        ["public.orders: (user_id) refers to public.users,"]
    );
    // By a column that is not the key, though both tables are of one placement.
    orders.foreign_keys = vec![references(&["user_id"], "shops", &["id"])];
    assert_eq!(
        of_orders(&orders),
        ["public.orders: (user_id) refers to public.shops,"]
    );
    // Another key expression is another home.
    let rules = BY_SHOP.replace(
        "shops = \"id\"",
        "shops = { column = \"id\", key = \"id / 10\" }",
    );
    orders.foreign_keys = vec![to_shops];
    let tables = vec![shops.clone(), orders.clone()];
    assert_eq!(of(&rules, tables.clone()).told().len(), 1);
    // Without rules all have the default home.
    assert!(of("", tables).told().is_empty());
}

#[cfg(feature = "grammar")]
#[test]
fn a_column_that_is_counted_is_a_risk_where_the_statement_does_not_name_the_key() {
    let update = |names_key| SelfUpdate {
        schema: None,
        table: "stock".to_owned(),
        column: "n".to_owned(),
        names_key,
    };
    let stock = table("stock", &["shop_id", "n"]);
    let told = |rules: &str, updates: Vec<SelfUpdate>, stock: &Table| {
        let mut found = of(rules, vec![stock.clone()]);
        found.self_updates = updates;
        let mut told = found.told();
        told.retain(|line| line.starts_with("public.stock"));
        told
    };
    let counted = ["public.stock: n is counted (n"];
    assert_eq!(
        told(BY_SHOP, vec![update(true), update(false)], &stock),
        counted
    );
    assert!(told(BY_SHOP, vec![update(true)], &stock).is_empty());
    let nearest = "[default]\nwrite = \"nearest\"\n";
    assert_eq!(told(nearest, vec![update(true)], &stock), counted);
    assert!(told("", vec![update(false)], &stock).is_empty());
    let mut counter = stock.clone();
    counter.columns[1].is_counter = true;
    assert!(told(nearest, vec![update(false)], &counter).is_empty());
    let elsewhere = SelfUpdate {
        schema: Some("audit".to_owned()),
        ..update(false)
    };
    assert!(told(nearest, vec![elsewhere], &stock).is_empty());
}
