"""The exam of all public functions of `sightline.ops` in each way they are used, and its table in the reference.

    python -m tests.ops.columns [ROW ...] [--columns NAME,...]

runs cells of the exam: rows are example calls (points.py, boxes.py), columns ways to use a function
(checks.py). Says what is not as declared below; if the whole exam is, writes the table. A cell passes, fails for
a reason in `FAILURES`, or has no meaning by `WITHOUT_MEANING`.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator, Sequence
from itertools import chain
from pathlib import Path
from typing import NamedTuple

from benchmarks.marked_pages import with_block
from tests.ops.columns.boxes import BOX_ROWS, MAP_ROWS, SCATTER_ROWS, SEGMENT_ROWS, VOXEL_ROWS
from tests.ops.columns.checks import COLUMNS, GRAPHS, count_reads, examine
from tests.ops.columns.peers import CLUSTER_ROWS, POINTNET2_ROWS, PYTORCH3D_ROWS
from tests.ops.columns.points import POINT_ROWS
from tests.ops.columns.rows import BY_VALUES, NO_BATCH, NO_FLOATS, NUMPY, RAGGED, Row

PAGE = Path(__file__).resolve().parents[3] / "docs" / "reference" / "ops.md"
START, END = "<!-- exam: written by python -m tests.ops.columns -->\n", "\n<!-- end of exam -->"
ROWS = [
    *POINT_ROWS,
    *CLUSTER_ROWS,
    *PYTORCH3D_ROWS,
    *POINTNET2_ROWS,
    *SEGMENT_ROWS,
    *SCATTER_ROWS,
    *VOXEL_ROWS,
    *BOX_ROWS,
    *MAP_ROWS,
]
MAX_FAILING = 0.05
FLOATS = ("autograd", "func.grad", "forward mode", "autocast", "float16", "bfloat16", "float64")


class NoMeaning(NamedTuple):
    """Columns that have no meaning for rows of a trait."""

    trait: str
    columns: tuple[str, ...]
    reason: str


WITHOUT_MEANING = (
    NoMeaning(NUMPY, tuple(c for c in COLUMNS if c not in ("empty", "not contiguous")), "takes arrays of NumPy"),
    NoMeaning(RAGGED, ("vmap", "meta"), "returns a size that depends on values"),
    NoMeaning(BY_VALUES, ("vmap", "meta", "another device"), "reads sizes, which a tensor without numbers lacks"),
    NoMeaning(NO_BATCH, ("batch 0",), "takes one set of rows, without a batch"),
    NoMeaning(NO_FLOATS, FLOATS, "takes whole numbers alone"),
)

FAILURES: dict[tuple[str, str], str] = {
    **{
        (name, column): "a graph cannot read the sizes of segments (`fps`: give `ptr` as a list, `unpack`: `max_size`)"
        for name in ("packed_farthest_points", "fps-of a batch", "unpack")
        for column in GRAPHS
    },
    **{
        ("gather_csr", column): "a graph of free sizes cannot read the number of rows: give `out`"
        for column in ("export", "onnx")
    },
    ("roi_align", "onnx by torch"): "torch's optimiser of graphs writes a file that is not valid",
    **{("estimate_normals", column): "ONNX has no eigenvectors" for column in ("onnx", "onnx by torch")},
    **{("submanifold_map", column): "ONNX has no search in sorted numbers" for column in ("onnx", "onnx by torch")},
    ("sparse_convolution", "autocast"): "rounds products to the format of autocast, as those of torch",
    ("patch_attention", "autocast"): "is in the format of autocast, as torch's attention",
    ("patch_attention", "forward mode"): "torch's fused attention of CPUs has no tangents",
}
"""What fails, by row and column: a reason in a few words. The exam fails if such a cell passes."""


def without_meaning(row: Row, column: str) -> str | None:
    """Return why a cell has no meaning, or None."""
    return next((rule.reason for rule in WITHOUT_MEANING if rule.trait in row.traits and column in rule.columns), None)


def find_undeclared(rows: Sequence[Row], columns: Sequence[str]) -> Iterator[str]:
    """Run cells, and say of each that is not as declared what it is, in one line."""
    for column in columns:
        for row in rows:
            if without_meaning(row, column) is None:
                wrong, is_declared = examine(row, column), (str(row), column) in FAILURES
                if (wrong is None) is is_declared:
                    yield f"{row}, {column}: {wrong or 'passes now: take it out of FAILURES'}"


def find_undeclared_reads(rows: Sequence[Row]) -> Iterator[str]:
    """Count reads, and say of each row that has others than declared how many, in one line."""
    for row in rows:
        if NUMPY not in row.traits and (reads := count_reads(row)) != row.reads:
            yield f"{row}: reads {reads} numbers of a device, declared are {row.reads}"


def make_table() -> str:
    """The table as it is declared, with the reasons below."""
    notes: dict[str, int] = {}
    lines = [f"| call | {' | '.join(COLUMNS)} | reads |", f"|---|{'---|' * len(COLUMNS)}---|"]
    for row in ROWS:
        cells = [_cell(row, column, notes) for column in COLUMNS]
        reads = "–" if NUMPY in row.traits else str(row.reads)
        label = f", {row.label}" if row.label else ""
        lines.append(f"| `{row.name}`{label} | {' | '.join(cells)} | {reads} |")
    lines += ["", *(f"{number}. {reason}" for reason, number in notes.items())]
    lines += ["", "A dash is a cell without a meaning: " + "; ".join(_say(rule) for rule in WITHOUT_MEANING) + "."]
    passed, failed, meaningless = count_cells()
    lines += ["", f"{passed} cells pass, {failed} fail, {meaningless} have no meaning."]
    return "\n".join(lines)


def _cell(row: Row, column: str, notes: dict[str, int]) -> str:
    if without_meaning(row, column) is not None:
        return "–"
    reason = FAILURES.get((str(row), column))
    return "yes" if reason is None else f"no ({notes.setdefault(reason, len(notes) + 1)})"


def _say(rule: NoMeaning) -> str:
    names = "most" if rule.trait == NUMPY else ", ".join(rule.columns)
    return f"{names} where a function {rule.reason}"


def count_cells(columns: Sequence[str] = tuple(COLUMNS)) -> tuple[int, int, int]:
    """Count the cells of columns that pass, that fail, and that have no meaning, as declared."""
    cells = [(row, column) for row in ROWS for column in columns]
    meaningless = sum(without_meaning(row, column) is not None for row, column in cells)
    failed = sum(column in columns for _, column in FAILURES)
    return len(cells) - meaningless - failed, failed, meaningless


def with_table(text: str) -> str:
    """The text of the page with the table as it should be."""
    return with_block(text, start=START, end=END, block=make_table())


def main(words: Sequence[str]) -> int:
    """Run the command."""
    parser = argparse.ArgumentParser(prog="python -m tests.ops.columns", description=(__doc__ or "").split("\n")[0])
    parser.add_argument("rows", nargs="*", help="names of functions; by default all")
    parser.add_argument("--columns", default=",".join(COLUMNS), help="names, with commas between them")
    given = parser.parse_args(words)
    rows = [row for row in ROWS if not given.rows or row.name in given.rows]
    count = 0
    for line in chain(find_undeclared_reads(rows), find_undeclared(rows, given.columns.split(","))):
        count += 1
        sys.stdout.write(f"{line}\n")
        sys.stdout.flush()
    if not (count or given.rows or given.columns != ",".join(COLUMNS)):
        PAGE.write_text(with_table(PAGE.read_text()))
    return int(count > 0)
