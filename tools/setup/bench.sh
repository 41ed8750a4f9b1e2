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
for model in "$(tools/setup/models.py smollm2)" "$(tools/setup/models.py gemma3)"; do
    python3 tools/bench/ratio.py --host "$host" --plugin "$PWD/build/$preset/bin/libggml-alloy.so" --env GGML_ALLOY_KERNELS=off "$model"
    python3 tools/bench/ratio.py --host "$host" --plugin "$PWD/build/$preset/bin/libggml-alloy.so" "$model"
done
