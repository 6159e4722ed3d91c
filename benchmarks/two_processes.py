"""Gain or loss of several processes: PointNet in 2 processes of 1 thread over 1 process of 2 threads, in clouds/s.

    .venv/bin/python benchmarks/two_processes.py [--rounds 20] [--points 1024] [--steps 3] [--json FILE]

The median of the rounds' ratios and their spread are printed. The bar is 0.85. The time is that of whole training steps
of the shipped config (B=32) at the paper's 1,024 points: reading, losses, gradients, optimiser. With fewer points the
sum of the gradients is a larger part of a step, and the ratio falls.
"""

from __future__ import annotations

import argparse
import json
import statistics
from pathlib import Path

from benchmarks.turns import Run, in_turn, median_and_spread

CONFIG = Path(__file__).parents[1] / "configs" / "classify" / "synthetic_shapes_pointnet.yaml"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--points", type=int, default=1024)
    parser.add_argument("--steps", type=int, default=3)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    size = [f"data.num_points={options.points}"]
    runs = [
        Run(CONFIG, steps=options.steps, processes=processes, threads=threads, overrides=size)
        for processes, threads in ((1, 2), (2, 1))
    ]
    rounds = in_turn(runs, options.rounds)
    ratios = [two / one for one, two in rounds]
    one, two = (statistics.median(column) for column in zip(*rounds, strict=True))
    print(f"clouds/s: 1 process x 2 threads {one:.1f}, 2 processes x 1 thread {two:.1f}")  # noqa: T201
    print(f"2 x 1 / 1 x 2 (bar: at least 0.85): {median_and_spread(ratios)}")  # noqa: T201
    if options.json:
        document = {"ratio": statistics.median(ratios), "rounds": [{"one": one, "two": two} for one, two in rounds]}
        options.json.write_text(json.dumps(document, indent=2) + "\n")


if __name__ == "__main__":
    main()
