use std::os::unix::fs::PermissionsExt;

use super::*;

fn options(dir: &Path) -> DevOptions {
    DevOptions {
        nodes: 3,
        dir: dir.to_owned(),
        port: 6432,
        admin_port: 6433,
        base_port: 6501,
        relays: false,
        pg_bin: Vec::new(),
        database: "app".to_owned(),
        config: None,
        rules: None,
        init: Vec::new(),
        pgbench: None,
    }
}

/// A directory with programs that say they are this version.
fn fake_install(dir: &Path, version: &str) -> PathBuf {
    let bin = dir.join(version);
    fs::create_dir(&bin).unwrap();
    for program in ["postgres", "initdb"] {
        let path = bin.join(program);
        fs::write(
            &path,
            format!("#!/bin/sh\necho 'postgres (PostgreSQL) {version}'\n"),
        )
        .unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).unwrap();
    }
    bin
}

fn names() -> Vec<String> {
    ["paris", "delhi", "lima"].map(str::to_owned).to_vec()
}

fn pg_bin(node: Option<&str>, dir: &Path) -> PgBin {
    PgBin {
        node: node.map(str::to_owned),
        dir: dir.to_owned(),
    }
}

fn marker_of(majors: [u32; 3], bin_dir: &Path) -> Marker {
    let node = |(name, major)| MarkedNode {
        name,
        major,
        bin_dir: bin_dir.to_owned(),
    };
    let mut marker = Marker::new(
        "app".to_owned(),
        6432,
        6433,
        false,
        names().into_iter().zip(majors).map(node).collect(),
    );
    marker.stage = Stage::Complete;
    marker
}

#[test]
fn ports_that_clash_or_end_are_told_by_their_flags() {
    let base = options(Path::new("/x"));
    check_port_numbers(&base).unwrap();
    let clash = DevOptions {
        port: 6503,
        ..base.clone()
    };
    assert!(
        check_port_numbers(&clash)
            .unwrap_err()
            .to_string()
            .contains("--port and --base-port both ask for port 6503")
    );
    let clash = DevOptions {
        admin_port: 6432,
        ..base.clone()
    };
    assert!(
        check_port_numbers(&clash)
            .unwrap_err()
            .to_string()
            .contains("--port and --admin-port")
    );
    // Behind relays the servers' ports follow the nodes'.
    let clash = DevOptions {
        port: 6504,
        ..base.clone()
    };
    check_port_numbers(&clash).unwrap();
    let clash = DevOptions {
        relays: true,
        ..clash
    };
    assert!(check_port_numbers(&clash).is_err());
    let beyond = DevOptions {
        base_port: 65_534,
        ..base
    };
    assert!(matches!(
        check_port_numbers(&beyond),
        Err(DevError::PortRange { .. })
    ));
}

#[test]
fn each_node_gets_the_programs_that_name_it_last() {
    let dir = tempfile::tempdir().unwrap();
    let (fifteen, seventeen, eighteen) = (
        fake_install(dir.path(), "15.1"),
        fake_install(dir.path(), "17.2"),
        fake_install(dir.path(), "18.3"),
    );
    let given = [
        pg_bin(Some("delhi"), &fifteen),
        pg_bin(None, &fifteen),
        pg_bin(Some("2"), &seventeen),
        pg_bin(Some("lima"), &eighteen),
    ];
    let chosen = choose_installs(&names(), None, &given).unwrap();
    assert_eq!(
        chosen
            .iter()
            .map(|install| install.major)
            .collect::<Vec<_>>(),
        [15, 17, 18]
    );
    let stray = choose_installs(&names(), None, &[pg_bin(Some("4"), &fifteen)]).unwrap_err();
    assert!(stray.to_string().contains("--pg-bin 4="), "{stray}");
}

