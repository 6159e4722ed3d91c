"""Runs the same commands with two commits, and compares what they leave, byte by byte.

    python tools/before_after.py 8534f4c            that commit against the working tree
    python tools/before_after.py 8534f4c dd840da    two commits
    ... --only recipes/pose check/ --keep FOLDER    some rows; keep what they wrote
    ... --quick                                     a row or two of each part
    ... --no-texts                                  prose of findings and reports may differ

The rows stand in before_after_rows.py. Sources of data sets and published weights are made once, by the working tree;
both sides read these. Both run in this interpreter's environment, on this machine, one after the other. Compared are
JSON without times, facts of the host and prose (keys: LEFT_OUT and TEXTS in before_after_worker.py), with the prose as
an entry of its own, `texts`, and all other files as they are but for the places of the run. Exit code 1 where anything
differs or failed.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]


def main(words: Sequence[str]) -> int:
    """Run both sides and print a line for each row; the exit code."""
    options = _options(words)
    sys.path.insert(0, str(ROOT))  # the rows and sources are those of this tree
    from tools.before_after_rows import rows

    chosen = [row for row in rows() if _is_chosen(row.name, options.only) and (row.is_quick or not options.quick)]
    if not chosen:
        raise SystemExit(f"no row's name holds {' or '.join(options.only)}")
    with tempfile.TemporaryDirectory(prefix="before_after_") as folder:
        kept = Path(options.keep or folder).resolve()
        inputs = _inputs(kept / "inputs", sorted({name for row in chosen for name in row.inputs}))
        plain = [row._asdict() | {"inputs": str(inputs)} for row in chosen]
        sides = []
        for name, commit in (("before", options.before), ("after", options.after)):
            with _tree(commit, Path(folder) / f"tree_{name}") as tree:
                sides.append(_side(tree, kept / name, plain, is_kept=options.keep is not None))
        return _report(*sides, left_out=("texts",) if options.no_texts else ())


def _options(words: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("before", help="a commit")
    parser.add_argument("after", nargs="?", help="another; the working tree where left out")
    parser.add_argument("--only", nargs="+", default=[""], metavar="PART", help="rows whose name holds one of these")
    parser.add_argument("--quick", action="store_true", help="the quick rows alone")
    parser.add_argument("--no-texts", action="store_true", help="leave out the prose of findings and reports")
    parser.add_argument("--keep", help="a folder for what is made")
    return parser.parse_args(words)


def _is_chosen(name: str, parts: Sequence[str]) -> bool:
    return any(part in name for part in parts)


def _inputs(folder: Path, names: Sequence[str]) -> Path:
    """Make the named sources in a folder that both sides read."""
    if names:
        from tools.before_after_sources import write_sources

        write_sources(folder, names)
    return folder


@contextlib.contextmanager
def _tree(commit: str | None, place: Path) -> Iterator[Path]:
    """A commit's files in a git worktree of their own, or the working tree itself."""
    if commit is None:
        yield ROOT
        return
    _git("worktree", "add", "--detach", "--quiet", str(place), commit)
    try:
        yield place
    finally:
        _git("worktree", "remove", "--force", str(place))


def _git(*words: str) -> None:
    subprocess.run(["git", "-C", str(ROOT), *words], check=True)


def _side(tree: Path, out: Path, rows: Sequence[Mapping[str, Any]], *, is_kept: bool) -> dict[str, Any]:
    """What the package of this tree left of each row."""
    out.mkdir(parents=True)
    (out / "rows.json").write_text(json.dumps(rows))
    environment = os.environ | {"PYTHONPATH": str(tree), "OMP_NUM_THREADS": "1"}
    worker = Path(__file__).resolve().with_name("before_after_worker.py")
    script = [sys.executable, str(worker), str(out / "rows.json"), str(out), *(["--keep"] if is_kept else [])]
    with (out / "log").open("w") as log:
        done = subprocess.run(script, cwd=tree, env=environment, stdout=subprocess.DEVNULL, stderr=log)
    if done.returncode:
        raise SystemExit(f"{tree}: the rows were not run: {(out / 'log').read_text()[-2000:]}")
    found: dict[str, Any] = json.loads((out / "digests.json").read_text())
    return found


def _report(before: Mapping[str, Any], after: Mapping[str, Any], left_out: Sequence[str]) -> int:
    is_same = True
    for name, one in before.items():
        other = after[name]
        told = [
            f"FAILED {side}: {each['failed']}" for side, each in (("before", one), ("after", other)) if each["failed"]
        ]
        if not told:
            found, others = one["digests"], other["digests"]
            differing = [key for key in sorted(found.keys() | others.keys()) if found.get(key) != others.get(key)]
            told = [_difference(key, found.get(key), others.get(key)) for key in differing if key not in left_out]
        is_same &= not told
        counted = f"{len(one['digests'])} files, {one['seconds']} and {other['seconds']} s"
        sys.stdout.write(f"{name}: {'DIFFERS in ' + '; '.join(told) if told else 'same'} ({counted})\n")
    return 0 if is_same else 1


def _difference(name: str, one: str | None, other: str | None) -> str:
    """A file's name, and of JSON the first place that differs."""
    if one is None or other is None:
        return f"{name} ({'after' if one is None else 'before'} only)"
    place = _first_place(json.loads(one), json.loads(other)) if one[:1] == other[:1] == "[" else ""
    return f"{name} at {place}" if place else name


def _first_place(one: Any, other: Any) -> str:
    if isinstance(one, dict) and isinstance(other, dict) and one.keys() == other.keys():
        return next((f".{key}{_first_place(one[key], other[key])}" for key in one if one[key] != other[key]), "")
    if isinstance(one, list) and isinstance(other, list) and len(one) == len(other):
        pairs = enumerate(zip(one, other, strict=True))
        return next((f"[{i}]{_first_place(a, b)}" for i, (a, b) in pairs if a != b), "")
    return f": {json.dumps(one)[:80]} -> {json.dumps(other)[:80]}"


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
