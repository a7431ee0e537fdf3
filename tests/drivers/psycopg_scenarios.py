"""The scenarios with psycopg 3: `psycopg_scenarios.py DSN KEYS`."""

import asyncio
import enum
import logging
import os
import signal
import socket
import sys

import psycopg
from psycopg import errors, pq
from psycopg.types.composite import CompositeInfo, register_composite
from psycopg.types.enum import EnumInfo, register_enum
from psycopg.types.json import Jsonb

from suite import body, check, large, main, rows, series, values


async def connect(suite, client, **settings):
    return await psycopg.AsyncConnection.connect(
        suite.dsn, autocommit=True, application_name=f"client {client}", options=suite.options(client), **settings)


async def read(connection, sql, parameters=None, **how):
    return await (await connection.execute(sql, parameters, **how)).fetchall()


async def one(connection, sql, parameters=None, **how):
    return (await read(connection, sql, parameters, **how))[0][0]


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
    before = await one(connection, "SELECT pg_backend_pid()")
    await first.execute("BEGIN")
    await one(first, "SELECT 1")
    await connection.execute("COMMIT")
    await second.execute("BEGIN")
    await one(second, "SELECT 1")
    await first.execute("COMMIT")
    check(await one(connection, "SELECT pg_backend_pid()") != before, True, "another server")
    await second.execute("COMMIT")
    for other in (first, second):
        await other.close()


async def prepared_automatically(suite, client, connection):
    connection.prepare_threshold = 0
    connection.prepared_max = 20
    for round in range(4):
        for n in range(30):
            got = await read(connection, f"SELECT %s::int * 1000 + {n}, %s::text", (client, body(client, n)))
            check(got, [(client * 1000 + n, body(client, n))])
    await connection.execute("DEALLOCATE ALL")
    check(await one(connection, "SELECT %s::int + 1", (client,), prepare=True), client + 1)


async def prepared_and_altered(suite, client, connection):
    table = f"mine_{client}"
    await connection.execute(f"CREATE TEMP TABLE {table} AS SELECT {client} AS client")
    for _ in range(3):
        check(await read(connection, f"SELECT * FROM {table}", prepare=True), [(client,)])
    await connection.execute(f"ALTER TABLE {table} ADD COLUMN more int")
    await fails(errors.FeatureNotSupported, connection.execute(f"SELECT * FROM {table}", prepare=True))
    await connection.execute("DISCARD ALL")
    check(await one(connection, "SELECT to_regclass(%s)", (table,)), None)


async def pipelines(suite, client, connection):
    for prepare in (False, True):
        async with connection.pipeline():
            cursors = [await connection.execute(series(client, n % 20 + 1), prepare=prepare) for n in range(100)]
            for n, cursor in enumerate(cursors):
                check(await cursor.fetchall(), rows(client, n % 20 + 1))
    async with connection.pipeline(), connection.transaction():
        cursor = connection.cursor()
        await cursor.executemany(
            "INSERT INTO item VALUES (%s, 'pipeline', %s, %s)", [(client, n, body(client, n)) for n in range(300)])
    got = await read(connection, "SELECT n, body FROM item WHERE client = %s AND scenario = 'pipeline' ORDER BY n", (client,))
    check(got, [(n, body(client, n)) for n in range(300)])


async def errors_in_pipelines(suite, client, connection):
    # psycopg counts a statement as prepared though its pipeline failed before it.
    connection.prepare_threshold = None
    for n in range(10):
        async def broken():
            async with connection.pipeline():
                await connection.execute("INSERT INTO item VALUES (%s, 'broken', %s, '')", (client, n))
                await connection.execute("SELECT 1 / %s", (0,))
                await connection.execute("INSERT INTO item VALUES (%s, 'broken', %s, '')", (client, 100 + n))
        await fails(errors.DivisionByZero, broken())
        check(await one(connection, "SELECT %s::int", (client + n,)), client + n)
        async with connection.pipeline() as pipeline:
            await connection.execute("SELECT 1")
            await pipeline.sync()
            bad = await connection.execute("SELECT nothing_of_this_name")
            try:
                await pipeline.sync()
            except errors.UndefinedColumn:
                pass
            del bad
            check(await one(connection, "SELECT %s::int", (client,)), client)
    count = "SELECT count(*) FROM item WHERE client = %s AND scenario = 'broken'"
    check(await one(connection, count, (client,)), 0, "rows of pipelines that failed")


