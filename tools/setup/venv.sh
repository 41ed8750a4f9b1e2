#!/usr/bin/env bash
# Makes, once, the Python environment that the model generator and the tests need, and prints its interpreter.
#
#   venv.sh [docs]      docs: the one that `make docs` draws with
source "$(dirname "$0")/cache.sh"

packages=(numpy==2.4.6 gguf==0.19.0 pyyaml==6.0.4)
venv=$cache/venv
[ "${1:-}" = docs ] && packages=(pyyaml==6.0.4 matplotlib==3.10.9) venv=$cache/venv-docs
stamp=$venv/.packages

if [ "$(cat "$stamp" 2>/dev/null)" != "${packages[*]}" ]; then
    say "making a Python environment with ${packages[*]}"
    python3 -m venv "$venv" >&2 || { python3 -m venv "$venv" >&2; }
    "$venv/bin/python" -m pip install -q --disable-pip-version-check "${packages[@]}" >&2
    printf '%s' "${packages[*]}" >"$stamp"
fi
echo "$venv/bin/python"
