// The scenarios with node-postgres: `pg_scenarios.mjs DSN KEYS`. Its packages are found through NODE_PATH.

import assert from "node:assert/strict";
import { createHash } from "node:crypto";
import { createRequire } from "node:module";
import { Readable } from "node:stream";
import { pipeline } from "node:stream/promises";

const require = createRequire(import.meta.url);
const { Client, Pool } = require("pg");
const Cursor = require("pg-cursor");
const copy = require("pg-copy-streams");

// More than the pools of all nodes have servers.
const CLIENTS = 9;
const NEIGHBOURS = 3;
const SCENARIO_LIMIT = 120_000;
const LARGE = 20 << 20;

const [dsn, keyCount] = process.argv.slice(2);
const keys = Number(keyCount);

const body = (client, n) => createHash("md5").update(`${client}:${n}`).digest("hex").repeat((n % 7) + 1);
const rows = (client, count) =>
  Array.from({ length: count }, (_, at) => ({ client, n: at + 1, body: body(client, at + 1) }));
const series = (client, count) =>
  `SELECT ${client} AS client, n, repeat(md5('${client}:' || n), n % 7 + 1) AS body FROM generate_series(1, ${count}) n`;

function settings(client) {
  const options = keys ? { options: `-c tandem.key=client:${client % keys}` } : {};
  return { connectionString: dsn, application_name: `client ${client}`, ...options };
}

async function connect(client, more = {}) {
  const connection = new Client({ ...settings(client), ...more });
  // A connection that is lost tells so here too; its queries fail by themselves.
  connection.on("error", () => {});
  await connection.connect();
  return connection;
}

const one = async (connection, sql, values) => Object.values((await connection.query(sql, values)).rows[0])[0];
const fails = (code, work) => assert.rejects(work, (error) => (assert.equal(error.code, code, error.message), true));

function within(limit, work, what) {
  let timer;
  const late = new Promise((_, reject) => {
    timer = setTimeout(() => reject(new Error(`${what} did not end within ${limit} ms`)), limit);
  });
  return Promise.race([work, late]).finally(() => clearTimeout(timer));
}

async function cancel(connection) {
  const other = new Client(dsn);
  const closed = new Promise((resolve) => other.connection.once("end", resolve));
  other.connection.on("error", () => {});
  other.connection.on("connect", () => other.connection.cancel(connection.processID, connection.secretKey));
  other.connection.connect(connection.port, connection.host);
  await closed;
}

