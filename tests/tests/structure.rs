//! The shape of the workspace: who may depend on whom, and the limits of house style.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use serde_json::Value;

/// What each crate of ours may depend on, of ours. An arrow never points up: a crate may use only what stands above it.
const LAYERS: [(&str, &[&str]); 6] = [
    ("tandem-routing-rules", &[]),
    ("tandem-wire", &[]),
    ("tandem-replicator", &["tandem-wire"]),
    (
        "tandem",
        &["tandem-replicator", "tandem-routing-rules", "tandem-wire"],
    ),
    (
        "tandem-tests",
        &[
            "tandem",
            "tandem-replicator",
            "tandem-routing-rules",
            "tandem-wire",
        ],
    ),
    (
        "tandem-bench",
        &[
            "tandem",
            "tandem-replicator",
            "tandem-routing-rules",
            "tandem-tests",
            "tandem-wire",
        ],
    ),
];

/// Files beyond this many lines want splitting.
const LINES_MAX: usize = 700;

fn root() -> PathBuf {
    let here = Path::new(env!("CARGO_MANIFEST_DIR"));
    here.parent().expect("the workspace is above").to_owned()
}

#[test]
fn crates_depend_only_on_what_stands_above_them() {
    let cargo = std::env::var("CARGO").unwrap_or_else(|_| "cargo".to_owned());
    let output = Command::new(cargo)
        .args([
            "metadata",
            "--format-version",
            "1",
            "--no-deps",
            "--offline",
            "--manifest-path",
        ])
        .arg(root().join("Cargo.toml"))
        .output()
        .expect("cargo metadata runs");
    assert!(
        output.status.success(),
        "{}",
        String::from_utf8_lossy(&output.stderr)
    );
    let metadata: Value = serde_json::from_slice(&output.stdout).expect("JSON");
    let packages = metadata["packages"].as_array().expect("packages");
    let names: BTreeSet<&str> = packages
        .iter()
        .filter_map(|package| package["name"].as_str())
        .collect();
    let layers: BTreeMap<&str, &[&str]> = LAYERS.into_iter().collect();
    assert_eq!(
        names,
        layers.keys().copied().collect(),
        "a crate is missing in the table, or one of the table's is gone"
    );
    for package in packages {
        let name = package["name"].as_str().expect("a name");
        for dependency in package["dependencies"].as_array().expect("dependencies") {
            let on = dependency["name"].as_str().expect("a name");
            if names.contains(on) {
                assert!(layers[name].contains(&on), "{name} must not depend on {on}");
            }
        }
    }
}

/// Every file that belongs to the project, without what is built or generated.
fn files() -> Vec<PathBuf> {
    fn collect(dir: &Path, found: &mut Vec<PathBuf>) {
        for entry in fs::read_dir(dir)
            .expect("a directory of the project")
            .flatten()
        {
            let path = entry.path();
            let name = entry.file_name();
            let hidden = name.to_string_lossy().starts_with('.')
                && name != ".ci"
                && name != ".config"
                && name != ".github";
            if hidden || name == "target" || name == "demo-data" || name == "node_modules" {
                continue;
            }
            if path.is_dir() {
                collect(&path, found);
            } else {
                found.push(path);
            }
        }
    }
    let mut found = Vec::new();
    collect(&root(), &mut found);
    found.sort();
    found
}

fn texts(endings: &[&str]) -> Vec<(String, String)> {
    files()
        .into_iter()
        .filter(|path| {
            endings
                .iter()
                .any(|ending| path.to_string_lossy().ends_with(ending))
        })
        .filter_map(|path| {
            let name = path
                .strip_prefix(root())
                .expect("a file of the project")
                .to_string_lossy()
                .into_owned();
            Some((name, fs::read_to_string(path).ok()?))
        })
        .collect()
}

fn rust() -> Vec<(String, String)> {
    let found = texts(&[".rs"]);
    assert!(found.len() > 50, "only {} files were found", found.len());
    found
}

/// The lines that a predicate finds, as `file:line: text`.
fn lines(files: &[(String, String)], wrong: impl Fn(&str) -> bool) -> String {
    let mut found = String::new();
    for (name, text) in files
        .iter()
        .filter(|(name, _)| name != "tests/tests/structure.rs")
    {
        for (number, line) in text.lines().enumerate().filter(|(_, line)| wrong(line)) {
            found.push_str(&format!("{name}:{}: {}\n", number + 1, line.trim()));
        }
    }
    found
}

#[test]
fn no_source_file_is_too_long() {
    let long: Vec<String> = rust()
        .iter()
        .filter(|(_, text)| text.lines().count() > LINES_MAX)
        .map(|(name, text)| format!("{name}: {} lines", text.lines().count()))
        .collect();
    assert!(long.is_empty(), "more than {LINES_MAX} lines: {long:#?}");
}

#[test]
fn every_module_says_what_it_owns() {
    // A file of unit tests is part of the module beside it.
    let bare = rust()
        .into_iter()
        .filter(|(name, text)| !name.ends_with("tests.rs") && !text.starts_with("//! "));
    let bare: Vec<String> = bare.map(|(name, _)| name).collect();
    assert!(bare.is_empty(), "no `//!` in the first line: {bare:#?}");
}

#[test]
fn nothing_is_left_to_do_or_ignored() {
    let found = lines(&rust(), |line| {
        let line = line.trim_start();
        ["todo!(", "unimplemented!(", "dbg!("]
            .iter()
            .any(|left| line.contains(left))
            || line.starts_with("#[ignore")
    });
    assert!(found.is_empty(), "{found}");
}

#[test]
fn no_file_names_this_machine_or_a_registry() {
    let endings = [
        ".rs", ".toml", ".md", ".lock", ".sh", ".sql", ".yml", ".yaml", ".json", "Makefile", "run",
    ];
    let mut paths = vec![
        format!("{}/", root().display()),
        "/home/".to_owned(),
        "/root/".to_owned(),
    ];
    paths.extend(
        std::env::var("HOME")
            .ok()
            .filter(|home| home.len() > 1)
            .map(|home| format!("{home}/")),
    );
    let registries = [
        "https://crates.io",
        "static.crates.io",
        "pypi.org",
        "files.pythonhosted",
        "registry.npmjs",
        "proxy.golang",
    ];
    let found = lines(&texts(&endings), |line| {
        paths.iter().any(|path| line.contains(path))
            || registries.iter().any(|registry| line.contains(registry))
    });
    assert!(found.is_empty(), "{found}");
}

#[test]
fn the_lock_file_is_there_and_unsafe_code_is_forbidden() {
    assert!(root().join("Cargo.lock").is_file());
    let manifest = fs::read_to_string(root().join("Cargo.toml")).expect("the workspace's manifest");
    assert!(manifest.contains("unsafe_code = \"forbid\""));
    for (name, text) in texts(&["Cargo.toml"])
        .into_iter()
        .filter(|(name, _)| name != "Cargo.toml")
    {
        assert!(
            text.contains("[lints]\nworkspace = true"),
            "{name} does not take the workspace's lints"
        );
    }
}
