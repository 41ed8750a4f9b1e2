#!/usr/bin/env python3
"""Tables of docs/performance.md and README.md out of the saved reports in docs/reports.

    reports.py [ROOT]           writes them
    reports.py --check [ROOT]   says which page is not what the reports give, and ends with 1

A table stands between `<!-- reports: KIND -->` and `<!-- /reports -->`, KIND one of `bench`, `quality`, `summary`. What stands between
`<!-- until reports: KIND -->` and `<!-- /until -->` goes when there is a report of that kind. tools/docs/publish.sh makes the reports.
"""
import json
import math
import pathlib
import re
import statistics
import sys

MIB = 2**20


def reports(root: pathlib.Path, kind: str) -> list[dict]:
    """By name of the file. Those that ended early do not get published."""
    found = [json.loads(file.read_text()) | {"name": file.stem} for file in sorted((root / "docs/reports").glob("*.json"))]
    return [r for r in found if r["report"] == f"alloy {kind}" and r["complete"]]


def number(value: float | None, form: str) -> str:
    return "?" if value is None or math.isnan(value) else format(value, form)


def table(head: list[str], rows: list[list[str]]) -> str:
    return "\n".join("| " + " | ".join(r) + " |" for r in [head, ["---"] * len(head), *rows])


def where(report: dict) -> str:
    machine = report["machine"]
    settings = " ".join(f"{name}={value}" for name, value in report["settings"].items())
    host = [f"{name} {report['host'][name]}" for name in ("llama.cpp", "ggml") if name in report.get("host", {})]
    parts = [report["date"][:10], f"{machine['cpu']}, {machine['cores']} cores, {machine['isa'].replace(' ', ', ')}", machine["system"],
             *host, f"ggml-alloy {report['plugin']}", settings]
    return "; ".join(part for part in parts if part) + f" ([raw](reports/{report['name']}.json))"


def interval(result: dict) -> str:
    return "" if result["ratio_low"] is None else f" [{result['ratio_low']:.2f} .. {result['ratio_high']:.2f}]"


def bench_tables(root: pathlib.Path) -> str:
    parts = []
    for report in reports(root, "bench"):
        rows = []
        for test in report["tests"]:
            r = test["result"]
            memory = "?" if r["stock_memory"] is None or r["alloy_memory"] is None else f"{r['stock_memory'] / MIB:.0f}, {r['alloy_memory'] / MIB:.0f}"
            rows.append([test["name"], f"{number(r['stock_median'], '.1f')} ({r['stock'].removeprefix('stock ')})", number(r["alloy_median"], ".1f"),
                         f"{r['ratio']:.2f}{interval(r)}", r["verdict"], memory])
        notes = "".join(f"\n\nNote: {note}." for note in report["notes"])
        parts.append(f"**{report['model']['file']}**, {report['rounds']} rounds. {where(report)}{notes}\n\n" +
                     table(["test", "stock t/s", "alloy t/s", "ratio [95 %]", "", "MiB: stock, alloy"], rows))
    return "\n\n".join(parts)


def quality_tables(root: pathlib.Path) -> str:
    parts = []
    for report in reports(root, "quality"):
        def row(name: str, d: dict, ppl: str, gates: str) -> list[str]:
            return [name, f"{d['kld']:.6f} ± {d['kld_error']:.6f}", f"{d['kld_99']:.5f}", f"{d['kld_max']:.5f}", f"{d['same_top']:.2f} ± {d['same_top_error']:.2f}", ppl, gates]
        rows = [row("floor", report["floor"], "", "")]
        for mode in report["modes"]:
            results = [g["result"] for g in mode["gates"]]
            gates = "reference" if mode.get("reference") else "" if not results else "fail" if "fail" in results else "unsure" if "unsure" in results else "pass"
            rows.append(row(mode["name"], mode["divergence"], f"{mode['change']['ppl']:+.3f} ± {mode['change']['ppl_error']:.3f}", gates))
        notes = "".join(f"\n\nNote: {note}." for note in report["notes"])
        parts.append(f"**{report['model']['file']}**, {report['chunks']} chunks of {report['context']} tokens of {report['text']}. {where(report)}{notes}\n\n" +
                     table(["mode", "mean KLD", "99 % KLD", "max KLD", "same top %", "PPL %", "gates"], rows) + probes(report))
    return "\n\n".join(parts)


def probes(report: dict) -> str:
    """Recall and greedy texts, of reports that have them."""
    if "stock_recall_summary" not in report:
        return ""
    kinds = list(report["stock_recall_summary"])

    def row(name: str, of: dict, same: str) -> list[str]:
        told = (of["recall_summary"][kind] for kind in kinds)
        return [name, *(f"{k['tokens']} of {k['of_tokens']}" + (f" (-{k['lost']} +{k['won']})" if same else "") for k in told), same]
    rows = [row("stock", {"recall_summary": report["stock_recall_summary"]}, "")]
    for mode in report["modes"]:
        if "recall_summary" in mode:
            rows.append(row(mode["name"], mode, f"{statistics.median(mode['same_tokens']):g}, {min(mode['same_tokens'])}"))
    lengths = " and ".join(map(str, report["lengths"]))
    return (f"\n\nRight tokens of things told in documents of {lengths} tokens (lost and won against stock), and tokens of greedy texts before they differ from stock's.\n\n" +
            table(["mode", *kinds, "equal tokens: median, least"], rows))


def summary_table(root: pathlib.Path) -> str:
    """One line a model: ratios of prompts and generation, each test of it."""
    rows = []
    for report in reports(root, "bench"):
        def ratios(kind: str) -> str:
            return ", ".join(f"{t['name']}: {t['result']['ratio']:.2f}" for t in report["tests"] if t["name"].startswith(kind))
        settings = "".join(f"; {name}={value}" for name, value in report["settings"].items())
        rows.append([report["model"]["file"] + settings, f"{report['machine']['cpu']}, {report['machine']['cores']} cores", ratios("pp"), ratios("tg")])
    return table(["model", "machine", "prompt: ratio to stock's better side", "generation"], rows) if rows else ""


KINDS = {"bench": bench_tables, "quality": quality_tables, "summary": summary_table}


def filled(page: str, root: pathlib.Path) -> str:
    def between(match: re.Match) -> str:
        made = KINDS[match[1]](root) or "No reports yet."
        return f"<!-- reports: {match[1]} -->\n\n{made}\n\n<!-- /reports -->"

    def until(match: re.Match) -> str:
        return "" if reports(root, match[1]) else match[0]
    page = re.sub(r"<!-- until reports: (\w+) -->.*?<!-- /until -->\n*", until, page, flags=re.S)
    return re.sub(r"<!-- reports: (\w+) -->.*?<!-- /reports -->", between, page, flags=re.S)


def main() -> None:
    words = [w for w in sys.argv[1:] if w != "--check"]
    root = pathlib.Path(words[0] if words else ".")
    is_stale = False
    for name in ["docs/performance.md", "README.md"]:
        page = (root / name).read_text()
        made = filled(page, root)
        if made == page:
            continue
        is_stale = True
        if "--check" in sys.argv:
            print(f"{name}: not what docs/reports gives; `make docs` writes it")
        else:
            (root / name).write_text(made)
    sys.exit(1 if is_stale and "--check" in sys.argv else 0)


if __name__ == "__main__":
    main()
