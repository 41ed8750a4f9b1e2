#!/usr/bin/env python3
"""Checks the pages of docs/papers and writes what is made from them: the tables of index.md, and roi.svg, gain against effort.

    papers.py [--check] [--partial] ROOT      (`make docs` writes; a test runs --check)

--check    writes nothing: compares with what is committed, says what differs and exits with 1
--partial  pages may be missing

The text of index.md around the tables is written by hand. roi.svg carries the data that it shows in a comment, and that is what is compared:
drawings of two versions of matplotlib differ, and without drawing matplotlib is not needed.
"""
import argparse
import collections
import dataclasses
import difflib
import json
import math
import pathlib
import re
import sys

try:
    import yaml
except ImportError:
    sys.exit("papers.py needs PyYAML: install python3-yaml, or use the interpreter that tools/setup/venv.sh prints")

NUMBERS = range(1, 43)
KEYS = ["number", "title", "area", "papers", "decision", "reason", "gain", "effort", "risk", "feasibility", "code", "result"]
AREAS = {"attention and KV": range(1, 15), "weights, sparsity, kernels": range(15, 29), "sampling, decoding, memory": range(29, 43)}
DECISIONS = ["built", "built in part", "planned", "watched", "rejected"]
BASES = ["measured", "published", "estimated"]
EFFORTS = [0.5, 1, 2, 3, 5, 8, 13]
RISKS = ["low", "medium", "high"]
TARGETS = {"avx2": "AVX2", "neon": "NEON", "cuda": "CUDA"}
GRADES = ["good", "fair", "poor", "none"]
SECTIONS = ["What it claims", "What it really is", "Algorithm", "Cost", "Accuracy", "llama.cpp today", "Integration", "Feasibility", "Expected gain",
            "Risk", "Decision", "Here", "Open questions", "Sources"]
BEGIN, END = "<!-- tables: tools/docs/papers.py -->", "<!-- end of tables -->"


# --- pages ----------------------------------------------------------------------------------------------------------------------------
@dataclasses.dataclass
class Page:
    file: pathlib.Path
    meta: dict
    body: str

    def __getattr__(self, key: str):
        return self.meta[key]

    @property
    def middle(self) -> float:
        return math.sqrt(self.gain["low"] * self.gain["high"])


class Wrong(Exception):
    pass


def read(file: pathlib.Path) -> Page:
    found = re.match(r"---\n(.*?\n)---\n(.*)", file.read_text(), re.DOTALL)
    if not found:
        raise Wrong("no front matter between two lines ---")
    try:
        meta = yaml.safe_load(found.group(1))
    except yaml.YAMLError as error:
        raise Wrong("front matter is not YAML: " + " ".join(str(error).split())) from None
    if not isinstance(meta, dict) or list(meta) != KEYS:
        raise Wrong(f"keys are {', '.join(meta) if isinstance(meta, dict) else 'none'}; expected, in this order, {', '.join(KEYS)}")
    return Page(file, meta, found.group(2))


def is_text(value) -> bool:
    return isinstance(value, str) and value.strip() != ""


def is_number(value) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)


def has(value, *keys: str) -> bool:
    return isinstance(value, dict) and list(value) == list(keys)


