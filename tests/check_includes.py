#!/usr/bin/env python3
"""Checks that an include only points down (docs/architecture.md). Usage: check_includes.py SOURCE_FOLDER"""
import pathlib
import re
import sys

LAYERS = {"base": 0, "host": 1, "formats": 1, "kernels": 2, "kv": 3, "weights": 3, "sampling": 3, "ops": 4, "graph": 5, "plugin": 6}
# Folders of one layer do not know one another, except that kernels know formats and everyone in a folder knows its folder.


def main() -> int:
    src = pathlib.Path(sys.argv[1]) / "src"
    wrong = checked = 0
    for file in sorted(src.rglob("*")):
        if file.suffix not in {".h", ".cpp", ".inc"}:
            continue
        here = file.relative_to(src).parts
        for number, line in enumerate(file.read_text().splitlines(), 1):
            found = re.match(r'\s*#include "([^"]+)"', line)
            if not found:
                continue
            checked += 1
            there = pathlib.PurePath(found.group(1)).parts
            if there[0] == "ggml-alloy.h":
                continue
            if there[0] not in LAYERS:
                if here[0] == "kernels" and file.name in {"test.cpp", "bench.cpp"}:
                    continue  # tests beside their kernels use tests/support and the host's headers
                print(f"{file}:{number}: {found.group(1)} is in no layer")
                wrong += 1
            elif LAYERS[there[0]] >= LAYERS[here[0]] and there[0] != here[0]:
                print(f"{file}:{number}: {here[0]} (L{LAYERS[here[0]]}) includes {there[0]} (L{LAYERS[there[0]]})")
                wrong += 1
            elif here[0] == there[0] == "kernels" and here[1] != there[1] and file.name not in {"test.cpp", "bench.cpp"}:
                print(f"{file}:{number}: kernel family {here[1]} includes family {there[1]}")
                wrong += 1
    print(f"{checked} includes, {wrong} wrong")
    return 1 if wrong or checked < 50 else 0


if __name__ == "__main__":
    sys.exit(main())
