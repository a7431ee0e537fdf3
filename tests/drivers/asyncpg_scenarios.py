"""The scenarios with asyncpg: `asyncpg_scenarios.py DSN KEYS`."""

import asyncio
import json

import asyncpg

from suite import body, check, large, main, rows, series, values


async def connect(suite, client, **settings):
    server_settings = {"application_name": f"client {client}"}
    if suite.keys:
        server_settings["options"] = suite.options(client)
    return await asyncpg.connect(suite.dsn, server_settings=server_settings, timeout=60, **settings)


async def read(connection, sql, *parameters):
    return [tuple(row) for row in await connection.fetch(sql, *parameters)]


async def fails(kind, work):
    try:
        await work
    except kind:
        return
    raise AssertionError(f"no {kind.__name__}")


async def servers_change(suite, client, connection):
    if client != 0:
        # Two of these in one small pool would wait for each other.
        return
    # The pool has two, and whoever has run something in a transaction keeps the one that it has.
    first, second = [await suite.connect(client) for _ in range(2)]
    await connection.execute("BEGIN")
    before = await connection.fetchval("SELECT pg_backend_pid()")
    await first.execute("BEGIN")
    await first.fetchval("SELECT 1")
    await connection.execute("COMMIT")
    await second.execute("BEGIN")
    await second.fetchval("SELECT 1")
    await first.execute("COMMIT")
    check(await connection.fetchval("SELECT pg_backend_pid()") != before, True, "another server")
    await second.execute("COMMIT")
    for other in (first, second):
        await other.close()


async def prepared_automatically(suite, client, connection):
    # asyncpg keeps a hundred.
    for round in range(2):
        for n in range(120):
            got = await read(connection, f"SELECT $1::int * 1000 + {n}, $2::text", client, body(client, n))
            check(got, [(client * 1000 + n, body(client, n))])
    statements = [await connection.prepare(f"SELECT $1::int + {n}") for n in range(30)]
    for round in range(3):
        for n, statement in enumerate(statements):
            check(await statement.fetchval(client), client + n)
    await connection.reload_schema_state()


async def prepared_and_altered(suite, client, connection):
    table = f"mine_{client}"
    await connection.execute(f"CREATE TEMP TABLE {table} AS SELECT {client} AS client")
    for _ in range(3):
        check(await read(connection, f"SELECT * FROM {table}"), [(client,)])
    await connection.execute(f"ALTER TABLE {table} ADD COLUMN more int")
    # asyncpg prepares it again outside of a transaction.
    check(await read(connection, f"SELECT * FROM {table}"), [(client, None)])


async def pipelines(suite, client, connection):
    await connection.executemany(
        "INSERT INTO item VALUES ($1, 'pipeline', $2, $3)", [(client, n, body(client, n)) for n in range(3000)])
    got = await read(connection, "SELECT n, body FROM item WHERE client = $1 AND scenario = 'pipeline' ORDER BY n", client)
    check(got, [(n, body(client, n)) for n in range(3000)])


async def errors_in_pipelines(suite, client, connection):
    for n in range(5):
        many = [(client, place % 90, "") for place in range(n * 20, n * 20 + 100)]
        insert = "INSERT INTO item VALUES ($1, 'broken', $2, $3)"
        await fails(asyncpg.UniqueViolationError, connection.executemany(insert, many))
        check(await read(connection, series(client, 10 + n)), rows(client, 10 + n))
    count = "SELECT count(*) FROM item WHERE client = $1 AND scenario = 'broken'"
    check(await connection.fetchval(count, client), 0, "rows of pipelines that failed")


async def copies(suite, client, connection):
    mine = [(client, "copy", n, body(client, n)) for n in range(2000)]
    check(await connection.copy_records_to_table("item", records=mine), "COPY 2000")
    got = bytearray()

    async def take(data):
        got.extend(data)
    query = "SELECT client, n, body FROM item WHERE client = $1 AND scenario = 'copy' ORDER BY n"
    await connection.copy_from_query(query, client, output=take)
    check(got.decode(), "".join(f"{client}\t{n}\t{text}\n" for client, _, n, text in mine))

    async def broken():
        yield f"{client}\tabandoned\t1\t\n".encode() * 1
        raise KeyError("given up")
    await fails(KeyError, connection.copy_to_table("item", source=broken()))

    async def malformed():
        for _ in range(100):
            yield b"not a number\tcopy\t1\tx\n" * 1000
    await fails(asyncpg.PostgresError, connection.copy_to_table("item", source=malformed()))

    async def refuse(data):
        raise KeyError("no more")
    await fails(KeyError, connection.copy_from_query(series(client, 20000), output=refuse))
    check(await connection.fetchval("SELECT count(*) FROM item WHERE client = $1 AND scenario = 'abandoned'", client), 0)


