#!/usr/bin/env bash
# Reproduce the study: ./run_all.sh [--profile quick] [--help]. Explore the newest run, or another: ./run_all.sh lab [RUN]
set -euo pipefail
caller=$PWD
cd "$(dirname "${BASH_SOURCE[0]}")"
. .ci/bootstrap.sh
if [ "${1:-}" = lab ]; then
    shift
    case "${1:--}" in -*) ;; *) export THYROID_SOURCE=$1; shift ;; esac
    first=01_preprocess # where a newcomer starts: at the classifier, where there is one
    ls "${THYROID_REPORTS:-reports}"/*/classifier/classifier.json >/dev/null 2>&1 && first=07_explore
    export JUPYTER_CONFIG_PATH="$PWD/.ci/jupyter${JUPYTER_CONFIG_PATH:+:$JUPYTER_CONFIG_PATH}" # no news, no updates
    exec "$PYTHON" -m jupyterlab --notebook-dir=. --LabApp.default_url="/lab/tree/notebooks/$first.ipynb" "$@"
fi
export THYROID_CALLER=$caller
exec "$PYTHON" -m thyroid_lib run "$@"