def problems_of_values(page: Page):
    meta = page.meta
    if not re.fullmatch(rf"{meta['number']:02}-[a-z0-9-]+\.md" if isinstance(meta["number"], int) else r"(?!)", page.file.name):
        yield f"number {meta['number']!r} does not fit the file's name"
    for key in ("title", "reason", "result"):
        if not is_text(meta[key]):
            yield f"{key} is not a text"
    for key, allowed in (("area", list(AREAS)), ("decision", DECISIONS), ("effort", EFFORTS), ("risk", RISKS)):
        if meta[key] not in allowed:
            yield f"{key} {meta[key]!r} is none of {', '.join(map(str, allowed))}"
    if meta["area"] in AREAS and meta["number"] not in AREAS[meta["area"]]:
        yield f"number {meta['number']} does not belong to area {meta['area']!r}"
    papers = meta["papers"]
    if not isinstance(papers, list) or not papers or not all(has(p, "id", "title", "year") for p in papers):
        yield "papers is not a list of {id, title, year}"
    else:
        for p in papers:
            if not is_text(p["id"]) or re.match("arxiv", p["id"], re.IGNORECASE) and not re.fullmatch(r"arXiv:\d{4}\.\d{4,5}", p["id"]):
                yield f"id {p['id']!r} is no arXiv:YYMM.NNNNN"
            if not is_text(p["title"]) or not isinstance(p["year"], int):
                yield f"title or year of {p['id']} is wrong"
    gain = meta["gain"]
    if not has(gain, "low", "high", "of", "basis") or not is_number(gain["low"]) or not is_number(gain["high"]):
        yield "gain is not {low, high, of, basis}"
    else:
        if not 0 < gain["low"] <= gain["high"]:
            yield f"gain from {gain['low']} to {gain['high']} is no range of ratios"
        if not is_text(gain["of"]) or gain["basis"] not in BASES:
            yield f"gain of {gain['of']!r}, basis {gain['basis']!r}: basis is one of {', '.join(BASES)}"
    feasibility = meta["feasibility"]
    if not has(feasibility, *TARGETS):
        yield f"feasibility is not {{{', '.join(TARGETS)}}}"
    else:
        for target, text in feasibility.items():
            if not is_text(text) or grade(text) not in GRADES:
                yield f"feasibility of {target}, {text!r}, does not begin with {', '.join(GRADES)}"


def problems_of_code(page: Page, root: pathlib.Path):
    code = page.code
    if not isinstance(code, list) or not all(has(c, "file", "symbol") and is_text(c["file"]) and is_text(c["symbol"]) for c in code):
        yield "code is not a list of {file, symbol}"
        return
    if str(page.decision).startswith("built") and not code:
        yield f"decision is {page.decision!r}, but code is empty"
    for c in code:
        file = root / c["file"]
        if not file.is_file():
            yield f"code: {c['file']} does not exist"
        elif not re.search(rf"(?<!\w){re.escape(c['symbol'])}(?!\w)", file.read_text()):
            yield f"code: {c['symbol']} does not occur in {c['file']}"


def problems_of_body(page: Page):
    text = re.sub(r"^```.*?^```", "(code)", page.body, flags=re.DOTALL | re.MULTILINE)
    headings = re.findall(r"^## +(.*?) *$", text, re.MULTILINE)
    if headings != SECTIONS:
        missing = [s for s in SECTIONS if s not in headings]
        extra = [h for h in headings if h not in SECTIONS]
        yield "; ".join([f"section {s!r} is missing" for s in missing] + [f"section {h!r} is not one of ours" for h in extra]
                        or ["sections are repeated or not in order"])
    for part in re.split(r"^## +", text, flags=re.MULTILINE)[1:]:
        name, _, rest = part.partition("\n")
        if not rest.strip():
            yield f"section {name!r} is empty"


def problems_of_links(file: pathlib.Path, text: str):
    text = re.sub(r"^```.*?^```|`[^`\n]*`", "", text, flags=re.DOTALL | re.MULTILINE)
    for link in re.findall(r"\]\(([^)\s]+)\)", text):
        path = link.partition("#")[0]
        if path and not re.match(r"[a-z]+:", link) and not (file.parent / path).exists():
            yield f"link to {link}, which does not exist"


