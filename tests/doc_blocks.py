"""The blocks of the documentation as programs: which there are, what is marked beside them, and how they are run.

A comment in the line above a block states what keeps it from being run as it is written. A block with
`<!-- needs DATA: ... -->` is left
out (also GPU, TIME, SHELL, FILE). `<!-- tested with: train A=1 --b; check A=1 -->` appends words to the commands of
these verbs. `<!-- exit code 2 -->` is what the last command ends with.
"""

from __future__ import annotations

import html
import re
import shlex
from pathlib import Path
from typing import NamedTuple

import numpy as np

from sightline.config.shipped import copy_shipped
from sightline.store.files.ply import write_ply
from tests.command import run_here

ROOT = Path(__file__).resolve().parents[1]
README = ROOT / "README.md"
TOUR = ROOT / "docs" / "manual" / "start.md"
OTHER_PAGES = sorted((ROOT / "docs").rglob("*.md"))
_BLOCK = re.compile(r"^((?:<!-- [^\n]* -->\n)*)```(sh|python)\n(.*?)^```", flags=re.DOTALL | re.MULTILINE)
_PLACEHOLDER = re.compile(r"\b(PATH|CONFIG|RUN|DIR|FILE|JOB|FIRST_HOST|SHARED_FOLDER|NAME|MAP)\b")


class Block(NamedTuple):
    """A fenced block: its page and line, its language, its text, and the marks above it."""

    page: Path
    line: int
    language: str
    text: str
    marks: tuple[str, ...]

    @property
    def place(self) -> str:
        return f"{self.page.relative_to(ROOT)}:{self.line}"

    @property
    def needs(self) -> str | None:
        return next((mark for mark in self.marks if mark.startswith("needs ")), None)

    @property
    def appended(self) -> dict[str, list[str]]:
        """The words that the commands of a verb get for the test."""
        given = next((mark.partition(": ")[2] for mark in self.marks if mark.startswith("tested with: ")), "")
        rows = [shlex.split(part) for part in given.split(";") if part.strip()]
        return {row[0]: row[1:] for row in rows}

    @property
    def exit_code(self) -> int:
        return next((int(mark.split()[-1]) for mark in self.marks if mark.startswith("exit code ")), 0)

    def commands(self) -> list[list[str]]:
        """The words of each command, its comment left out."""
        lines = re.sub(r"\\\n\s*", "", self.text).splitlines()
        words = [shlex.split(line, comments=True) for line in lines]
        return [row for row in words if row]

    def unrunnable(self) -> list[str]:
        """Why the block cannot be run as it is: placeholders, other programs, loops."""
        if self.language == "python":
            return []
        found = []
        for words in self.commands():
            if words[0].split("/")[-1] != "sightline":
                found.append(f"'{words[0]}' is not sightline")
            found += [f"'{match[0]}' is a placeholder" for match in map(_PLACEHOLDER.search, words[1:]) if match]
        return found


def blocks_of(page: Path) -> list[Block]:
    text = page.read_text()
    found = []
    for match in _BLOCK.finditer(text):
        marks = tuple(re.findall(r"<!-- (.*?) -->", match[1]))
        found.append(Block(page, text.count("\n", 0, match.start()) + 1, match[2], match[3], marks))
    return found


def lay_out(folder: Path) -> None:
    """What the pages take for granted in the folder that a reader is in: configs, examples, clouds of one's own."""
    for name in ("configs", "examples"):
        copy_shipped(name, folder)
    random = np.random.default_rng(0)
    shapes = {"chair": (1.0, 1.0, 1.0), "lamp": (0.3, 0.3, 2.0), "table": (2.0, 2.0, 0.2)}
    for kind, size in shapes.items():
        (folder / "scans" / kind).mkdir(parents=True)
        for number in range(10):
            _write(folder / "scans" / kind / f"{kind}{number}.ply", _cloud(random, size))
    (folder / "more_clouds").mkdir()
    np.save(folder / "more_clouds" / "lamp.npy", _cloud(random, shapes["lamp"]))
    for name in ("chair.ply", "room.ply"):
        _write(folder / name, _cloud(random, shapes["chair"]))


def _write(path: Path, points: np.ndarray) -> None:
    write_ply(path, points=points, colors=np.full(points.shape, 128, dtype=np.uint8))


def _cloud(random: np.random.Generator, size: tuple[float, ...]) -> np.ndarray:
    points = random.normal(size=(400, 3)) * size
    return (points / np.linalg.norm(points, axis=1).max()).astype(np.float32)


def run_block(block: Block) -> str:
    """Run a block in the working directory; return what its commands printed.

    Raises AssertionError with it where one fails.
    """
    if block.language == "python":
        exec(compile(block.text, block.place, "exec"), {"__name__": "__main__"})
        return ""
    printed = ""
    commands = block.commands()
    for place, words in enumerate(commands, start=1):
        added = [word for verb, row in block.appended.items() if words[1] == verb for word in row]
        done = run_here(*words[1:], *added)
        expected = block.exit_code if place == len(commands) else 0
        assert done.code == expected, f"{block.place}: {shlex.join(words)}\n{done.err[-2000:]}"
        printed += done.out + done.err
    return printed


def read_terminal(picture: Path) -> str:
    """The words in the picture of a terminal, below its title and the command."""
    texts = [html.unescape(text) for text in re.findall(r"<text [^>]*>(.*?)</text>", picture.read_text())]
    return " ".join(" ".join(texts[2:]).split())
