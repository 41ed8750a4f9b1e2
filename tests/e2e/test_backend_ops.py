"""Unmodified test-backend-ops on our device: how many cases of each operation it supports and passes.

With --full every operation, which takes an hour on two cores; else those that matter most to us. A backend that supports nothing
passes that suite, so each operation has a minimum of supported cases here, a little below what b11434 gives.
"""
import collections
import re
import subprocess
import sys

import harness
from harness import alloy

# operation: cases that must be supported. Ours (row kernels) first, then what llama.cpp's graphs cannot do without.
MINIMUM = {"RMS_NORM": 45, "RMS_NORM_MUL_ADD": 30, "RMS_NORM_MUL_ROPE": 200, "ADD": 140, "ADD_RMS_NORM": 20, "SCALE": 4, "SWIGLU": 30, "GEGLU": 30,
           "SWIGLU_OAI": 6, "ROPE": 400, "ROPE_SET_ROWS": 48, "MUL": 130, "SET_ROWS": 500, "GET_ROWS": 110, "CPY": 450, "CONT": 70,
           "SOFT_MAX": 190, "ARGSORT": 80, "TOP_K": 280}
# Too many cases to run them all: a regular expression picks some.
PICKED = {"MUL_MAT": (r"type_a=(f16|q4_0|q8_0|q4_K|q6_K|mxfp4).*n=(1|8|16),", 100), "MUL_MAT_ID": (r"type_a=(f16|q4_0|q4_K).*n_used=2.*m=512", 10),
          "FLASH_ATTN_EXT": (r"hsk=(64|128).*kv=113", 80)}
FULL = {"FLASH_ATTN_EXT": 5000, "MUL_MAT": 1800, "MUL_MAT_ID": 800}


class BackendOps(harness.HostTest):
    needs = ["test-backend-ops"]

    def run_cases(self, *selection: str) -> dict:
        """operation -> Counter of OK, FAIL, not supported"""
        env = alloy() | {"GGML_ALLOY_PLAN": "0"}
        made = subprocess.run([f"{harness.HOST_BIN}/test-backend-ops", "test", "-b", "ALLOY0", *selection], env=env, stdout=subprocess.PIPE,
                              stderr=subprocess.STDOUT, text=True, errors="replace")
        plain = re.sub(r"\x1b\[[0-9;]*m", "", made.stdout)
        counts: dict = collections.defaultdict(collections.Counter)
        for op, result in re.findall(r"^ +([A-Z0-9_]+)\(.*\): (OK|not supported|.*FAIL.*)", plain, re.M):
            counts[op]["FAIL" if "FAIL" in result else result] += 1
        self.assertIn("ALLOY0", plain)
        failures = [line for line in plain.splitlines() if "FAIL" in line]
        self.assertEqual(failures[:10], [], f"{len(failures)} failures; {' '.join(re.findall('seed.*', plain)[:1])}")
        self.assertEqual(made.returncode, 0, plain[-2000:])
        return counts

    def report(self, counts: dict, minimum: dict):
        print(f"\n{'operation':<24}{'supported':>10}{'passed':>8}{'not supported':>15}")
        for op in sorted(counts):
            c = counts[op]
            print(f"{op:<24}{c['OK'] + c['FAIL']:>10}{c['OK']:>8}{c['not supported']:>15}")
        for op, least in minimum.items():
            self.assertGreaterEqual(counts[op]["OK"], least, f"{op}: fewer cases supported than expected")

    @harness.unittest.skipIf("--full" in sys.argv, "the full run covers it")
    def test_selected_operations(self):
        counts: dict = {}
        for op in MINIMUM:
            counts |= self.run_cases("-o", op)
        for op, (pattern, _) in PICKED.items():
            counts |= self.run_cases("-o", op, "-p", pattern)
        self.report(counts, MINIMUM | {op: least for op, (_, least) in PICKED.items()})

    @harness.unittest.skipUnless("--full" in sys.argv, "takes an hour: ctest -L full")
    def test_every_operation(self):
        self.report(self.run_cases(), MINIMUM | FULL)


if __name__ == "__main__":
    arguments = [a for a in sys.argv if a != "--full"]
    program = harness.unittest.main(argv=arguments, exit=False, verbosity=2)
    sys.exit(0 if program.result.wasSuccessful() else 1)
