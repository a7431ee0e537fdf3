//! Owns the interpreters and packages of the drivers: installed once below the target directory, at pinned versions whose
//! hashes are checked.

use std::{
    ffi::OsString,
    fmt, fs,
    fs::File,
    hash::{DefaultHasher, Hash as _, Hasher as _},
    io,
    path::{Path, PathBuf},
    process::Command,
};

use rustix::fs::FlockOperation;
use tandem_tests::{Program, process};

/// Why a driver cannot be run here.
#[derive(Debug)]
pub(crate) struct Missing(String);

impl fmt::Display for Missing {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// A driver's program with all that it needs.
#[derive(Debug)]
pub(crate) struct Tool {
    interpreter: PathBuf,
    options: Vec<OsString>,
    script: PathBuf,
    packages: PathBuf,
}

impl Tool {
    /// Its script.
    pub(crate) fn name(&self) -> String {
        self.script.display().to_string()
    }

    /// The program, without the arguments.
    pub(crate) fn program(&self) -> Program {
        Program::new(&self.interpreter)
            .env("NODE_PATH", &self.packages.to_string_lossy())
            .env("PYTHONDONTWRITEBYTECODE", "1")
            .args(&self.options)
            .args([&self.script])
    }
}

/// The scenarios of a Python driver.
pub(crate) fn python(driver: &str) -> Result<Tool, Missing> {
    let requirements = sources().join("requirements.txt");
    let dir = installed("python", &[&requirements], |dir| {
        run(Command::new("python3").args(["-m", "venv"]).arg(dir))?;
        run(Command::new(dir.join("bin/python"))
            .args([
                "-m",
                "pip",
                "install",
                "--quiet",
                "--disable-pip-version-check",
            ])
            .args(["--only-binary=:all:", "--require-hashes", "-r"])
            .arg(&requirements))
    })?;
    Ok(Tool {
        interpreter: dir.join("bin/python"),
        options: Vec::new(),
        script: sources().join(format!("{driver}_scenarios.py")),
        packages: dir,
    })
}

/// The scenarios of a driver for Node.js.
pub(crate) fn node(driver: &str) -> Result<Tool, Missing> {
    let (manifest, lock) = (
        sources().join("package.json"),
        sources().join("package-lock.json"),
    );
    let dir = installed("node", &[&manifest, &lock], |dir| {
        fs::create_dir(dir).map_err(unwritable(dir))?;
        for file in [&manifest, &lock] {
            let to = dir.join(file.file_name().unwrap_or_default());
            fs::copy(file, &to).map_err(unwritable(&to))?;
        }
        run(Command::new("npm")
            .args([
                "ci",
                "--ignore-scripts",
                "--no-audit",
                "--no-fund",
                "--loglevel=error",
            ])
            .current_dir(dir))
    })?;
    Ok(Tool {
        interpreter: "node".into(),
        options: Vec::new(),
        script: sources().join(format!("{driver}_scenarios.mjs")),
        packages: dir.join("node_modules"),
    })
}

/// The scenarios of Java's driver, which comes from Debian's package.
pub(crate) fn java() -> Result<Tool, Missing> {
    run(Command::new("javac").arg("-version"))?;
    let package = "libpostgresql-jdbc-java";
    let dir = installed("java", &[], |dir| {
        fs::create_dir(dir).map_err(unwritable(dir))?;
        run(Command::new("apt-get")
            .args(["download", package])
            .current_dir(dir))?;
        let entries = fs::read_dir(dir).map_err(unwritable(dir))?;
        let archive = entries.flatten().map(|entry| entry.path()).next();
        let archive = archive.ok_or_else(|| Missing(format!("apt-get brought no {package}")))?;
        run(Command::new("dpkg").arg("-x").args([&archive, dir]))
    })?;
    let driver = dir.join("usr/share/java/postgresql.jar");
    Ok(Tool {
        interpreter: "java".into(),
        options: vec!["-Xmx512m".into(), "-cp".into(), driver.into()],
        script: sources().join("JdbcScenarios.java"),
        packages: dir,
    })
}

fn sources() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("drivers")
}

/// A directory made by `install` for the present text of `files`, or before.
fn installed(
    kind: &str,
    files: &[&Path],
    install: impl FnOnce(&Path) -> Result<(), Missing>,
) -> Result<PathBuf, Missing> {
    let mut hasher = DefaultHasher::new();
    for file in files {
        fs::read(file).map_err(unwritable(file))?.hash(&mut hasher);
    }
    let base = process::cache_dir().join("drivers");
    fs::create_dir_all(&base).map_err(unwritable(&base))?;
    let dir = base.join(format!("{kind}-{:016x}", hasher.finish()));
    let done = dir.join(".complete");
    // One test at a time; the others find it made.
    let lock = base.join(format!("{kind}.lock"));
    let lock_file = File::create(&lock).map_err(unwritable(&lock))?;
    rustix::fs::flock(&lock_file, FlockOperation::LockExclusive)
        .map_err(|error| unwritable(&lock)(error.into()))?;
    if !done.is_file() {
        // Left by one that was ended in the middle.
        if dir.exists() {
            fs::remove_dir_all(&dir).map_err(unwritable(&dir))?;
        }
        install(&dir)?;
        fs::write(&done, "").map_err(unwritable(&done))?;
    }
    Ok(dir)
}

fn unwritable(path: &Path) -> impl FnOnce(io::Error) -> Missing {
    move |error| Missing(format!("{}: {error}", path.display()))
}

/// Runs a program of the machine, with the settings of whoever runs the tests.
fn run(command: &mut Command) -> Result<(), Missing> {
    let program = command.get_program().to_string_lossy().into_owned();
    let output = command
        .output()
        .map_err(|error| Missing(format!("{program}: {error}")))?;
    if output.status.success() {
        return Ok(());
    }
    let said = String::from_utf8_lossy(&output.stderr);
    Err(Missing(format!(
        "{program}: {}",
        said.lines().last().unwrap_or("it failed")
    )))
}
