"""Runs the rows of before_after.py with the package that this interpreter imports, and digests what each of them left.

    PYTHONPATH=TREE python tools/before_after_worker.py ROWS.json OUT [--keep]

It imports nothing of a tree but `sightline.cli`, so that it runs any commit.
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import json
import os
import shutil
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

__all__ = ["break_off", "digests"]

LEFT_OUT = ("ms", "torch", "environment", "host", "started", "finished")
"""Keys of JSON that hold times and facts of the host; so are those that begin with `time_s` or end with `seconds`."""
TEXTS = (
    "class_name",
    "summary",
    "measured",
    "expected",
    "action",
    "looked_at",
    "message",
    "note",
    "notes",
    "reason",
    "hint",
    "text",
)
"""Keys of JSON whose values are prose: digested by themselves, as `texts`."""
_PLAIN = (".csv", ".html", ".txt", ".yaml")
"""Suffixes of files in which the places of a run are written out."""


def main(words: Sequence[str]) -> int:
    """Run each row in a folder of its own; digests and exit codes of all go to `digests.json`."""
    rows, out = json.loads(Path(words[0]).read_text()), Path(words[1])
    found = {}
    for row in rows:
        started, folder = time.perf_counter(), out / row["name"].replace("/", "_")
        folder.mkdir(parents=True)
        places = {"@out": str(folder), "@in": str(row["inputs"]), "@tree": os.getcwd()}
        commands = [(command, (0,)) for command in row["commands"][:-1]] + [(row["commands"][-1], row["codes"])]
        failed = next(filter(None, (_run(command, codes, places) for command, codes in commands)), None)
        names = {place: name for name, place in places.items()}
        found[row["name"]] = {
            "failed": failed,
            "seconds": round(time.perf_counter() - started, 1),
            "digests": {} if failed else dict(digests(folder, row["files"], names)),
        }
        if "--keep" not in words:
            shutil.rmtree(folder)
    (out / "digests.json").write_text(json.dumps(found))
    return 0


def _run(spellings: Sequence[Sequence[str]], codes: Sequence[int], places: Mapping[str, str]) -> str | None:
    """Do one command in the first spelling that the tree knows; how it failed, if it did."""
    given = [[_replaced(word, places) for word in spelling] for spelling in spellings]
    words = given[0]
    if words[0] == "!resume-before-last":
        shutil.copytree(words[1], words[2], symlinks=True)
        break_off(Path(words[2]))
        return None
    if len(given) > 1:
        words = next((each for each in given if _sightline(*each, "--help")[0] == 0), words)
    code, told = _sightline(*words)
    return None if code in codes else f"`sightline {' '.join(words)}`: exit code {code}: {told}"


def _sightline(*words: str) -> tuple[int, str]:
    """The exit code of a command, and the last line that it printed as an error."""
    from sightline import cli

    sys.argv, told = ["sightline", *words], io.StringIO()
    code: object = 0
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(told):
        try:
            cli.main()
        except SystemExit as ended:
            code = ended.code
    lines = told.getvalue().strip().splitlines()
    return (code if isinstance(code, int) else int(code is not None)), lines[-1] if lines else ""


def break_off(run: Path) -> None:
    """Leave a run as it was after its checkpoint before the last."""
    first, last = sorted((run / "checkpoints").glob("step_*"))
    shutil.rmtree(last)
    for link in (run / "checkpoints").glob("*"):
        if link.is_symlink():
            link.unlink()
            link.symlink_to(first.name)
    (run / "final.json").unlink()


def digests(folder: Path, patterns: Sequence[str], names: Mapping[str, str]) -> Iterator[tuple[str, str]]:
    """A digest for each file that fits a pattern: JSON without times and prose, all else its bytes; then the prose.

    `names` are what stands for the places of this side. A pattern without a file has a digest of its own.
    """
    texts: list[Any] = []
    for pattern in patterns:
        paths = sorted(path for path in folder.glob(pattern) if path.is_file())
        if not paths:
            yield pattern, "no such file"
        for path in paths:
            yield str(path.relative_to(folder)), _digest(path, names, texts)
    if texts:
        yield "texts", json.dumps(texts, sort_keys=True)


def _digest(path: Path, names: Mapping[str, str], texts: list[Any]) -> str:
    if path.suffix in (".json", ".jsonl"):
        content = _replaced(path.read_text(), names)
        parts = content.splitlines() if path.suffix == ".jsonl" else [content]
        return json.dumps([_numbers(json.loads(part), texts) for part in parts], sort_keys=True)
    content = path.read_bytes()
    if path.suffix in _PLAIN:
        content = _replaced(content.decode(), names).encode()
    return hashlib.sha256(content).hexdigest()


def _numbers(value: object, texts: list[Any]) -> object:
    """A value of JSON without times and facts of the host; prose is moved to `texts`."""
    if isinstance(value, list):
        return [_numbers(item, texts) for item in value]
    if not isinstance(value, dict):
        return value
    kept = {key: item for key, item in value.items() if not _is_left_out(key)}
    prose = {key: item for key, item in kept.items() if key in TEXTS and _is_prose(item)}
    texts += [prose] if prose else []
    return {key: _numbers(item, texts) for key, item in kept.items() if key not in prose}


def _is_left_out(key: str) -> bool:
    return key in LEFT_OUT or key.startswith("time_s") or key.endswith("seconds")


def _is_prose(value: object) -> bool:
    return isinstance(value, str) or (isinstance(value, list) and all(isinstance(item, str) for item in value))


def _replaced(text: str, names: Mapping[str, str]) -> str:
    for name, place in names.items():
        text = text.replace(name, place)
    return text


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