async def copies(suite, client, connection):
    mine = [(client, "copy", n, body(client, n)) for n in range(2000)]
    cursor = connection.cursor()
    async with cursor.copy("COPY item FROM STDIN") as copy:
        for row in mine:
            await copy.write_row(row)
    check(cursor.rowcount, 2000)
    sql = f"COPY (SELECT * FROM item WHERE client = {client} AND scenario = 'copy' ORDER BY n) TO STDOUT"
    for form in ("", " (FORMAT binary)"):
        async with cursor.copy(sql + form) as copy:
            copy.set_types(["int4", "text", "int4", "text"])
            check([row async for row in copy.rows()], mine)

    async def abandoned():
        async with cursor.copy("COPY item FROM STDIN") as copy:
            await copy.write_row((client, "abandoned", 1, ""))
            raise KeyError("given up")
    await fails(KeyError, abandoned())

    async def malformed():
        async with cursor.copy("COPY item FROM STDIN") as copy:
            await copy.write(b"not a number\tcopy\t1\tx\n" * 1000)
    await fails(errors.InvalidTextRepresentation, malformed())

    async def left():
        async with cursor.copy(sql) as copy:
            await copy.read()
            raise KeyError("psycopg cancels the rest")
    await fails(KeyError, left())
    check(await one(connection, "SELECT count(*) FROM item WHERE client = %s AND scenario = 'abandoned'", (client,)), 0)


async def cancels(suite, client, connection):
    for sql in ("SELECT pg_sleep(60)", "SELECT count(*) FROM generate_series(1, 1000000000)"):
        running = asyncio.create_task(connection.execute(sql))
        # Nothing tells when the statement has begun, so cancel until it has.
        while not running.done():
            await connection.cancel_safe(timeout=20)
            await asyncio.wait({running}, timeout=0.05)
        await fails(errors.QueryCanceled, running)
        check(await one(connection, "SELECT %s::int", (client,)), client)
    try:
        await asyncio.wait_for(connection.execute("SELECT pg_sleep(60)"), 0.3)
        raise AssertionError("no time-out")
    except asyncio.TimeoutError:
        pass
    check(await one(connection, "SELECT %s::int", (client,)), client)
    await connection.execute("SET statement_timeout = 100")
    await fails(errors.QueryCanceled, connection.execute("SELECT pg_sleep(60)"))
    await connection.execute("RESET statement_timeout")
    async with await suite.connect(client, prepare_threshold=None) as other:
        check(await one(other, "SHOW statement_timeout"), "0")


async def errors_in_transactions(suite, client, connection):
    for n in range(5):
        try:
            async with connection.transaction():
                await connection.execute("INSERT INTO item VALUES (%s, 'error', %s, '')", (client, n))
                await fails(errors.DivisionByZero, connection.execute("SELECT 1 / 0"))
                await fails(errors.InFailedSqlTransaction, connection.execute("SELECT 1"))
                raise psycopg.Rollback
        except psycopg.Rollback:
            pass
        await connection.execute("INSERT INTO item VALUES (%s, 'error once', %s, '')", (client, n))
        again = connection.execute("INSERT INTO item VALUES (%s, 'error once', %s, '')", (client, n))
        await fails(errors.UniqueViolation, again)
    count = "SELECT scenario, count(*) FROM item WHERE client = %s AND scenario LIKE 'error%%' GROUP BY 1"
    check(await read(connection, count, (client,)), [("error once", 5)])


async def savepoints(suite, client, connection):
    insert = "INSERT INTO item VALUES (%s, 'savepoint', %s, %s)"
    async with connection.transaction():
        for n in range(10):
            try:
                async with connection.transaction():
                    await connection.execute(insert, (client, n, body(client, n)))
                    if n % 2:
                        await connection.execute("SET work_mem = '9MB'")
                        await connection.execute("SELECT 1 / 0")
            except errors.DivisionByZero:
                pass
        check(await one(connection, "SHOW work_mem"), "4MB")
    got = await read(connection, "SELECT n, body FROM item WHERE client = %s AND scenario = 'savepoint' ORDER BY n", (client,))
    check(got, [(n, body(client, n)) for n in range(0, 10, 2)])
    check(await one(connection, "SHOW work_mem"), "4MB")