async def cancels(suite, client, connection):
    for _ in range(3):
        # asyncpg sends a cancel request at its own time-out.
        await fails(asyncio.TimeoutError, connection.fetch("SELECT pg_sleep(60)", timeout=0.2))
        check(await read(connection, series(client, 10)), rows(client, 10))
        await fails(asyncio.TimeoutError, connection.fetch(series(client, 100000000), timeout=0.2))
        check(await read(connection, series(client, 20)), rows(client, 20))
    await connection.execute("SET statement_timeout = 100")
    await fails(asyncpg.QueryCanceledError, connection.execute("SELECT pg_sleep(60)"))
    await connection.execute("RESET statement_timeout")
    check(await connection.fetchval("SHOW statement_timeout"), "0")


async def errors_in_transactions(suite, client, connection):
    for n in range(5):
        transaction = connection.transaction()
        await transaction.start()
        await connection.execute("INSERT INTO item VALUES ($1, 'error', $2, '')", client, n)
        await fails(asyncpg.DivisionByZeroError, connection.fetch("SELECT 1 / $1::int", 0))
        await fails(asyncpg.InFailedSQLTransactionError, connection.fetch("SELECT 1"))
        await transaction.rollback()
        await connection.execute("INSERT INTO item VALUES ($1, 'error once', $2, '')", client, n)
        again = connection.execute("INSERT INTO item VALUES ($1, 'error once', $2, '')", client, n)
        await fails(asyncpg.UniqueViolationError, again)
    got = await read(connection, "SELECT scenario, count(*) FROM item WHERE client = $1 AND scenario LIKE 'error%' GROUP BY 1", client)
    check(got, [("error once", 5)])


async def savepoints(suite, client, connection):
    async with connection.transaction(isolation="repeatable_read"):
        for n in range(10):
            try:
                async with connection.transaction():
                    await connection.execute("INSERT INTO item VALUES ($1, 'savepoint', $2, $3)", client, n, body(client, n))
                    if n % 2:
                        await connection.execute("SET work_mem = '9MB'")
                        await connection.execute("SELECT 1 / 0")
            except asyncpg.DivisionByZeroError:
                pass
        check(await connection.fetchval("SHOW work_mem"), "4MB")
    got = await read(connection, "SELECT n, body FROM item WHERE client = $1 AND scenario = 'savepoint' ORDER BY n", client)
    check(got, [(n, body(client, n)) for n in range(0, 10, 2)])


async def cursors(suite, client, connection):
    async with connection.transaction():
        got = [tuple(row) async for row in connection.cursor(series(client, 200), prefetch=17)]
        check(got, rows(client, 200))
        cursor = await connection.cursor(series(client, 200))
        check([tuple(row) for row in await cursor.fetch(10)], rows(client, 10))
        check(await cursor.forward(5), 5)
        check(tuple(await cursor.fetchrow()), rows(client, 16)[15])
    await connection.execute(f"DECLARE held CURSOR WITH HOLD FOR {series(client, 30)}")
    check(await read(connection, "FETCH 10 FROM held"), rows(client, 10))
    check(await read(connection, "FETCH ALL FROM held"), rows(client, 30)[10:])
    await connection.execute("CLOSE held")


async def types(suite, client, connection):
    for name in ("json", "jsonb"):
        await connection.set_type_codec(name, encoder=json.dumps, decoder=json.loads, schema="pg_catalog")
    document = {"client": client, "list": [1, None, "\u00e9 \\ \""], "deep": {"x": 1.5}}
    for name, value in [*values(client).items(), ("json", document), ("jsonb", document)]:
        check(await connection.fetchval(f"SELECT $1::{name}", value), value, name)
    await connection.reset_type_codec("json", schema="pg_catalog")


async def types_of_users(suite, client, connection):
    moods, seen = ["sad", None, "it's happy"], "SELECT mood, moods, pair, level FROM person WHERE client = $1 AND n = $2"
    for n in range(9):
        if suite.keys:
            await connection.execute(f"SET tandem.key = 'client:{(client + n) % suite.keys}'")
        expected = (moods[n % 3], moods, (n, moods[n % 3]), n + 1)
        async with connection.transaction():
            # What it does not know yet it asks the catalogs, in the middle of the transaction.
            await connection.execute(f"DELETE FROM person WHERE client = {client} AND n = {n}")
            sql = "INSERT INTO person VALUES ($1, $2, $3, $4, $5, $6) RETURNING mood, moods, pair, level"
            check(tuple(await connection.fetchrow(sql, client, n, *expected)), expected)
            check(await connection.fetchval("SELECT array_agg(pair) FROM person WHERE client = $1 AND n = $2", client, n), [(n, moods[n % 3])])
        check(tuple(await connection.fetchrow(seen, client, n)), expected)


