#!/usr/bin/env python3
"""What a KV cache mode really takes: anonymous memory of a llama-server, not what anybody declares.

    kv_memory.py --host BIN_FOLDER --plugin libggml-alloy.so [--model llama-1b ..] [--tokens 8192] [--mode compact ..]
    kv_memory.py .. --limit 0.4 [--most 65536]      largest number of tokens within the model file's size + 0.4 GiB

Growth is the difference of two processes of one mode: context and prompt of `--tokens`, and of 1024 tokens. Weights, compute buffers for a
full batch and the server itself drop out; what is left beside the cache is the attention mask, small with the default `--ubatch`. Both
processes use all the cells they asked for, because stock takes memory for all of them at once.

A limit is kept by looking at the process every 20 ms and ending it, not by a cgroup: those count the model file's pages too, and belong to
whoever runs this machine. The model is loaded without mapping its file, so that in all modes the weights are in the count. The server cuts a
context to what the model was trained for; a mode like "compact: GGML_ALLOY_KV=compact --override-kv llama.context_length=int:65536" goes beyond.
"""
import argparse
import http.client
import os
import pathlib
import random
import re
import subprocess
import sys
import threading
import time

import kv_runs
from kv_runs import Mode, anonymous, model_file

DEFAULT_MODELS = ["smollm2", "llama-1b"]
DEFAULT_MODES = ["stock", "exact", "int8", "compact", "tiny"]
FEW = 1024   # tokens of the small process
STEP = 256   # tokens of a request while a limit is approached: how exact the answer is
MIB = 2**20


def tokens_of(count: int) -> list[int]:
    """Ordinary token numbers of any vocabulary here; what they say does not matter for memory."""
    rng = random.Random(count)
    return [rng.randrange(1000, 20000) for _ in range(count)]


def flags(args: argparse.Namespace, context: int) -> list:
    return ["-c", context, "-ub", args.ubatch, "-lm", "none"]


# --- growth -------------------------------------------------------------------------------------------------------------------------
def after_prompt(args: argparse.Namespace, chosen: Mode, model: pathlib.Path, count: int) -> dict:
    """Anonymous bytes and counters once `count` tokens are in the cache, and what the host's log says it declared."""
    with kv_runs.serve(args, chosen, model, [*flags(args, count), "-lv", 4]) as server:
        server.complete(tokens_of(count - 8))
        time.sleep(0.2)
        seen = kv_runs.counters(args.alloy, server.process.pid, server.runtime) if chosen.plugin else {}
        kv_runs.require_plugin(chosen, seen)
        log = pathlib.Path(server.runtime, "log").read_text(errors="replace")
        declared = sum(float(mib) for mib in re.findall(r"KV buffer size = +([\d.]+) MiB", log))
        return {"anonymous": anonymous(server.process.pid), "declared": declared * MIB, "seen": seen}


def growth(args: argparse.Namespace, chosen: Mode, model: pathlib.Path) -> dict:
    few, many = (after_prompt(args, chosen, model, count) for count in (FEW, args.tokens))
    live = many["seen"].get("kv_live_bytes")
    return {"grown": many["anonymous"] - few["anonymous"], "declared": many["declared"] - few["declared"], "seen": many["seen"],
            "live": None if live is None else live - few["seen"]["kv_live_bytes"]}


def growth_rows(args: argparse.Namespace, name: str) -> list[list[str]]:
    rows = []
    f16 = growth(args, kv_runs.mode("stock"), model_file(name))["declared"]
    for chosen in args.modes:
        got = growth(args, chosen, model_file(name))
        sealed = kv_runs.sealing(got["seen"])
        live = "" if not chosen.plugin else "no such counter" if got["live"] is None else f"{got['live'] / MIB:.1f}"
        rows.append([model_file(name).stem, chosen.name, f"{f16 / MIB:.1f}", f"{got['grown'] / MIB:.1f}", f"{got['grown'] / f16:.3f}", live, sealed])
    return rows


# --- limit --------------------------------------------------------------------------------------------------------------------------
def ends_beyond(process: subprocess.Popen, limit: int) -> None:
    """Ends the process once it holds more than the limit, as a memory cgroup would."""
    def watch() -> None:
        while process.poll() is None:
            if anonymous(process.pid) > limit:
                process.kill()
            time.sleep(0.02)
    threading.Thread(target=watch, daemon=True).start()


def tokens_within(args: argparse.Namespace, chosen: Mode, model: pathlib.Path, context: int, limit: int, most: int) -> int:
    """How many tokens a server with this context takes, up to `most`, before it is ended; 0 when it does not get as far as a prompt."""
    done = 0
    try:
        with kv_runs.serve(args, chosen, model, flags(args, context), lambda process: ends_beyond(process, limit)) as server:
            prompt = tokens_of(context)
            while done < min(most, context - 8):
                count = min(done + STEP, context - 8)
                server.complete(prompt[:count])
                if server.process.poll() is not None:
                    break
                done = count
    except (OSError, http.client.HTTPException, kv_runs.NotUp):
        pass  # ended at its limit
    return done


def most_tokens(args: argparse.Namespace, chosen: Mode, model: pathlib.Path, limit: int) -> int:
    """Bisects the context that loads and takes one step, then fills it. A cache that takes memory as it is used loads with any."""
    low, high = 0, args.most
    if not tokens_within(args, chosen, model, high, limit, STEP):
        while high - low > STEP:
            middle = (low + high) // 2 // STEP * STEP
            low, high = (middle, high) if tokens_within(args, chosen, model, middle, limit, STEP) else (low, middle)
        high = low
    return tokens_within(args, chosen, model, high, limit, high) if high else 0


def limit_rows(args: argparse.Namespace, name: str) -> list[list[str]]:
    model = model_file(name)
    limit = os.path.getsize(model) + int(args.limit * 2**30)
    return [[model.stem, chosen.name, f"{limit / MIB:.0f}", most_tokens(args, chosen, model, limit)] for chosen in args.modes]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    kv_runs.add_arguments(parser, DEFAULT_MODELS, DEFAULT_MODES)
    parser.add_argument("--tokens", type=int, default=8192)
    parser.add_argument("--ubatch", type=int, default=128)
    parser.add_argument("--limit", type=float, metavar="GIB", help="beyond the size of the model's file")
    parser.add_argument("--most", type=int, default=32768, help="the longest context tried under a limit")
    args = kv_runs.parse(parser, DEFAULT_MODELS, DEFAULT_MODES)
    if args.tokens <= FEW:
        sys.exit(f"--tokens must be more than {FEW}")
    for name in args.models:
        if args.limit is not None:
            print(kv_runs.table(["model", "mode", "limit MiB", "tokens"], limit_rows(args, name)), flush=True)
        else:
            print(f"\nFrom {FEW} to {args.tokens} tokens, ubatch {args.ubatch}, MiB\n")
            head = ["model", "mode", "f16 cells", "grown", "ratio", "kv_live_bytes grown", "sealed"]
            print(kv_runs.table(head, growth_rows(args, name)), flush=True)


if __name__ == "__main__":
    main()
