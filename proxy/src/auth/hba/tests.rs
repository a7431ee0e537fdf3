use std::net::IpAddr;

use tandem_routing_rules::document::Problems;

use super::*;

const TLS: TlsOffer = TlsOffer {
    enabled: true,
    client_ca: true,
};

fn read(text: &str) -> Result<HostRules, Vec<String>> {
    let mut problems = Problems::default();
    let rules = parse_host_rules(text, TLS, &mut problems);
    let problems = problems.into_sorted();
    if problems.is_empty() {
        return Ok(rules);
    }
    let told = problems.iter().map(|problem| problem.located(text));
    Err(told.map(|problem| problem.to_string()).collect())
}

fn ip(text: &str) -> Option<IpAddr> {
    Some(text.parse().unwrap())
}

/// `user@database from address`, over TLS or not: what the rule says, by its line.
fn decided(rules: &HostRules, user: &str, database: &str, from: &str, tls: bool) -> String {
    let arrival = Arrival {
        user,
        database,
        address: if from == "local" { None } else { ip(from) },
        local_address: if from == "local" {
            None
        } else {
            ip("192.0.2.1")
        },
        tls,
    };
    match rules.decide(&arrival) {
        None => "nobody".to_owned(),
        Some(rule) => match rule.access() {
            Access::Reject => format!("{} reject", rule.line),
            Access::Prove(method) => format!("{} {method}", rule.line),
        },
    }
}

const FILE: &str = r#"
# TYPE  DATABASE        USER            ADDRESS                 METHOD
local   all             postgres                                scram-sha-256
local   sameuser        all                                     trust   # one's own
host    app,"my db", x  app, "all"      10.0.0.0/8              scram-sha-256
host    all             mallory         all                     reject
hostssl all             ops             0.0.0.0/0               cert
hostssl all             web             ::/0                    md5 clientcert=verify-full
hostnossl all           plain           192.168.1.77 255.255.255.0  md5
host    replication     all             127.0.0.1/32            trust
host    all             me              samehost                trust
host    app \
        split           2001:db8::/33   scram-sha-256
"#;

#[test]
fn the_first_rule_that_matches_decides_and_without_one_nobody_comes_in() {
    let rules = read(FILE).unwrap();
    let table = [
        ("postgres", "app", "local", false, "3 scram-sha-256"),
        ("postgres", "postgres", "local", false, "3 scram-sha-256"),
        ("app", "app", "local", false, "4 trust"),
        ("app", "other", "local", false, "nobody"),
        ("app", "app", "10.255.0.1", false, "5 scram-sha-256"),
        ("app", "my db", "10.1.2.3", true, "5 scram-sha-256"),
        ("all", "x", "10.1.2.3", false, "5 scram-sha-256"),
        ("who", "x", "10.1.2.3", false, "nobody"),
        ("app", "app", "11.0.0.1", false, "nobody"),
        ("app", "APP", "10.1.2.3", false, "nobody"),
        ("mallory", "app", "10.1.2.3", true, "6 reject"),
        ("mallory", "app", "::1", false, "6 reject"),
        ("mallory", "app", "local", false, "nobody"),
        ("ops", "app", "203.0.113.9", true, "7 cert"),
        ("ops", "app", "203.0.113.9", false, "nobody"),
        ("ops", "app", "2001:db8::9", true, "nobody"),
        ("web", "app", "2001:db8::9", true, "8 md5"),
        ("plain", "app", "192.168.1.1", false, "9 md5"),
        ("plain", "app", "192.168.2.1", false, "nobody"),
        ("plain", "app", "192.168.1.1", true, "nobody"),
        ("repl", "replication", "127.0.0.1", false, "nobody"),
        ("me", "app", "127.0.0.1", false, "11 trust"),
        ("me", "app", "192.0.2.1", false, "11 trust"),
        ("me", "app", "192.0.2.2", false, "nobody"),
        (
            "split",
            "app",
            "2001:db8:7fff::1",
            false,
            "12 scram-sha-256",
        ),
        ("split", "app", "2001:db8:8000::1", false, "nobody"),
        // An IPv4 client on an IPv6 socket is an IPv4 client.
        ("app", "app", "::ffff:10.1.2.3", false, "5 scram-sha-256"),
    ];
    for (user, database, from, tls, wanted) in table {
        assert_eq!(
            decided(&rules, user, database, from, tls),
            wanted,
            "{user}@{database} from {from}"
        );
    }
}