async def large_values(suite, client, connection):
    value = large(client)
    got = await connection.fetchrow("SELECT $1::bytea, length($1::bytea)", value)
    check(got[1], len(value))
    check(got[0] == value, True, "a large value is its own")


async def settings(suite, client, connection):
    expected = (f"{1025 + client}kB", f'"schema {client}", public', f"client {client}", f"it's {client}", "Asia/Tokyo")
    shown = """SELECT current_setting('work_mem'), current_setting('search_path'), current_setting('application_name'),
        current_setting('my.own', true), current_setting('timezone')"""
    await connection.execute(f"""SET work_mem = {1025 + client}; SET search_path = "schema {client}", public;
        SELECT set_config('my.own', 'it''s {client}', false); SET TIME ZONE 'Asia/Tokyo'""")
    for n in range(20):
        check((await read(connection, shown))[0], expected)
        async with connection.transaction():
            await connection.execute("SET LOCAL work_mem = '33MB'; SET LOCAL search_path = pg_catalog")
            check(await connection.fetchval("SHOW work_mem"), "33MB")
        await connection.execute(f"SET application_name = 'renamed {client}'")
        check(await connection.fetchval("SHOW application_name"), f"renamed {client}")
        await connection.execute("RESET application_name")
        check(connection.get_settings().TimeZone, "Asia/Tokyo")
    # What asyncpg's own pool does between its users.
    await connection.reset()
    check((await read(connection, shown))[0][0], "4MB")


async def own_pools(suite, client, connection):
    server_settings = {"options": suite.options(client)} if suite.keys else None
    async with asyncpg.create_pool(suite.dsn, min_size=1, max_size=3, server_settings=server_settings) as pool:
        async def work(n):
            async with pool.acquire() as mine:
                await mine.execute(f"SET work_mem = {2000 + n}")
                check(await read(mine, series(client, n)), rows(client, n))
                check(await mine.fetchval("SHOW work_mem"), f"{2000 + n}kB")
        await asyncio.gather(*(work(n) for n in range(1, 20)))


async def notifications(suite, client, connection):
    got = asyncio.Queue()
    await connection.add_listener(f"channel_{client}", lambda _, pid, channel, payload: got.put_nowait((channel, payload)))
    for n in range(5):
        await connection.fetchval("SELECT pg_notify($1, $2)", f"channel_{client}", f"{client}:{n}")
    for n in range(5):
        check(await asyncio.wait_for(got.get(), 20), (f"channel_{client}", f"{client}:{n}"))
    await connection.execute("UNLISTEN *")


async def temporary_tables(suite, client, connection):
    await connection.execute(f"CREATE TEMP TABLE own AS {series(client, 50)}")
    for _ in range(10):
        check(await read(connection, "SELECT * FROM own ORDER BY n"), rows(client, 50))
    await connection.execute("DROP TABLE own")
    await fails(asyncpg.UndefinedTableError, connection.execute("SELECT * FROM own"))


async def advisory_locks(suite, client, connection):
    held = "SELECT count(*) FROM pg_locks WHERE locktype = 'advisory' AND objid = $1 AND pid = pg_backend_pid()"
    await connection.execute("SELECT pg_advisory_lock($1)", 1000 + client)
    for _ in range(5):
        check(await connection.fetchval(held, 1000 + client), 1)
    check(await connection.fetchval("SELECT pg_advisory_unlock($1)", 1000 + client), True)
    async with connection.transaction():
        await connection.execute("SELECT pg_advisory_xact_lock($1)", client % 3)


async def killed_in_the_middle(suite, client, connection):
    for sql in (series(client, 1000000), "SELECT pg_sleep(1)"):
        other = await suite.connect(client)
        await other.execute("BEGIN; SET work_mem = '77MB'")
        await other.execute("INSERT INTO item VALUES ($1, 'killed', 1, '')", client)
        running = asyncio.create_task(other.fetch(sql))
        await asyncio.wait({running}, timeout=0.05)
        other.terminate()
        await fails((asyncpg.PostgresError, asyncpg.InterfaceError, ConnectionError), running)
    # Waits for the lost transaction's lock, and finds nothing of it.
    await connection.execute("INSERT INTO item VALUES ($1, 'killed', 1, 'alive')", client)
    for n in range(20):
        check(await read(connection, series(client, 30 + n)), rows(client, 30 + n))
        check(await connection.fetchval("SHOW work_mem"), "4MB")


SCENARIOS = [
    servers_change, prepared_automatically, prepared_and_altered, pipelines, errors_in_pipelines, copies, cancels,
    errors_in_transactions, savepoints, cursors, types, types_of_users, large_values, settings, own_pools, notifications, temporary_tables,
    advisory_locks, killed_in_the_middle,
]

if __name__ == "__main__":
    main(connect, read, SCENARIOS)
