"""kv_fuzz on two tiny models, one of them with a sliding window: random operations on llama.cpp's memory, beside stock.

    test_kv_fuzz.py           a share of about two minutes
    test_kv_fuzz.py --full    10,000 sequences of each kind
"""
import os
import subprocess
import sys
import tempfile

import harness
from harness import alloy, delegated, model

PROGRAM = os.environ.get("ALLOY_KV_FUZZ", "")
FULL = "--full" in sys.argv
SEED = os.environ.get("ALLOY_TEST_SEED", "1")


class Fuzz(harness.HostTest):
    needs = ["libllama.so"]

    def fuzz(self, name: str, env: dict, sequences: int, *flags: str) -> str:
        with tempfile.TemporaryDirectory(prefix="alloy-e2e-") as runtime:
            ours = {"ALLOY_HOST_BIN": harness.HOST_BIN, "ALLOY_PLUGIN": harness.PLUGIN, "XDG_RUNTIME_DIR": runtime, "GGML_ALLOY_PLAN": "0"}
            result = subprocess.run([PROGRAM, "--model", model(name), "--sequences", str(10000 if FULL else sequences), "--seed", SEED, *flags],
                                    env=env | ours, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
                                    errors="replace", timeout=7200 if FULL else 600)
        print(f"\n{result.stdout[-6000:]}")
        if result.returncode == 77:
            self.skipTest(result.stdout.strip().splitlines()[-1])
        self.assertEqual(result.returncode, 0)
        return result.stdout

    def test_exact(self):
        self.fuzz("llama-tiny", alloy(), 1500)

    def test_exact_with_a_sliding_window(self):
        self.fuzz("gemma3-tiny", alloy(), 500)

    def test_bit_for_bit_with_the_hosts_arithmetic(self):
        for name in ("llama-tiny", "gemma3-tiny"):
            with self.subTest(model=name):
                self.assertIn("bit for bit", self.fuzz(name, delegated(), 250))

    def test_compressed(self):
        # Least likeness of logits: 1 - cosine.
        for preset, tolerance in (("int8", 0.01), ("compact", 0.05), ("tiny", 0.1)):
            with self.subTest(preset=preset):
                self.fuzz("llama-tiny", alloy(kv=preset), 150, "--lossy", "--kv-tolerance", str(tolerance))

    def test_compressed_with_balanced_keys_and_a_sliding_window(self):
        self.fuzz("gemma3-tiny", alloy(kv="compact"), 100, "--lossy", "--kv-tolerance", "0.05")


if __name__ == "__main__":
    sys.argv = [a for a in sys.argv if a != "--full"]
    harness.main()
