use super::*;

#[test]
fn files_with_secrets_that_others_can_read_are_warned_of() {
    let text = SMALL.replace("id = 1", "id = 1\npassword_file = \"p\"");
    let files = Files::new(&[("tandem.toml", &text), ("p", "geheim")]);
    fs::set_permissions(files.path("p"), fs::Permissions::from_mode(0o644)).unwrap();
    let warnings = files.load().unwrap().warnings;
    assert_eq!(warnings.len(), 1);
    assert!(
        warnings[0].contains(":12:17: other users can read") && warnings[0].contains("chmod 0600"),
        "{warnings:?}"
    );

    let text = SMALL.replace("id = 1", "id = 1\npassword = \"geheim\"");
    let files = Files::new(&[("tandem.toml", &text)]);
    fs::set_permissions(files.path("tandem.toml"), fs::Permissions::from_mode(0o640)).unwrap();
    let warnings = files.load().unwrap().warnings;
    assert!(
        warnings[0].contains("other users can read this password"),
        "{warnings:?}"
    );
}

#[test]
fn ports_open_to_the_network_are_warned_of() {
    let text = SMALL
        .replace("127.0.0.1:643", "0.0.0.0:643")
        .replace("[admin]", "[auth]\nmethod = \"trust\"\n[admin]");
    let warnings = Files::new(&[("tandem.toml", &text)])
        .load()
        .unwrap()
        .warnings;
    assert_eq!(warnings.len(), 2, "{warnings:?}");
    assert!(
        warnings[0].contains("\"trust\" lets anybody") && warnings[1].contains("admin port"),
        "{warnings:?}"
    );
}

#[test]
fn host_rules_of_a_file_are_read_and_their_problems_told_in_its_own_lines() {
    let text = SMALL.replace("[admin]", "[auth]\nhba_file = \"hba.conf\"\n[admin]");
    let hba = "# who may come\nhost app app 10.0.0.0/8 scram-sha-256\nlocal all all trust\n";
    let config = Files::new(&[("tandem.toml", &text), ("hba.conf", hba)])
        .load()
        .unwrap();
    let lines: Vec<usize> = config.auth.rules.iter().map(|rule| rule.line).collect();
    assert_eq!(lines, [2, 3]);
    assert!(config.warnings.is_empty(), "{:?}", config.warnings);

    let wrong = "host all all 10.0.0.0/8 ldap ldapbindpasswd=geheim\n\nhost all +staff all md5\n";
    let problems = Files::new(&[("tandem.toml", &text), ("hba.conf", wrong)]).problems();
    assert_eq!(
        problems,
        [
            "hba.conf:1:25: method `ldap` is not there; use scram-sha-256, or cert over TLS",
            "hba.conf:1:30: option `ldapbindpasswd` is not understood; known: clientcert=verify-ca, clientcert=verify-full",
            "hba.conf:3:10: `+staff` asks for members of a role, which Tandem does not know; list the users",
        ]
    );
    let open = "host all all 0.0.0.0/0 trust\n";
    let warnings = Files::new(&[("tandem.toml", &text), ("hba.conf", open)])
        .load()
        .unwrap()
        .warnings;
    assert!(
        warnings.len() == 1
            && warnings[0].contains("rule 1 (`host all all 0.0.0.0/0 trust`) lets anybody"),
        "{warnings:?}"
    );
}

/// Also with every key that is commented out: the defaults that it shows are the defaults.
#[test]
fn the_example_of_every_key_is_valid_and_tells_the_defaults() {
    let example = include_str!("../../../../examples/tandem.toml");
    let files = [("tandem.toml", example)];
    let plain = Files::new(&files).load().unwrap();
    assert!(plain.warnings.is_empty(), "{:?}", plain.warnings);

    let keys = [
        "zone",
        "rules",
        "mode",
        "cert",
        "key",
        "client_ca",
        "method",
        "hba_file",
        "users_file",
        "query",
        "clients_per_user",
        "clients_per_database",
        "include",
        "exclude",
        "sslrootcert",
        "workers",
    ];
    let shown = |line: &str| {
        let commented = line.strip_prefix("# ");
        let key = commented.and_then(|line| line.split_once(" = "));
        match key {
            // What has no default would change something.
            Some((key, _)) if !keys.contains(&key) && !key.contains(' ') => {
                commented.unwrap_or(line).to_owned()
            }
            _ => line.to_owned(),
        }
    };
    let text: Vec<String> = example.lines().map(shown).collect();
    let text = text.join("\n");
    assert!(text.contains("\npool_size = 20"), "{text}");
    let all = Files::new(&[("tandem.toml", &text)]).load().unwrap();
    let without_paths = |config: &Config| {
        let mut config = config.clone();
        config.state_dir = PathBuf::new();
        config.path = PathBuf::new();
        config.admin.token_file = PathBuf::new();
        config.replication.journal_dir = PathBuf::new();
        // Its order means nothing.
        config.replication.policies.clear();
        format!("{config:?}")
    };
    assert_eq!(without_paths(&all), without_paths(&plain));
    assert_eq!(all.replication.policies, plain.replication.policies);
}