const scenarios = {
  async servers_change(client, connection) {
    // Two of these in one small pool would wait for each other.
    if (client !== 0) return;
    // The pool has two, and whoever has run something in a transaction keeps the one that it has.
    const [first, second] = [await connect(client), await connect(client)];
    await connection.query("BEGIN");
    const before = await one(connection, "SELECT pg_backend_pid()");
    const begin = async (other) => {
      await other.query("BEGIN");
      await one(other, "SELECT 1");
    };
    await begin(first);
    await connection.query("COMMIT");
    await begin(second);
    await first.query("COMMIT");
    assert.notEqual(await one(connection, "SELECT pg_backend_pid()"), before, "another server");
    await second.query("COMMIT");
    for (const other of [first, second]) await other.end();
  },

  async prepared(client, connection) {
    for (let round = 0; round < 3; round++) {
      for (let n = 0; n < 40; n++) {
        const text = `SELECT $1::int * 1000 + ${n} AS id, $2::text AS body`;
        const got = await connection.query({ name: `statement ${n}`, text, values: [client, body(client, n)] });
        assert.deepEqual(got.rows, [{ id: client * 1000 + n, body: body(client, n) }]);
      }
    }
    // The same names mean other statements to every client.
    for (let n = 0; n < 5; n++) {
      const query = { name: "mine", text: `SELECT ${client} AS client, $1::int AS n`, values: [n] };
      assert.deepEqual((await connection.query(query)).rows, [{ client, n }]);
    }
  },

  async queued_at_once(client, connection) {
    const asked = Array.from({ length: 100 }, (_, n) => connection.query(series(client, (n % 20) + 1)));
    (await Promise.all(asked)).forEach((got, n) => assert.deepEqual(got.rows, rows(client, (n % 20) + 1)));
    const several = await connection.query(`SELECT ${client} AS a; ${series(client, 5)}; SELECT 'last' AS b`);
    assert.deepEqual(several.map((got) => got.rows), [[{ a: client }], rows(client, 5), [{ b: "last" }]]);
    const mixed = [
      connection.query("SELECT $1::int AS n", [client]),
      assert.rejects(connection.query("SELECT 1 / $1::int", [0])),
      assert.rejects(connection.query("SELECT 1; SELECT nothing_of_this_name; SELECT 2")),
      connection.query("SELECT $1::int AS n", [client + 1]),
    ];
    const ended = await Promise.all(mixed);
    assert.deepEqual([ended[0].rows[0].n, ended[3].rows[0].n], [client, client + 1]);
  },

  async copies(client, connection) {
    const mine = Array.from({ length: 2000 }, (_, n) => `${client}\tcopy\t${n}\t${body(client, n)}\n`);
    await pipeline(Readable.from(mine), connection.query(copy.from("COPY item FROM STDIN")));
    const sql = `COPY (SELECT * FROM item WHERE client = ${client} AND scenario = 'copy' ORDER BY n) TO STDOUT`;
    let got = "";
    for await (const piece of connection.query(copy.to(sql))) got += piece;
    assert.ok(got === mine.join(""), "the copy is its own");
    await fails("22P02", pipeline(Readable.from(["x\tcopy\t1\t\n"]), connection.query(copy.from("COPY item FROM STDIN"))));
    assert.equal(await one(connection, "SELECT $1::int", [client]), client);
  },

  async cancels(client, connection) {
    for (const sql of ["SELECT pg_sleep(60)", "SELECT count(*) FROM generate_series(1, 1000000000)"]) {
      let done = false;
      const running = fails("57014", connection.query(sql)).finally(() => (done = true));
      // Nothing tells when the statement has begun, so cancel until it has.
      while (!done) await cancel(connection);
      await running;
      assert.deepEqual((await connection.query(series(client, 10))).rows, rows(client, 10));
    }
    const limited = await connect(client, { statement_timeout: 200 });
    await fails("57014", limited.query("SELECT pg_sleep(60)"));
    assert.equal(await one(limited, "SHOW statement_timeout"), "200ms");
    await limited.end();
    assert.equal(await one(connection, "SHOW statement_timeout"), "0");
    const impatient = await connect(client, { query_timeout: 200 });
    await assert.rejects(impatient.query("SELECT pg_sleep(1)"), /timeout/);
    assert.deepEqual((await within(20_000, connection.query(series(client, 10)), "another")).rows, rows(client, 10));
    impatient.connection.stream.destroy();
  },

  async errors_in_transactions(client, connection) {
    for (let n = 0; n < 5; n++) {
      await connection.query("BEGIN");
      await connection.query("INSERT INTO item VALUES ($1, 'error', $2, '')", [client, n]);
      await fails("22012", connection.query("SELECT 1 / $1::int", [0]));
      await fails("25P02", connection.query("SELECT 1"));
      await connection.query("ROLLBACK");
      await connection.query("INSERT INTO item VALUES ($1, 'error once', $2, '')", [client, n]);
      await fails("23505", connection.query("INSERT INTO item VALUES ($1, 'error once', $2, '')", [client, n]));
    }
    const left = "SELECT scenario, count(*)::int FROM item WHERE client = $1 AND scenario LIKE 'error%' GROUP BY 1";
    assert.deepEqual((await connection.query(left, [client])).rows, [{ scenario: "error once", count: 5 }]);
  },

  async savepoints(client, connection) {
    await connection.query("BEGIN");
    for (let n = 0; n < 10; n++) {
      await connection.query("SAVEPOINT mine");
      await connection.query("INSERT INTO item VALUES ($1, 'savepoint', $2, $3)", [client, n, body(client, n)]);
      if (n % 2) {
        await connection.query("SET work_mem = '9MB'");
        await fails("22012", connection.query("SELECT 1 / 0"));
        await connection.query("ROLLBACK TO mine");
      }
      await connection.query("RELEASE mine");
    }
    assert.equal(await one(connection, "SHOW work_mem"), "4MB");
    await connection.query("COMMIT");
    const left = "SELECT n, body FROM item WHERE client = $1 AND scenario = 'savepoint' ORDER BY n";
    const expected = [0, 2, 4, 6, 8].map((n) => ({ n, body: body(client, n) }));
    assert.deepEqual((await connection.query(left, [client])).rows, expected);
  },

  async cursors(client, connection) {
    const cursor = connection.query(new Cursor(series(client, 200)));
    let got = [];
    for (let some = await cursor.read(17); some.length; some = await cursor.read(17)) got = got.concat(some);
    assert.deepEqual(got, rows(client, 200));
    await cursor.close();
    const left = connection.query(new Cursor(series(client, 200)));
    assert.deepEqual(await left.read(10), rows(client, 10));
    await left.close();
    await connection.query("BEGIN");
    await connection.query(`DECLARE mine CURSOR FOR ${series(client, 30)}`);
    assert.deepEqual((await connection.query("FETCH 10 FROM mine")).rows, rows(client, 10));
    assert.deepEqual((await connection.query("FETCH ALL FROM mine")).rows, rows(client, 30).slice(10));
    await connection.query("COMMIT");
  },

  async types(client, connection) {
    const values = {
      "int[]": [client, null, -1],
      "text[]": [`${client}`, null, 'a "quoted", {odd} \\ text', "NULL", ""],
      numeric: `${client + 1}23456789012345678901234567890.0123456789`,
      timestamptz: new Date(Date.UTC(2024, 1, 29, 23, 59, 59, 999 - client)),
      bytea: Buffer.from([...Array(256).keys(), client]),
      jsonb: { client, list: [1, null, 'é \\ "'], deep: { x: 1.5 } },
      mood: ["sad", "ok", "it's happy"][client % 3],
      "float8[]": [client + 0.1, Infinity],
      text: `${client} \u{1f600} é`,
      bool: client % 2 === 0,
    };
    for (const [type, value] of Object.entries(values)) {
      assert.deepEqual(await one(connection, `SELECT $1::${type}`, [value]), value, type);
    }
  },

  async large_values(client, connection) {
    const seed = createHash("sha256").update(`${client}`).digest();
    const value = Buffer.alloc(LARGE, seed);
    const got = await one(connection, "SELECT $1::bytea", [value]);
    assert.ok(value.equals(got), "a large value is its own");
  },

  async settings(client, connection) {
    const shown = `SELECT current_setting('work_mem') AS a, current_setting('search_path') AS b,
      current_setting('application_name') AS c, current_setting('my.own', true) AS d`;
    const expected = { a: `${1025 + client}kB`, b: `"schema ${client}", public`, c: `client ${client}`, d: `it's ${client}` };
    await connection.query(`SET work_mem = ${1025 + client}; SET search_path = "schema ${client}", public`);
    await connection.query(`SELECT set_config('my.own', 'it''s ${client}', false)`);
    for (let n = 0; n < 20; n++) {
      assert.deepEqual((await connection.query(shown)).rows, [expected]);
      await connection.query("BEGIN; SET LOCAL work_mem = '33MB'; SET search_path = pg_catalog");
      assert.equal(await one(connection, "SHOW work_mem"), "33MB");
      await connection.query("ROLLBACK");
      await connection.query(`SET application_name = 'renamed ${client}'`);
      assert.equal(await one(connection, "SHOW application_name"), `renamed ${client}`);
      await connection.query("RESET application_name");
    }
  },

  async own_pools(client) {
    const pool = new Pool({ ...settings(client), max: 3 });
    const work = Array.from({ length: 30 }, async (_, n) => {
      assert.deepEqual((await pool.query(series(client, n + 1))).rows, rows(client, n + 1));
    });
    await Promise.all(work);
    await pool.end();
  },

  async notifications(client, connection) {
    const got = [];
    const all = new Promise((resolve) => {
      connection.on("notification", ({ channel, payload }) => {
        if (got.push([channel, payload]) === 5) resolve();
      });
    });
    await connection.query(`LISTEN channel_${client}`);
    for (let n = 0; n < 5; n++) await connection.query("SELECT pg_notify($1, $2)", [`channel_${client}`, `${client}:${n}`]);
    await within(20_000, all, "the notification");
    assert.deepEqual(got, [0, 1, 2, 3, 4].map((n) => [`channel_${client}`, `${client}:${n}`]));
  },

  async temporary_tables(client, connection) {
    await connection.query(`CREATE TEMP TABLE own AS ${series(client, 50)}`);
    for (let n = 0; n < 10; n++) {
      assert.deepEqual((await connection.query("SELECT * FROM own ORDER BY n")).rows, rows(client, 50));
    }
    await connection.query("DROP TABLE own");
    await fails("42P01", connection.query("SELECT * FROM own"));
  },

  async advisory_locks(client, connection) {
    const held = "SELECT count(*)::int FROM pg_locks WHERE locktype = 'advisory' AND objid = $1 AND pid = pg_backend_pid()";
    await connection.query("SELECT pg_advisory_lock($1)", [1000 + client]);
    for (let n = 0; n < 5; n++) assert.equal(await one(connection, held, [1000 + client]), 1);
    assert.equal(await one(connection, "SELECT pg_advisory_unlock($1)", [1000 + client]), true);
  },

  async killed_in_the_middle(client, connection) {
    for (const sql of [series(client, 1_000_000), "SELECT pg_sleep(1)", "COPY item FROM STDIN"]) {
      const other = await connect(client);
      await other.query("BEGIN; SET work_mem = '77MB'");
      await other.query("INSERT INTO item VALUES ($1, 'killed', 1, '')", [client]);
      const running = assert.rejects(sql.startsWith("COPY")
        ? pipeline(Readable.from(async function* () { yield `${client}\tx\t1\t\n`; other.connection.stream.destroy(); throw new Error("killed"); }()), other.query(copy.from(sql)))
        : other.query(sql));
      if (!sql.startsWith("COPY")) {
        const begun = new Promise((resolve) => other.connection.stream.once("data", resolve));
        await (sql.includes("sleep") ? Promise.resolve() : begun);
        other.connection.stream.destroy();
      }
      await running;
    }
    // Waits for the lost transaction's lock, and finds nothing of it.
    await connection.query("INSERT INTO item VALUES ($1, 'killed', 1, 'alive')", [client]);
    for (let n = 1; n < 20; n++) {
      assert.deepEqual((await connection.query(series(client, 30 + n))).rows, rows(client, 30 + n));
      assert.equal(await one(connection, "SHOW work_mem"), "4MB");
    }
  },
};