#[test]
fn a_cluster_goes_on_with_the_programs_that_made_it() {
    let dir = tempfile::tempdir().unwrap();
    let (fifteen, seventeen) = (
        fake_install(dir.path(), "15.1"),
        fake_install(dir.path(), "17.2"),
    );
    let marker = marker_of([17, 17, 17], &seventeen);
    let chosen = choose_installs(&names(), Some(&marker), &[]).unwrap();
    assert!(chosen.iter().all(|install| install.major == 17));
    let other = choose_installs(&names(), Some(&marker), &[pg_bin(None, &fifteen)]).unwrap_err();
    assert!(
        matches!(
            other,
            DevError::Major {
                made_by: 17,
                found: 15,
                ..
            }
        ),
        "{other}"
    );
}

#[test]
fn a_cluster_keeps_its_number_of_nodes_and_its_database() {
    let dir = tempfile::tempdir().unwrap();
    let (layout, _) = Layout::open(dir.path()).unwrap();
    let marker = marker_of([15, 15, 15], Path::new("/opt"));
    let same = options(dir.path());
    check_same_cluster(&layout, Some(&marker), &same).unwrap();
    let fewer = check_same_cluster(
        &layout,
        Some(&marker),
        &DevOptions {
            nodes: 2,
            ..same.clone()
        },
    )
    .unwrap_err();
    assert!(fewer.to_string().contains("say --nodes 3"), "{fewer}");
    let renamed = DevOptions {
        database: "shop".to_owned(),
        ..same
    };
    let renamed = check_same_cluster(&layout, Some(&marker), &renamed).unwrap_err();
    assert!(
        renamed.to_string().contains("say --database app"),
        "{renamed}"
    );
}

#[test]
fn a_port_in_use_is_told_with_its_holder_and_what_to_change() {
    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = taken.local_addr().unwrap().port();
    let error = check_ports(
        &[],
        None,
        &DevOptions {
            port,
            ..options(Path::new("/x"))
        },
    )
    .unwrap_err()
    .to_string();
    assert!(
        error.contains(&format!("127.0.0.1:{port} is in use by")),
        "{error}"
    );
    assert!(
        error.contains(&format!("pid {}", std::process::id())) && error.contains("--port"),
        "{error}"
    );
}

#[test]
fn a_cluster_that_cannot_fit_is_refused_before_anything_is_made() {
    let dir = tempfile::tempdir().unwrap();
    let (layout, _) = Layout::open(dir.path()).unwrap();
    check_disk(&layout, true, &options(dir.path())).unwrap();
    let huge = DevOptions {
        pgbench: Some(100_000_000),
        ..options(dir.path())
    };
    assert!(matches!(
        check_disk(&layout, false, &huge),
        Err(DevError::DiskFull { .. })
    ));
}

#[test]
fn edits_and_comments_of_the_directorys_files_survive_a_start() {
    let dir = tempfile::tempdir().unwrap();
    let (layout, _) = Layout::open(dir.path()).unwrap();
    let fill = Fill {
        has_pgbench: false,
        port: 6432,
        admin_port: 6433,
        base_port: 6501,
        database: "app".to_owned(),
        password_file: layout.password_file(),
        earlier_ports: Some((6432, 6433)),
    };
    write_texts(&layout, None, &names(), &fill, None).unwrap();
    let edited = fs::read_to_string(layout.config_file())
        .unwrap()
        .replace("zone = \"eu\"", "zone = \"mars\" # far");
    fs::write(layout.config_file(), &edited).unwrap();
    fs::write(layout.rules_file(), "# mine\n").unwrap();
    let mut again = ConfigText::parse(&layout.config_file(), &edited).unwrap();
    again.fill(&names(), &fill).unwrap();
    write_texts(&layout, Some(&again), &names(), &fill, None).unwrap();
    assert_eq!(fs::read_to_string(layout.config_file()).unwrap(), edited);
    assert_eq!(fs::read_to_string(layout.rules_file()).unwrap(), "# mine\n");
    // A rules file on the command line replaces it.
    write_texts(&layout, Some(&again), &names(), &fill, Some("# new\n")).unwrap();
    assert_eq!(fs::read_to_string(layout.rules_file()).unwrap(), "# new\n");
}
