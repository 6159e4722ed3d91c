"""Compiles the kernels of the shipped networks, so that no first run waits for them: `make install` calls it.

    python tools/compile_kernels.py

Each recipe below takes one training step of two samples and scores two. numba keeps the machine code beside the
package, or in the user's cache folder where the package is read-only, and compiles nothing twice.
"""

from __future__ import annotations

from pathlib import Path

from sightline.config import read_config
from sightline.engine.build import build
from sightline.engine.distributed import World
from sightline.engine.train import train

CONFIGS = Path(__file__).resolve().parents[1] / "configs"
TWO = ("data.train_size=2", "data.test_size=2", "train.batch_size=2", "train.epochs=1", "evaluate.select=test")
RECIPES = {
    "segment/synthetic_shapes_point_transformer": (),
    "segment/synthetic_shapes_point_transformer_dense": (),
    "classify/synthetic_shapes_dgcnn": (),
    "classify/synthetic_shapes_pointnet2": (),
    "classify/synthetic_shapes_pct": (),
    "contrast/synthetic_shapes_crosspoint": (),
    "pose/synthetic_hands_v2v_small": (),
    "segment/synthetic_lidar_salsanext": (),
    "detect/synthetic_crowds_fcos": ("data.validation_size=2",),
    "detect/synthetic_crowds_retinanet": ("data.validation_size=2",),
}


def main() -> None:
    for name, words in RECIPES.items():
        built = build(read_config(CONFIGS / f"{name}.yaml", [*TWO, *words]), World())
        train(built.job, World(), lambda record, stop_asked: True)
        if built.selection_evaluator is not None:
            built.selection_evaluator(built.job.model, World())


if __name__ == "__main__":
    main()