def read_all(root: pathlib.Path, partial: bool) -> tuple[list[Page], list[str]]:
    """Pages by number, and what is wrong with them, a line each."""
    pages, problems, unread = [], [], []
    for file in sorted((root / "docs/papers").glob("[0-9]*.md")):
        try:
            page = read(file)
        except Wrong as error:
            problems.append(f"{file.name}: {error}")
            unread.append(file.name[:2])
            continue
        wrong = [*problems_of_values(page), *problems_of_code(page, root), *problems_of_body(page), *problems_of_links(file, page.body)]
        problems += [f"{file.name}: {w}" for w in wrong]
        pages.append(page)
    count = collections.Counter(p.number for p in pages if isinstance(p.number, int))
    problems += [f"number {n} is used {times} times" for n, times in sorted(count.items()) if times > 1]
    problems += [f"number {n} is beyond {NUMBERS[-1]}" for n in sorted(count) if n not in NUMBERS]
    missing = [str(n) for n in NUMBERS if n not in count and f"{n:02}" not in unread]
    if missing and not partial:
        problems.append("no page has number " + ", ".join(missing))
    return sorted(pages, key=lambda p: str(p.file)), problems


# --- tables ---------------------------------------------------------------------------------------------------------------------------
def grade(feasibility: str) -> str:
    return re.split(r"\W", feasibility.strip(), maxsplit=1)[0]


def link(page: Page) -> str:
    return f"[{page.title}]({page.file.name})"


def ratio(value: float) -> str:
    return f"{value:.2f}".rstrip("0").rstrip(".") if value < 10 else f"{value:.0f}"


def span(gain: dict) -> str:
    return ratio(gain["low"]) if gain["low"] == gain["high"] else f"{ratio(gain['low'])} to {ratio(gain['high'])}"


