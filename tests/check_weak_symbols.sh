#!/bin/sh
# check_weak_symbols.sh OBJECT_DIR: fails when an object compiled from an ISA file (.../kernels/<family>/<isa>.cpp) has a weak
# symbol. The linker keeps one copy of a weak function for the whole program: if it is the one compiled for AVX-512, every
# other CPU meets instructions that it does not have.
set -eu
[ $# -eq 1 ] && [ -d "$1" ] || { echo "usage: $0 OBJECT_DIR" >&2; exit 2; }
table=$(dirname "$0")/../src/base/isa.inc
nm=${NM:-nm}
checked=0
failed=0
for isa in $(sed -n 's/^ALLOY_ISA(\([a-z0-9_]*\)).*/\1/p' "$table"); do
    for object in $(find "$1" -path "*/kernels/*/$isa.cpp.o"); do
        checked=$((checked + 1))
        # V, W and u: defined and merged by the linker. A lower-case v or w is a reference to what may be missing (sanitizers
        # have some), and the type names that the undefined-behaviour sanitizer adds are no code.
        symbols=$("$nm" -C "$object")
        if echo "$symbols" | grep -E '^[0-9a-f]+ [VWu] ' | grep -v ' typeinfo '; then
            echo "weak symbols in $object" >&2
            failed=1
        fi
    done
done
[ "$checked" -gt 0 ] || { echo "no object of an ISA file below $1" >&2; exit 1; }
[ "$failed" -eq 0 ] && echo "$checked objects of ISA files, no weak symbol"
