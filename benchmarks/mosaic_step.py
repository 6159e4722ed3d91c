"""Cost of mosaic and mix-up in a training that reads with 2 workers: images/s with them over images/s without.

    .venv/bin/python benchmarks/mosaic_step.py [--rounds 5] [--steps 12] [--workers 2] [--json FILE] [CONFIG]

Both runs are the shipped config, of which the transforms of one are the heavy preset. They take turns; the median of
the rounds' ratios and their spread are printed. The bar is 0.9. The time is that of whole training steps: waiting for
images, assignment, losses, gradients, optimiser. A turn is longer than what workers read ahead at its beginning.
"""

from __future__ import annotations

import argparse
import json
import statistics
from pathlib import Path

from benchmarks.turns import Run, in_turn, median_and_spread
from sightline.config import read_config

CONFIG = Path(__file__).parents[1] / "configs" / "detect" / "synthetic_crowds_retinanet.yaml"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("config", nargs="?", type=Path, default=CONFIG)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--steps", type=int, default=12)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    fit = next(
        transforms for transforms in read_config(options.config).transforms.train if transforms.name == "fit_image"
    ).arguments
    size = f"height: {fit['height']}, width: {fit['width']}"
    turn = "degrees: 0.373, shear_degrees: 0.602, shift: 0.245, scale: 0.5, min_side_px: 2, max_aspect: 20"
    plain = [f"{{name: flip_image}}, {{name: fit_image, {size}}}, {{name: normalize_image}}"]
    heavy = [
        f"{{name: mosaic, {size}}}, {{name: turn_image, {turn}, canvas: [{fit['height']}, {fit['width']}]}}",
        "{name: mix_up}",
        *plain,
    ]
    runs = [
        Run(
            options.config,
            steps=options.steps,
            processes=1,
            threads=1,
            overrides=[f"loader.workers={options.workers}", f"transforms.train=[{', '.join(transforms)}]"],
        )
        for transforms in (plain, heavy)
    ]
    rounds = in_turn(runs, options.rounds)
    ratios = [combined / alone for alone, combined in rounds]
    alone, combined = (statistics.median(column) for column in zip(*rounds, strict=True))
    print(f"images/s: without {alone:.2f}, with mosaic and mix-up {combined:.2f}")  # noqa: T201
    print(f"with / without (bar: at least 0.9): {median_and_spread(ratios)}")  # noqa: T201
    if options.json:
        document = {"ratio": statistics.median(ratios), "rounds": rounds}
        options.json.write_text(json.dumps(document, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
