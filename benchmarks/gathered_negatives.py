"""Cost of everyone's negatives: a contrastive step on 2 processes with rows gathered over both, and without.

    .venv/bin/python benchmarks/gathered_negatives.py [--rounds 20] [--points 256] [--steps 3] [--json FILE]

Both runs take turns; the median of the rounds' ratios and their spread are printed. The bar is 1.05.
"""

from __future__ import annotations

import argparse
import json
import statistics
from pathlib import Path

from benchmarks.turns import Run, in_turn, median_and_spread

CONFIG = Path(__file__).parents[1] / "configs" / "contrast" / "synthetic_shapes_crosspoint.yaml"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--points", type=int, default=256)
    parser.add_argument("--steps", type=int, default=3)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    size = [f"data.num_points={options.points}"]
    runs = [
        Run(CONFIG, steps=options.steps, processes=2, threads=1, overrides=[*size, f"task.negatives={negatives}"])
        for negatives in ("process", "gathered")
    ]
    rounds = in_turn(runs, options.rounds)
    ratios = [alone / together for alone, together in rounds]
    print(f"time of a step, gathered / per process (bar: at most 1.05): {median_and_spread(ratios)}")  # noqa: T201
    if options.json:
        options.json.write_text(json.dumps({"ratio": statistics.median(ratios), "ratios": ratios}, indent=2) + "\n")


if __name__ == "__main__":
    main()
