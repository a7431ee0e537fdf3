"""What the scenarios of the Python drivers share: many clients at once, rows that say whose they are, and one line for
each scenario. A driver brings `connect(suite, client, **settings)` and its scenarios, one async function each."""

import asyncio
import datetime
import decimal
import hashlib
import sys
import uuid

# More than the pools of all nodes have servers.
CLIENTS = 9
NEIGHBOURS = 3
SCENARIO_LIMIT = 120
LARGE = 20 << 20

SERIES = "SELECT {client} AS client, n, repeat(md5('{client}:' || n), n % 7 + 1) AS body FROM generate_series(1, {count}) n"


def body(client, n):
    """The text of a row that belongs to a client."""
    return hashlib.md5(f"{client}:{n}".encode()).hexdigest() * (n % 7 + 1)


def rows(client, count):
    """What SERIES answers."""
    return [(client, n, body(client, n)) for n in range(1, count + 1)]


def series(client, count):
    return SERIES.format(client=client, count=count)


def large(client):
    """A value that no other client has."""
    seed = hashlib.sha256(str(client).encode()).digest()
    return seed * (LARGE // len(seed))


def values(client):
    """SQL type to value; what is not in the text of one is in another."""
    zone = datetime.timezone.utc
    return {
        "int[]": [client, None, -1],
        "int8[]": [[client, 2], [3, 4]],
        "text[]": [f"{client}", None, 'a "quoted", {odd} \\ text', "NULL", ""],
        "numeric": decimal.Decimal(f"{client}23456789012345678901234567890.0123456789"),
        "timestamptz": datetime.datetime(2024, 2, 29, 23, 59, 59, 999999 - client, tzinfo=zone),
        "date": datetime.date(1999, 12, 31) + datetime.timedelta(days=client),
        "bytea": bytes(range(256)) + bytes([client]),
        "uuid": uuid.UUID(int=client),
        "interval": datetime.timedelta(days=client, seconds=5, microseconds=7),
        "float8": client + 0.1,
        "bool": client % 2 == 0,
        "mood": ["sad", "ok", "it's happy"][client % 3],
        "mood[]": ["ok", "it's happy"],
        "text": f"{client} \U0001f600 \u00e9",
    }


def check(got, expected, what="a value"):
    if got != expected:
        raise AssertionError(f"{what}: {repr(got)[:200]} instead of {repr(expected)[:200]}")


class Suite:
    def __init__(self, connect):
        self.dsn = sys.argv[1]
        # Clients of one key go to the same node; without keys all of them go to the nearest.
        self.keys = int(sys.argv[2])
        self._connect = connect

    def options(self, client):
        return f"-c tandem.key=client:{client % self.keys}" if self.keys else ""

    async def connect(self, client, **settings):
        return await self._connect(self, client, **settings)

    async def _one(self, scenario, client):
        connection = await self.connect(client)
        try:
            await asyncio.wait_for(scenario(self, client, connection), SCENARIO_LIMIT)
        finally:
            await asyncio.wait_for(connection.close(), SCENARIO_LIMIT)

    async def _neighbour(self, read, client, done):
        """Reads its own rows all the while, and must see nothing of what the others do."""
        connection = await self.connect(client)
        rounds = 0
        while not done.is_set() or rounds == 0:
            got = [tuple(row) for row in await read(connection, series(client, rounds % 50 + 1))]
            check(got, rows(client, rounds % 50 + 1), "a neighbour's rows")
            shown = await read(connection, "SELECT current_setting('work_mem'), current_setting('application_name'), current_user")
            check(tuple(shown[0]), ("4MB", f"client {client}", "app"), "a neighbour's settings")
            rounds += 1
        await connection.close()
        return rounds

    async def run(self, read, scenarios):
        failed, done = 0, asyncio.Event()
        clients = range(CLIENTS, CLIENTS + NEIGHBOURS)
        neighbours = [asyncio.create_task(self._neighbour(read, client, done)) for client in clients]
        for scenario in scenarios:
            running = (self._one(scenario, client) for client in range(CLIENTS))
            failed += report(scenario.__name__, await asyncio.gather(*running, return_exceptions=True))
        done.set()
        failed += report("neighbours", await asyncio.gather(*neighbours, return_exceptions=True))
        return 1 if failed else 0


def report(name, results):
    problems = [result for result in results if isinstance(result, BaseException)]
    for problem in problems[:3]:
        text = " ".join(f"{type(problem).__name__}: {problem}".split())
        place = problem.__traceback__
        lines = []
        while place:
            lines.append(str(place.tb_lineno))
            place = place.tb_next
        print(f"FAIL {name}: {text[:400]} (lines {' '.join(lines)}; {len(problems)} of {len(results)} clients)", flush=True)
    if not problems:
        print(f"ok {name}", flush=True)
    return bool(problems)


def main(connect, read, scenarios):
    sys.exit(asyncio.run(Suite(connect).run(read, scenarios)))
