#!/usr/bin/env python3
"""Prints docs/kernels.md: every kernel of every family, read from the families' lists (kernels.inc) by the C preprocessor.

Usage: kernels.py [SOURCE_FOLDER]      (`make docs` writes the page; a test compares it)
"""
import pathlib
import re
import subprocess
import sys

SOURCE = pathlib.Path(sys.argv[1] if len(sys.argv) > 1 else ".")
MACHINES = {"x86-64": "__x86_64__", "ARM64": "__aarch64__"}
NAMES = {"rowwise": "rowwise_f32_{0}_{1}", "quantize": "quantize_{0}_f32_{1}", "matmul": "matmul_f32_{0}_{1}", "attention": "attention_{0}_{1}",
         "codec": "encode_{0}_{1}", "select": "select_f32_{0}_{1}"}


def rows(inc: pathlib.Path, macro: str) -> list[list[str]]:
    text = subprocess.run(["cpp", "-P", "-undef", f"-D{macro}", f"-I{SOURCE / 'src'}", str(inc)], check=True, capture_output=True, text=True).stdout
    return [[a.strip() for a in found.split(",")] for found in re.findall(r"ALLOY_KERNEL\(([^)]*)\)", text)]


print("# Kernels\n\nGenerated from the families' lists by `make docs`. Contracts stand in `src/kernels/<family>/<family>.h`, measured")
print("figures in [performance.md](performance.md).\n")
for inc in sorted((SOURCE / "src/kernels").glob("*/kernels.inc")):
    family = inc.parent.name
    print(f"## {family}\n\n| kernel | machine | instruction set |\n|---|---|---|")
    for machine, macro in MACHINES.items():
        for row in rows(inc, macro):
            print(f"| `{NAMES[family].format(*row)}` | {machine} | `{row[1]}` |")
    print()
