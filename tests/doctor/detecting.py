"""Small detectors of the embedded crowds with planted bugs, and how often the checks of a training's start find them.

`python -m tests.doctor.detecting 10` prints the table for ten seeds, `python -m tests.doctor.detecting` the processor
time of these checks.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest

from sightline.areas.detect.sets.synthetic_crowds import SyntheticCrowds
from sightline.config import read_config
from sightline.contract.types import Sample
from sightline.doctor.finding import Finding
from sightline.engine.build import TrainingSetup, build
from sightline.engine.distributed import World
from sightline.workbench.check.context import Context
from tests.conftest import ROOT
from tests.doctor.power import Bug, case_table, is_found, list_findings, processor_time, quick, table
from tests.planted.planting import Planter

__all__ = ["BUGS", "NEW", "edited", "findings_of", "make_crowds", "planted", "quick"]

NEW = (
    *("broken-boxes", "swapped-canvas", "anchor-coverage", "unmatched-boxes", "ignored-regions"),
    *("prior-bias", "level-order", "loss-normaliser", "untrained-class", "box-protocol", "box-evaluation"),
)
SMALL = (
    *("data.train_size=24", "data.validation_size=2", "data.test_size=2"),
    *("model.backbone.width=8", "model.neck.width=32"),
    *("train.precision=float32", "model.channels_last=false"),  # on every machine
)
Patch = pytest.MonkeyPatch
READ = SyntheticCrowds.__getitem__
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


def findings_of(context: Context, codes: tuple[str, ...] = NEW) -> list[Finding]:
    """What some checks find, without notes."""
    return list_findings(context, codes)


def edited(patch: Patch, edit: Callable[[Sample], Sample]) -> None:
    """Samples of the crowds changed as they are read."""
    patch.setattr(SyntheticCrowds, "__getitem__", lambda dataset, key: edit(dict(READ(dataset, key))))


CODES = {
    "box-evaluation": "B44 B1 B2 B3 B4 B5 B6 B7 B8",
    "box-protocol": "B9 B45 B10 B11 B12 B13 B46",
    "broken-boxes": "O51 B14 B15 B16 B17 B18 B19 B20 B21 B22",
    "swapped-canvas": "O50",
    "anchor-coverage": "B23 B24 B25",
    "unmatched-boxes": "O52 B26 B27 B28 B29",
    "ignored-regions": "O56 B30 B31 B32",
    "loss-normaliser": "O54 B33 B34 B35",
    "prior-bias": "O59 B36 B37 B38",
    "level-order": "B39 B40 B41 B42 B43",
}
"""The planted faults that each check must find."""
BUGS = case_table(CODES)


@contextmanager
def planted(bug: Bug, *, seed: int = 0) -> Iterator[TrainingSetup]:
    """A run with a bug, which ends with the context."""
    with Planter() as planter:
        bug.case.plant_into(planter)
        yield planter.change(make_crowds(*planter.overrides, seed=seed))


def seconds() -> dict[str, float]:
    """The processor time of each check on the shipped recipe, without samples and outputs that other checks share."""
    built = build(read_config(ROOT / "configs/detect/synthetic_crowds_retinanet.yaml"), World())
    findings_of(quick(built))  # compiles
    context = quick(built)
    _ = context.statistics, context.dry_run, context.first_outputs, context.class_counts, context.dry_evaluations
    return processor_time(NEW, context)


if __name__ == "__main__":
    if sys.argv[1:]:
        table(BUGS, lambda bug, seed: is_found(bug, planted(bug, seed=seed)), int(sys.argv[1]))
    else:
        spent = seconds()
        lines = [f"{code} {1000 * each:.0f} ms" for code, each in (*spent.items(), ("all", sum(spent.values())))]
        sys.stdout.write("\n".join(lines) + "\n")
