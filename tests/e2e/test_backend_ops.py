"""The host's own operator test, unmodified, on our device: each case is compared with the host's CPU backend.

    test_backend_ops.py           operators with kernels of ours and those that carry a model; minutes
    test_backend_ops.py --full    all that the program has; most of an hour on two cores

Minimums are a little below what the host b11434 has, so that a refused or vanished case fails here instead of passing unseen. The
program draws new random data each time and prints no seed.
"""
import collections
import re
import sys

import harness
from harness import alloy, run

# What is compared in full: operator -> least number of supported cases.
WHOLE = {
    "RMS_NORM": 50, "RMS_NORM_SCALE": 8, "RMS_NORM_MUL_ADD": 32, "RMS_NORM_MUL_ROPE": 210, "ADD_RMS_NORM": 24, "NORM": 55, "L2_NORM": 28,
    "ADD": 150, "ADD_ADD": 10, "ADD_ID": 32, "MUL": 135, "DIV": 135, "SCALE": 6, "SOFTCAP": 1, "CLAMP": 5, "SUM_ROWS": 8,
    "REGLU": 34, "GEGLU": 34, "SWIGLU": 34, "GEGLU_ERF": 34, "GEGLU_QUICK": 34, "SWIGLU_OAI": 7, "SWIGLU_CLAMP": 7,
    "ROPE_SET_ROWS": 58, "SET_ROWS": 540, "CONT": 74,
    "SOFT_MAX": 205, "ARGSORT": 94, "TOP_K": 500, "ARGMAX": 6, "CUMSUM": 14, "SSM_CONV": 42,
}
# What would take too long in full: operator -> (pattern of the parameters, least number of supported cases). All run in one process,
# because filling the program's tables for the IQ formats takes most of the time; so no pattern may match another operator's parameters.
PARTLY = {
    "MUL_MAT": (r"type_b=f32,m=16,n=(1|8),", 365),
    "MUL_MAT_ID": (r"n_mats=4,.*n=(1|5),", 150),
    "GET_ROWS": (r"n=256,m=5,r=4,be1=[17],", 225),
    "CPY": (r"ne_src=.(256|128|32|33|3|5),", 330),
    "ROPE": (r"ne_a=.128", 180),
    "FLASH_ATTN_EXT": (r"hsk=(64|128),.*kv=(512|113),nb=(1|3|32|35),.*type_K=(f16|q8_0|q4_0)", 700),
}
# In the run of everything, instead of PARTLY's.
WHOLE_TOO = {"MUL_MAT": 1850, "MUL_MAT_ID": 900, "GET_ROWS": 230, "CPY": 480, "CONCAT": 190, "ROPE": 450, "FLASH_ATTN_EXT": 5200}


class OperatorTest(harness.HostTest):
    needs = ["test-backend-ops"]

    def check(self, arguments: tuple, minimums: dict, timeout: int):
        """Runs the program and returns its counts, after printing them as a table."""
        result = run("test-backend-ops", ["-b", "ALLOY0", *arguments], alloy(), timeout=timeout)
        text = re.sub(r"\x1b\[[0-9;]*m", "", result.out.decode(errors="replace") + "\n" + result.text)
        cases = re.findall(r"^  ([A-Z0-9_]+)\((.*)\): (?:.*)\b(OK|FAIL|not supported \[.*\]) *$", text, re.M)
        counts = collections.defaultdict(collections.Counter)
        for op, _, outcome in cases:
            counts[op]["refused" if outcome.startswith("not") else outcome] += 1
        print(f"\n{'operator':<24}{'supported':>10}{'passed':>8}{'failed':>8}{'refused':>9}")
        for op in sorted(counts):
            c = counts[op]
            print(f"{op:<24}{c['OK'] + c['FAIL']:>10}{c['OK']:>8}{c['FAIL']:>8}{c['refused']:>9}")

        self.assertGreater(result.plans, 0, "no graph was planned: the plugin took no part")
        failed = [f"{op}({parameters})" for op, parameters, outcome in cases if outcome == "FAIL"]
        self.assertEqual(failed, [])
        # We may refuse only what the host's CPU backend refuses too, else the host would abort on data that lies with us.
        ours_alone = [f"{op}({parameters})" for op, parameters, outcome in cases if outcome.startswith("not") and "CPU" not in outcome]
        self.assertEqual(ours_alone, [])
        for op, least in minimums.items():
            self.assertGreaterEqual(counts[op]["OK"], least, f"supported cases of {op}")
        self.assertEqual(result.code, 0, text[-2000:])
        self.assertEqual(result.alloy_complaints, [])


class Selection(OperatorTest):
    def test_whole_operators(self):
        self.check(("-o", ",".join(WHOLE)), WHOLE, 1200)

    def test_parts_of_operators(self):
        patterns = "|".join(f"({parameters})" for parameters, _ in PARTLY.values())
        self.check(("-o", ",".join(PARTLY), "-p", patterns), {op: least for op, (_, least) in PARTLY.items()}, 1200)


class Everything(OperatorTest):
    def test_everything(self):
        self.check((), WHOLE | WHOLE_TOO, 7200)


if __name__ == "__main__":
    sys.argv[1:] = ["Everything"] if "--full" in sys.argv else sys.argv[1:] or ["Selection"]
    harness.main()
