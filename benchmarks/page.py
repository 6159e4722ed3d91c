"""Rows of docs/results/tables/bench.csv from documents of `python -m benchmarks`: one for each implementation.

    python -m benchmarks --json default.json; python -m benchmarks --keep-memory --json kept.json
    python -m benchmarks.page default.json kept.json > bench.csv

The first ratio of a row is the one beside the fastest package of its case. Of the first document every row is shown; a
second one of the same cases, with malloc keeping what is freed, adds its ratios. A row that a later document of the
same settings repeats is replaced: `default.json+again.json`.
"""

from __future__ import annotations

import csv
import json
import sys
from collections.abc import Mapping, Sequence
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

Row = Mapping[str, Any]
HEAD = ("suite/case/form", "beside the best to install", "beside the baseline", "peak MiB, ours/baseline's")
KEPT = "both with kept memory"
COMMIT = "commit"
PACKAGES = {
    "scipy_ckdtree": "SciPy's cKDTree",
    "sklearn_kdtree": "scikit-learn's KDTree",
    "faiss_flat": "faiss' flat index",
    "fpsample": "fpsample's plain loop",
    "fpsample_buckets": "fpsample's buckets",
    "shapely": "shapely's intersection of all pairs",
    "shapely_strtree": "shapely's STRtree and intersection",
    "spconv": "spconv's layer",
    "pycocotools": "pycocotools",
    "per_item_loader": "torch's DataLoader",
    "torch_default": "torch's Adam",
    "torch_foreach": "torch's Adam, foreach",
    "index_add": "torch's index_add",
    "scatter_reduce": "torch's scatter_reduce",
    "segment_reduce": "torch's segment_reduce",
}
"""What can be installed and is measured, by the name of its form."""
NOT_MEASURED = {
    "ball_*": "PyTorch3D's ball_query",
    "interpolate_*": "PyTorch3D's knn_points",
    "box_iou_*": "torchvision's box_iou",
    "suppress_greedy_*": "torchvision's batched_nms",
    "suppress_turned_*": "mmcv's nms_rotated",
    "pillars_*": "spconv's PointToVoxel",
    "box_ap_*": "faster-coco-eval",
}
"""What can be installed, is the first choice for cases of this name, and is not measured."""
LOOPS = ("masked_loop", "plain_loop", "plain_loop_by_class", "per_shape", "loop")
"""Baselines that are loops in Python over points, boxes or shapes: much of a ratio beside one is Python's own time."""


def main(arguments: Sequence[str]) -> None:
    """Print the rows of one or two groups of documents as CSV."""
    missing = [name for group in arguments for name in group.split("+") if not Path(name).is_file()]
    if missing or not arguments:
        sys.exit(f"no such file: {', '.join(missing)}" if missing else __doc__)
    default, *rest = ([json.loads(Path(name).read_text()) for name in group.split("+")] for group in arguments)
    rows, kept = merge_rows(default), merge_rows(rest[0]) if rest else {}
    lines = csv.writer(sys.stdout, lineterminator="\n")
    lines.writerow((*HEAD, *[KEPT] * bool(rest), COMMIT))
    for name, row in rows.items():
        if name.rpartition("/")[2] not in PACKAGES:
            again = [" ".join(format_ratios(name, kept, is_short=True)) if name in kept else ""] if rest else []
            sizes = "/".join(format_mebibytes(row[key]) for key in ("peak_bytes", "baseline_peak_bytes"))
            lines.writerow((name, *format_ratios(name, rows), sizes, *again, row[COMMIT]))


def merge_rows(documents: Sequence[Mapping[str, Any]]) -> dict[str, Row]:
    """Return the rows of documents by name, each from the last document that has it, with its commit."""
    commits = [(document["environment"].get("git") or {}).get("commit", "?")[:8] for document in documents]
    return {
        row["name"]: row | {COMMIT: commit}
        for document, commit in zip(documents, commits, strict=True)
        for row in document["cases"]
    }


def format_ratios(name: str, rows: Mapping[str, Row], *, is_short: bool = False) -> tuple[str, str]:
    """Format how many times a form is as fast as its case's fastest package, and as its baseline; short: no names."""
    row, case = rows[name], name.rpartition("/")[0]
    speeds = {form: rows[f"{case}/{form}"]["ratio"] for form in PACKAGES if f"{case}/{form}" in rows}
    speeds |= {row["baseline"]: 1.0} if row["baseline"] in PACKAGES else {}
    best = max(speeds, key=lambda form: speeds[form], default=None)
    beside = "-" if best is None else f"{row['ratio'] / speeds[best]:.2f}"
    if is_short:
        return beside, f"{row['ratio']:.2f}"
    pattern = next((key for key in NOT_MEASURED if fnmatchcase(case.partition("/")[2], key)), None)
    if best is not None:
        beside += f" {PACKAGES[best]}"
    if pattern is not None:
        beside += f"; {NOT_MEASURED[pattern]}: not measured"
    loop = ", a loop in Python" if row["baseline"] in LOOPS else ""
    return beside, f"{row['ratio']:.2f} {row['baseline']}{loop}"


def format_mebibytes(size: int | None) -> str:
    """Format bytes as MiB; a question mark where they were not measured."""
    return "?" if size is None else f"{size / 2**20:.0f}"


if __name__ == "__main__":
    main(sys.argv[1:])