def table(head: list[str], rows: list[list]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "".join("| " + " | ".join(str(cell).replace("|", "\\|") for cell in line) + " |\n" for line in lines)


def by_number(pages: list[Page]) -> str:
    return table(["#", "page", "area", "decision", "gain", "of", "basis", "weeks", "risk", *TARGETS.values()],
                 [[p.number, link(p), p.area, p.decision, span(p.gain), p.gain["of"], p.gain["basis"], p.effort, p.risk,
                   *(grade(p.feasibility[t]) for t in TARGETS)] for p in pages])


def by_decision(pages: list[Page]) -> str:
    return table(["decision", "#", "page", "why", "code", "result"],
                 [[p.decision, p.number, link(p), p.reason, ", ".join(f"[`{c['symbol']}`](../../{c['file']})" for c in p.code), p.result]
                  for p in sorted(pages, key=lambda p: DECISIONS.index(p.decision))])


def by_gain(pages: list[Page]) -> str:
    return table(["gain", "of", "basis", "weeks", "#", "page", "decision"],
                 [[span(p.gain), p.gain["of"], p.gain["basis"], p.effort, p.number, link(p), p.decision]
                  for p in sorted(pages, key=lambda p: (-p.middle, p.number))])


def tables(pages: list[Page]) -> str:
    count = collections.Counter(p.decision for p in pages)
    return (f"{len(pages)} pages: " + ", ".join(f"{count[d]} {d}" for d in DECISIONS if count[d]) + ".\n\n"
            "## By number\n\n" + by_number(pages) + "\n## By decision\n\n" + by_decision(pages) + "\n## By expected gain\n\n" + by_gain(pages))


def index_with(text: str, pages: list[Page]) -> str:
    before, begin, rest = text.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not begin or not end:
        raise Wrong(f"index.md: no lines {BEGIN} and {END}")
    return f"{before}{BEGIN}\n\n{tables(pages)}\n{END}{after}"


# --- drawing --------------------------------------------------------------------------------------------------------------------------
def plotted(pages: list[Page]) -> list[str]:
    """What roi.svg shows, a line a page. No two hyphens in a row, which a comment must not have."""
    return [json.dumps([p.number, p.title, p.decision, p.effort, p.gain["low"], p.gain["high"]]).replace("--", "-\\u002d") for p in pages]


def plotted_in(svg: str) -> list[str]:
    found = re.search(r"<!-- plotted\n(.*?)-->", svg, re.DOTALL)
    return found.group(1).splitlines() if found else []


STYLES = {"built": ("#0072B2", "o"), "built in part": ("#56B4E9", "s"), "planned": ("#009E73", "^"), "watched": ("#E69F00", "D"),
          "rejected": ("#9A9A9A", "X")}


def spread(wanted: list[float], gap: float, low: float, high: float) -> list[float]:
    """Ascending positions as near to the wanted ones (ascending) as a distance of `gap` allows: groups that touch share their shift."""
    groups: list[list[float]] = []  # [sum of (wanted - place in the group), members]
    for w in wanted:
        groups.append([w, 1])
        while len(groups) > 1 and groups[-2][0] / groups[-2][1] + groups[-2][1] * gap > groups[-1][0] / groups[-1][1]:
            total, members = groups.pop()
            groups[-1][0] += total - members * groups[-1][1] * gap
            groups[-1][1] += members
    places = [total / members + i * gap for total, members in groups for i in range(int(members))]
    for i in range(len(places)):  # into [low, high]
        places[i] = max(places[i], low + i * gap)
    for i in range(len(places)):
        places[-1 - i] = min(places[-1 - i], high - i * gap)
    return places


def shortened(title: str, most: int = 34) -> str:
    """At the end of a word, for labels."""
    if len(title) <= most:
        return title
    return re.sub(r"[\s,:;(&]+\S*$", "", title[:most]) + " …"


def lanes_of(pages: list[Page]) -> list[int]:
    """A lane for each page, so that the ranges of one lane do not touch."""
    taken: list[float] = []  # the highest ratio of each lane
    lanes = {}
    for p in sorted(pages, key=lambda p: (p.gain["low"], p.number)):
        free = [i for i, high in enumerate(taken) if p.gain["low"] > high * 1.06]
        lane = free[0] if free else len(taken)
        taken[lane:lane + 1] = [p.gain["high"]]
        lanes[p.number] = lane
    return [lanes[p.number] for p in pages]


def draw(pages: list[Page]) -> str:
    import io
    import matplotlib
    matplotlib.use("svg")
    from matplotlib import lines, pyplot, ticker
    matplotlib.rcParams |= {"svg.hashsalt": "ggml-alloy", "svg.fonttype": "path", "font.family": "DejaVu Sans", "font.size": 9}

    # Inches, as text takes them. A column is an effort: lanes of markers, then their labels.
    lane_width, character, text_height, height = 0.11, 0.059, 0.155, 8.6
    columns = [(effort, sorted((p for p in pages if p.effort == effort), key=lambda p: (p.middle, -p.number))) for effort in EFFORTS]
    columns = [(effort, inside) for effort, inside in columns if inside]
    text = {p.number: f"{p.number}  {shortened(p.title)}" for p in pages}
    widths = [0.45 + lane_width * (max(lanes_of(inside)) + 1) + character * max(len(text[p.number]) for p in inside) for _, inside in columns]

    bottom = min([0.9, *(p.gain["low"] for p in pages)]) / 1.06
    top = max([2, *(p.gain["high"] for p in pages)]) * 1.1
    figure, axes = pyplot.subplots(figsize=(sum(widths) + 0.8, height), layout="constrained")
    line_gap = text_height / (height - 0.9) * math.log(top / bottom)  # of a line of text, in log gain

    left = 0.0
    middles = []
    for number, ((effort, inside), width) in enumerate(zip(columns, widths)):
        ground = "#F5F5F5" if number % 2 else "white"
        axes.axvspan(left, left + width, color=ground, zorder=0, linewidth=0)
        lanes = lanes_of(inside)
        label_at = left + 0.3 + lane_width * (max(lanes) + 1)
        labels = spread([math.log(p.middle) for p in inside], line_gap, math.log(bottom) + line_gap, math.log(top) - line_gap)
        for p, lane, label in zip(inside, lanes, labels):
            x = left + 0.15 + lane_width * lane
            colour, marker = STYLES[p.decision]
            axes.plot([x, x], [p.gain["low"], p.gain["high"]], color=colour, linewidth=1.6, alpha=0.55, zorder=3, solid_capstyle="butt")
            axes.plot([x], [p.middle], color=colour, marker=marker, markersize=6, markeredgecolor="white", markeredgewidth=0.6, zorder=4)
            axes.plot([x, label_at - 0.03], [p.middle, math.exp(label)], color=colour, linewidth=0.5, alpha=0.7, zorder=2)
            axes.text(label_at, math.exp(label), text[p.number], va="center", fontsize=7.4, zorder=5,
                      color="#222222" if p.decision != "rejected" else "#6F6F6F", bbox={"facecolor": ground, "linewidth": 0, "pad": 0.6})
        middles.append(left + width / 2)
        left += width

    axes.axhline(1, color="#444444", linewidth=0.9, linestyle=(0, (4, 3)), zorder=1)
    axes.set_yscale("log")
    axes.set_ylim(bottom, top)
    axes.set_xlim(0, left)
    ticks = [t for t in (0.1, 0.2, 0.3, 0.5, 0.7, 1, 1.4, 2, 3, 4, 6, 8, 12, 20, 30, 50) if bottom <= t <= top]
    axes.yaxis.set_major_locator(ticker.FixedLocator(ticks))
    axes.yaxis.set_major_formatter(ticker.FuncFormatter(lambda y, _: ratio(y)))
    axes.yaxis.set_minor_locator(ticker.NullLocator())
    axes.set_xticks(middles, [f"{effort:g}" for effort, _ in columns])
    axes.tick_params(axis="x", length=0)
    axes.set_xlabel("effort, person-weeks")
    axes.set_ylabel("expected gain over stock llama.cpp, ratio (line: range, marker: its middle)")
    axes.grid(axis="y", color="#E2E2E2", linewidth=0.6)
    axes.set_axisbelow(True)
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
    count = collections.Counter(p.decision for p in pages)
    figure.legend(handles=[lines.Line2D([], [], color=c, marker=m, linestyle="", label=f"{d} ({count[d]})") for d, (c, m) in STYLES.items() if count[d]],
                  loc="outside upper right", ncols=len(STYLES), frameon=False)
    out = io.StringIO()
    figure.savefig(out, format="svg", facecolor="white", metadata={"Date": None, "Creator": None, "Title": "Gain against effort"})
    pyplot.close(figure)
    head, svg, rest = out.getvalue().partition("<svg")
    comment = "<!-- plotted\n" + "".join(line + "\n" for line in plotted(pages)) + "-->\n"
    return "".join(line.rstrip() + "\n" for line in (head + comment + svg + rest).splitlines())


# --- command --------------------------------------------------------------------------------------------------------------------------
def difference(name: str, committed: list[str], made: list[str]) -> list[str]:
    lines = [d[:200] for d in difflib.unified_diff(committed, made, "committed", "made from the pages", "", "", n=0, lineterm="")][:20]
    return [f"{name} differs from what the pages give (`make docs` writes it):", *lines] if lines else []


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true")
    parser.add_argument("--partial", action="store_true")
    parser.add_argument("root", type=pathlib.Path)
    args = parser.parse_args()

    pages, problems = read_all(args.root, args.partial)
    index_file, svg_file = args.root / "docs/papers/index.md", args.root / "docs/papers/roi.svg"
    index = index_file.read_text() if index_file.exists() else ""
    by_hand = index.partition(BEGIN)[0] + index.partition(END)[2]
    problems += [f"index.md: {p}" for p in problems_of_links(index_file, by_hand.replace(f"({svg_file.name})", ""))]
    if not problems:
        try:
            made = index_with(index, pages)
            if args.check:
                problems += difference("index.md", index.splitlines(), made.splitlines())
                problems += difference("roi.svg", plotted_in(svg_file.read_text() if svg_file.exists() else ""), plotted(pages))
            else:
                index_file.write_text(made)
                svg_file.write_text(draw(pages))
        except Wrong as error:
            problems.append(str(error))
    print("\n".join(problems) if problems else f"{len(pages)} pages, all as they should be")
    return 1 if problems else 0


if __name__ == "__main__":
    sys.exit(main())
