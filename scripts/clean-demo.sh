#!/usr/bin/env bash
# Removes the demo's cluster and its data. Refuses while it runs.
set -euo pipefail
cd "$(dirname "$0")/.."
dir=${DIR:-demo-data}
[ -e "$dir" ] || { echo "clean-demo: there is no $dir"; exit 0; }
[ -e "$dir/.tandem-dev.toml" ] || { echo "clean-demo: $dir was not made by tandem dev: left alone" >&2; exit 1; }
nodes=$(readlink "$dir/nodes" || (cd "$dir/nodes" 2>/dev/null && pwd) || true)
[ -n "$nodes" ] || nodes=/nonexistent

# A server runs when its lock file names a process whose data directory this is.
for pidfile in "$nodes"/*/postmaster.pid; do
    [ -r "$pidfile" ] || continue
    pid=$(head -n 1 "$pidfile")
    if tr '\0' ' ' 2>/dev/null <"/proc/$pid/cmdline" | grep -qF -- "-D $(dirname "$pidfile")"; then
        echo "clean-demo: a server of $dir runs (pid $pid): end the demo first (Ctrl-C, or start and end it)" >&2
        exit 1
    fi
done
case "$nodes" in /var/lib/tandem/dev-*) rm -rf "$nodes" ;; esac
rm -rf "$dir"
echo "clean-demo: $dir removed"