#[test]
fn prefixes_of_every_length_match_what_they_cover() {
    for length in 0..=32_u32 {
        let rules = read(&format!("host all all 170.85.170.85/{length} trust")).unwrap();
        for bit in 0..32_u32 {
            let address = IpAddr::from((0xaa55_aa55_u32 ^ (1 << (31 - bit))).to_be_bytes());
            let found = decided(&rules, "u", "d", &address.to_string(), false);
            assert_eq!(found != "nobody", bit >= length, "{address}/{length}");
        }
    }
    for length in [0, 1, 63, 64, 65, 127, 128_u32] {
        let rules = read(&format!("host all all ::/{length} trust")).unwrap();
        for bit in 0..128_u32 {
            let address = IpAddr::from((1_u128 << (127 - bit)).to_be_bytes());
            let found = decided(&rules, "u", "d", &address.to_string(), false);
            assert_eq!(found != "nobody", bit >= length, "{address}/{length}");
        }
    }
}

#[test]
fn quotes_make_names_of_keywords_and_stand_for_themselves_when_doubled() {
    let rules = read("local \"all\" \"a \"\"b\"\", c\" trust").unwrap();
    assert_eq!(
        decided(&rules, "a \"b\", c", "all", "local", false),
        "1 trust"
    );
    assert_eq!(
        decided(&rules, "a \"b\", c", "app", "local", false),
        "nobody"
    );
}

#[test]
fn what_cannot_be_followed_is_refused_with_place_and_mend_never_left_out() {
    let table = [
        (
            "hots all all all trust",
            "1:1: unknown type of connection `hots`",
        ),
        (
            "\nhostgssenc all all all trust",
            "2:1: Tandem does not encrypt by GSSAPI",
        ),
        (
            "include pg_hba_more.conf",
            "1:1: other files are not included",
        ),
        (
            "host samerole all all trust",
            "1:6: `samerole` asks for members of a role",
        ),
        (
            "host all +staff all reject",
            "1:10: `+staff` asks for members of a role",
        ),
        (
            "host @dbs all all trust",
            "1:6: names are not read from another file",
        ),
        (
            "host all /^a all trust",
            "1:10: regular expressions are not understood",
        ),
        (
            "host all \"/^a\" all trust",
            "1:10: regular expressions are not understood",
        ),
        ("host all \"\" all trust", "1:10: a name is empty"),
        (
            "host all all samenet trust",
            "1:14: `samenet` is not understood",
        ),
        (
            "host all all db.example.org trust",
            "1:14: `db.example.org` is not an address",
        ),
        (
            "host all all 10.0.0.0/33 trust",
            "1:14: `/33` is not a length",
        ),
        (
            "host all all 10.0.0/8 trust",
            "1:14: `10.0.0` is not an IP address",
        ),
        ("host all all ::/129 trust", "1:14: `/129` is not a length"),
        (
            "host all all 10.0.0.0/-1 trust",
            "1:14: `/-1` is not a length",
        ),
        (
            "host all all 10.0.0.0 ffff:: trust",
            "1:23: `ffff::` is not a mask",
        ),
        ("host all all 10.0.0.0 trust", "1:23: `trust` is not a mask"),
        (
            "host all all all,samehost trust",
            "1:18: no list can stand here",
        ),
        (
            "host all all all ldap ldapserver=x",
            "1:18: method `ldap` is not there",
        ),
        (
            "host all all all password",
            "1:18: method `password` would have the client send",
        ),
        ("local all all peer", "1:15: method `peer` is not there"),
        ("host all all all scram", "1:18: unknown method `scram`"),
        ("host all all all cert", "1:18: method `cert` needs TLS"),
        (
            "hostssl all all all cert map=x",
            "1:26: option `map` is not understood",
        ),
        (
            "host all all all md5 clientcert=verify-ca",
            "1:22: `clientcert` needs TLS",
        ),
        (
            "hostssl all all all md5 clientcert=1",
            "1:25: unknown value of `clientcert`: `1`",
        ),
        ("host all", "1:1: the rule ends before its user"),
        ("host all all all", "1:1: the rule ends before its method"),
        ("local all all", "1:1: the rule ends before its method"),
        ("host all \"al all trust", "1:10: a double quote is missing"),
    ];
    for (text, wanted) in table {
        let problems = read(text).expect_err(text);
        let told = problems.iter().any(|problem| problem.starts_with(wanted));
        assert!(told, "{text}: {problems:?}");
        assert!(problems[0].contains("; "), "{text}: no hint: {problems:?}");
    }
    let both = read("host @a +b all ldap\nhost all all all").expect_err("wrong");
    assert_eq!(both.len(), 4, "{both:?}");
}

