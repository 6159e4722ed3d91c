"""Writes the page of what the project must do from the rows of its tests; `--mutants` breaks rows in silence.

python -m tests.mission                       writes docs/inside/mission.md and docs/inside/beyond.md
python -m tests.mission --mutants [ID ...]    applies each row's edit to a copy of the package; prints what noticed it
"""

from __future__ import annotations

import argparse
import json
import sys
from collections import Counter
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from queue import SimpleQueue

from tests.beyond import collect_edits
from tests.mission.mutants import MUTANTS
from tests.mission.rows import BEYOND, IDS, PENDING, Row, collect_rows
from tests.mission.trial import Edit, Tree, Verdict
from tests.processes import ROOT

__all__ = ["BEYOND_PAGE", "PAGE", "write_beyond", "write_page"]

PAGE = ROOT / "docs" / "inside" / "mission.md"
BEYOND_PAGE = PAGE.with_name("beyond.md")
_AREAS = (
    "Point clouds without labels",
    "Joints in volumes",
    "Compression",
    "Boxes of pedestrians",
    "Training by several processes, and scans",
)
_HEAD = """\
# What sightline must do

The project exists for these {count} things. Nothing of this list is removed: a command may change its form, and then
its row changes in the same commit. [tests/test_mission.py](../../tests/test_mission.py) runs each row in a small form,
on every change, and looks at its effect. `CONFIG` is a config, `RUN` the folder of a run. A row with ° has a part that
is not there yet: its test must fail until then.

This page is written from the rows of those tests (`tests/mission`) by `python -m tests.mission`.
"""

_BEYOND_AREAS = {"B3": "3D boxes on LiDAR", "B4": "Networks on sparse voxels"}
_BEYOND_HEAD = """\
# What sightline does beside its mission

What users of the field ask for first, beside [what it must do](mission.md), and held in the same way:
[tests/test_beyond.py](../../tests/test_beyond.py) runs each row in a small form and looks at its effect.

This page is written from the rows of those tests (`tests/beyond`) by `python -m tests.mission`.
"""


def write_beyond() -> str:
    """Return the page of what stands beside the mission."""
    text = [_BEYOND_HEAD]
    for prefix, area in _BEYOND_AREAS.items():
        rows = [row for row in collect_rows(BEYOND) if row.id.partition(".")[0] == prefix]
        text.append(f"\n## {area}\n\n| id | a user can | command |\n|---|---|---|\n")
        text += [_as_line(row) for row in rows]
    return "".join(text)


def _as_line(row: Row) -> str:
    return f"| {row.id}{'°' if row.is_pending else ''} | {row.thing} | {row.command} |\n"


def write_page() -> str:
    """Return the page: tables of numbers, things and commands."""
    rows = collect_rows()
    text = [_HEAD.format(count=len(rows))]
    for number, area in enumerate(_AREAS):
        text.append(f"\n## {area}\n\n| id | a user must be able to | command |\n|---|---|---|\n")
        text += [_as_line(row) for row in rows if row.id.startswith(f"S{number}.")]
    return "".join(text)


def try_edits(edits: Mapping[str, Edit], *, jobs: int, out: Path | None = None) -> dict[str, Verdict]:
    """Try the edits of rows, `jobs` at a time, each in a tree of its own; print and write a line of each.

    A row that is not green without an edit is refused.
    """
    trees: SimpleQueue[Tree] = SimpleQueue()

    def try_one(id: str) -> Verdict:
        tree = trees.get()
        try:
            clean = tree.clean(id)
            failures = clean.get("failures", [clean["said"]])
            verdict = Verdict("refused", f"red without the edit: {failures}", 0.0) if failures else None
            verdict = verdict or tree.try_edit(id, edits[id])
        finally:
            trees.put(tree)
        sys.stdout.write(f"{id:6} {verdict.outcome:8} {verdict.seconds:5.0f} s  {verdict.how[:200]}\n")
        sys.stdout.flush()
        if out is not None:
            with out.open("a", encoding="utf-8") as file:
                file.write(json.dumps({"row": id, **verdict._asdict()}) + "\n")
        return verdict

    made = [Tree() for _ in range(jobs)]
    for tree in made:
        trees.put(tree)
    try:
        with ThreadPoolExecutor(jobs) as pool:
            return dict(zip(edits, pool.map(try_one, edits), strict=True))
    finally:
        for tree in made:
            tree.delete()


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.mission", description=__doc__)
    parser.add_argument("--mutants", nargs="*", metavar="ID", help="rows to break; without an ID all")
    parser.add_argument("--jobs", type=int, default=2)
    parser.add_argument("--edits", type=Path, help="other edits: a JSON file of {ID: [file, before, after]}")
    parser.add_argument("--out", type=Path, help="file to which a JSON line of each row is added")
    options = parser.parse_args()
    if options.mutants is None:
        PAGE.write_text(write_page())
        BEYOND_PAGE.write_text(write_beyond())
        sys.stderr.write(f"{PAGE.relative_to(ROOT)}: pending {' '.join(sorted(PENDING)) or 'nothing'}\n")
        return 0
    edits: Mapping[str, Edit] = {**MUTANTS, **collect_edits()}
    if options.edits is not None:
        edits = {id: Edit(*words) for id, words in json.loads(options.edits.read_text()).items()}
    asked = options.mutants or [id for id in (*IDS, *BEYOND) if id in edits]
    if unknown := [id for id in asked if id not in edits]:
        parser.error(f"no edit for {', '.join(unknown)}")
    verdicts = try_edits({id: edits[id] for id in asked}, jobs=options.jobs, out=options.out)
    counts = Counter(verdict.outcome for verdict in verdicts.values())
    sys.stdout.write(", ".join(f"{number} {outcome}" for outcome, number in counts.items()) + "\n")
    return int(set(counts) != {"red"})


if __name__ == "__main__":
    sys.exit(main())
