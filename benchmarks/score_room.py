"""Growth of the time and memory of scoring every point of a real room with its points, voting included.

    .venv/bin/python benchmarks/score_room.py RUN [--votes 4] [--room FILE.npz] [--json FILE] [--svg FILE]

RUN is one of configs/segment/s3dis_one_room_point_transformer_cpu.yaml. The room (s3dis_one_room.npz under
SIGHTLINE_SHARED) is cut at its first quarter, its first half and its whole length: slabs, in which points are as dense
as in the room. Each is written out as a scene, prepared, and scored by `sightline evaluate RUN --data CONFIG`, without
and with votes: CPU time and peak memory are those that a user meets, start and reading included.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np

from sightline.draw.charts import ChartPanel, Series, render_svg

SHARES = (0.25, 0.5, 1.0)
CONFIG = """base: {base}
name: slab
data: {{name: scene_folder, root: {root}}}
transforms:
  train:
    - {{name: voxel_sample, size_m: 0.06}}
    - {{name: place_on_floor, plan: centre, up: keep}}
  evaluate:
    - {{name: voxel_sample, size_m: 0.06, choice: nearest, score_all: true}}
    - {{name: place_on_floor, plan: centre, up: keep}}
  vote: [{{name: scale, low: 0.9, high: 1.1}}]
evaluate: {{select: test}}
"""


@dataclass(frozen=True)
class Cost:
    """Cost of one `sightline evaluate`, and its mean IoU."""

    num_points: int
    votes: int
    cpu_s: float
    peak_bytes: int
    miou: float


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("run", type=Path)
    parser.add_argument("--votes", type=int, default=4)
    shared = Path(os.environ.get("SIGHTLINE_SHARED", Path(__file__).parents[2] / "shared"))
    parser.add_argument("--room", type=Path, default=shared / "data" / "s3dis_one_room.npz")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--svg", type=Path)
    options = parser.parse_args()
    if not options.room.is_file():
        sys.exit(f"{options.room}: there is no such file; give --room or set SIGHTLINE_SHARED")
    costs = []
    with tempfile.TemporaryDirectory() as folder:
        for share in SHARES:
            config = _scene(Path(folder), share, options)
            for votes in (1, options.votes):
                costs.append(_score(options.run, config, votes, Path(folder) / "scores.json"))
                sys.stdout.write(f"{json.dumps(asdict(costs[-1]))}\n")
    if options.json:
        options.json.write_text(json.dumps([asdict(cost) for cost in costs], indent=1) + "\n", encoding="utf-8")
    if options.svg:
        options.svg.write_text(_draw_costs(costs), encoding="utf-8")


def _scene(folder: Path, share: float, options: argparse.Namespace) -> Path:
    """A config whose test part is the slab of the room below a quantile of y."""
    with np.load(options.room) as room:
        points, labels, names = room["xyz"], room["label"], [str(name) for name in room["classes"]]
    order = np.argsort(points[:, 1], kind="stable")[: round(share * len(points))]
    rows = np.concatenate([points[order], labels[order, None].astype(np.float32)], axis=1)
    files, prepared = folder / f"files_{share}", folder / f"prepared_{share}"
    for split in ("train", "test"):
        (files / split).mkdir(parents=True)
        np.save(files / split / "slab.npy", rows)
    (files / "classes.txt").write_text("\n".join(names) + "\n", encoding="utf-8")
    words = ["data", "prepare", "scene_folder", "--from", str(files), "--to", str(prepared)]
    _sightline([*words, "up_axis=z", "unit=m", "columns=[x, y, z, label]"])
    config = folder / f"slab_{share}.yaml"
    base = Path(__file__).parents[1] / "configs" / "segment" / "s3dis_one_room_point_transformer_cpu.yaml"
    config.write_text(CONFIG.format(base=base, root=prepared), encoding="utf-8")
    return config


def _score(run: Path, config: Path, votes: int, out: Path) -> Cost:
    words = ["evaluate", str(run), "--data", str(config), f"evaluate.votes={votes}", "--json", str(out)]
    cpu_s, peak_bytes = _sightline([*words, "checks.skip=[dataset-mismatch]"])
    document = json.loads(out.read_text(encoding="utf-8"))
    suffix = f"_vote{votes}" if votes > 1 else ""
    num_points = sum(row["count"] for row in document["per_class"].values())
    return Cost(num_points, votes, cpu_s, peak_bytes, document["metrics"][f"miou{suffix}"])


def _sightline(words: list[str]) -> tuple[float, int]:
    """CPU-seconds and peak memory of one command; its output where it fails."""
    process = subprocess.Popen(
        [sys.executable, "-m", "sightline", *words], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )
    assert process.stdout is not None
    told = process.stdout.read()
    _, status, usage = os.wait4(process.pid, 0)
    if status:
        sys.exit(f"sightline {' '.join(words)}\n{told}")
    return usage.ru_utime + usage.ru_stime, usage.ru_maxrss * 1024


def _draw_costs(costs: list[Cost]) -> str:
    def series(value: str, scale: float) -> tuple[Series, ...]:
        return tuple(
            Series(
                "no votes" if votes == 1 else f"{votes} votes",
                tuple((cost.num_points, getattr(cost, value) / scale) for cost in costs if cost.votes == votes),
            )
            for votes in dict.fromkeys(cost.votes for cost in costs)
        )

    time = ChartPanel("CPU-seconds, start included", "points scored", series("cpu_s", 1.0))
    memory = ChartPanel("peak memory, GiB, all included", "points scored", series("peak_bytes", 2.0**30))
    return render_svg([[time, memory]])


if __name__ == "__main__":
    main()
