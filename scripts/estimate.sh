#!/usr/bin/env bash
# Says how long a first build takes, when this would be one. $1: the profile's directory in target.
set -euo pipefail
cd "$(dirname "$0")/.."
if [ -d "${CARGO_TARGET_DIR:-target}/$1/.fingerprint" ]; then
    exit 0
fi
cores=$(nproc 2>/dev/null || echo 2)
minutes=$(((${2:-8} + cores - 1) / cores))
echo "First build: about $minutes to $((minutes * 2)) minutes on $cores cores, then seconds."
