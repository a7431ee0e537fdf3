#!/usr/bin/env bash
# Starts three primaries behind one port, runs the city-bikes workload through the proxy, shows that the primaries are equal.
#   TANDEM   the program (default: target/debug/tandem)
#   SMOKE=1  a throw-away directory and free ports; ends after the comparison
#   DIR      where the cluster lives otherwise (default: demo-data)
#   PORT, ADMIN_PORT, BASE_PORT  where it listens otherwise (default: 6432, 6433, 6501 and the two after it)
set -euo pipefail
cd "$(dirname "$0")/.."

tandem=${TANDEM:-target/debug/tandem}
example=examples/city-bikes
smoke=${SMOKE:-}
dir=${DIR:-demo-data}
port=${PORT:-6432} admin_port=${ADMIN_PORT:-6433} base_port=${BASE_PORT:-6501}
scratch='' dev_pid=''

say() { printf '%s\n' "$*"; }
step() { printf '\n== %s\n' "$*"; }
fail() { printf 'demo: %s\n' "$*" >&2; exit 1; }

# Whatever ends this script ends the cluster: one polite signal, as a Ctrl-C would be, then a bounded wait.
cleanup() {
    local code=$?
    trap '' INT TERM HUP
    trap - EXIT
    if [ -n "$dev_pid" ] && kill -0 "$dev_pid" 2>/dev/null; then
        kill -INT "$dev_pid" 2>/dev/null || true
        for _ in $(seq 600); do
            kill -0 "$dev_pid" 2>/dev/null || break
            sleep 0.1
        done
        if kill -0 "$dev_pid" 2>/dev/null; then
            kill -INT "$dev_pid" 2>/dev/null || true
        fi
        wait "$dev_pid" 2>/dev/null || true
    fi
    if [ -n "$scratch" ]; then
        # Data that the servers' user could not reach here lies elsewhere, behind a link.
        local elsewhere
        elsewhere=$(readlink "$scratch/cluster/nodes" || true)
        case "$elsewhere" in /var/lib/tandem/dev-*) rm -rf "$elsewhere" ;; esac
        rm -rf "$scratch"
    fi
    exit "$code"
}
trap cleanup EXIT
trap 'exit 130' INT
trap 'exit 143' TERM
trap 'exit 129' HUP