#[test]
fn certificates_and_tls_are_asked_for_only_where_they_can_be_shown() {
    let problem = |text: &str, tls: TlsOffer| {
        let mut problems = Problems::default();
        parse_host_rules(text, tls, &mut problems);
        let told = problems.into_sorted();
        told.first().map(|problem| problem.message.clone())
    };
    let no_ca = TlsOffer {
        client_ca: false,
        ..TLS
    };
    let cannot = Some("client certificates cannot be verified".to_owned());
    assert_eq!(problem("hostssl all all all cert", no_ca), cannot);
    assert_eq!(
        problem("hostssl all all all md5 clientcert=verify-ca", no_ca),
        cannot
    );
    assert_eq!(problem("hostssl all all all md5", no_ca), None);
    assert_eq!(
        problem("hostssl all all all md5", TlsOffer::default()).as_deref(),
        Some("hostssl never matches: clients cannot use TLS")
    );
}

#[test]
fn a_rule_that_opens_the_door_is_known() {
    let open = |line: &str| read(line).unwrap().iter().any(HostRule::is_open);
    assert!(open("host all all all trust"));
    assert!(open("host all all 0.0.0.0/0 trust"));
    assert!(open("hostssl all app ::/0 trust"));
    for line in [
        "local all all trust",
        "host all all 127.0.0.1/32 trust",
        "host all all samehost trust",
        "host all all all scram-sha-256",
        "hostssl all all all trust clientcert=verify-full",
    ] {
        assert!(!open(line), "{line}");
    }
}

#[test]
fn a_plain_method_is_a_rule_for_everybody() {
    let rules = HostRules::of_method(AuthMethod::Md5);
    assert_eq!(decided(&rules, "a", "b", "local", false), "1 md5");
    assert_eq!(decided(&rules, "a", "b", "::1", true), "2 md5");
    assert!(rules.need_secrets() && !HostRules::of_method(AuthMethod::Cert).need_secrets());
}

#[test]
fn no_text_makes_the_reader_panic() {
    let mut random = fastrand::Rng::with_seed(2208);
    let words = [
        "host",
        "local",
        "all",
        "\"",
        ",",
        " ",
        "\n",
        "\\\n",
        "\\",
        "#",
        "/",
        "10.0.0.0/8",
        "::1",
        "trust",
        "md5",
        "é",
        "\r\n",
        "clientcert=",
        "=",
        "+",
        "@x",
    ];
    for _ in 0..3000 {
        let count = random.usize(..30);
        let text: String = (0..count)
            .map(|_| words[random.usize(..words.len())])
            .collect();
        let _ = read(&text);
    }
}
