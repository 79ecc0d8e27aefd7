#!/usr/bin/env bash
# Make or bring up to date .venv from requirements.txt; writes .venv/.complete last. Called by make; $1 may name a Python.
set -euo pipefail
cd "$(dirname "$0")/.."
here=$(pwd -P)
say() { echo "== environment: $*"; }
fail() { printf 'make: %s\n' "$@" >&2; exit 1; }
good='import sys, venv, ensurepip; sys.exit(sys.version_info < (3, 11))'

rm -f .venv/.complete
# where it was made: our own note, or what venv wrote (each version of Python quotes that in its own way)
made_in=$(cat .venv/.made-in 2>/dev/null || sed -n "s/^VIRTUAL_ENV=[\"']\{0,1\}\(.*\)\/\.venv[\"']\{0,1\}\$/\1/p" .venv/bin/activate 2>/dev/null || true)
if [ "$made_in" != "$here" ] || ! .venv/bin/python -c "$good" 2>/dev/null || ! .venv/bin/python -c 'import pip' 2>/dev/null; then
    python=
    names=(python3.11 python3.12 python3.13 python3)
    if [ -n "${1:-}" ]; then names=("$1"); fi
    for p in "${names[@]}"; do
        if "$p" -c "$good" 2>/dev/null; then python=$p; break; fi
    done
    [ -n "$python" ] || fail "no Python >= 3.11 with the modules venv and ensurepip was found${1:+ ($1 is none)}." \
        'Install one (Debian, Ubuntu: apt-get install python3.11 python3.11-venv), or name it: make PYTHON=/path/to/python3.11 ...'
    say "new .venv with $("$python" --version)"
    "$python" -m venv --clear .venv || fail 'the environment could not be made; the reason stands above.'
    printf '%s' "$here" > .venv/.made-in
fi

again='pip says above why. Mend that (network? disk full?) and give the same command again: it goes on from here.'
say "$(grep -c == requirements.txt) packages of requirements.txt (about 2 GB; 2 to 5 minutes the first time)"
pip=(.venv/bin/python -m pip)
install=("${pip[@]}" install --no-compile)      # pip compiles on one core; compileall, below, on all
"${install[@]}" --no-deps -r requirements.txt | awk '!/^Requirement already/ { print; fflush() }' || fail 'the packages could not be installed.' "$again"
"${install[@]}" --quiet --no-deps --no-build-isolation -e . || fail 'this package could not be installed.' "$again"
data=$(sed -n '/^# Installed for the files/,$ s/^\([a-z-]*\)==.*/\1/p' requirements.in | paste -sd'|')    # nobody runs their code: what they ask for may be missing
broken() { "${pip[@]}" check | grep -Ev "^(No broken|$data )" || true; }
if [ -n "$(broken)" ]; then
    say "adding what this machine's builds ask for"          # a GPU build of torch brings its libraries; macOS has two small extras
    grep -Ev "^($data)==" requirements.txt | "${install[@]}" -r /dev/stdin | awk '!/^Requirement already/ { print; fflush() }' || fail 'the packages could not be completed.' "$again"
    [ -z "$(broken)" ] || { broken; fail 'the environment does not fit together (above). Is requirements.txt the one of this revision?'; }
fi
# some files are for other versions of Python and do not compile: whoever imports one is told
.venv/bin/python -m compileall -q -j 0 -x '[/]tests?[/]' .venv/lib > .venv/compiled.log || true
printf '%s' "$here" > .venv/.complete
say 'ready'
