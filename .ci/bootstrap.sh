# The one way both commands get their Python: sourced by run_all.sh and run_tests.sh, sets $PYTHON.
#
# 1. THYROID_PYTHON, or the active conda environment "thyroid", is used as it is.
# 2. Otherwise .venv is made and synced with requirements.lock by a pinned uv. Nothing is done while
#    the lock and the project file stay as they are.

UV_VERSION=0.13.9
NEEDED_GB=12

say() { printf '%s\n' "$*" >&2; }
die() { say "$@"; exit 2; }

python_of() { # the version of an interpreter as "3 11", empty where it does not start
    "$1" -c 'import sys; print(*sys.version_info[:2])' 2>/dev/null || true
}

find_python() {
    local candidate major minor
    for candidate in python3.12 python3.11 python3.13 python3 python; do
        command -v "$candidate" >/dev/null 2>&1 || continue
        read -r major minor <<<"$(python_of "$candidate")"
        if [ "${major:-0}" -eq 3 ] && [ "${minor:-0}" -ge 11 ] && [ "${minor:-0}" -le 13 ]; then
            command -v "$candidate"
            return
        fi
    done
    die "Python 3.11, 3.12 or 3.13 is needed; found: $(python3 --version 2>&1 || echo none)." \
        "Install one (python.org, your package manager, or conda: conda env create -f environment.yml)," \
        "or name one with THYROID_PYTHON=/path/to/python."
}

find_uv() { # the pinned uv: the one on the PATH, else one of our own in .uv
    if [ "$(uv --version 2>/dev/null | cut -d' ' -f2)" = "$UV_VERSION" ]; then
        command -v uv
        return
    fi
    if [ "$(.uv/bin/uv --version 2>/dev/null | cut -d' ' -f2)" != "$UV_VERSION" ]; then
        say "Installing uv $UV_VERSION into .uv"
        rm -rf .uv
        { "$1" -m venv .uv && .uv/bin/python -m pip install -q --disable-pip-version-check "uv==$UV_VERSION"; } \
            >/dev/null || die "uv $UV_VERSION could not be installed: is there a network, and does '$1 -m venv' work?" \
            "On Debian and Ubuntu: apt-get install python3-venv. Or install uv $UV_VERSION yourself."
    fi
    printf '%s\n' "$PWD/.uv/bin/uv"
}

install() { # make .venv and sync it
    local python uv free
    python=$(find_python) || exit 2
    free=$(df -Pk . | awk 'NR == 2 { print int($4 / 1048576) }')
    [ -d .venv ] || [ "$free" -ge "$NEEDED_GB" ] \
        || die "The environment needs about $NEEDED_GB GB of disk, $free GB are free in $PWD. Make room and start again."
    uv=$(find_uv "$python") || exit 2
    say "Installing the environment into .venv (about 7 GB, once)"
    rm -f .venv/.synced
    [ -x .venv/bin/python ] && [ -n "$(python_of .venv/bin/python)" ] \
        || "$uv" venv -q --clear --python "$python" .venv || exit 2
    "$uv" pip sync -q --python .venv/bin/python --require-hashes requirements.lock \
        && "$uv" pip install -q --python .venv/bin/python --no-build-isolation --no-deps -e . \
        || die "The environment could not be installed; .venv is left for the next try. See the message above."
    printf '%s\n' "$1" >.venv/.synced
}

if [ -n "${THYROID_PYTHON:-}" ]; then
    PYTHON=$THYROID_PYTHON
    [ -n "$(python_of "$PYTHON")" ] || die "THYROID_PYTHON=$PYTHON does not start. Give the path of a Python 3.11-3.13."
elif [ "${CONDA_DEFAULT_ENV:-}" = thyroid ] && [ -x "${CONDA_PREFIX:-}/bin/python" ]; then
    PYTHON=$CONDA_PREFIX/bin/python
else
    wanted=$(cat requirements.lock pyproject.toml .ci/bootstrap.sh | cksum)
    if [ "$(cat .venv/.synced 2>/dev/null)" != "$wanted" ]; then
        install "$wanted"
    fi
    PYTHON=$PWD/.venv/bin/python
fi
unset PYTHONDONTWRITEBYTECODE # each notebook is a process of its own: modules are compiled once, not in every one
export PYTHONPATH="$PWD${PYTHONPATH:+:$PYTHONPATH}"
PATH="$(dirname "$PYTHON"):$PATH"