async def cursors(suite, client, connection):
    async with connection.transaction():
        async with connection.cursor("mine", scrollable=True) as cursor:
            cursor.itersize = 17
            await cursor.execute(series(client, 200))
            check(await cursor.fetchmany(10), rows(client, 10))
            check([row async for row in cursor], rows(client, 200)[10:])
            await cursor.scroll(5, mode="absolute")
            check(await cursor.fetchone(), rows(client, 6)[5])
    async with connection.cursor("held", withhold=True) as cursor:
        await cursor.execute(series(client, 30))
        check(await cursor.fetchmany(10), rows(client, 10))
        check(await one(connection, "SELECT %s::int", (client,)), client)
        check(await cursor.fetchall(), rows(client, 30)[10:])
    check([row async for row in connection.cursor().stream(series(client, 100))], rows(client, 100))


async def types(suite, client, connection):
    Mood = enum.Enum("Mood", {"sad": "sad", "ok": "ok", "happy": "it's happy"}, type=str)
    info = await EnumInfo.fetch(connection, "mood")
    register_enum(info, connection, Mood, mapping={member: member.value for member in Mood})
    for binary in (False, True):
        cursor = connection.cursor(binary=binary)
        for name, value in values(client).items():
            await cursor.execute(f"SELECT %s::{name}", (value,))
            check((await cursor.fetchone())[0], value, name)
        document = {"client": client, "list": [1, None, "\u00e9 \\ \""], "deep": {"x": 1.5}}
        await cursor.execute("SELECT %s::jsonb, %s::json", (Jsonb(document), Jsonb(document)))
        check(await cursor.fetchone(), (document, document), "json")


async def types_of_users(suite, client, connection):
    Mood = enum.Enum("Mood", {"sad": "sad", "ok": "ok", "happy": "it's happy"}, type=str)
    moods = [Mood.sad, None, Mood.happy]
    register_enum(await EnumInfo.fetch(connection, "mood"), connection, Mood, mapping={member: member.value for member in Mood})
    info = await CompositeInfo.fetch(connection, "pair")
    register_composite(info, connection)
    for n in range(9):
        if suite.keys:
            await connection.execute(f"SET tandem.key = 'client:{(client + n) % suite.keys}'")
        for binary in (False, True):
            expected = (moods[n % 3], moods, info.python_type(n, moods[n % 3]), n + 1)
            cursor = connection.cursor(binary=binary)
            value = "%b" if binary else "%t"
            await cursor.execute("DELETE FROM person WHERE client = %s AND n = %s", (client, n))
            sql = f"INSERT INTO person VALUES (%s, %s, %s, {value}, %s, %s) RETURNING mood, moods, pair, level"
            await cursor.execute(sql, (client, n, *expected))
            check(await cursor.fetchone(), expected)
            await cursor.execute("SELECT mood, moods, pair, level FROM person WHERE client = %s AND n = %s", (client, n))
            check(await cursor.fetchone(), expected)


async def large_values(suite, client, connection):
    value = large(client)
    for binary in (True, False) if client < 2 else (True,):
        cursor = connection.cursor(binary=binary)
        await cursor.execute("SELECT %b::bytea, md5(%b::bytea)" if binary else "SELECT %t::bytea, md5(%t::bytea)", (value, value[:1000]))
        got, _ = await cursor.fetchone()
        check(len(got), len(value), "its length")
        check(got == value, True, "a large value is its own")


async def settings(suite, client, connection):
    connection.prepare_threshold = 0
    expected = (f"{1025 + client}kB", f'"schema {client}", public', f"client {client}", f"it's {client}", "Asia/Tokyo")
    shown = """SELECT current_setting('work_mem'), current_setting('search_path'), current_setting('application_name'),
        current_setting('my.own', true), current_setting('timezone')"""
    await connection.execute(f"SET work_mem = {1025 + client}")
    await connection.execute(f'SET search_path = "schema {client}", public')
    await connection.execute(f"SELECT set_config('my.own', 'it''s {client}', false)")
    await connection.execute("SET TIME ZONE 'Asia/Tokyo'")
    check(connection.info.parameter_status("TimeZone"), "Asia/Tokyo")
    for n in range(20):
        check((await read(connection, shown))[0], expected)
        async with connection.transaction(force_rollback=n % 2 == 0):
            await connection.execute("SET LOCAL work_mem = '33MB'")
            await connection.execute("SET LOCAL search_path = pg_catalog")
            check(await one(connection, "SHOW work_mem"), "33MB")
            if n % 2 == 0:
                await connection.execute("SET TIME ZONE 'Europe/Berlin'")
                check(connection.info.parameter_status("TimeZone"), "Europe/Berlin")
        check(connection.info.parameter_status("TimeZone"), "Asia/Tokyo")
        await connection.execute(f"SET application_name = 'renamed {client}'")
        check(await one(connection, "SHOW application_name"), f"renamed {client}")
        await connection.execute("RESET application_name")
    await connection.execute("SELECT set_config('my.own', %s, false)", (f"other {client}",))
    for _ in range(5):
        check(await one(connection, "SELECT current_setting('my.own')"), f"other {client}")


