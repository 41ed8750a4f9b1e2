#!/usr/bin/env python3
"""Ratio of the plugin to stock, same binary, interleaved rounds in one run.

    ratio.py --host BIN_FOLDER --plugin libggml-alloy.so [--rounds N] [--env NAME=VALUE ..] MODEL.gguf [-- LLAMA_BENCH_ARGUMENTS]

Prints for each llama-bench test the medians and the median of the rounds' ratios with their range; then load time (llama-bench with
`-lm none`, one prompt token) and peak anonymous memory. Refuses to report when the plugin was not used.
"""
import argparse
import json
import os
import pathlib
import re
import statistics
import subprocess
import sys
import tempfile
import threading
import time


def environment(plugin: str | None, extra: list[str]) -> dict[str, str]:
    env = {k: v for k, v in os.environ.items() if k != "GGML_BACKEND_PATH" and not k.startswith("GGML_ALLOY_")}
    if plugin:
        env["GGML_BACKEND_PATH"] = plugin
        env |= dict(e.split("=", 1) for e in extra)
    return env


def bench(args: argparse.Namespace, plugin: str | None, arguments: list[str]) -> tuple[dict, dict]:
    """One llama-bench process: tokens/s by test, and what it took: wall seconds and peak anonymous MiB."""
    command = [f"{args.host}/llama-bench", "-m", args.model, "-r", "1", "-t", str(args.threads), "-o", "json", *arguments]
    cost = {"anonymous": 0.0}
    started = time.monotonic()
    with tempfile.TemporaryFile() as errors:
        process = subprocess.Popen(command, env=environment(plugin, args.env), stdout=subprocess.PIPE, stderr=errors, text=True)

        def watch() -> None:
            while process.poll() is None:
                try:
                    found = re.search(r"RssAnon:\s+(\d+)", pathlib.Path(f"/proc/{process.pid}/status").read_text())
                    cost["anonymous"] = max(cost["anonymous"], int(found.group(1)) / 1024 if found else 0.0)
                except OSError:
                    pass
                time.sleep(0.02)
        watcher = threading.Thread(target=watch)
        watcher.start()
        out, _ = process.communicate()
        watcher.join()
        cost["seconds"] = time.monotonic() - started
        if process.returncode != 0:
            errors.seek(0)
            sys.exit("llama-bench failed: " + errors.read().decode(errors="replace")[-500:])
    rows = json.loads(out)
    if ("ALLOY" in rows[0]["backends"]) != bool(plugin):
        sys.exit(f"backends = {rows[0]['backends']!r}: the plugin was {'not ' if plugin else ''}used")
    return {(f"pp{r['n_prompt']}" if r["n_prompt"] else f"tg{r['n_gen']}") + (f"@{r['n_depth']}" if r["n_depth"] else ""): r["avg_ts"]
            for r in rows}, cost


def line(name: str, stock: list[float], alloy: list[float], unit: str, lower_is_better: bool = False) -> dict:
    ratios = sorted((s / a if lower_is_better else a / s) for s, a in zip(stock, alloy))
    row = {"case": name, "stock": statistics.median(stock), "alloy": statistics.median(alloy), "ratio": statistics.median(ratios),
           "low": ratios[0], "high": ratios[-1], "unit": unit}
    print(f"{name:<16}stock {row['stock']:9.2f}  alloy {row['alloy']:9.2f} {unit:<4} ratio {row['ratio']:.3f} [{row['low']:.3f} .. {row['high']:.3f}]")
    return row


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--host", required=True)
    parser.add_argument("--plugin", required=True)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--env", action="append", default=[])
    parser.add_argument("--json")
    parser.add_argument("--no-load", action="store_true")
    parser.add_argument("model")
    own, _, rest = "\0".join(sys.argv[1:]).partition("\0--\0")
    args = parser.parse_args(own.split("\0"))
    arguments = rest.split("\0") if rest else ["-p", "512", "-n", "64"]

    print(f"{pathlib.Path(args.model).name} {' '.join(args.env)}")
    results: dict[bool, dict[str, list[float]]] = {False: {}, True: {}}
    costs: dict[bool, list[dict]] = {False: [], True: []}
    loads: dict[bool, list[float]] = {False: [], True: []}
    bench(args, None, ["-p", "8", "-n", "0"])  # warm the page cache
    for round_number in range(args.rounds):
        for with_plugin in ((False, True) if round_number % 2 == 0 else (True, False)):
            plugin = args.plugin if with_plugin else None
            tests, cost = bench(args, plugin, arguments)
            for name, value in tests.items():
                results[with_plugin].setdefault(name, []).append(value)
            costs[with_plugin].append(cost)
            if not args.no_load:
                loads[with_plugin].append(bench(args, plugin, ["-p", "1", "-n", "0", "-lm", "none", "--no-warmup"])[1]["seconds"])
    rows = [line(name, results[False][name], results[True][name], "t/s") for name in results[False]]
    if not args.no_load:
        rows.append(line("load, -lm none", loads[False], loads[True], "s", lower_is_better=True))
    anonymous = {w: [c["anonymous"] for c in costs[w]] for w in costs}
    rows.append(line("anonymous", anonymous[False], anonymous[True], "MiB", lower_is_better=True))
    if args.json:
        pathlib.Path(args.json).write_text(json.dumps({"model": pathlib.Path(args.model).name, "env": args.env, "rows": rows}, indent=1))


if __name__ == "__main__":
    main()
