"""Runs programs of a stock llama.cpp with and without the plugin and reads what their logs say about it.

Two facts come from the environment (CMake sets them): ALLOY_HOST_BIN, the folder of the host's programs, and ALLOY_PLUGIN, the shared
library. Without them tests are skipped, or fail when ALLOY_E2E_REQUIRED=1. Nothing here measures time.
"""
import functools
import os
import pathlib
import re
import subprocess
import sys
import tempfile
import unittest

ROOT = pathlib.Path(__file__).resolve().parents[2]
HOST_BIN = os.environ.get("ALLOY_HOST_BIN", "")
PLUGIN = os.environ.get("ALLOY_PLUGIN", "")
REQUIRED = os.environ.get("ALLOY_E2E_REQUIRED") == "1"
TIMEOUT = 240  # seconds; only ends what hangs

# Generates without a chat, without reading its terminal and past an end token, so that any model gives the asked number of tokens.
# -lv 4 shows the library's INFO lines; two threads so that work is really shared.
COMPLETION = ["--temp", "0", "--ignore-eos", "-no-cnv", "-t", "2", "-lv", "4", "-c", "512"]
PROMPT = "Once upon a time, in a small town by the sea, there was a"


# --- environments -------------------------------------------------------------------------------------------------------------------
def stock() -> dict:
    """As if the plugin did not exist; variables of the caller's shell must not leak in."""
    env = {k: v for k, v in os.environ.items() if not k.startswith(("GGML_", "LLAMA_", "ALLOY_"))}
    env["OMP_WAIT_POLICY"] = "passive"  # spinning threads starve each other when tests share two cores
    return env


def alloy(**knobs: str) -> dict:
    """With the plugin and GGML_ALLOY_<KNOB>; plans are printed so that a test can see that it ran graphs."""
    return stock() | {"GGML_BACKEND_PATH": PLUGIN, "GGML_ALLOY_PLAN": "1"} | {f"GGML_ALLOY_{k.upper()}": v for k, v in knobs.items()}


def delegated(**knobs: str) -> dict:
    """Every node on the host's CPU backend: placement, storage and planning are the plugin's, arithmetic must be bit-identical."""
    return alloy(kernels="off", **knobs)


# --- what a log says ----------------------------------------------------------------------------------------------------------------
class Log:
    """Text of stderr (programs) or of both streams (servers)."""

    def __init__(self, text: str):
        self.text = text

    @property
    def lines(self) -> list:
        return self.text.splitlines()

    @property
    def splits(self) -> int:
        """Scheduler splits of the last context, the larger of prompt and decode graph."""
        found = re.findall(r"splits = (\d+)(?: / (\d+))?,", self.text)
        return max(int(n) for n in found[-1] if n) if found else -1

    @property
    def flash_attention(self) -> bool:
        probed = re.findall(r"Flash Attention (enabled|not supported|disabled)", self.text)
        asked = re.findall(r"flash_attn\s+= (\w+)", self.text)
        return (probed or asked or ["?"])[-1] == "enabled"

    def buffer_mib(self, device: str, kind: str) -> float:
        """`kind`: model, KV, compute or output."""
        return sum(float(mib) for mib in re.findall(rf" {device} {kind} buffer size = +([\d.]+) MiB", self.text))

    @property
    def plans(self) -> int:
        return len(re.findall(r"plan uid \d+: ", self.text))

    @property
    def kernel_steps(self) -> int:
        """Steps of printed plans that are the plugin's own work."""
        return len(re.findall(r"^ *\d+ [| ] (?!host )\S.* tasks?\b", self.text, re.M))

    @property
    def alloy_complaints(self) -> list:
        """The plugin's WARN and ERROR lines; before it knows the host's logger they have no level in front."""
        return [line for line in self.lines if "ggml-alloy: " in line and not re.match(r"[\d.]+ [DI] ", line)]

    @property
    def host_complaints(self) -> list:
        """WARN and ERROR lines of everybody, without the time in front."""
        return sorted(m[1] for m in (re.match(r"[\d.]+ ([WE] .*)", line) for line in self.lines) if m)

    @property
    def knows_alloy(self) -> bool:
        """Its device, registry or messages; paths that happen to have its name in them do not count."""
        return bool(re.search(r"ALLOY|ggml-alloy[: ]|\bplan uid", self.text))


