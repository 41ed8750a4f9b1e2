#!/usr/bin/env python3
"""What tools/docs/reports.py makes of saved reports.

    reports_test.py ROOT_OF_THE_PROJECT
"""
import json
import pathlib
import subprocess
import sys
import tempfile
import unittest

ROOT = pathlib.Path(sys.argv.pop(1) if len(sys.argv) > 1 else ".")
PAGE = """<!-- until reports: bench -->
by hand
<!-- /until -->
<!-- reports: summary -->
out of date
<!-- /reports -->
<!-- reports: bench -->
<!-- /reports -->
<!-- reports: quality -->
<!-- /reports -->
"""


class Tables(unittest.TestCase):
    def setUp(self):
        folder = tempfile.TemporaryDirectory(prefix="alloy-reports-")
        self.addCleanup(folder.cleanup)
        self.root = pathlib.Path(folder.name)
        (self.root / "docs/reports").mkdir(parents=True)
        for page in ("README.md", "docs/performance.md"):
            (self.root / page).write_text(PAGE)

    def save(self, kind: str, **changes) -> None:
        machine = {"cpu": "Some CPU", "cores": 4, "isa": "avx2", "system": "Linux"}
        report = json.loads((ROOT / f"tests/alloy_tool/reports/{kind}.json").read_text()) | {"complete": True, "plugin": "9.9.9", "machine": machine} | changes
        (self.root / f"docs/reports/known-{kind}.json").write_text(json.dumps(report))

    def run_script(self, *words: str) -> int:
        return subprocess.run([sys.executable, ROOT / "tools/docs/reports.py", *words, self.root], stdout=subprocess.DEVNULL).returncode

    def page(self) -> str:
        return (self.root / "README.md").read_text()

    def test_tables_are_the_reports(self):
        self.save("bench", settings={"GGML_ALLOY_KV": "compact"}, host={"program": "llama-bench", "llama.cpp": "7 (abc)", "ggml": "0.0.1"})
        self.save("quality")
        self.assertEqual(self.run_script("--check"), 1)
        self.assertEqual(self.run_script(), 0)
        self.assertEqual(self.run_script("--check"), 0)
        page = self.page()
        self.assertNotIn("by hand", page)
        self.assertNotIn("out of date", page)
        self.assertIn("| pp512 | 100.0 (-fa on) | 200.0 | 2.00 [2.00 .. 2.50] | faster | 300, 120 |", page)
        self.assertIn("llama.cpp 7 (abc); ggml 0.0.1; ggml-alloy 9.9.9", page)
        self.assertIn("GGML_ALLOY_KV=compact ([raw](reports/known-bench.json))", page)
        self.assertIn("pp512 @ d4096: 2.54", page)
        self.assertIn("| compact | 0.006426 ± 0.000443 |", page)
        self.assertIn("| stock | 12 of 12 | 54 of 64 |", page)

    def test_what_ended_early_is_left_out(self):
        self.save("bench", complete=False)
        self.assertEqual(self.run_script(), 0)
        self.assertIn("by hand", self.page())
        self.assertIn("No reports yet.", self.page())


if __name__ == "__main__":
    unittest.main()
