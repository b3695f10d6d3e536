#!/usr/bin/env bash
# Check and measure the trainer on one NVIDIA GPU, with nothing from a hub and no network.
#
#   scripts/gpu_check.sh                     with what is installed in the current environment
#   scripts/gpu_check.sh --wheels FOLDER     in a fresh environment on top of the machine's own packages,
#                                            with all wheels in FOLDER and nothing else
#
# Other arguments go to scripts/gpu_check. Fill FOLDER on a machine with a network and the same Python, with
# what the GPU machine lacks:
#   uv build --all-packages --wheel -o FOLDER && pip download -d FOLDER FOLDER/lightningrl_verl-*.whl
set -euo pipefail

here="$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)"
python="${PYTHON:-python3}"

if [[ "${1:-}" == "--wheels" ]]; then
    wheels="${2:?--wheels needs a folder}"
    shift 2
    environment="$(mktemp -d)"
    trap 'rm -rf "$environment"' EXIT
    # Not a virtual environment: if the machine's Python is in one, its packages would be out of sight.
    "$python" -m pip install --quiet --no-index --no-deps --no-compile --target "$environment" "$wheels"/*.whl
    export PYTHONPATH="$environment${PYTHONPATH:+:$PYTHONPATH}"
fi

export COLUMNS="${COLUMNS:-140}"
PYTHONPATH="$here/../benchmarks/performance${PYTHONPATH:+:$PYTHONPATH}" "$python" "$here/gpu_check" "$@"
