#!/usr/bin/env python3
"""tools/docs/papers.py against pages that it must reject, each with one fault. Usage: papers_test.py SOURCE_FOLDER"""
import pathlib
import subprocess
import sys
import tempfile
import unittest

SOURCE = pathlib.Path(sys.argv.pop(1) if len(sys.argv) > 1 else ".").resolve()
sys.path.insert(0, str(SOURCE / "tools/docs"))
import papers  # noqa: E402

PAGE = """---
number: {number}
title: Page {number}
area: {area}
papers:
  - {{id: "arXiv:2401.00001", title: "A paper", year: 2024}}
decision: built
reason: It pays.
gain: {{low: 1.5, high: 2.5, of: "prompt speed", basis: measured}}
effort: 3
risk: low
feasibility: {{avx2: good, neon: fair, cuda: "good from 6.1 (DP4A), best from 8.0"}}
code:
  - {{file: src/kernel.h, symbol: attend}}
result: "measured"
---

# Page {number}

{sections}"""
SECTIONS = "\n".join(f"## {s}\n\nText.\n" for s in papers.SECTIONS)


class Pages(unittest.TestCase):
    def setUp(self):
        folder = tempfile.TemporaryDirectory()
        self.addCleanup(folder.cleanup)
        self.root = pathlib.Path(folder.name)
        self.pages = self.root / "docs/papers"
        self.pages.mkdir(parents=True)
        (self.root / "src").mkdir()
        (self.root / "src/kernel.h").write_text("void attend(int rows);\nvoid attend_block();\n")
        (self.pages / "index.md").write_text(f"# Papers\n\n{papers.BEGIN}\n{papers.END}\n\nThe end.\n")
        for area, numbers in papers.AREAS.items():
            for n in numbers:
                self.page(n).write_text(PAGE.format(number=n, area=area, sections=SECTIONS))

    def page(self, number: int) -> pathlib.Path:
        return self.pages / f"{number:02}-page.md"

    def change(self, number: int, old: str, new: str):
        text = self.page(number).read_text()
        self.assertIn(old, text)
        self.page(number).write_text(text.replace(old, new, 1))

    def problems(self, partial: bool = False) -> list[str]:
        return papers.read_all(self.root, partial)[1]

    def reports(self, *parts: str):
        problems = self.problems()
        self.assertTrue(any(all(p in problem for p in parts) for problem in problems), problems)
        self.assertEqual(len(problems), 1, problems)

    # --- pages ---
    def test_good_pages_pass(self):
        self.assertEqual(self.problems(), [])

    def test_headings_in_code_are_code(self):
        self.change(3, "## Algorithm\n\nText.\n", "## Algorithm\n\n```\n## Cost\n[x](nowhere.md)\n```\n")
        self.assertEqual(self.problems(), [])

    def test_wrong_symbol(self):
        self.change(3, "symbol: attend", "symbol: attend_rows")
        self.reports("03-page.md", "attend_rows", "src/kernel.h")

    def test_part_of_a_word_is_no_symbol(self):
        self.change(3, "symbol: attend", "symbol: block")
        self.reports("03-page.md", "block")

    def test_missing_file(self):
        self.change(3, "src/kernel.h", "src/kernels.h")
        self.reports("03-page.md", "src/kernels.h", "not exist")

    def test_built_without_code(self):
        self.change(3, "code:\n  - {file: src/kernel.h, symbol: attend}", "code: []")
        self.reports("03-page.md", "code is empty")

    def test_missing_section(self):
        self.change(7, "## Cost\n\nText.\n", "")
        self.reports("07-page.md", "'Cost' is missing")

    def test_empty_section(self):
        self.change(7, "## Cost\n\nText.\n", "## Cost\n\n")
        self.reports("07-page.md", "'Cost' is empty")

    def test_sections_out_of_order(self):
        self.change(7, "## Cost", "## Swapped")
        self.change(7, "## Accuracy", "## Cost")
        self.change(7, "## Swapped", "## Accuracy")
        self.reports("07-page.md", "order")

    def test_foreign_section(self):
        self.change(7, "## Cost", "## Price\n\nText.\n\n## Cost")
        self.reports("07-page.md", "'Price'")

    def test_duplicate_number(self):
        (self.pages / "05-again.md").write_text(self.page(5).read_text())
        self.reports("number 5 is used 2 times")

    def test_number_of_another_page(self):
        self.page(6).unlink()
        self.change(5, "number: 5", "number: 6")
        self.assertEqual(self.problems(), ["05-page.md: number 6 does not fit the file's name", "no page has number 5"])

    def test_missing_number(self):
        self.page(42).unlink()
        self.reports("no page has number 42")
        self.assertEqual(self.problems(partial=True), [])

    def test_number_beyond(self):
        self.page(43).write_text(self.page(42).read_text().replace("number: 42", "number: 43"))
        self.assertIn("number 43 is beyond 42", self.problems())

    def test_keys(self):
        self.change(9, "risk: low\n", "")
        self.reports("09-page.md", "keys are")
        self.change(9, "effort: 3\n", "")
        self.change(9, "decision: built\n", "effort: 3\nrisk: low\ndecision: built\n")
        self.assertIn("keys are", self.problems()[0])

    def test_values(self):
        for old, new, word in (("decision: built", "decision: done", "decision"), ("effort: 3", "effort: 4", "effort"), ("risk: low", "risk: none", "risk"),
                               ("area: attention and KV", "area: attention", "area"), ("low: 1.5", "low: 3.5", "gain"), ("low: 1.5", "low: 0", "gain"),
                               ("low: 1.5", "low: some", "gain"), ("basis: measured", "basis: felt", "basis"), ("neon: fair", "neon: unfair", "neon"),
                               (", cuda:", ", gpu:", "feasibility"), ("arXiv:2401.00001", "arxiv 2401", "arXiv"), ("reason: It pays.", "reason:", "reason")):
            with self.subTest(new):
                self.change(9, old, new)
                self.assertTrue(self.problems() and word in self.problems()[0], self.problems())
                self.change(9, new, old)

    def test_no_front_matter(self):
        self.page(9).write_text(SECTIONS)
        self.assertIn("09-page.md: no front matter between two lines ---", self.problems())

    def test_broken_yaml(self):
        self.change(9, "title: Page 9", "title: [Page 9")
        self.assertIn("09-page.md: front matter is not YAML", "\n".join(self.problems()))

    def test_links(self):
        self.change(9, "Text.", "See [one](10-page.md), [two](https://example.com/x), [three](index.md#by-number), [four](11-pages.md#cost).")
        self.reports("09-page.md", "11-pages.md")

    # --- what is made from them ---
    def run_tool(self, *arguments: str) -> subprocess.CompletedProcess:
        return subprocess.run([sys.executable, str(SOURCE / "tools/docs/papers.py"), *arguments, str(self.root)], capture_output=True, text=True)

    def make(self):
        """What the tool writes, with a drawing of no more than its data: matplotlib may be missing."""
        pages = papers.read_all(self.root, False)[0]
        index = self.pages / "index.md"
        index.write_text(papers.index_with(index.read_text(), pages))
        (self.pages / "roi.svg").write_text("<!-- plotted\n" + "".join(line + "\n" for line in papers.plotted(pages)) + "-->\n<svg/>\n")

    def test_check_passes_on_what_was_made(self):
        self.change(12, "title: Page 12", 'title: "A | B --> C"')
        self.make()
        done = self.run_tool("--check")
        self.assertEqual((done.returncode, done.stdout), (0, "42 pages, all as they should be\n"), done.stderr)
        self.assertTrue((self.pages / "index.md").read_text().endswith("The end.\n"))

    def test_check_says_what_differs(self):
        self.make()
        self.change(12, "high: 2.5", "high: 2.75")
        done = self.run_tool("--check")
        self.assertEqual(done.returncode, 1)
        for part in ("index.md differs", "roi.svg differs", "1.5 to 2.75", '-[12, "Page 12", "built", 3, 1.5, 2.5]'):
            self.assertIn(part, done.stdout)

    def test_check_without_anything_made(self):
        done = self.run_tool("--check")
        self.assertEqual(done.returncode, 1)
        self.assertIn("index.md differs", done.stdout)

    def test_index_without_marks(self):
        (self.pages / "index.md").write_text("# Papers\n")
        self.assertIn("index.md: no lines", self.run_tool("--check").stdout)

    def test_labels_are_short(self):
        self.assertEqual(papers.shortened("Min-p"), "Min-p")
        self.assertEqual(papers.shortened("Mixtures of experts on CPUs: KTransformers, Fiddler"), "Mixtures of experts on CPUs …")

    def test_labels_keep_their_distance(self):
        self.assertEqual(papers.spread([1.0, 5.0], 1, 0, 10), [1.0, 5.0])
        self.assertEqual(papers.spread([5.0, 5.0, 5.0], 1, 0, 10), [4.0, 5.0, 6.0])
        self.assertEqual(papers.spread([0.0, 0.0, 9.0], 1, 0, 10), [0.0, 1.0, 9.0])
        self.assertEqual(papers.spread([9.9, 10.0], 1, 0, 10), [9.0, 10.0])


if __name__ == "__main__":
    unittest.main()
