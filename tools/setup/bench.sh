#!/usr/bin/env bash
# Ratios to stock: the kernel families against the host's own ops, then whole models. Prints; never fails by time.
source "$(dirname "$0")/cache.sh"
preset=${1:-release}
cd "$here/../.."
host=$(tools/setup/host.sh)
cmake --preset "$preset" -DALLOY_HOST_BIN="$host" -DALLOY_HOST_SOURCE="$(echo "$cache"/src/*/llama.cpp)" >&2
cmake --build "build/$preset" -j "$(nproc)" >&2
export ALLOY_HOST_BIN=$host
for family in rowwise quantize; do "build/$preset/bin/bench_$family"; done
"build/$preset/bin/bench_sampling"
plugin=$PWD/build/$preset/bin/libggml-alloy.so
for model in "$(tools/setup/models.py smollm2)" "$(tools/setup/models.py gemma3)"; do
    GGML_ALLOY_KERNELS=off "build/$preset/bin/alloy" bench -m "$model" --host "$host" -p 512 -n 64 # plans and buffers alone
    "build/$preset/bin/alloy" bench -m "$model" --host "$host" -p 512 -n 64
    python3 tools/bench/load_time.py --host "$host" --plugin "$plugin" "$model"
done
