"""Runs of `sightline train` that become the rows of a table in docs/results.

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
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

__all__ = ["ROOT", "Row", "main_of", "markdown", "table"]

ROOT = Path(__file__).resolve().parents[2]


@dataclass(frozen=True)
class Row:
    """One line of a table: a config, as `classify/modelnet40_dgcnn_cpu`, with its overrides, once for each seed.

    `{seed}` in an override is the run's, other braces are paths given on the command line.
    """

    name: str
    config: str
    overrides: tuple[str, ...] = ()
    seeds: tuple[int, ...] = (0,)


def train(row: Row, seed: int, folder: Path, places: Mapping[str, Path]) -> dict[str, Any]:
    """What one run came to; read from its folder where it is done already."""
    run = folder / f"{row.name.replace(', ', '_').replace(' ', '_')}_{seed}"
    done = run / "table_row.json"
    if not done.exists():
        overrides = [override.format(seed=seed, **places) for override in row.overrides]
        words = ["train", f"configs/{row.config}.yaml", *overrides, f"seed={seed}"]
        words += [f"data.root={places['data']}", "--out", str(run), "--resume", "auto"]
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


def table(
    rows: Sequence[Row], folder: Path, places: Mapping[str, Path], figures: Sequence[str]
) -> list[dict[str, Any]]:
    """The rows, each with the runs of its seeds, the means of `figures`, and the range of the first of these."""
    found = []
    for row in rows:
        runs = [train(row, seed, folder, places) for seed in row.seeds]
        first = [run["metrics"][figures[0]] for run in runs]
        found.append(
            {
                "name": row.name,
                **{figure: statistics.mean(run["metrics"][figure] for run in runs) for figure in figures},
                "lowest": min(first),
                "highest": max(first),
                "cpu_s": statistics.mean(run["cpu_s"] for run in runs),
                "peak_bytes": max(run["peak_bytes"] for run in runs),
                "seeds": list(row.seeds),
                "runs": runs,
            }
        )
    return found


def markdown(rows: Sequence[dict[str, Any]], figures: Sequence[str]) -> str:
    """The table as the docs show it."""
    head = ("run", "seeds", *(figure.replace("_", " ") for figure in figures), "CPU-seconds", "peak memory")
    lines = [f"| {' | '.join(head)} |", "|---" * len(head) + "|"]
    for row in rows:
        spread = f" ({row['lowest']:.3f} to {row['highest']:.3f})" if len(row["seeds"]) > 1 else ""
        cells = (
            row["name"],
            str(len(row["seeds"])),
            f"{row[figures[0]]:.3f}{spread}",
            *(f"{row[figure]:.3f}" for figure in figures[1:]),
            f"{row['cpu_s']:.0f}",
            f"{row['peak_bytes'] / 2**20:.0f} MiB",
        )
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def main_of(
    tables: Mapping[str, Callable[[], list[Row]]],
    figures: Sequence[str],
    arguments: Sequence[str] | None,
    *,
    about: str,
    places: Mapping[str, str],
) -> int:
    """The command of a script that makes tables; `places` are the paths it asks for, with the help of each."""
    parser = argparse.ArgumentParser(description=about)
    parser.add_argument("tables", nargs="+", choices=sorted(tables))
    parser.add_argument("--folder", type=Path, default=ROOT / "runs" / "tables")
    for name, told in places.items():
        parser.add_argument(f"--{name}", type=Path, required=True, help=told)
    parser.add_argument("--out", type=Path, help="write the tables as JSON")
    options = parser.parse_args(arguments)
    given = {name: getattr(options, name).resolve() for name in places}
    folder = options.folder.resolve()
    made = {name: table(tables[name](), folder / name, given, figures) for name in options.tables}
    if options.out is not None:
        options.out.write_text(json.dumps(made, indent=1) + "\n", encoding="utf-8")
    for rows in made.values():
        sys.stdout.write(markdown(rows, figures) + "\n")
    return 0