class Run(Log):
    def __init__(self, process: subprocess.CompletedProcess):
        super().__init__(process.stderr.decode(errors="replace"))
        self.code, self.out = process.returncode, process.stdout

    @property
    def tail(self) -> str:
        return self.text[-3000:]


def run(program: str, arguments: list, env: dict, folder: str = "", timeout: int = TIMEOUT) -> Run:
    """`folder` holds the program, else ALLOY_HOST_BIN. Counter files land in a folder that goes with the run."""
    with tempfile.TemporaryDirectory(prefix="alloy-e2e-") as runtime:
        return Run(subprocess.run([os.path.join(folder or HOST_BIN, program), *map(str, arguments)], env=env | {"XDG_RUNTIME_DIR": runtime},
                                  stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE, timeout=timeout))


def complete(model: pathlib.Path, env: dict, tokens: int = 48, flags: tuple = (), prompt: str = PROMPT, folder: str = "") -> Run:
    # The host writes its text from a logging thread that it does not wait for at its end; a text that lacks its two closing line feeds
    # was cut off by that, with or without us.
    for _ in range(5):
        result = run("llama-completion", ["-m", model, "-p", prompt, "-n", tokens, *COMPLETION, *flags], env, folder)
        if result.code != 0 or result.out.endswith(b"\n\n"):
            break
    return result


# --- models -------------------------------------------------------------------------------------------------------------------------
def setup(script: str, *arguments: str) -> str:
    """The last line that a script of tools/setup prints."""
    path = ROOT / "tools" / "setup" / script
    interpreter = [setup("venv.sh")] if script == "random_models.py" else [sys.executable] if script.endswith(".py") else []
    made = subprocess.run([*interpreter, path, *arguments], stdout=subprocess.PIPE, text=True)
    if made.returncode != 0:
        raise RuntimeError(f"tools/setup/{script} {' '.join(arguments)} failed")
    return made.stdout.strip().splitlines()[-1]


@functools.cache
def model(name: str) -> pathlib.Path:
    """`smollm2`, `gemma3`, or a name that tools/setup/random_models.py knows; made or fetched on first use."""
    return pathlib.Path(setup("models.py" if name in ("smollm2", "gemma3") else "random_models.py", name))


# --- tests --------------------------------------------------------------------------------------------------------------------------
class HostTest(unittest.TestCase):
    """A test that needs the stock host and the plugin."""

    needs = ["llama-completion"]

    @classmethod
    def setUpClass(cls):
        missing = [name for name in cls.needs if not os.access(os.path.join(HOST_BIN, name), os.X_OK)]
        problem = ""
        if not HOST_BIN:
            problem = "ALLOY_HOST_BIN is not set (tools/setup/host.sh builds a host and prints its folder)"
        elif missing:
            problem = f"{HOST_BIN} lacks {', '.join(missing)}"
        elif not os.access(PLUGIN, os.R_OK):
            problem = f"ALLOY_PLUGIN ('{PLUGIN}') is not a readable file"
        if problem and REQUIRED:
            raise AssertionError(problem)
        if problem:
            raise unittest.SkipTest(problem)

    def assert_ran(self, result: Run):
        self.assertEqual(result.code, 0, result.tail)

    def assert_used(self, result: Log):
        """The device is in the log and graphs went through it, without a complaint."""
        self.assertIn("ALLOY0", result.text)
        self.assertGreater(result.plans, 0, "no graph was planned: the plugin took no part")
        self.assertEqual(result.alloy_complaints, [])

    def assert_stock(self, result: Log):
        self.assertFalse(result.knows_alloy, "a stock run must not know of the plugin")

    def assert_same_text(self, got: bytes, expected: bytes):
        if got == expected:
            return
        same = next((i for i, (a, b) in enumerate(zip(got, expected)) if a != b), min(len(got), len(expected)))
        self.fail(f"texts differ from byte {same} of {len(expected)} on:\n  got      {got[same:same + 60]!r}\n"
                  f"  expected {expected[same:same + 60]!r}")


def main():
    """Exit status 77 tells CTest that everything was skipped; a mix of skipped and run tests counts as run."""
    program = unittest.main(module="__main__", exit=False, verbosity=2)
    result = program.result
    if not result.wasSuccessful():
        sys.exit(1)
    # A class skipped in setUpClass counts as one skip and none of its tests as run.
    if result.skipped and result.testsRun == 0:
        sys.exit(77)
