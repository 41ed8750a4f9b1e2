"""What kv_memory.py asks of a host: modes of the cache, and a server to talk to and to watch."""
import argparse
import contextlib
import dataclasses
import http.client
import json
import os
import pathlib
import re
import shlex
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time

PROJECT_CACHE = pathlib.Path(os.environ.get("GGML_ALLOY_CACHE") or
                             pathlib.Path(os.environ.get("XDG_CACHE_HOME") or pathlib.Path.home() / ".cache") / "ggml-alloy")
MODELS = {"smollm2": PROJECT_CACHE / "models/expanded/smollm2-f32.gguf", "gemma3": PROJECT_CACHE / "models/expanded/gemma3-f32.gguf",
          "llama-1b": PROJECT_CACHE / "models/random/llama-1b-q4_0.gguf"}


def model_file(name: str) -> pathlib.Path:
    return MODELS.get(name) or pathlib.Path(name)


# --- modes --------------------------------------------------------------------------------------------------------------------------
@dataclasses.dataclass
class Mode:
    name: str
    plugin: bool
    env: dict[str, str]
    flags: list[str]


def mode(text: str) -> Mode:
    """`stock`, `stock-<cache type>`, a value of GGML_ALLOY_KV, or `NAME: [stock] [VARIABLE=VALUE ..] [FLAGS ..]`."""
    name, colon, rest = text.partition(":")
    if colon:
        words = shlex.split(rest)
        env = dict(w.split("=", 1) for w in words if re.match(r"[A-Z_]+=", w))
        return Mode(name, "stock" not in words, env, [w for w in words if w != "stock" and not re.match(r"[A-Z_]+=", w)])
    if name == "stock":
        return Mode(name, False, {}, [])
    if name.startswith("stock-"):
        kind = name.removeprefix("stock-")
        return Mode(name, False, {}, ["-fa", "on", "-ctk", kind, "-ctv", kind])
    return Mode(name, True, {"GGML_ALLOY_KV": name}, [])


def add_arguments(parser: argparse.ArgumentParser, models: list[str], modes: list[str]) -> None:
    parser.add_argument("--host", required=True, help="folder of the host's programs")
    parser.add_argument("--plugin", required=True, help="libggml-alloy.so; the program `alloy` of the same build lies beside it")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--model", action="append", dest="models", metavar="NAME|FILE", help=f"default: {' '.join(models)}")
    parser.add_argument("--mode", action="append", dest="modes", type=mode, metavar="MODE",
                        help=f"{mode.__doc__} Default: {' '.join(modes)}")


def parse(parser: argparse.ArgumentParser, models: list[str], modes: list[str]) -> argparse.Namespace:
    args = parser.parse_args()
    args.models = args.models or models
    args.modes = args.modes or [mode(m) for m in modes]
    args.alloy = pathlib.Path(args.plugin).resolve().parent / "alloy"
    for file in [args.plugin, args.alloy, *map(model_file, args.models)]:
        if not os.access(file, os.R_OK):
            sys.exit(f"{file} is not readable")
    return args


def environment(args: argparse.Namespace, chosen: Mode, runtime: str) -> dict[str, str]:
    """Variables of the caller's shell must not leak in; the counter file lands in a folder of this run."""
    env = {k: v for k, v in os.environ.items() if not k.startswith(("GGML_", "LLAMA_"))} | {"XDG_RUNTIME_DIR": runtime}
    return env | {"GGML_BACKEND_PATH": str(pathlib.Path(args.plugin).resolve())} | chosen.env if chosen.plugin else env


# --- a living process ---------------------------------------------------------------------------------------------------------------
def anonymous(pid: int) -> int:
    """Bytes that no file backs; 0 when the process is gone."""
    try:
        found = re.findall(r"Rss(?:Anon|Shmem):\s+(\d+) kB", pathlib.Path(f"/proc/{pid}/status").read_text())
    except OSError:
        return 0
    return sum(int(kib) for kib in found) * 1024