function report(name, results) {
  const problems = results.filter((result) => result.status === "rejected").map((result) => result.reason);
  for (const problem of problems.slice(0, 3)) {
    const text = `${problem.code ?? ""} ${problem.stack ?? problem}`.split(/\s+/).join(" ").slice(0, 500);
    console.log(`FAIL ${name}: ${text} (${problems.length} of ${results.length} clients)`);
  }
  if (!problems.length) console.log(`ok ${name}`);
  return problems.length > 0;
}

async function scene(name, client) {
  const connection = await connect(client);
  try {
    await within(SCENARIO_LIMIT, scenarios[name](client, connection), name);
  } finally {
    await within(SCENARIO_LIMIT, connection.end(), "the end");
  }
}

let done = false;

// Reads its own rows all the while, and must see nothing of what the others do.
async function neighbour(client) {
  const connection = await connect(client);
  for (let round = 0; !done || round === 0; round++) {
    const count = (round % 50) + 1;
    assert.deepEqual((await connection.query(series(client, count))).rows, rows(client, count));
    const shown = "SELECT current_setting('work_mem') AS a, current_setting('application_name') AS b, current_user AS c";
    assert.deepEqual((await connection.query(shown)).rows, [{ a: "4MB", b: `client ${client}`, c: "app" }]);
  }
  await connection.end();
}

const numbers = (from, count) => Array.from({ length: count }, (_, at) => from + at);
const neighbours = Promise.allSettled(numbers(CLIENTS, NEIGHBOURS).map(neighbour));
let failed = false;
for (const name of Object.keys(scenarios)) {
  const results = await Promise.allSettled(numbers(0, CLIENTS).map((client) => scene(name, client)));
  failed = report(name, results) || failed;
}
done = true;
failed = report("neighbours", await neighbours) || failed;
process.exit(failed ? 1 : 0);
