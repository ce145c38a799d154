#!/usr/bin/env bash
# Every check of the project: style, unit tests, the notebooks as stored (nbval), one smoke run and its reports.
# ./run_tests.sh [--slow]     --slow runs the long tests too and fails under 90 % coverage; with THYROID_DATA=FOLDER the tests on real images run too
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")"
. .ci/bootstrap.sh

scratch=$(mktemp -d)
notebooks=
trap '[ -z "$notebooks" ] || pkill -P "$notebooks" || true; rm -rf "$scratch"' EXIT
export THYROID_STATUS=/dev/null THYROID_CACHE="$scratch/cache" THYROID_REPORTS="$scratch/reports"
export IPYTHONDIR="$scratch/ipython" JUPYTER_PREFER_ENV_PATH=1 PYTHONHASHSEED=0
export OMP_NUM_THREADS=1 # several processes at once: threads that wait for one another would only spin
if [ -n "${THYROID_DATA:-}" ]; then
    THYROID_DATA=$(cd "$THYROID_DATA" && pwd) # the notebooks run in another folder
    export THYROID_DATA
fi

echo "== style"
"$PYTHON" -m ruff check .
"$PYTHON" -m ruff format --check .

# The notebooks as stored and a smoke run begin beside the unit tests, which wait for files and processes much of the time.
{
    THYROID_RUN="$scratch/stored" "$PYTHON" -m pytest -p no:cacheprovider --nbval-lax notebooks
    "$PYTHON" -m thyroid_lib run --profile smoke
} >"$scratch/notebooks.log" 2>&1 &
notebooks=$!

echo "== unit tests"
cover=()
case " $* " in *" --slow "*) cover=(--cov=thyroid_lib --cov-report=term:skip-covered --cov-fail-under=90) ;; esac
THYROID_SUMMARY="$scratch/summary" "$PYTHON" -m pytest -n 2 --dist loadscope --ignore tests/study/test_reports.py ${cover[@]+"${cover[@]}"} "$@"

echo "== notebooks as stored, a smoke run and its reports"
status=0
wait "$notebooks" || status=$?
cat "$scratch/notebooks.log"
[ "$status" -eq 0 ] || exit "$status"
THYROID_STORED_RUN="$scratch/stored" "$PYTHON" -m pytest tests/study/test_reports.py

echo "== all passed"
cat "$scratch/summary"
