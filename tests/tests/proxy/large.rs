//! Much data through one session.

use std::{
    fs::{self, File},
    io::{BufWriter, Write},
    path::Path,
    time::Duration,
};

use tandem_tests::Cluster;

const LIMIT: Duration = Duration::from_secs(100);
const MEGABYTE: usize = 1_000_000;

/// Lines of a table (id, text): at least `bytes` long in all.
fn write_lines(path: &Path, bytes: usize) -> u64 {
    let mut file = BufWriter::new(File::create(path).expect("a file"));
    let (mut written, mut id) = (0, 0_u64);
    while written < bytes {
        let line = format!(
            "{id}\t{:032x}{:064x}\n",
            id.wrapping_mul(0x9E37_79B9_7F4A_7C15),
            id
        );
        file.write_all(line.as_bytes()).expect("a written line");
        written += line.len();
        id += 1;
    }
    file.flush().expect("a written file");
    id
}

fn equal_files(left: &Path, right: &Path) -> bool {
    fs::read(left).expect("a file") == fs::read(right).expect("a file")
}

#[tokio::test(flavor = "multi_thread")]
async fn copy_takes_100_mb_in_and_gives_them_out_again() {
    let cluster = Cluster::of(&[15])
        .schema("CREATE UNLOGGED TABLE big (id bigint, line text);")
        .start()
        .await;
    let (source, back) = (cluster.dir().join("in.txt"), cluster.dir().join("out.txt"));
    let lines = write_lines(&source, 100 * MEGABYTE);
    let copy_in = format!("\\copy big FROM '{}'", source.display());
    let copy_out = format!("\\copy big TO '{}'", back.display());
    let ran = cluster
        .psql()
        .args(["-c", &copy_in, "-c", &copy_out])
        .run(LIMIT)
        .await
        .expect_success();
    assert!(
        ran.stdout.is_empty() || ran.stdout.contains(&format!("COPY {lines}")),
        "{}",
        ran.all()
    );
    assert!(equal_files(&source, &back));
    // By the statement itself, from standard input to standard output.
    let text = format!(
        "COPY big FROM STDIN;\n{}\\.\nSELECT count(*) FROM big;\n",
        fs::read_to_string(&source).expect("the file")
    );
    let ran = cluster.psql().input(text).run(LIMIT).await.expect_success();
    assert!(
        ran.stdout.contains(&(2 * lines).to_string()),
        "{}",
        ran.all()
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_copy_that_fails_midway_leaves_the_session_usable() {
    let cluster = Cluster::of(&[15])
        .schema("CREATE TABLE small (id int PRIMARY KEY);")
        .start()
        .await;
    let lines: String = (0..50_000)
        .map(|id| {
            if id == 40_000 {
                "not a number\n".to_owned()
            } else {
                format!("{id}\n")
            }
        })
        .collect();
    let text = format!(
        "\\set ON_ERROR_STOP 0\nCOPY small FROM STDIN;\n{lines}\\.\nSELECT 'still', count(*) FROM small;\n"
    );
    let ran = cluster.psql().input(text).run(LIMIT).await.expect_success();
    assert!(ran.stderr.contains("invalid input syntax"), "{}", ran.all());
    assert!(ran.stdout.contains("still|0"), "{}", ran.all());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_bytea_value_of_200_mb_goes_in_and_comes_out() {
    const BYTES: usize = 200 * MEGABYTE;
    let cluster = Cluster::of(&[15])
        .schema("CREATE UNLOGGED TABLE blob (id int PRIMARY KEY, b bytea);")
        .start()
        .await;
    let sql = cluster.dir().join("insert.sql");
    let out = cluster.dir().join("out.txt");
    {
        let mut file = BufWriter::new(File::create(&sql).expect("a file"));
        file.write_all(b"INSERT INTO blob VALUES (1, '")
            .expect("a written file");
        let chunk: Vec<u8> = (0..MEGABYTE)
            .map(|index| b'a' + u8::try_from(index * 7 % 26).expect("a letter"))
            .collect();
        for _ in 0..BYTES / MEGABYTE {
            file.write_all(&chunk).expect("a written file");
        }
        file.write_all(b"');\n").expect("a written file");
        file.flush().expect("a written file");
    }
    let get = format!(
        "SET bytea_output = 'escape';\n\\o {}\nSELECT b FROM blob;\n\\o\nSELECT length(b), md5(b) FROM blob;\n",
        out.display()
    );
    let read = cluster.dir().join("read.sql");
    fs::write(&read, get).expect("a file");
    let ran = cluster
        .psql()
        .args([
            "-q".as_ref(),
            "-f".as_ref(),
            sql.as_os_str(),
            "-f".as_ref(),
            read.as_os_str(),
        ])
        .run(LIMIT)
        .await
        .expect_success();
    assert!(ran.stdout.contains(&format!("{BYTES}|")), "{}", ran.all());
    let sent = fs::read(&sql).expect("the file");
    let came = fs::read(&out).expect("the file");
    let begin = sent
        .iter()
        .position(|byte| *byte == b'\'')
        .expect("the value")
        + 1;
    assert_eq!(came.len(), BYTES + 1);
    assert!(
        came[..BYTES] == sent[begin..begin + BYTES],
        "the value was changed on its way"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn large_objects_are_imported_and_exported() {
    let cluster = Cluster::of(&[15]).start().await;
    let (source, back) = (cluster.dir().join("in.bin"), cluster.dir().join("out.bin"));
    let bytes: Vec<u8> = (0..3 * MEGABYTE)
        .map(|index| u8::try_from((index * index + index / 251) % 256).expect("a byte"))
        .collect();
    fs::write(&source, bytes).expect("a file");
    let text = format!(
        "\\lo_import '{}'\n\\lo_export :LASTOID '{}'\n\\lo_unlink :LASTOID\n",
        source.display(),
        back.display()
    );
    cluster.psql().input(text).run(LIMIT).await.expect_success();
    assert!(equal_files(&source, &back));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_million_rows_come_whole_and_in_order() {
    let cluster = Cluster::of(&[15]).start().await;
    let out = cluster.dir().join("rows.txt");
    let sql = "SELECT i, md5(i::text) FROM generate_series(1, 1000000) i";
    cluster
        .psql()
        .args(["-o".as_ref(), out.as_os_str(), "-c".as_ref(), sql.as_ref()])
        .run(LIMIT)
        .await
        .expect_success();
    let text = fs::read_to_string(&out).expect("the file");
    let numbers = text.lines().map(|line| {
        line.split('|')
            .next()
            .and_then(|number| number.parse::<usize>().ok())
    });
    assert!(numbers.eq((1..=1_000_000).map(Some)));
}
