#!/usr/bin/env bash
# Reproduce the study: ./run_all.sh [--profile quick] [--help]. Explore it: ./run_all.sh lab
set -euo pipefail
caller=$PWD
cd "$(dirname "${BASH_SOURCE[0]}")"
. .ci/bootstrap.sh
if [ "${1:-}" = lab ]; then
    shift
    exec "$PYTHON" -m jupyterlab --notebook-dir=. --LabApp.default_url=/lab/tree/notebooks/01_preprocess.ipynb "$@"
fi
export THYROID_CALLER=$caller
exec "$PYTHON" -m thyroid_lib run "$@"
