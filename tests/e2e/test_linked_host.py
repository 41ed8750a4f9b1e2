"""A host with a linked-in CPU backend reads GGML_BACKEND_PATH only when asked for devices."""
import json
import os
import pathlib
import subprocess

import harness
from harness import complete, delegated, model, stock

LINKED = os.environ.get("ALLOY_HOST_LINKED", "")


class LinkedHost(harness.HostTest):
    @classmethod
    def setUpClass(cls):
        super().setUpClass()
        cls.folder = harness.tempfile.TemporaryDirectory(prefix="alloy-e2e-")
        cls.addClassCleanup(cls.folder.cleanup)
        if not os.access(os.path.join(LINKED, "llama-completion"), os.X_OK):
            if harness.REQUIRED:
                raise AssertionError("ALLOY_HOST_LINKED has no llama-completion (tools/setup/host.sh linked builds one)")
            raise harness.unittest.SkipTest("ALLOY_HOST_LINKED is not set")

    def test_with_and_without_the_device_flag(self):
        for name in ("smollm2", "llama-q4_0"):
            with self.subTest(model=name):
                expected = complete(model(name), stock(), folder=LINKED)
                self.assert_ran(expected)
                self.assert_stock(complete(model(name), delegated(), folder=LINKED))
                result = complete(model(name), delegated(), flags=("-dev", "ALLOY0"), folder=LINKED)
                self.assert_ran(result)
                self.assert_used(result)
                self.assertEqual(result.splits, 1)
                self.assert_same_text(result.out, expected.out)

    def test_alloy_measures_it(self):
        """`alloy bench` and `alloy quality` ask for the device on the plugin's side only."""
        alloy, text = pathlib.Path(harness.PLUGIN).parent / "alloy", pathlib.Path(self.folder.name, "text")
        if not alloy.exists():
            self.skipTest("the command line is not built")
        text.write_text(" ".join(f"the {i}th word of a text without much sense," for i in range(200)))
        small = model("llama-q4_0")
        cases = {"bench": ["--rounds", "1", "--warmup", "0", "-p", "16", "-n", "4"],
                 "quality": ["-f", text, "--no-probes", "--no-references", "--context", "128", "--chunks", "2", "--preset", "exact", "--state", self.folder.name]}
        for command, arguments in cases.items():
            with self.subTest(command=command):
                done = subprocess.run([alloy, command, "-m", small, "--host", LINKED, "--json", *arguments], env=stock(), capture_output=True, text=True, timeout=harness.TIMEOUT)
                self.assertIn('"complete": true', done.stdout, done.stderr)
                report = json.loads(done.stdout)
                counters = report["counters"] if command == "bench" else report["modes"][0]["counters"]
                self.assertGreater(counters["kernel_steps"], 0)
                self.assertTrue(report["host"]["ggml"])


if __name__ == "__main__":
    harness.main()
