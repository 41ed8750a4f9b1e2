#!/usr/bin/env bash
# Makes the reports of docs/reports from nothing, on a machine with nothing else to do, and the tables of README and docs/performance.md.
#
#   publish.sh [--preset PRESET] [NAME..]   all, or those named
#   publish.sh --list                       names, expected minutes on 2 cores of a Zen 4, and what is done
#
# A report that is there is not made again: remove it to do so. After ^C the same command goes on; a speed report begins anew (none
# takes an hour), a quality report goes on with its next step. ROUNDS=N for other rounds than the table's.
source "$(dirname "$0")/../setup/cache.sh"
cd "$here/../.."

# name | minutes | command | model | [VARIABLE=VALUE ..] arguments. Minutes are worked out from tokens and known speeds. Stock needs minutes
# for one prompt behind thousands of tokens of a 1B model, and more over a quantised cache: hence few depths and rounds there.
reports() {
    cat <<'TABLE'
smollm2-q4_1-speed|25|bench|smollm2|--rounds 5 -p 512 -n 64 -d 0,2048,4096,7168
gemma3-q4_k_m-speed|25|bench|gemma3|--rounds 5 -p 512 -n 64 -d 0,2048,4096,8192
llama-1b-q4_0-speed|5|bench|llama-1b-q4_0|--rounds 5 -p 512 -n 64
llama-1b-q4_k_m-speed|5|bench|llama-1b-q4_k_m|--rounds 5 -p 512 -n 64
llama-1b-q8_0-speed|5|bench|llama-1b-q8_0|--rounds 5 -p 512 -n 64
llama-1b-q4_0-compact-speed|15|bench|llama-1b-q4_0|GGML_ALLOY_KV=compact --rounds 3 --warmup 0 -p 512 -n 64 -d 4096
llama-1b-q4_0-q8_0-cache-speed|35|bench|llama-1b-q4_0|--rounds 3 --warmup 0 -ctk q8_0 -ctv q8_0 -p 512 -n 64 -d 4096
smollm2-f32-modes|10|quality|smollm2-f32|--no-probes --preset exact --preset int8 --preset compact --preset tiny
smollm2-f32-recall|12|quality|smollm2-f32|--chunks 1 --no-references --preset compact --preset tiny --documents 4 --length 1024 --length 4096
gemma3-f32-modes|20|quality|gemma3-f32|--no-probes --preset exact --preset int8 --preset compact --preset tiny
gemma3-f32-recall|10|quality|gemma3-f32|--chunks 1 --no-references --preset compact --preset tiny --documents 2 --length 1024 --length 4096
TABLE
}

model_file() {
    case $1 in
        smollm2 | gemma3) tools/setup/models.py "$1" ;;
        *) "$(tools/setup/venv.sh)" tools/setup/random_models.py "$1" ;;
    esac
}

make_report() { # name command model arguments..
    local name=$1 command=$2 model=$3 file=docs/reports/$1.json part code=0 variables=()
    shift 3
    while [[ ${1:-} == [A-Z]*=* ]]; do variables+=("$1"); shift; done
    [ -n "${ROUNDS:-}" ] && set -- $(sed "s/--rounds [0-9]*/--rounds $ROUNDS/" <<<"$*") # words without spaces so far
    part=$state/$name.json # whole only when the last step is done
    [ "$command" = quality ] && set -- "$@" -f "$(tools/bench/texts.py fresh)" --state "$state"
    env "${variables[@]}" "$alloy" "$command" -m "$(model_file "$model")" --host "$host" --save "$part" "$@" || code=$?
    # A gate that is not kept ends with 1 too, and is published.
    if [ -f "$part" ] && grep -q '^ "complete": true' "$part"; then
        mv "$part" "$file"
        python3 tools/docs/reports.py
    elif [ "$code" = 130 ]; then
        exit 130
    else
        say "$name: not published, alloy $command ended with $code"
        failed=1
    fi
}

preset=release
[ "${1:-}" = --preset ] && { preset=$2; shift 2; }
if [ "${1:-}" = --list ]; then
    reports | while IFS='|' read -r name minutes command model arguments; do
        [ -f "docs/reports/$name.json" ] && done_already="there" || done_already="$minutes min"
        printf '%-31s %-7s alloy %s -m %s %s\n' "$name" "$done_already" "$command" "$model" "$arguments"
    done
    exit
fi
for name in "$@"; do
    reports | grep -q "^$name|" || { echo "publish.sh: no report '$name'; --list tells all" >&2; exit 2; }
done

alloy=$PWD/build/$preset/bin/alloy state=$cache/publish failed=0
host=$(tools/setup/host.sh)
[ -x "$alloy" ] || { echo "publish.sh: $alloy is missing: make" >&2; exit 2; }
mkdir -p "$state" docs/reports
while IFS='|' read -r name minutes command model arguments <&3; do
    [ $# = 0 ] || [[ " $* " == *" $name "* ]] || continue
    [ -f "docs/reports/$name.json" ] && { say "$name: there"; continue; }
    say "$name: about $minutes minutes"
    make_report "$name" "$command" "$model" $arguments # words without spaces
done 3< <(reports)
exit "$failed"
