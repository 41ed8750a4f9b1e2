"""A llama-server on a loopback port that the system picks, and the plugin's counters of a living process."""
import concurrent.futures
import http.client
import json
import os
import pathlib
import re
import signal
import socket
import struct
import subprocess
import tempfile
import time

import harness

READY_TIMEOUT = 120  # seconds until the model is loaded


def free_port() -> int:
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return s.getsockname()[1]


class Server:
    """`with Server(model, flags, env) as server`: started, healthy; stopped and waited for at the end. The log is then in `log`."""

    def __init__(self, model: pathlib.Path, flags: str, env: dict):
        self.folder = tempfile.TemporaryDirectory(prefix="alloy-e2e-")
        self.path = pathlib.Path(self.folder.name)
        self.command = [os.path.join(harness.HOST_BIN, "llama-server"), "-m", str(model), "-t", "2", "-lv", "4", "--host", "127.0.0.1",
                        "--slot-save-path", self.folder.name, *flags.split()]
        self.env = env | {"XDG_RUNTIME_DIR": self.folder.name}
        self.process, self.port = None, 0
        self.log = harness.Log("")

    def __enter__(self):
        try:
            for _ in range(3):  # somebody else may take the port between our look and the server's bind
                self.port = free_port()
                with open(self.path / "log", "wb") as log:
                    self.process = subprocess.Popen([*self.command, "--port", str(self.port)], env=self.env, stdin=subprocess.DEVNULL,
                                                    stdout=log, stderr=subprocess.STDOUT)
                if self.wait_until_healthy():
                    return self
                self.stop()
                if "couldn't bind" not in self.log.text:
                    break
            raise AssertionError(f"the server did not come up:\n{self.log.text[-3000:]}")
        except BaseException:
            self.stop()
            self.folder.cleanup()
            raise

    def __exit__(self, *_):
        self.stop()
        self.folder.cleanup()

    def wait_until_healthy(self) -> bool:
        end = time.monotonic() + READY_TIMEOUT
        while time.monotonic() < end and self.process.poll() is None:
            try:
                if self.request("GET", "/health")[0] == 200:
                    return True
            except OSError:
                pass
            time.sleep(0.05)
        return False

    def stop(self):
        if self.process is None:
            return
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGINT)
        try:
            self.process.wait(60)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
        self.code = self.process.returncode
        self.process = None
        self.log = harness.Log((self.path / "log").read_text(errors="replace"))

    # --- requests -------------------------------------------------------------------------------------------------------------------
    def request(self, method: str, path: str, body: dict | None = None) -> tuple:
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=harness.TIMEOUT)
        try:
            connection.request(method, path, None if body is None else json.dumps(body), {"Content-Type": "application/json"})
            response = connection.getresponse()
            return response.status, response.read()
        finally:
            connection.close()

    def post(self, path: str, **body):
        status, answer = self.request("POST", path, body)
        if status != 200:
            raise AssertionError(f"{path}: status {status}: {answer.decode(errors='replace')[:500]}")
        return json.loads(answer)

    def tokens(self, prompt, n: int = 16, **options) -> list:
        """Ids of the next `n` tokens: unlike text they cannot hide a broken character."""
        return self.post("/completion", **self.completion(prompt, n, options))["tokens"]

    @staticmethod
    def completion(prompt, n: int, options: dict) -> dict:
        return {"prompt": prompt, "n_predict": n, "temperature": 0, "ignore_eos": True, "return_tokens": True} | options

    def at_once(self, prompts: list, n: int = 16, **options) -> list:
        with concurrent.futures.ThreadPoolExecutor(len(prompts)) as pool:
            return list(pool.map(lambda prompt: self.tokens(prompt, n, **options), prompts))

    def cancelled(self, prompt, n: int = 400):
        """Hangs up after the first piece of a stream."""
        body = json.dumps(self.completion(prompt, n, {"stream": True}))
        with socket.create_connection(("127.0.0.1", self.port), timeout=harness.TIMEOUT) as s:
            s.sendall(f"POST /completion HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n"
                      f"{body}".encode())
            received = b""
            while b"data: " not in received:
                piece = s.recv(4096)
                if not piece:
                    raise AssertionError(f"the server closed the stream: {received!r}")
                received += piece

    def slot(self, index: int, action: str, file: str) -> bytes:
        """Saves or restores a slot and returns the bytes of its file."""
        self.post(f"/slots/{index}?action={action}", filename=file)
        return (self.path / file).read_bytes()

    def private_bytes(self) -> int:
        """RssAnon: what the process holds that is in no file."""
        status = pathlib.Path(f"/proc/{self.process.pid}/status").read_text()
        return int(re.search(r"^RssAnon:\s+(\d+) kB", status, re.M)[1]) * 1024

    # --- the plugin's counters --------------------------------------------------------------------------------------------------------
    def counters(self) -> dict:
        return read_counters(self.path / f"ggml-alloy-{os.getuid()}" / f"{self.process.pid}.counters")


def counter_names() -> list:
    """From counters.inc, so that a new counter needs no change here."""
    return re.findall(r"^ALLOY_COUNTER\((\w+),", (harness.ROOT / "src/base/counters.inc").read_text(), re.M)


def read_counters(path: pathlib.Path) -> dict:
    """As base/counters.h lays the file out."""
    names = counter_names()
    block = path.read_bytes()
    magic, _version, count = struct.unpack_from("<8sII", block)
    if magic != b"alloyctr" or count != len(names):
        raise AssertionError(f"{path} is not a counter file with the {len(names)} counters of counters.inc")
    values_at = 8 + 4 * 4 + 8 + 64 + 32 + 96
    return dict(zip(names, struct.unpack_from(f"<{count}Q", block, values_at)))