def counters(alloy: pathlib.Path, pid: int, runtime: str) -> dict[str, int]:
    """What the plugin counts in a process; empty when there is no plugin in it."""
    answer = subprocess.run([alloy, "status", "--json", "--pid", str(pid)], env=os.environ | {"XDG_RUNTIME_DIR": runtime},
                            capture_output=True, text=True)
    try:
        return json.loads(answer.stdout)[0]["counters"]
    except (json.JSONDecodeError, KeyError, IndexError):
        return {}


def require_plugin(chosen: Mode, seen: dict[str, int]) -> None:
    if chosen.plugin and not seen.get("kernel_steps"):
        sys.exit(f"mode {chosen.name}: the plugin took no part")


def sealing(seen: dict[str, int]) -> str:
    """The plugin's own word that pages were sealed, for a table."""
    told = {n: v for n, v in seen.items() if "seal" in n or n in ("kv_live_bytes", "kv_evicted_rows")}
    if not told:
        return "no such counter" if seen else ""
    return ", ".join(f"{n} {v / 2**20:.1f} MiB" if n.endswith("bytes") else f"{n} {v}" for n, v in told.items())


# --- a server -----------------------------------------------------------------------------------------------------------------------
@dataclasses.dataclass
class Server:
    process: subprocess.Popen
    port: int
    runtime: str

    def ask(self, path: str, body: dict | None = None) -> dict:
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=3600)
        try:
            connection.request("POST" if body is not None else "GET", path, json.dumps(body) if body is not None else None,
                               {"Content-Type": "application/json"})
            answer = connection.getresponse()
            text = answer.read()
        finally:
            connection.close()
        if answer.status != 200:
            raise ConnectionError(f"{path}: {answer.status} {text[:300]!r}")
        return json.loads(text)

    def complete(self, tokens: list[int], count: int = 1, tops: int = 0) -> dict:
        """Greedy. What the slot has computed before is kept where the tokens agree."""
        return self.ask("/completion", {"prompt": tokens, "n_predict": count, "temperature": 0, "cache_prompt": True, "n_probs": tops,
                                        "return_tokens": True, "id_slot": 0})


def free_port() -> int:
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return s.getsockname()[1]


def healthy(server: Server) -> bool:
    while server.process.poll() is None:
        with contextlib.suppress(OSError):
            server.ask("/health")
            return True
        time.sleep(0.05)
    return False


class NotUp(Exception):
    pass


@contextlib.contextmanager
def serve(args: argparse.Namespace, chosen: Mode, model: pathlib.Path, flags: list, started=lambda process: None):
    """One slot; nothing that keeps copies of the cache on the side. `started` gets the process before it has loaded anything."""
    with tempfile.TemporaryDirectory(prefix="kv-") as runtime, open(f"{runtime}/log", "wb") as log:
        port = free_port()
        process = subprocess.Popen([f"{args.host}/llama-server", "-m", model, "-t", str(args.threads), "-np", "1", "--cache-ram", "0",
                                    "-ctxcp", "0", "--no-ui", "--host", "127.0.0.1", "--port", str(port), *map(str, flags), *chosen.flags],
                                   env=environment(args, chosen, runtime), stdin=subprocess.DEVNULL, stdout=log, stderr=log)
        server = Server(process, port, runtime)
        try:
            started(process)
            if not healthy(server):
                raise NotUp(f"llama-server did not come up in mode {chosen.name}:\n{pathlib.Path(log.name).read_text(errors='replace')[-2000:]}")
            yield server
        finally:
            process.send_signal(signal.SIGINT)
            killer = threading.Timer(30, process.kill)
            killer.start()
            process.wait()
            killer.cancel()


# --- output -------------------------------------------------------------------------------------------------------------------------
def table(head: list[str], rows: list[list]) -> str:
    return "\n".join("| " + " | ".join(map(str, r)) + " |" for r in [head, ["---"] * len(head), *rows])
