#!/usr/bin/env bash
# Builds one more preset and runs its own tests, and for asan a real model inside the unmodified host.
#
#   run.sh asan|tsan|arm64 SOURCE_FOLDER [HOST_BIN]
set -euo pipefail
preset=$1 source=$2 host=${3:-}
cd "$source"
cmake --preset "$preset" >/dev/null
cmake --build "build/$preset" -j "$(nproc)" | grep -E 'warning|error|FAILED' || true
export ASAN_OPTIONS=abort_on_error=1:detect_leaks=1 UBSAN_OPTIONS=halt_on_error=1:print_stacktrace=1 TSAN_OPTIONS=halt_on_error=1:die_after_fork=0
ctest --test-dir "build/$preset" --output-on-failure -LE 'e2e|presets' --no-tests=error

if [ "$preset" = asan ] && [ -n "$host" ]; then
    # The plugin is instrumented, the host is not: the sanitizer's runtime comes in by preload. Leaks of the host are not ours to judge.
    runtime=$(g++ -print-file-name=libasan.so):$(g++ -print-file-name=libubsan.so)
    plugin=$source/build/asan/bin/libggml-alloy.so
    model=$(tools/setup/models.py smollm2)
    text() { LD_PRELOAD=$runtime ASAN_OPTIONS=abort_on_error=1:detect_leaks=0 GGML_BACKEND_PATH=$plugin "$@" 2>"$source/build/asan/host.log"; }
    text "$host/llama-completion" -m "$model" -p "One two three" -n 24 --temp 0 -no-cnv -t 2 </dev/null
    grep -q 'ALLOY' "$source/build/asan/host.log"
    ! grep -E 'runtime error|AddressSanitizer' "$source/build/asan/host.log"
    for op in RMS_NORM ADD SCALE SWIGLU GEGLU ROPE SET_ROWS GET_ROWS; do
        text "$host/test-backend-ops" test -b ALLOY0 -o "$op" | tail -n 3
        ! grep -E 'runtime error|AddressSanitizer' "$source/build/asan/host.log"
    done
fi
