#!/usr/bin/env python3
"""The same prompt on stock llama.cpp and on llama.cpp with ggml-alloy, side by side.

    demo.py --host BIN_FOLDER --plugin libggml-alloy.so --alloy ALLOY_PROGRAM MODEL.gguf [MODEL.gguf ..]

Prints both texts, tokens per second for prompt and generation, anonymous memory, and the plugin's counters. Exit code 1 when the
plugin was not used or, where all work is delegated, a text differs.
"""
import argparse
import json
import os
import pathlib
import re
import subprocess
import sys
import threading
import time

PROMPT = ("The history of computing is a history of making the same ideas cheaper. A machine that once filled a room now fits "
          "in a pocket, and what it computes has hardly changed: sums of products, over and over. The next step is")


def anonymous_mib(pid: int) -> float:
    try:
        status = pathlib.Path(f"/proc/{pid}/status").read_text()
        return int(re.search(r"RssAnon:\s+(\d+) kB", status).group(1)) / 1024
    except (OSError, AttributeError):
        return 0.0


def watch(process: subprocess.Popen, alloy: str | None, seen: dict) -> None:
    while process.poll() is None:
        seen["anonymous"] = max(seen.get("anonymous", 0.0), anonymous_mib(process.pid))
        if alloy:
            answer = subprocess.run([alloy, "status", "--json", "--pid", str(process.pid)], capture_output=True, text=True)
            try:
                processes = json.loads(answer.stdout)
                if processes:
                    seen["counters"] = processes[0]["counters"]
            except (json.JSONDecodeError, KeyError, IndexError):
                pass
        time.sleep(0.05)


def run(args: argparse.Namespace, model: str, extra: dict[str, str]) -> dict:
    env = {k: v for k, v in os.environ.items() if not k.startswith(("GGML_BACKEND_PATH", "GGML_ALLOY"))} | extra
    command = [f"{args.host}/llama-completion", "-m", model, "-p", PROMPT, "-n", str(args.tokens), "--temp", "0", "-no-cnv",
               "-t", str(args.threads), "--no-display-prompt"]
    process = subprocess.Popen(command, env=env, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    seen: dict = {}
    watcher = threading.Thread(target=watch, args=(process, args.alloy if "GGML_BACKEND_PATH" in extra else None, seen))
    watcher.start()
    text, log = process.communicate(timeout=600)
    watcher.join()
    if process.returncode != 0:
        sys.exit(f"llama-completion failed:\n{log[-2000:]}")
    rates = re.findall(r"(prompt eval|\beval) time .*?([\d.]+) tokens per second", log)
    seen |= {"text": text.strip(), "used": "ALLOY" in log, "warnings": re.findall(r"ggml-alloy: .*", log),
             "prompt": float(next(r for n, r in rates if n == "prompt eval")), "generation": float(next(r for n, r in rates if n == "eval"))}
    return seen


def show(name: str, result: dict, baseline: dict) -> None:
    def ratio(key: str) -> str:
        return f"{result[key]:9.1f}" + ("        " if result is baseline else f" ({result[key] / baseline[key]:4.2f}x)")
    print(f"  {name:<10}prompt {ratio('prompt')} t/s   generation {ratio('generation')} t/s   "
          f"anonymous memory {result.get('anonymous', 0):6.0f} MiB")


def main() -> int:
    parser = argparse.ArgumentParser()
    for option in ("--host", "--plugin", "--alloy"):
        parser.add_argument(option, required=True)
    parser.add_argument("--tokens", type=int, default=48)
    parser.add_argument("--threads", type=int, default=min(os.cpu_count() or 1, 8))
    parser.add_argument("models", nargs="+")
    args = parser.parse_args()
    good = True
    for model in args.models:
        plugin = {"GGML_BACKEND_PATH": args.plugin}
        stock = run(args, model, {})
        alloy = run(args, model, plugin)
        delegated = run(args, model, plugin | {"GGML_ALLOY_KERNELS": "off"})
        print(f"\n{pathlib.Path(model).name}, {args.threads} threads")
        show("stock", stock, stock)
        show("alloy", alloy, stock)
        print(f"  text, stock : {stock['text']!r}")
        print(f"  text, alloy : {alloy['text']!r}")
        same = delegated["text"] == stock["text"]
        print(f"  with every node delegated the text is {'the same' if same else 'DIFFERENT: ' + repr(delegated['text'])}")
        used = alloy["used"] and not stock["used"] and alloy.get("counters", {}).get("graphs", 0) > 0
        if not used:
            print("  the plugin was NOT used")
        else:
            counters = alloy["counters"]
            print("  counters    : " + ", ".join(f"{k} {v}" for k, v in counters.items() if v))
        for warning in alloy["warnings"]:
            print(f"  {warning}")
        good = good and same and used
    return 0 if good else 1


if __name__ == "__main__":
    sys.exit(main())