# A client program: in PATH, with the system's servers, or with the pinned build.
client_program() {
    local found
    found=$(command -v "$1" || true)
    [ -n "$found" ] || found=$(ls -d /usr/lib/postgresql/*/bin/"$1" 2>/dev/null | sort -rV | head -n 1)
    [ -n "$found" ] || found=$("$tandem" postgres 18)/$1
    [ -x "$found" ] || fail "$1 is not found; run make deps"
    printf '%s' "$found"
}

# A free port below the range that outgoing connections take theirs from.
is_free() { ! (exec 3<>"/dev/tcp/127.0.0.1/$1") 2>/dev/null; }
free_ports() {
    local try p
    for try in $(seq 50); do
        p=$((15000 + RANDOM % 15000))
        if is_free $p && is_free $((p + 1)) && is_free $((p + 2)) && is_free $((p + 3)) && is_free $((p + 4)); then
            port=$p admin_port=$((p + 1)) base_port=$((p + 2))
            return
        fi
    done
    fail "no five free ports in a row"
}

[ -x "$tandem" ] || fail "$tandem is not built; run make demo"
psql=$(client_program psql)
pgbench=$(client_program pgbench)

seconds=10
if [ -n "$smoke" ]; then
    scratch=$(mktemp -d "${TMPDIR:-/tmp}/tandem-demo.XXXXXX")
    chmod 755 "$scratch"
    dir=$scratch/cluster
    seconds=4
    free_ports
    log=$scratch/dev.log
else
    mkdir -p target
    log=target/demo.log
fi

step "Starting three PostgreSQL primaries and Tandem in $dir"
# In a session of its own, so that a Ctrl-C in the terminal reaches only this script, which then ends it in order.
: >"$log"
setsid "$tandem" dev --dir "$dir" --nodes 3 --port "$port" --admin-port "$admin_port" --base-port "$base_port" --database app \
    --init "$example/schema.sql" --init "$example/seed.sql" --rules "$example/rules.toml" </dev/null >>"$log" 2>&1 &
dev_pid=$!
for _ in $(seq 1200); do
    grep -q '^ready' "$log" && break
    kill -0 "$dev_pid" 2>/dev/null || {
        cat "$log" >&2
        fail "tandem dev ended (other ports: make demo PORT=7432 ADMIN_PORT=7433 BASE_PORT=7501)"
    }
    sleep 0.1
done
grep -q '^ready' "$log" || { cat "$log" >&2; fail "not ready after 120 s"; }
sed -n '/^Cluster/,$p' "$log"

export PGPASSWORD=app PGCONNECT_TIMEOUT=10
workload=(-n -T "$seconds" --max-tries 5 -f "$example/rent.sql@4" -f "$example/return.sql@2" -f "$example/browse.sql@6" -U app -h 127.0.0.1)
step "$seconds s of city-bikes: 8 clients through the proxy rent, return and look, and one directly on each primary"
direct=()
for node in 0 1 2; do
    "$pgbench" "${workload[@]}" -p $((base_port + node)) app >"$log.direct$node" 2>&1 &
    direct+=($!)
done
"$pgbench" "${workload[@]}" -c 8 -j 2 -P 2 -p "$port" app 2>&1 |
    grep -E '^(progress|number of transactions act|number of failed|tps|pgbench:)' || fail "pgbench failed"
for node in 0 1 2; do
    wait "${direct[$node]}" || { cat "$log.direct$node" >&2; fail "pgbench on node $((node + 1)) failed"; }
    rm -f "$log.direct$node"
done

step "Waiting until every change is on every primary"
"$tandem" wait-converged --config "$dir/tandem.toml" --timeout 60s

step "Comparing the primaries, table by table"
on_node() { "$psql" -X -q -A -t -h 127.0.0.1 -p "$((base_port + $1))" -U postgres -d app -c "$2"; }
tables='stations bikes users rentals payments'
hash_of() {
    on_node "$1" "SELECT count(*) || ' rows, ' || md5(coalesce(string_agg(r.t, E'\n' ORDER BY r.t), ''))
                  FROM (SELECT x::text AS t FROM $2 AS x) AS r"
}
written=$(on_node 0 "SELECT count(*) FROM rentals")
[ "$written" -gt 2000 ] || fail "the workload wrote no rental"
for node in 0 1 2; do
    here=$(on_node $node "SELECT count(*) FROM rentals AS r, pg_xact_commit_timestamp_origin(r.xmin) AS v
                          WHERE v.timestamp IS NOT NULL AND v.roident = 0")
    say "  node $((node + 1)) was the last to write $here of the $written rentals"
done
differ=0
for table in $tables; do
    first=$(hash_of 0 "$table")
    verdict=equal
    for node in 1 2; do
        other=$(hash_of "$node" "$table")
        if [ "$other" != "$first" ]; then
            verdict="DIFFERENT: node $((node + 1)) has $other"
            differ=1
        fi
    done
    printf '  %-10s %-50s %s\n' "$table" "$first" "$verdict"
done
[ "$differ" = 0 ] || fail "the primaries differ"
say "All three primaries are equal."

if [ -n "$smoke" ]; then
    exit 0
fi

trap "exit 0" INT
step "What to try next (the cluster stays up; Ctrl-C ends all of it)"
cat <<TEXT
  psql postgres://app:app@127.0.0.1:$port/app                 # through the proxy
  psql postgres://postgres@127.0.0.1:$base_port/app                # one primary; $((base_port + 1)) and $((base_port + 2)) are the others
  $tandem status --config $dir/tandem.toml
  $tandem explain --config $dir/tandem.toml --user app
  PGPASSWORD=app pgbench -h 127.0.0.1 -p $port -U app -n -c 8 -T 60 -P 5 -f $example/rent.sql@4 -f $example/return.sql@2 app
  $tandem wait-converged --config $dir/tandem.toml
  less $log                                                     # what Tandem says
TEXT
wait "$dev_pid" || fail "tandem dev ended with an error; see $log"
