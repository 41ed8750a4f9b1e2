#!/usr/bin/env python3
"""What a KV cache mode changes in the next token's distribution, against stock with an f16 cache.

    kv_quality.py --host BIN_FOLDER --plugin libggml-alloy.so [--model smollm2 ..] [--context 2048:4 ..] [--mode compact ..] [--text fresh]

A context is TOKENS:CHUNKS. Each chunk is one stretch of prose, and the second half of its positions is scored. Base logits and results of
stock modes are kept in the cache folder. Pages are sealed between ubatches, so a scored token sees up to one ubatch more of exact cells than it would
token by token: `--ubatch 64` comes close to that.

`PPL` is the mode's perplexity over the one that the base run itself reported. The host's own ratio is not used: its base file keeps log-probs
in 16 bits and cuts off improbable tokens, which reads as +0.4 % even between equal models. That cut also widens the host's error of the ratio;
its part, the error that stock has against itself, is taken out in quadrature; what is left below 0.005 % is not resolved.
"""
import argparse
import json
import pathlib
import re
import sys

import kv_runs
import kv_texts
from kv_runs import CACHE, Mode, mode, model_file

DEFAULT_MODELS = ["smollm2", "gemma3"]
DEFAULT_MODES = ["stock", "stock-q8_0", "stock-q4_0", "exact", "int8", "compact", "tiny"]


def context(text: str) -> tuple[int, int]:
    tokens, _, chunks = text.partition(":")
    return int(tokens), int(chunks or 2)


def text_file(args: argparse.Namespace, model: pathlib.Path, tokens: int, chunks: int) -> pathlib.Path:
    file = CACHE / "texts" / f"{model.stem}-{args.text}-{tokens}x{chunks}.txt"
    if not file.exists():
        with kv_runs.serve(args, mode("stock"), model, ["-c", "256"]) as server:
            # The host refuses texts of less than two chunks.
            text = kv_texts.interleaved(server.tokenize, server.detokenize, args.text, tokens, max(chunks, 2) + 1)
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text)
    return file


def base_logits(args: argparse.Namespace, model: pathlib.Path, tokens: int, chunks: int) -> tuple[pathlib.Path, float]:
    """Stock with an f16 cache: (file of log-probs, perplexity)."""
    file = CACHE / "base" / f"{model.stem}-{args.text}-{tokens}x{chunks}.logits"
    told = file.with_suffix(".json")
    if not told.exists():
        file.parent.mkdir(parents=True, exist_ok=True)
        text = text_file(args, model, tokens, chunks)
        done = kv_runs.run(args, mode("stock"), "llama-perplexity", ["-m", model, "-f", text, "-c", tokens, "-b", tokens, "--chunks", chunks,
                                                                     "--kl-divergence-base", file])
        found = re.search(r"Final estimate: PPL = ([\d.]+)", done.text)
        if not found:
            sys.exit(f"llama-perplexity told no perplexity:\n{done.text[-2000:]}")
        told.write_text(json.dumps({"ppl": float(found[1]), "seconds": done.seconds}))
    return file, json.loads(told.read_text())["ppl"]


def figures(text: str) -> dict[str, list[float]]:
    """Name -> [value, error] out of the host's closing statistics."""
    names = {"kld": r"Mean +KLD:", "kld99": r"99\.0% +KLD:", "top": r"Same top p:", "ppl": r"Mean PPL\(Q\) +:",
             "ratio": r"Mean PPL\(Q\)/PPL\(base\) +:"}
    found = {name: re.search(pattern + r" +(-?[\d.]+)(?: ± +([\d.]+))?", text) for name, pattern in names.items()}
    if not all(found.values()):
        sys.exit(f"llama-perplexity told no divergence:\n{text[-2000:]}")
    return {name: [float(f[1]), float(f[2] or 0)] for name, f in found.items()}


def divergence(args: argparse.Namespace, model: pathlib.Path, base: pathlib.Path, tokens: int, chosen: Mode) -> dict:
    done = kv_runs.run(args, chosen, "llama-perplexity", ["-m", model, "-c", tokens, "-b", tokens, "-ub", args.ubatch, "--kl-divergence",
                                                          "--kl-divergence-base", base])
    return figures(done.text) | {"seen": done.seen, "seconds": done.seconds}


def row(chosen: Mode, got: dict, base_ppl: float, itself: dict) -> list[str]:
    error = max(0.0, got["ratio"][1] ** 2 - itself["ratio"][1] ** 2) ** 0.5
    return [chosen.name, f"{got['kld'][0]:.6f} ± {got['kld'][1]:.6f}", f"{got['kld99'][0]:.5f}", f"{got['top'][0]:.2f}",
            f"{100 * (got['ppl'][0] / base_ppl - 1):+.3f} ± {100 * error:.3f} %", f"{got['seconds']:.0f} s", kv_runs.sealing(got["seen"])]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    kv_runs.add_arguments(parser, DEFAULT_MODELS, DEFAULT_MODES)
    parser.add_argument("--context", action="append", dest="contexts", type=context, metavar="TOKENS:CHUNKS", help="default: 2048:4 4096:2 8192:2")
    parser.add_argument("--text", choices=kv_texts.SETS, default="choice")
    parser.add_argument("--ubatch", type=int, default=512)
    args = kv_runs.parse(parser, DEFAULT_MODELS, DEFAULT_MODES)
    for name in args.models:
        for tokens, chunks in args.contexts or [(2048, 4), (4096, 2), (8192, 2)]:
            model = model_file(name)
            base, base_ppl = base_logits(args, model, tokens, chunks)
            what = {"model": model.name, "context": tokens, "chunks": chunks, "text": args.text, "ubatch": args.ubatch}
            itself, *got = [kv_runs.kept(args, m, what, lambda m=m: divergence(args, model, base, tokens, m)) for m in [mode("stock"), *args.modes]]
            rows = [row(m, g, base_ppl, itself) for m, g in zip(args.modes, got)]
            print(f"\n{name}, {chunks} chunks of {tokens} tokens, text '{args.text}', ubatch {args.ubatch}, PPL of stock f16 {base_ppl:.4f}\n")
            print(kv_runs.table(["mode", "KLD", "99 % KLD", "same top %", "PPL", "time", "sealed"], rows), flush=True)


if __name__ == "__main__":
    main()
