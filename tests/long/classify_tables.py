"""Remakes the tables of docs/results/tasks.md: trains every run of a table, and writes what came of it.

.venv/bin/python tests/long/classify_tables.py modelnet10 --data data/modelnet40 --out docs/results/modelnet10.json

Each run has a folder of its own and `--resume auto`, so a broken-off table goes on where it stopped; a run that is done
is not repeated. CPU-seconds and peak memory are the operating system's for the whole command, evaluation and checks
included, of the session that ended the run.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
RATE = "optimizer.lr=5e-4"
FIGURES = ("overall_accuracy", "mean_class_accuracy")


@dataclass(frozen=True)
class Row:
    """One line of a table: a config, as `classify/modelnet40_dgcnn_cpu`, with its overrides, once for each seed.

    `{seed}` in an override is the run's.
    """

    name: str
    config: str
    overrides: tuple[str, ...] = ()
    seeds: tuple[int, ...] = (0,)


def train(row: Row, seed: int, folder: Path, data: Path) -> dict[str, Any]:
    """What one run came to; read from its folder where it is done already."""
    run = folder / f"{row.name.replace(', ', '_').replace(' ', '_')}_{seed}"
    done = run / "table_row.json"
    if not done.exists():
        overrides = [override.format(seed=seed) for override in row.overrides]
        words = ["train", f"configs/{row.config}.yaml", *overrides, f"seed={seed}"]
        words += [f"data.root={data}", "--out", str(run), "--resume", "auto"]
        started = time.monotonic()
        usage = _run([sys.executable, "-m", "sightline", *words])
        metrics = json.loads((run / "final.json").read_text(encoding="utf-8"))["metrics"]
        wall_s = time.monotonic() - started
        result = {"metrics": metrics, "wall_s": wall_s, "commit": _commit(run), "command": words} | usage
        done.write_text(json.dumps(result), encoding="utf-8")
    result = json.loads(done.read_text(encoding="utf-8"))
    assert isinstance(result, dict)
    return result


def _run(command: Sequence[str]) -> dict[str, float]:
    process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.DEVNULL)
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode != 0:
        raise SystemExit(f"{' '.join(command)}: exit code {process.returncode}")
    return {"cpu_s": usage.ru_utime + usage.ru_stime, "peak_bytes": usage.ru_maxrss * 1024}


def _commit(run: Path) -> dict[str, Any]:
    git = json.loads((run / "environment.json").read_text(encoding="utf-8"))["git"]
    assert isinstance(git, dict)
    return git


def table(rows: Sequence[Row], folder: Path, data: Path) -> list[dict[str, Any]]:
    """The rows, each with the runs of its seeds, the means of the figures, and the range of the first of these."""
    found = []
    for row in rows:
        runs = [train(row, seed, folder, data) for seed in row.seeds]
        first = [run["metrics"][FIGURES[0]] for run in runs]
        found.append(
            {
                "name": row.name,
                **{figure: statistics.mean(run["metrics"][figure] for run in runs) for figure in FIGURES},
                "lowest": min(first),
                "highest": max(first),
                "cpu_s": statistics.mean(run["cpu_s"] for run in runs),
                "peak_bytes": max(run["peak_bytes"] for run in runs),
                "seeds": list(row.seeds),
                "runs": runs,
            }
        )
    return found


def markdown(rows: Sequence[dict[str, Any]]) -> str:
    """The table as the docs show it."""
    head = ("run", "seeds", *(figure.replace("_", " ") for figure in FIGURES), "CPU-seconds", "peak memory")
    lines = [f"| {' | '.join(head)} |", "|---" * len(head) + "|"]
    for row in rows:
        spread = f" ({row['lowest']:.3f} to {row['highest']:.3f})" if len(row["seeds"]) > 1 else ""
        cells = (
            row["name"],
            str(len(row["seeds"])),
            f"{row[FIGURES[0]]:.3f}{spread}",
            *(f"{row[figure]:.3f}" for figure in FIGURES[1:]),
            f"{row['cpu_s']:.0f}",
            f"{row['peak_bytes'] / 2**20:.0f} MiB",
        )
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def _modelnet10() -> list[Row]:
    """One recipe, four models: 256 points, 10 epochs; the spread of PointNet's seeds is the yardstick.

    The rate is one at which all four learn: at the 2e-3 of PointNet's own recipe PCT does not.
    """
    config = "classify/modelnet10_{}_cpu"
    rows = [Row("PointNet", config.format("pointnet"), (RATE,), seeds=(0, 1, 2))]
    others = {"DGCNN": "dgcnn", "PCT": "pct", "PointNet++": "pointnet2"}
    return rows + [Row(name, config.format(model), (RATE,)) for name, model in others.items()]


def _normals() -> list[Row]:
    """PointNet++ on the 19 categories of the Princeton Segmentation Benchmark, with and without the files' normals."""
    return [
        Row(f"PointNet++, normals {kind}", "classify/psb19_pointnet2_cpu", (f"data.normals={kind}",), seeds=(0, 1, 2))
        for kind in ("none", "file", "estimated")
    ]


def _fractions() -> list[Row]:
    """How much of ModelNet40 a model needs: a class-stratified tenth, three tenths, all; five epochs of each.

    A seed draws its own part of the shapes, too.
    """
    rows = []
    for name, model in (("PointNet", "pointnet"), ("PCT", "pct")):
        for fraction in (0.1, 0.3, 1.0):
            overrides = (f"data.fraction={fraction}", "data.fraction_seed={seed}", "train.epochs=5", RATE)
            seeds = (0, 1, 2) if fraction < 1 else (0,)
            rows.append(Row(f"{name}, {fraction:.0%}", f"classify/modelnet40_{model}_cpu", overrides, seeds))
    return rows


TABLES = {"modelnet10": _modelnet10, "normals": _normals, "fractions": _fractions}


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("tables", nargs="+", choices=sorted(TABLES))
    parser.add_argument("--folder", type=Path, default=ROOT / "runs" / "tables")
    parser.add_argument("--data", type=Path, required=True, help="the prepared data set")
    parser.add_argument("--out", type=Path, help="write the tables as JSON")
    options = parser.parse_args(arguments)
    folder, data = options.folder.resolve(), options.data.resolve()
    made = {name: table(TABLES[name](), folder / name, data) for name in options.tables}
    if options.out is not None:
        options.out.write_text(json.dumps(made, indent=1) + "\n", encoding="utf-8")
    for rows in made.values():
        sys.stdout.write(markdown(rows) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
