#!/usr/bin/env python3
"""Opens the pages of saved reports in headless Chromium and asks it where it drew each mark.

    page_test.py ALLOY FOLDER_OF_REPORTS

Every sample must be a mark inside its chart, and marks of one chart must lie on one straight scale: pixels and values in proportion. Without
Chromium the entry is skipped (77) and says so; ALLOY_PAGE_REQUIRED=1 makes that a failure.
"""
import html
import json
import math
import os
import pathlib
import re
import shutil
import subprocess
import sys
import tempfile

PROBE = """<pre id="probe"></pre><script>
const marks = [...document.querySelectorAll('svg [data-value]')].map(m => {
  const box = m.getBoundingClientRect(), svg = m.closest('svg'), frame = svg.getBoundingClientRect();
  return {chart: svg.getAttribute('aria-label'), kind: m.tagName, cls: m.getAttribute('class'), series: m.dataset.series, x: +m.dataset.x, value: +m.dataset.value,
          left: box.left, right: box.right, top: box.top, bottom: box.bottom, shown: box.width >= 0 && box.left >= frame.left - 1 && box.right <= frame.right + 1 &&
          box.top >= frame.top - 1 && box.bottom <= frame.bottom + 1, fill: getComputedStyle(m).fill}});
const page = getComputedStyle(document.body), root = document.documentElement;
document.getElementById('probe').textContent = JSON.stringify({marks, ink: page.color, back: page.backgroundColor, width: innerWidth, needs: root.scrollWidth,
  axes: [...document.querySelectorAll('svg text')].map(a => getComputedStyle(a).fill),
  tables: document.querySelectorAll('table').length, links: [...document.querySelectorAll('[src],link,script:not(:last-of-type)')].length});
</script>"""


def chromium() -> str | None:
    return next(filter(None, map(shutil.which, ["chromium", "chromium-browser", "google-chrome", "chrome"])), None)


def look(browser: str, page: pathlib.Path, width: int = 1200, is_dark: bool = False) -> dict:
    """What the browser drew. The page forbids scripts, so that line is taken out of the copy that is looked at."""
    text = page.read_text()
    policy = re.search(r'<meta http-equiv="Content-Security-Policy"[^>]*>', text)
    assert policy and "default-src 'none'" in policy[0], "the page may reach out"
    assert not re.search(r"""(src|href)=|@import|url\(""", text), "the page names something outside of itself"
    probed = page.with_suffix(".probe.html")
    probed.write_text(text.replace(policy[0], "").replace("</body>", PROBE + "</body>"))
    with tempfile.TemporaryDirectory(prefix="alloy-page-") as profile:
        done = subprocess.run([browser, "--headless", "--no-sandbox", "--disable-gpu", f"--user-data-dir={profile}", f"--window-size={width},4000",
                               f"--blink-settings=preferredColorScheme={0 if is_dark else 1}", "--dump-dom", probed.as_uri()], capture_output=True, text=True, timeout=180)
    found = re.search(r'<pre id="probe">(.*?)</pre>', done.stdout, re.S)
    assert found and found[1], f"Chromium drew nothing: {done.stderr[-500:]}"
    return json.loads(html.unescape(found[1]))


def on_one_scale(points: list[tuple[float, float]]) -> None:
    """[value, pixel]: pixels are a straight function of values, to a pixel."""
    (v0, p0), (v1, p1) = min(points), max(points)
    if v1 == v0:
        return
    for value, pixel in points:
        expected = p0 + (value - v0) / (v1 - v0) * (p1 - p0)
        assert abs(pixel - expected) < 1, f"{value} is drawn at {pixel}, expected {expected}"


def brightness(colour: str) -> float:
    """Relative luminance (WCAG) of "rgb(1, 2, 3)"."""
    parts = [int(n) / 255 for n in re.findall(r"\d+", colour)[:3]]
    red, green, blue = [p / 12.92 if p <= 0.04045 else ((p + 0.055) / 1.055) ** 2.4 for p in parts]
    return 0.2126 * red + 0.7152 * green + 0.0722 * blue


def contrast(a: str, b: str) -> float:
    low, high = sorted([brightness(a), brightness(b)])
    return (high + 0.05) / (low + 0.05)


def check_colours(seen: dict, is_dark: bool) -> None:
    """Text and marks must stand out from the page, in both of its schemes."""
    assert (brightness(seen["back"]) < 0.1) == is_dark, f"{'dark' if is_dark else 'light'} page on {seen['back']}"
    assert contrast(seen["ink"], seen["back"]) > 7, f"{seen['ink']} on {seen['back']}"
    for colour in set(seen["axes"]):
        assert contrast(colour, seen["back"]) > 4.5, f"chart text {colour} on {seen['back']}"
    for colour in {m["fill"] for m in seen["marks"]}:
        assert contrast(colour, seen["back"]) > 2, f"a mark in {colour} on {seen['back']}"


