"""Small quantised runs with planted bugs, and how often the checks of a training's start find them.

`python -m tests.doctor.compressing 10` prints the table for ten seeds; `python -m tests.doctor.compressing healthy 10`
what the checks find in runs without a bug; `python -m tests.doctor.compressing` their processor time.
"""

from __future__ import annotations

import itertools
import json
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from torch import nn

from sightline.config import read_config
from sightline.doctor.finding import Finding
from sightline.engine.build import TrainingSetup, build
from sightline.engine.distributed import World
from sightline.parts.quantisation.linear import quantisable_weights
from sightline.workbench.check.context import Context
from tests.conftest import ROOT
from tests.doctor.planting import CONFIG
from tests.doctor.power import Bug, case_table, is_found, list_findings, print_alarms, processor_time, quick, table
from tests.planted.compress import teach as taught
from tests.planted.planting import Planter

__all__ = ["BUGS", "HEALTHY", "NEW", "findings_of", "floats_of", "make_quantised", "planted", "quick", "taught"]

NEW = ("broken-codebook", "unquantised-weights", "rounding-gradient", "quantised-outputs", "unfit-teacher")
MIXED = (
    {"kind": "codebook", "bits": 3},
    {"kind": "linear", "bits": 4},
    {"kind": "codebook", "bits": 4, "per_channel": True},
    {"kind": "fp16"},
    {"kind": "linear", "bits": 6, "per_channel": True},
    {"kind": "codebook", "bits": 8},
)
MODELS = {
    "pointnet_plain": "{name: pointnet_plain, embedding: 32, dropout: 0.0}",
    "pointnet": "{name: pointnet}",
    "dgcnn": "{name: dgcnn, num_neighbours: 8, embedding: 64}",
}
CONVOLUTIONS = ROOT / "configs/pose/synthetic_hands_scale_net.yaml"


def make_quantised(
    model: str = "pointnet_plain", *, seed: int = 0, choices: tuple[Mapping[str, Any], ...] = MIXED, words: Any = ()
) -> TrainingSetup:
    """A small run whose weights are quantised, the choices dealt to them in turn."""
    with TemporaryDirectory() as folder:
        path = CONVOLUTIONS
        words = (f"seed={seed}", *words)
        if model != "scale_net":
            path = Path(folder) / "small.yaml"
            path.write_text(CONFIG)
            words = (f"model={MODELS[model]}", *words)
        plain = build(read_config(path, words), World())
        names = [weight.name for weight in quantisable_weights(plain.job.model)]
        policy = dict(zip(names, itertools.cycle(choices), strict=False))
        config = read_config(path, (*words, f"compress={{policy: {json.dumps(policy)}}}"))
        return build(config, World(), data=plain.data)


def findings_of(context: Context, codes: tuple[str, ...] = NEW) -> list[Finding]:
    """What some checks find, without notes."""
    return list_findings(context, codes)


def floats_of(built: TrainingSetup) -> nn.Module:
    """The float model that the run's was quantised from."""
    plain = quick(built).float_model
    assert plain is not None
    return plain.eval().requires_grad_(False)


BOOKS = ({"kind": "codebook", "bits": 4},)
CHOICES: dict[str, tuple[Mapping[str, Any], ...]] = {
    **dict.fromkeys(("O61", "K1", "K2", "K34"), BOOKS),
    "K20": ({"kind": "linear", "bits": 4},),
    "K33": ({"kind": "codebook", "bits": 8, "per_channel": True},),
}
"""The choices of the cases that need others than the mixed ones."""
CODES = {
    "broken-codebook": "O61 K1 K2 K3 K4 K5 K6 K7 K8",
    "unquantised-weights": "O62 K9 K10 K11 K12 K13 K30 K14 K29 O63 K15",
    "rounding-gradient": "K16 K31 K32 K33",
    "quantised-outputs": "K17 K18 K19 K20 K34",
    "no-gradient": "K21 K22 K35",
    "unfit-teacher": "K23 K24 K25 K26 K36 K27 K28",
}
"""The planted faults that each check must find."""
BUGS = case_table(CODES)


HEALTHY: dict[str, tuple[str, tuple[Mapping[str, Any], ...]]] = {
    **{f"{model}, mixed": (model, MIXED) for model in (*MODELS, "scale_net")},
    **{
        f"pointnet, {choice['kind']} {choice.get('bits', '')}{' per channel' if choice.get('per_channel') else ''}": (
            "pointnet",
            (choice,),
        )
        for choice in (
            *({"kind": "codebook", "bits": bits} for bits in (1, 2, 4, 8)),
            *({"kind": "codebook", "bits": bits, "per_channel": True} for bits in (1, 8)),
            *({"kind": "linear", "bits": bits} for bits in (2, 8)),
            {"kind": "linear", "bits": 4, "per_channel": True},
            {"kind": "fp16"},
        )
    },
}


@contextmanager
def planted(bug: Bug, *, seed: int = 0) -> Iterator[TrainingSetup]:
    """A run with a bug, which ends with the context."""
    with Planter() as planter:
        bug.case.plant_into(planter)
        yield planter.change(make_quantised(seed=seed, choices=CHOICES.get(bug.case.id, MIXED)))


def seconds(model: str) -> dict[str, float]:
    """The processor time of each check, without the step and the float model that other checks share."""
    built = make_quantised(model)
    findings_of(quick(built))  # compiles
    context = quick(built)
    _ = context.dry_run, context.float_model
    return processor_time(NEW, context)


if __name__ == "__main__":
    if sys.argv[1:2] == ["healthy"]:
        made = itertools.product(HEALTHY.items(), range(int(sys.argv[2])))
        print_alarms(
            (f"{name}, seed {seed}", findings_of(quick(make_quantised(model, seed=seed, choices=choices))))
            for (name, (model, choices)), seed in made
        )
    elif sys.argv[1:]:
        table(BUGS, lambda bug, seed: is_found(bug, planted(bug, seed=seed)), int(sys.argv[1]))
    else:
        for each in (*MODELS, "scale_net"):
            spent = seconds(each)
            sys.stdout.write(f"{each}: " + ", ".join(f"{code} {1000 * s:.0f} ms" for code, s in spent.items()) + "\n")