async def notifications(suite, client, connection):
    await connection.execute(f"LISTEN channel_{client}")
    async with await suite.connect(client) as other:
        for n in range(5):
            await connection.execute("SELECT 1")
            await connection.execute(f"NOTIFY channel_{client}, '{client}:{n}'")
    got = []
    async for notify in connection.notifies(timeout=20, stop_after=5):
        got.append((notify.channel, notify.payload))
    check(got, [(f"channel_{client}", f"{client}:{n}") for n in range(5)])


async def temporary_tables(suite, client, connection):
    await connection.execute("CREATE TEMP TABLE own (client int, n int, body text)")
    await connection.execute(f"INSERT INTO own {series(client, 50)}")
    for _ in range(10):
        check(await read(connection, "SELECT * FROM own ORDER BY n"), rows(client, 50))
    await connection.execute("DROP TABLE own")
    async with connection.transaction():
        await connection.execute("CREATE TEMP TABLE passing (client int) ON COMMIT DROP")
    await fails(errors.UndefinedTable, connection.execute("SELECT * FROM passing"))


async def advisory_locks(suite, client, connection):
    held = "SELECT count(*) FROM pg_locks WHERE locktype = 'advisory' AND objid = %s AND pid = pg_backend_pid()"
    await connection.execute("SELECT pg_advisory_lock(%s)", (1000 + client,))
    for _ in range(5):
        check(await one(connection, held, (1000 + client,)), 1)
    check(await one(connection, "SELECT pg_advisory_unlock(%s)", (1000 + client,)), True)
    # One after the other: an increment that is not atomic by itself.
    for _ in range(3):
        async with connection.transaction():
            await connection.execute("SELECT pg_advisory_xact_lock(%s)", (client % 3,))


def victim(dsn, client):
    """Ends itself in the middle of its result, in the middle of its transaction."""
    connection = psycopg.connect(dsn)
    connection.execute("SET work_mem = '77MB'")
    connection.execute("INSERT INTO item VALUES (%s, 'killed', 1, '')", (client,))
    connection.pgconn.send_query(series(client, 1000000).encode())
    connection.pgconn.set_single_row_mode()
    if connection.pgconn.get_result().status == pq.ExecStatus.SINGLE_TUPLE:
        os.kill(os.getpid(), signal.SIGKILL)


async def killed_in_the_middle(suite, client, connection):
    if client < 3:
        process = await asyncio.create_subprocess_exec(sys.executable, __file__, suite.dsn, "victim", str(client))
        check(await process.wait(), -signal.SIGKILL)
    else:
        for sql in (series(client, 1000000), "SELECT pg_sleep(1)", "COPY item FROM STDIN"):
            other = await suite.connect(client)
            await other.execute("BEGIN; SET work_mem = '77MB'")
            await other.execute("INSERT INTO item VALUES (%s, 'killed', 1, '')", (client,))
            other.pgconn.send_query(sql.encode())
            other.pgconn.flush()
            with socket.socket(fileno=os.dup(other.pgconn.socket)) as raw:
                raw.shutdown(socket.SHUT_RDWR)
            other.pgconn.finish()
    # Waits for the lost transaction's lock, and finds nothing of it.
    await connection.execute("INSERT INTO item VALUES (%s, 'killed', 1, 'alive')", (client,))
    for n in range(20):
        check(await read(connection, series(client, 30 + n)), rows(client, 30 + n))
        check(await one(connection, "SHOW work_mem"), "4MB")


SCENARIOS = [
    servers_change, prepared_automatically, prepared_and_altered, pipelines, errors_in_pipelines, copies, cancels,
    errors_in_transactions, savepoints, cursors, types, types_of_users, large_values, settings, notifications, temporary_tables, advisory_locks,
    killed_in_the_middle,
]

if __name__ == "__main__":
    if sys.argv[2] == "victim":
        victim(sys.argv[1], int(sys.argv[3]))
    # It complains of each pipeline that ends with an error.
    logging.getLogger("psycopg").setLevel(logging.CRITICAL)
    main(connect, read, SCENARIOS)
