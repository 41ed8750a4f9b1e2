"""Wrong files, wrong knobs, no memory: one clear line, and the host goes on."""
import os
import pathlib
import shutil
import tempfile

import harness
from harness import alloy, complete, delegated, model, stock


class BadInput(harness.HostTest):
    def setUp(self):
        self.expected = complete(model("llama-q4_0"), stock(), 24)
        self.assert_ran(self.expected)

    def assert_as_stock(self, result):
        self.assert_ran(result)
        self.assert_same_text(result.out, self.expected.out)
        self.assertNotIn("ALLOY0", result.text)

    def test_backend_path_that_is_no_plugin(self):
        with tempfile.TemporaryDirectory() as folder:
            text = pathlib.Path(folder, "notes.so")
            text.write_text("not a library")
            libz = next(p for p in pathlib.Path("/lib").glob("*-linux-gnu/libz.so.1"))
            for path in (f"{folder}/missing.so", folder, str(text), str(libz)):
                with self.subTest(path=path):
                    self.assert_as_stock(complete(model("llama-q4_0"), stock() | {"GGML_BACKEND_PATH": path}, 24))

    def test_wrong_knobs(self):
        for knob, value, accepted in (("KERNELS", "maybe", "on|off"), ("MEMORY", "lots", "0-1073741824"), ("ISA", "avx9", "best|avx2"),
                                      ("PLAN", "2", "0-1"), ("SHADOW", "On", "on|off")):
            with self.subTest(knob=knob):
                result = complete(model("llama-q4_0"), alloy() | {f"GGML_ALLOY_{knob}": value}, 24)
                self.assert_as_stock(result)
                lines = [line for line in result.lines if "ggml-alloy: " in line]
                self.assertEqual(len(lines), 1, lines)
                for part in (f"GGML_ALLOY_{knob}", value, accepted):
                    self.assertIn(part, lines[0])

    def test_off(self):
        result = complete(model("llama-q4_0"), alloy() | {"GGML_ALLOY": "off"}, 24)
        self.assert_as_stock(result)
        self.assertEqual(result.alloy_complaints, [])

    def test_weaker_instruction_set(self):
        result = complete(model("llama-q4_0"), delegated(isa="avx2"), 24)
        self.assert_used(result)
        self.assertIn("ISA = avx2 |", result.text)
        self.assert_same_text(result.out, self.expected.out)

    def test_model_that_does_not_fit_stays_in_its_file(self):
        for name in ("smollm2", "llama-q4_0"):
            with self.subTest(model=name):
                expected = complete(model(name), stock(), 24, ("--no-repack",))  # plain rows, as the file has them
                result = complete(model(name), delegated(memory="1"), 24)
                self.assert_ran(result)
                self.assertGreater(result.plans, 0)
                self.assertEqual(len(result.alloy_complaints), 1, result.alloy_complaints)
                self.assertIn("memory available", result.alloy_complaints[0])
                self.assert_same_text(result.out, expected.out)

    def test_rpc_server_gets_no_device(self):
        with tempfile.TemporaryDirectory() as folder:  # the name is what counts
            for file in pathlib.Path(harness.HOST_BIN).glob("*.so*"):
                os.symlink(file, pathlib.Path(folder, file.name))
            shutil.copy(os.path.join(harness.HOST_BIN, "llama-completion"), os.path.join(folder, "rpc-server"))
            arguments = ["-m", model("llama-q4_0"), "-p", harness.PROMPT, "-n", 24, *harness.COMPLETION]
            result = harness.run("rpc-server", arguments, alloy(), folder)
            self.assert_ran(result)
            self.assertNotIn("ALLOY0", result.text)
            self.assertIn("rpc-server", " ".join(result.alloy_complaints))
            allowed = harness.run("rpc-server", arguments, alloy(rpc="1"), folder)
            self.assertIn("ALLOY0", allowed.text)


if __name__ == "__main__":
    harness.main()
