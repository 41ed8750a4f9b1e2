#!/usr/bin/env python3
"""Long prose for `alloy quality`: three public texts out of Debian packages, each cut into two disjoint sets. Prints the path of a file.

    texts.py choice | fresh

`choice` is for measuring while something is being chosen, `fresh` for the figures that are then published. The texts take turns, so that a few
chunks of 2048 tokens have something of each.
"""
import gzip
import os
import pathlib
import re
import subprocess
import sys

CACHE = pathlib.Path(os.environ.get("GGML_ALLOY_CACHE") or
                     pathlib.Path(os.environ.get("XDG_CACHE_HOME") or pathlib.Path.home() / ".cache") / "ggml-alloy") / "quality"
TURN = 8000  # characters, about 2000 tokens

PACKAGES = ["bible-kjv", "bible-kjv-text", "debian-policy", "debian-reference-en"]
SETS = {"choice": (0.10, 0.50), "fresh": (0.55, 0.95)}  # parts of each text; tables of contents and appendices fall outside


def unpacked() -> pathlib.Path:
    """The packages' files, without installing anything."""
    folder = CACHE / "deb"
    if not (folder / "x").exists():
        folder.mkdir(parents=True, exist_ok=True)
        subprocess.run(["apt-get", "download", "-qq", *PACKAGES], cwd=folder, check=True)
        for package in folder.glob("*.deb"):
            subprocess.run(["dpkg", "-x", str(package), "x"], cwd=folder, check=True)
    return folder / "x"


def prose(text: str) -> str:
    """ASCII, without tables and indentation: paragraphs as somebody would type them."""
    for fancy, plain in {"“": '"', "”": '"', "‘": "'", "’": "'", "…": "...", "→": "->", "–": "-", "—": "-"}.items():
        text = text.replace(fancy, plain)
    lines = [line.strip() for line in text.encode("ascii", "ignore").decode().splitlines()]
    kept = [line for line in lines if not re.match(r"[|+=*-]{2,}|[|+]", line)]
    return re.sub(r"\n{3,}", "\n\n", re.sub(r"[ \t]+", " ", "\n".join(kept)))


def bible(files: pathlib.Path) -> str:
    """The data file is compressed in its own way; the package's program reads it from the folder that it is started in."""
    verses = subprocess.run([files / "usr/bin/bible", "-f", "Ge1:1-Rev22:21"], cwd=files / "usr/lib", stdin=subprocess.DEVNULL,
                            stdout=subprocess.PIPE, check=True, text=True).stdout
    return re.sub(r"^\S+?\d+:\d+ ", "", verses, flags=re.M)


def texts(which: str) -> list[str]:
    """The three texts' parts of a set."""
    made = CACHE / "texts"
    if not (made / "policy").exists():
        files = unpacked()
        made.mkdir(parents=True, exist_ok=True)
        whole = {"bible": bible(files),
                 "reference": gzip.open(files / "usr/share/debian-reference/debian-reference.en.txt.gz", "rt").read(),
                 "policy": gzip.open(files / "usr/share/doc/debian-policy/policy.txt.gz", "rt").read()}
        for name, text in whole.items():
            (made / name).write_text(prose(text))
    whole = [(made / name).read_text() for name in ("policy", "reference", "bible")]
    first, last = SETS[which]
    return [text[int(first * len(text)):int(last * len(text))] for text in whole]


def interleaved(which: str) -> str:
    sources = texts(which)
    turns = min(len(text) for text in sources) // TURN
    return "".join(text[turn * TURN:(turn + 1) * TURN] for turn in range(turns) for text in sources)


def main() -> None:
    if len(sys.argv) != 2 or sys.argv[1] not in SETS:
        sys.exit(f"usage: texts.py {' | '.join(SETS)}")
    made = interleaved(sys.argv[1])
    file = CACHE / "texts" / f"{sys.argv[1]}.txt"
    if not file.exists() or file.read_text() != made:  # a new date would make another text of it
        file.write_text(made)
    print(file)


if __name__ == "__main__":
    main()
