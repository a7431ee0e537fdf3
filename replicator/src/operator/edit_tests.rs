use tandem_wire::lsn::Lsn;

use super::*;
use crate::relation::Interner;
use crate::transaction::Operation;

fn set(text: &str) -> Result<(String, String, String, Option<String>), NotAnAssignment> {
    let one: Assignment = text.parse()?;
    Ok((one.schema, one.table, one.column, one.value))
}

#[test]
fn an_assignment_is_read_with_quoted_names_and_any_value() {
    let wanted = |schema: &str, table: &str, column: &str, value: &str| {
        Ok((
            schema.to_owned(),
            table.to_owned(),
            column.to_owned(),
            Some(value.to_owned()),
        ))
    };
    assert_eq!(
        set("public.item.amount=5"),
        wanted("public", "item", "amount", "5")
    );
    assert_eq!(set("s.t.c="), wanted("s", "t", "c", ""));
    assert_eq!(set("s.t.c=a=b.c"), wanted("s", "t", "c", "a=b.c"));
    assert_eq!(
        set("\"my.schema\".\"say \"\"x\"\"\".\"a=b\"=1"),
        wanted("my.schema", "say \"x\"", "a=b", "1")
    );
    assert_eq!(set("s.t.c"), Err(NotAnAssignment::NoValue));
    for wrong in [
        "",
        "s.t=1",
        "s.t.c.d=1",
        "s..c=1",
        "\"s.t.c=1",
        "\"s\"x.t.c=1",
        ".t.c=1",
    ] {
        assert_eq!(set(wrong), Err(NotAnAssignment::Name), "{wrong}");
    }
    let null = Assignment::null("s.t.c").expect("a name");
    assert_eq!((null.column.as_str(), null.value), ("c", None));
    assert_eq!(Assignment::null("s.t.c=1"), Err(NotAnAssignment::Name));
}

fn transaction(messages: &[&'static [u8]]) -> Transaction {
    let shape = b"R\0\0\0\x07public\0t\0d\0\x02\x01id\0\0\0\0\x17\xff\xff\xff\xff\0note\0\0\0\0\x19\xff\xff\xff\xff";
    let relation = Interner::default().intern(shape).expect("a shape");
    let changes = messages.iter().map(|&message| Change {
        relation: Arc::clone(&relation),
        operation: match message.first() {
            Some(b'I') => Operation::Insert,
            Some(b'U') => Operation::Update,
            _ => Operation::Delete,
        },
        message: Bytes::from_static(message),
    });
    Transaction {
        xid: None,
        statements: Vec::new(),
        end_lsn: Lsn(9),
        timestamp: 5,
        changes: changes.collect(),
        size: 0,
    }
}

#[test]
fn every_new_row_of_the_table_gets_the_values_and_nothing_else_changes() {
    let messages: [&'static [u8]; 4] = [
        b"I\0\0\0\x07N\0\x02t\0\0\0\x011n",
        b"U\0\0\0\x07N\0\x02t\0\0\0\x012u",
        b"U\0\0\0\x07O\0\x02t\0\0\0\x013t\0\0\0\x01oN\0\x02t\0\0\0\x013t\0\0\0\x01n",
        b"D\0\0\0\x07K\0\x02t\0\0\0\x014n",
    ];
    let wanted: [&[u8]; 4] = [
        b"I\0\0\0\x07N\0\x02t\0\0\0\x011t\0\0\0\x03new",
        b"U\0\0\0\x07N\0\x02t\0\0\0\x012t\0\0\0\x03new",
        b"U\0\0\0\x07O\0\x02t\0\0\0\x013t\0\0\0\x01oN\0\x02t\0\0\0\x013t\0\0\0\x03new",
        b"D\0\0\0\x07K\0\x02t\0\0\0\x014n",
    ];
    let mut edited = transaction(&messages);
    let one: Assignment = "public.t.note=new".parse().expect("an assignment");
    let changes = rewrite(&mut edited, &[one])
        .expect("pgoutput")
        .expect("written");
    let written: Vec<&[u8]> = edited
        .changes
        .iter()
        .map(|change| change.message.as_ref())
        .collect();
    assert_eq!(written, wanted);
    assert_eq!(changes.len(), 3);
    let note = |image: &Option<Image>| image.as_ref().and_then(|image| image.get("note").cloned());
    let third = changes.last().expect("three");
    assert_eq!(
        (note(&third.before), note(&third.after)),
        (Some("n".into()), Some("new".into()))
    );
    assert!(
        edited
            .changes
            .iter()
            .all(|change| decode(&change.message).is_ok())
    );
    assert!(edited.size > 0);

    let null = Assignment::null("public.t.note").expect("a name");
    rewrite(&mut edited, &[null])
        .expect("pgoutput")
        .expect("written");
    let first = edited.changes.first().expect("four").message.as_ref();
    assert_eq!(first, messages[0]);
}

#[test]
fn what_the_transaction_does_not_write_is_refused() {
    let delete: &[&'static [u8]] = &[b"D\0\0\0\x07K\0\x02t\0\0\0\x014n"];
    for text in ["public.t.note=x", "public.t.nothing=x", "public.u.note=x"] {
        let one: Assignment = text.parse().expect("an assignment");
        let refused = rewrite(&mut transaction(delete), &[one]).expect("pgoutput");
        assert!(
            matches!(refused, Err(EditRefusal::NotWritten { .. })),
            "{text}"
        );
    }
    let insert: &[&'static [u8]] = &[b"I\0\0\0\x07N\0\x02t\0\0\0\x011n"];
    let both =
        ["public.t.note=x", "public.t.nothing=x"].map(|text| text.parse().expect("an assignment"));
    let refused = rewrite(&mut transaction(insert), &both).expect("pgoutput");
    let lacks = |why: EditRefusal| why.to_string().contains("column nothing");
    assert!(refused.err().is_some_and(lacks));
}