def check_marks(marks: list[dict]) -> None:
    for chart in {m["chart"] for m in marks}:
        mine = [m for m in marks if m["chart"] == chart]
        assert all(m["shown"] for m in mine), f"{chart}: a mark lies outside of its chart"
        assert all(m["fill"] not in ("none", "rgb(0, 0, 0)") for m in mine), f"{chart}: a mark has no colour"
        dots, bars = [m for m in mine if m["kind"] == "circle"], [m for m in mine if m["kind"] == "rect"]
        if dots:
            on_one_scale([(m["value"], -(m["top"] + m["bottom"]) / 2) for m in dots])
            on_one_scale([(m["x"], (m["left"] + m["right"]) / 2) for m in dots])
        if bars:
            on_one_scale([(m["value"], m["right"] - m["left"]) for m in bars] + [(0, 0)])


def samples_drawn(marks: list[dict], report: dict) -> None:
    """Each sample of a test that a line is drawn for is a dot; each median of a test of one depth a bar."""
    depths: dict[str, set] = {}
    for test in report["tests"]:
        depths.setdefault(test["name"].split(" @ ")[0], set()).add(test["n_depth"])
    for test in report["tests"]:
        name = test["name"].split(" @ ")[0]
        for side, samples in test["samples"].items():
            speeds = sorted(samples["tokens_per_second"])
            if len(depths[name]) > 1:
                drawn = sorted(m["value"] for m in marks if m["chart"] == name and m["series"] == side and m["x"] == test["n_depth"] and m["cls"].endswith("dot"))
                assert len(drawn) == len(speeds) and all(math.isclose(a, b, rel_tol=1e-6) for a, b in zip(drawn, speeds)), f"{test['name']} {side}: {drawn}, expected {speeds}"
                memory = [m for m in marks if m["chart"] == f"{name}: peak memory" and m["series"] == side and m["x"] == test["n_depth"] and m["cls"].endswith("dot")]
                assert len(memory) == sum(b > 0 for b in samples["memory"]), f"{test['name']} {side}: {len(memory)} dots of memory"
            else:
                assert any(m["chart"].startswith(name + ",") and m["series"] == side and m["kind"] == "rect" for m in marks), f"{test['name']} {side}: no bar"
        assert any(m["chart"] == "Ratio to stock's better side" and m["series"] == test["name"] and math.isclose(m["value"], test["result"]["ratio"], rel_tol=1e-6)
                   for m in marks), f"{test['name']}: no ratio"


def divergences_drawn(marks: list[dict], report: dict) -> None:
    """A bar for the floor and each mode; a dot for each length of each kind of question."""
    bars = {m["series"]: m["value"] for m in marks if m["chart"] == "Mean KLD"}
    expected = {"floor": report["floor"], **{mode["name"]: mode["divergence"] for mode in report["modes"]}}
    assert bars.keys() == expected.keys() and all(math.isclose(bars[n], max(0, d["kld"]), rel_tol=1e-6, abs_tol=1e-12) for n, d in expected.items()), f"{bars}"
    for name, questions in {"stock": report.get("stock_recall", []), **{m["name"]: m.get("recall", []) for m in report["modes"]}}.items():
        for kind, length in {(q["kind"], q["length"]) for q in questions}:
            right = [r for q in questions if (q["kind"], q["length"]) == (kind, length) for r in q["right"]]
            share = 100 * sum(right) / len(right)
            drawn = [m["value"] for m in marks if m["chart"] == f"Recall, {kind}" and m["series"] == name and m["x"] == length]
            assert len(drawn) == 1 and math.isclose(drawn[0], share, rel_tol=1e-6, abs_tol=1e-9), f"{kind}, {name}, {length}: {drawn}, expected {share}"


def main() -> None:
    alloy, folder = sys.argv[1], pathlib.Path(sys.argv[2])
    browser = chromium()
    if not browser:
        print("skipped: no Chromium (tools/setup/packages.sh installs it)")
        sys.exit(1 if os.environ.get("ALLOY_PAGE_REQUIRED") == "1" else 77)
    reports = sorted(folder.glob("*.json"))
    assert reports, f"no reports in {folder}"
    with tempfile.TemporaryDirectory(prefix="alloy-page-") as out:
        for file in reports:
            report = json.loads(file.read_text())
            page = pathlib.Path(out, file.stem + ".html")
            subprocess.run([alloy, report["report"].split()[1], "--from", file, "--html", page], check=True, stdout=subprocess.DEVNULL)
            for width, is_dark in [(1200, False), (1200, True), (500, False)]:
                seen = look(browser, page, width, is_dark)
                assert seen["links"] == 0 and seen["tables"] > 0
                assert seen["needs"] <= seen["width"], f"{file.name}: {seen['needs']} pixels wide in a window of {seen['width']}"
                check_colours(seen, is_dark)
                check_marks(seen["marks"])
                if report["report"] == "alloy bench":
                    samples_drawn(seen["marks"], report)
                else:
                    divergences_drawn(seen["marks"], report)
            print(f"{file.name}: {len(seen['marks'])} marks in {len({m['chart'] for m in seen['marks']})} charts")


if __name__ == "__main__":
    main()
