"""Small detectors of the embedded crowds, for tests."""

from __future__ import annotations

from typing import Any

from sightline.config import read_config
from sightline.engine.build import TrainingSetup, build
from sightline.engine.distributed import World
from tests.conftest import ROOT

SMALL = (
    *("data.train_size=24", "data.validation_size=2", "data.test_size=2"),
    *("model.backbone.width=8", "model.neck.width=32"),
    *("train.precision=float32", "model.channels_last=false"),  # on every machine
)
_DRAWN: dict[Any, Any] = {}


def make_crowds(*overrides: str, name: str = "retinanet", seed: int = 0) -> TrainingSetup:
    """A shipped recipe of detection with a narrow network, on other crowds for every seed."""
    words = (*SMALL, f"seed={seed}", f"data.data_seed={seed}", *overrides)
    built = build(read_config(ROOT / f"configs/detect/synthetic_crowds_{name}.yaml", words), World())
    for part in (built.data.train, built.data.selection, built.data.test):
        dataset: Any = part.dataset
        key = (dataset._split, dataset._data_seed, dataset._boxes)
        dataset._cache = _DRAWN.setdefault(key, dataset._cache)  # drawing them is most of the work
    return built
