#!/usr/bin/env python3
"""Does a KV cache mode still find what was said long ago?

    kv_recall.py --host BIN_FOLDER --plugin libggml-alloy.so [--model smollm2 ..] [--length 4096 ..] [--mode compact ..] [--documents N]

A document is prose of a given length with one pass key (a name and five random digits) and some blocks of 64 tokens of random words at random
depths, none in the last 256 tokens, which a sealing cache keeps exact. Asked after the document, each from the same state:
  pass key   "The pass key of NAME is": five digits
  block      its first 16 tokens again: the next 16 tokens (induction)
Answers are teacher-forced, one decode step a token, so that one wrong token does not spoil the rest. Modes see the same documents and are
compared in pairs: `lost` and `won` count tokens that only the first mode of the list, or only this one, got right.
"""
import argparse
import math
import random
import re
import sys
import time

import kv_runs
import kv_texts
from kv_runs import Server, mode, model_file

DEFAULT_MODELS = ["smollm2", "gemma3"]
DEFAULT_MODES = ["stock", "exact", "int8", "compact", "tiny", "stock-q4_0"]
BLOCK, HEAD, SCORED = 64, 16, 16
QUESTION = 96     # tokens kept free at the end of the context for questions and answers
EXACT_TAIL = 256  # no fact in the last tokens of a document
NAMES = "Arthur Beatrice Conrad Deborah Edmund Felicity Gregory Harriet Isidore Josephine Kenneth Lucinda Martin Nathalie Oliver Patricia".split()


def insertion_points(rng: random.Random, length: int, facts: int) -> list[int]:
    """One in each of equal stretches, in random order: depths are spread evenly and facts do not overlap."""
    stretch = (length - EXACT_TAIL) / facts
    points = [int(i * stretch + rng.random() * (stretch - 2 * BLOCK)) for i in range(facts)]
    rng.shuffle(points)
    return points


def document(server: Server, filler: list[int], words: list[str], seed: int, length: int, blocks: int) -> tuple[list[int], list[dict]]:
    """(tokens, questions): a question has a kind, its depth, the tokens that ask and those that answer."""
    rng = random.Random(f"{seed}/{length}")
    name, digits = rng.choice(NAMES), "".join(rng.choices("0123456789", k=5))
    key = server.tokenize(f"\n\nThe pass key of {name} is {digits}. Remember it: the pass key of {name} is {digits}.\n\n")
    facts = [("pass key", key, server.tokenize(f"\n\nThe pass key of {name} is"), server.tokenize(f" {digits}"))]
    newline = server.tokenize("\n\n")
    for _ in range(blocks):
        block = server.tokenize(" ".join(rng.sample(words, 2 * BLOCK)))[:BLOCK]
        facts.append(("block", newline + block + newline, newline + block[:HEAD], block[HEAD:HEAD + SCORED]))
    room = length - QUESTION - sum(len(told) for _, told, _, _ in facts)
    start = rng.randrange(len(filler) - room)
    prose = filler[start:start + room]
    points = insertion_points(rng, room, len(facts))
    tokens, at = server.tokenize("", special=True), 0
    for point, (_, told, _, _) in sorted(zip(points, facts)):
        tokens += prose[at:point] + told
        at = point
    questions = [{"kind": kind, "depth": point / room, "asks": asks, "answers": answers} for point, (kind, _, asks, answers) in zip(points, facts)]
    return tokens + prose[at:], questions


def answer(server: Server, told: list[int], question: dict) -> tuple[list[bool], float]:
    """(which tokens greedy decoding gets right, the mean probability of the right token)."""
    right, probability = [], 0.0
    for i, expected in enumerate(question["answers"]):
        got = server.complete(told + question["asks"] + question["answers"][:i], 1, 10)
        # Asking must go on from the document; a host that computes it again would measure something else.
        if i > 0 and got["timings"]["prompt_n"] > 4:
            sys.exit(f"the host computed {got['timings']['prompt_n']} tokens again for one more")
        tops = got["completion_probabilities"][0]["top_logprobs"]
        right.append(tops[0]["id"] == expected)
        probability += sum(math.exp(t["logprob"]) for t in tops if t["id"] == expected)
    return right, probability / len(question["answers"])


def recall(args: argparse.Namespace, chosen: kv_runs.Mode, name: str, length: int) -> dict:
    """Kind -> list of [right tokens, probability, depth], and the counters."""
    started = time.monotonic()
    results: dict = {"pass key": [], "block": []}
    with kv_runs.serve(args, chosen, model_file(name), ["-c", length, "-ub", args.ubatch]) as server:
        text = "\n\n".join(kv_texts.texts(args.text))
        filler = server.tokenize(text[:40 * args.documents * length])
        words = sorted(set(re.findall(r"\b[a-z]{4,9}\b", text)))
        for seed in range(args.documents):
            told, questions = document(server, filler, words, seed, length, args.blocks)
            server.complete(told)
            for question in questions:
                right, probability = answer(server, told, question)
                results[question["kind"]].append([right, probability, question["depth"]])
        seen = kv_runs.counters(args.alloy, server.process.pid, server.runtime) if chosen.plugin else {}
        kv_runs.require_plugin(chosen, seen)
    return {"kinds": results, "seen": seen, "seconds": time.monotonic() - started}


def cells(trials: list, reference: list) -> list[str]:
    """whole answers, tokens, mean probability, tokens lost and won against the reference."""
    tokens = [t for right, _, _ in trials for t in right]
    of_reference = [t for right, _, _ in reference for t in right]
    lost = sum(r and not t for r, t in zip(of_reference, tokens))
    won = sum(t and not r for r, t in zip(of_reference, tokens))
    return [f"{sum(all(right) for right, _, _ in trials)}/{len(trials)}", f"{100 * sum(tokens) / len(tokens):.1f}",
            f"{sum(p for _, p, _ in trials) / len(trials):.4f}", f"-{lost} +{won} of {len(tokens)}"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    kv_runs.add_arguments(parser, DEFAULT_MODELS, DEFAULT_MODES)
    parser.add_argument("--length", action="append", dest="lengths", type=int, help="default: 1024 2048 4096 8192")
    parser.add_argument("--documents", type=int, default=20, help="for each length; one pass key each")
    parser.add_argument("--blocks", type=int, default=2, help="for each document")
    parser.add_argument("--text", choices=kv_texts.SETS, default="choice")
    parser.add_argument("--ubatch", type=int, default=512)
    args = kv_runs.parse(parser, DEFAULT_MODELS, DEFAULT_MODES)
    for name in args.models:
        for length in args.lengths or [1024, 2048, 4096, 8192]:
            what = {"recall": 1, "model": model_file(name).name, "length": length, "documents": args.documents, "blocks": args.blocks,
                    "text": args.text, "ubatch": args.ubatch}
            got = [kv_runs.kept(args, m, what, lambda m=m: recall(args, m, name, length)) for m in args.modes]
            print(f"\n{name}, {args.documents} documents of {length} tokens, text '{args.text}', ubatch {args.ubatch}\n")
            head = ["answers", "tokens %", "mean p", f"against {args.modes[0].name}"]
            print(kv_runs.table(["mode", *(f"{kind}: {h}" for kind in ("pass key", "block") for h in head), "time", "sealed"],
                                [[m.name, *(c for kind in ("pass key", "block") for c in cells(g["kinds"][kind], got[0]["kinds"][kind])),
                                  f"{g['seconds']:.0f} s", kv_runs.sealing(g["seen"])] for m, g in zip(args.modes, got)]), flush=True)


if __name__ == "__main__":
    main()
