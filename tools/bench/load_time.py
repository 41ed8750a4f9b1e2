#!/usr/bin/env python3
"""How long a model takes to load, stock over the plugin: `alloy bench` starts its clock behind that. Interleaved rounds of one run.

    load_time.py --host BIN_FOLDER --plugin libggml-alloy.so [--rounds N] MODEL.gguf

A whole llama-bench process of one prompt token with `-lm none`, so that the file is read, not mapped.
"""
import argparse
import json
import os
import pathlib
import statistics
import subprocess
import sys
import time


def seconds(args: argparse.Namespace, plugin: str | None) -> float:
    env = {k: v for k, v in os.environ.items() if k != "GGML_BACKEND_PATH"} | ({"GGML_BACKEND_PATH": plugin} if plugin else {"GGML_ALLOY": "off"})
    started = time.monotonic()
    done = subprocess.run([f"{args.host}/llama-bench", "-m", args.model, "-r", "1", "-p", "1", "-n", "0", "-lm", "none", "--no-warmup", "-o", "json"],
                          env=env, capture_output=True, text=True)
    taken = time.monotonic() - started
    if done.returncode != 0:
        sys.exit("llama-bench failed: " + done.stderr[-500:])
    backends = json.loads(done.stdout)[0]["backends"]
    if ("ALLOY" in backends) != bool(plugin):
        sys.exit(f"backends = {backends!r}: the plugin was {'not ' if plugin else ''}used")
    return taken


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--host", required=True)
    parser.add_argument("--plugin", required=True)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("model")
    args = parser.parse_args()
    seconds(args, None)  # warm the page cache
    took: dict[bool, list[float]] = {False: [], True: []}
    for number in range(args.rounds):
        for with_plugin in ((False, True) if number % 2 == 0 else (True, False)):
            took[with_plugin].append(seconds(args, str(pathlib.Path(args.plugin).resolve()) if with_plugin else None))
    ratios = sorted(s / a for s, a in zip(took[False], took[True]))
    print(f"{pathlib.Path(args.model).name:<40} load, -lm none: stock {statistics.median(took[False]):.2f} s  alloy {statistics.median(took[True]):.2f} s  "
          f"ratio {statistics.median(ratios):.3f} [{ratios[0]:.3f} .. {ratios[-1]:.3f}]")


if __name__ == "__main__":
    main()
