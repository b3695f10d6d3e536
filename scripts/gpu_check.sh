#!/usr/bin/env bash
# Check and measure the trainer on one NVIDIA GPU, with nothing from a hub and no network.
#
#   scripts/gpu_check.sh                     with what is installed in the current environment
#   scripts/gpu_check.sh --wheels FOLDER     in a fresh environment on top of the machine's torch and
#                                            transformers, from the wheels in FOLDER alone
#
# Other arguments go to gpu_check.py. Fill FOLDER on a machine with a network and the same Python:
#   uv build --all-packages --wheel -o FOLDER && pip download -d FOLDER FOLDER/lightningrl_verl-*.whl
set -euo pipefail

here="$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)"
python="${PYTHON:-python3}"

if [[ "${1:-}" == "--wheels" ]]; then
    wheels="${2:?--wheels needs a folder}"
    shift 2
    environment="$(mktemp -d)"
    trap 'rm -rf "$environment"' EXIT
    "$python" -m venv --system-site-packages "$environment"
    python="$environment/bin/python"
    "$python" -m pip install --quiet --no-index --find-links "$wheels" lightningrl-verl
fi

"$python" "$here/gpu_check.py" "$@"
