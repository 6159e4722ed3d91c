"""Small runs for tests: a config of a few synthetic clouds, built in this process."""

from __future__ import annotations

from pathlib import Path

from sightline.config import RunConfig, read_config
from sightline.engine.build import TrainingSetup, build
from sightline.engine.distributed import World

ROOT = Path(__file__).resolve().parents[2]
TINY = ROOT / "tests/config/tiny.yaml"
"""A config that is healthy, of a second, and needs no files."""

SMALL = (
    "data.train_size=60",
    "data.test_size=24",
    "data.num_points=32",
    "train.batch_size=8",
    "train.epochs=2",
    "evaluate.batch_size=10",
    "log.tensorboard=false",
)

PLAIN = ("model={name: pointnet_plain, embedding: 16}", "losses=[{name: cross_entropy}]")
"""A seventieth of the parameters, which halves the time of a small run: without the networks that align, and thin."""


def small_config(*overrides: str, config: str = "synthetic_shapes_pointnet") -> RunConfig:
    """A shipped config cut down to seconds; later overrides win over the cuts."""
    given = {override.split("=")[0] for override in overrides}
    cuts = [cut for cut in SMALL if cut.split("=")[0] not in given]
    return read_config(ROOT / "configs" / "classify" / f"{config}.yaml", [*cuts, *overrides])


def small_run(*overrides: str, config: str = "synthetic_shapes_pointnet") -> TrainingSetup:
    return build(small_config(*overrides, config=config), World())
