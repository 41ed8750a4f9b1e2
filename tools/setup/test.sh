#!/usr/bin/env bash
# The whole test suite, from nothing: packages, stock host, models, four builds. Ends with ctest's closing lines.
#
#   test.sh [PRESET]
#
# The other presets' tests run first, as ctest entries of the main one (tests/presets), so that one summary tells all.
source "$(dirname "$0")/cache.sh"
preset=${1:-release}
cd "$here/../.."

tools/setup/packages.sh cross
host=$(tools/setup/host.sh native)
linked=$(tools/setup/host.sh linked)
tools/setup/models.py smollm2 >/dev/null
tools/setup/models.py gemma3 >/dev/null

cmake --preset "$preset" -DALLOY_HOST_BIN="$host" -DALLOY_HOST_LINKED="$linked" -DALLOY_HOST_SOURCE="$(echo "$cache"/src/*/llama.cpp)" >&2
cmake --build "build/$preset" -j "$(nproc)" >&2
export ALLOY_E2E_REQUIRED=1
ctest --test-dir "build/$preset" --output-on-failure -LE full
