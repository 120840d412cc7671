# shellcheck shell=bash
# Sourced by scripts/build-default-model and scripts/build-demo-clip.
# Makes (once) the pinned Python environment both need and sets EDGE_AGENT_BUILD_PYTHON.

tool_dir="$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)"
default_cache_dir="${XDG_CACHE_HOME:-$HOME/.cache}/edge-agent/build-default-model"
cache_dir="${EDGE_AGENT_BUILD_CACHE:-$default_cache_dir}"

die() {
    echo "${0##*/}: $*" >&2
    exit 1
}

require_command() {
    command -v "$1" >/dev/null 2>&1 || die "'$1' is missing: $2"
}

find_python() {
    local candidate
    for candidate in "${PYTHON:-}" python3.11 python3; do
        [[ -n "$candidate" ]] || continue
        if "$candidate" -c 'import sys, ensurepip; sys.exit(sys.version_info[:2] != (3, 11))' \
            >/dev/null 2>&1; then
            echo "$candidate"
            return
        fi
    done
    die "needs CPython 3.11 with venv (set PYTHON=/path/to/python3.11)"
}

prepare_environment() {
    local requirements="$tool_dir/requirements.txt" digest venv python
    digest="$(sha256sum "$requirements" | cut -c1-12)"
    venv="$cache_dir/venv-$digest"
    if [[ ! -e "$venv/.complete" ]]; then
        python="$(find_python)"
        echo "preparing the build environment (about 1.5 GB) in $venv" >&2
        rm -rf "$venv"
        "$python" -m venv "$venv"
        "$venv/bin/python" -m pip install --quiet --disable-pip-version-check \
            --only-binary :all: -r "$requirements"
        touch "$venv/.complete"
    fi
    EDGE_AGENT_BUILD_PYTHON="$venv/bin/python"
}

run_module() {
    # TF_*: no oneDNN re-ordering of float sums and no GPU; PYTHONHASHSEED: stable set order.
    PYTHONHASHSEED=0 PYTHONDONTWRITEBYTECODE=1 PYTHONPATH="${tool_dir%/*}" \
        TF_ENABLE_ONEDNN_OPTS=0 TF_CPP_MIN_LOG_LEVEL=2 CUDA_VISIBLE_DEVICES='' \
        EDGE_AGENT_BUILD_CACHE="$cache_dir" \
        "$EDGE_AGENT_BUILD_PYTHON" -m "$@"
}
