"""Small quantised runs with planted bugs, and how often the checks of a training's start find them.

`python -m tests.doctor.compressing 10` prints the table for ten seeds; `python -m tests.doctor.compressing healthy 10`
what the checks find in runs without a bug; `python -m tests.doctor.compressing` their processor time.
"""

from __future__ import annotations

import copy
import itertools
import json
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor, nn

from sightline.compute.layers.quantisation import clustering, parametrised
from sightline.compute.layers.quantisation.clustering import Clusters
from sightline.compute.layers.quantisation.linear import quantisable_weights
from sightline.compute.layers.quantisation.parametrised import (
    Codebook,
    HalfPrecision,
    UniformQuantiser,
    quantised_weights,
)
from sightline.config import read_config
from sightline.contract import registry
from sightline.engine import build as model_surgery
from sightline.engine.build import TrainingSetup, build
from sightline.engine.distributed import World
from sightline.parts.tasks.distillation import DistillationTask
from sightline.parts.tasks.supervised import Supervised
from sightline.workbench.check.context import CHECKS, Context
from sightline.workbench.check.core.finding import Finding
from sightline.workbench.check.suite import all_checks
from tests.conftest import ROOT
from tests.doctor.planting import CONFIG
from tests.doctor.power import print_alarms, processor_time, table

__all__ = ["BUGS", "HEALTHY", "NEW", "Bug", "findings_of", "floats_of", "make_quantised", "planted", "quick", "taught"]

NEW = ("broken-codebook", "unquantised-weights", "rounding-gradient", "quantised-outputs", "unfit-teacher")
Patch = pytest.MonkeyPatch
QUICK_S = 1.5  # what a step may take at the start of a training
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


def quick(built: TrainingSetup) -> Context:
    """As at the start of a training."""
    return Context(built, World(), QUICK_S)


def findings_of(context: Context, codes: tuple[str, ...] = NEW) -> list[Finding]:
    """What some checks find, without notes."""
    all_checks()
    return [each for code in codes for each in CHECKS[code](context) if each.severity != "note"]


def floats_of(built: TrainingSetup) -> nn.Module:
    """The float model that the run's was quantised from."""
    plain = quick(built).float_model
    assert plain is not None
    return plain.eval().requires_grad_(False)


class Bug(NamedTuple):
    """What is planted by patching before the run is built, and by an edit of what was built; who finds it, with what
    cause among those it names.
    """

    code: str
    cause: str
    plant: Callable[[Patch], Any] = lambda patch: None
    edit: Callable[[TrainingSetup], Any] = lambda built: None
    choices: tuple[Mapping[str, Any], ...] = MIXED


# --- codebooks --------------------------------------------------------------------------------------------------------


def _books(built: TrainingSetup) -> list[tuple[Codebook, Tensor]]:
    pairs = quantised_weights(built.job.model).values()
    return [(each, centres.data) for each, centres in pairs if isinstance(each, Codebook)]


def _centres(value: float | Callable[[Tensor], Tensor]) -> Callable[[TrainingSetup], None]:
    """The middle centre of the second codebook of a tensor, replaced."""

    def edit(built: TrainingSetup) -> None:
        centres = [each for _, each in _books(built) if each.ndim == 1][1]
        centres[len(centres) // 2] = value(centres) if callable(value) else value

    return edit


def _labels(change: Callable[[Tensor], Tensor]) -> Callable[[TrainingSetup], None]:
    def edit(built: TrainingSetup) -> None:
        for quantiser, _ in _books(built)[:1]:
            quantiser.labels.copy_(change(quantiser.labels))

    return edit


def _clustered(method: Callable[[Tensor, int], tuple[Tensor, Tensor]]) -> Callable[[Patch], None]:
    """Centres and labels of a tensor's flat weights by another method."""

    def clusters(weight: Tensor, *, bits: int, name: str, per_channel: bool = False) -> Clusters:
        centres, labels = method(weight.detach().flatten(), 2**bits)
        centres = centres.half().float()
        shape = (len(weight), len(centres)) if per_channel else (len(centres),)
        return Clusters(centres.expand(shape).clone(), labels.to(torch.uint8).view(weight.shape), is_float32=False)

    return lambda patch: patch.setattr(parametrised, "cluster_weight", clusters)


def _nearest(values: Tensor, centres: Tensor) -> Tensor:
    return (values[:, None] - centres).abs().argmin(dim=1)


def _linear_start(values: Tensor, number: int) -> tuple[Tensor, Tensor]:
    """Centres at equal distances over the range of skewed weights: most of them are of none."""
    values = values**5
    centres = torch.linspace(float(values.min()), float(values.max()), number)
    return centres, _nearest(values, centres)


def _lloyd(values: Tensor, number: int) -> tuple[Tensor, Tensor]:
    """From drawn centres, some of them far out; the mean of a cluster without members is 0/0."""
    centres = torch.randn(number) * 3 * values.std()
    for _ in range(3):
        labels = _nearest(values, centres)
        sums = torch.zeros(number).index_add(0, labels, values)
        centres = sums / torch.bincount(labels, minlength=number)
        centres = torch.where(centres.isnan(), centres, centres)
    return centres, labels


def _sampled(values: Tensor, number: int) -> tuple[Tensor, Tensor]:
    """Centres drawn among the weights, with replacement, and kept: some are twice the same."""
    centres = values[torch.randint(0, len(values), (number,))].sort().values
    centres[1] = centres[0]
    return centres, torch.arange(len(values)) % number


def _fewer_bits(patch: Patch) -> None:
    own = clustering.cluster_weight
    patch.setattr(
        parametrised, "cluster_weight", lambda weight, *, bits, **more: own(weight, bits=max(1, bits - 1), **more)
    )


# --- what is applied --------------------------------------------------------------------------------------------------


def _applied(change: Callable[..., Any]) -> Callable[[Patch], None]:
    """Another `apply_policy`, which is given the right one."""
    own = parametrised.apply_policy
    return lambda patch: patch.setattr(
        model_surgery, "apply_policy", lambda *given, **more: change(own, *given, **more)
    )


def _forward(kind: type[nn.Module], forward: Callable[..., Tensor]) -> Callable[[Patch], None]:
    return lambda patch: patch.setattr(kind, "forward", forward)


def _only_in_training(kind: type[nn.Module]) -> Callable[[Patch], None]:
    own = kind.forward
    return _forward(kind, lambda self, weight: own(self, weight) if self.training else weight)


def _codebook_in_training(patch: Patch) -> None:
    """Evaluation adds what the codebook leaves of the weight."""
    own = Codebook.forward

    def forward(self: Codebook, centres: Tensor) -> Tensor:
        weight = own(self, centres)
        return weight if self.training else weight + 1e-3 * torch.linspace(-1, 1, weight.numel()).view(weight.shape)

    patch.setattr(Codebook, "forward", forward)


def _more_bits(change: int) -> Callable[[Patch], None]:
    own = parametrised.weight_grid

    def plant(patch: Patch) -> None:
        patch.setattr(
            parametrised, "weight_grid", lambda weight, *, bits, **more: own(weight, bits=bits + change, **more)
        )
        made = UniformQuantiser.__init__
        patch.setattr(UniformQuantiser, "__init__", lambda self, grid, *, bits: made(self, grid, bits=bits + change))

    return plant


def _changed(policy: Mapping[str, Any], change: Callable[[dict[str, Any]], dict[str, Any]]) -> dict[str, Any]:
    return {name: change(dict(choice)) for name, choice in policy.items()}


# --- gradients and outputs --------------------------------------------------------------------------------------------


def _divided_by_zero(patch: Patch) -> None:
    """The mean over the members of a centre, without a thought for those that have none."""

    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None]:
        (places,), (gradient,) = ctx.saved_tensors, gradients
        sums = gradient.new_zeros(ctx.shape.numel()).index_add(0, places, gradient)
        return (sums / torch.bincount(places, minlength=len(sums))).view(ctx.shape), None, None

    patch.setattr(parametrised._LookUp, "backward", staticmethod(backward))


def _predicting(change: Callable[[Any, nn.Module, Any], Any]) -> Callable[[Patch], None]:
    """Predictions of another model."""
    own = Supervised.predict

    def predict(self: Supervised, model: nn.Module, batch: Any) -> Any:
        return own(self, change(self, model, batch), batch)

    return lambda patch: patch.setattr(Supervised, "predict", predict)


def _kept_floats(patch: Patch) -> None:
    """The float model, kept from before it was quantised, predicts."""
    kept: list[nn.Module] = []

    def apply(own: Any, model: nn.Module, *given: Any, **more: Any) -> None:
        kept.append(copy.deepcopy(model).eval())
        own(model, *given, **more)

    _applied(apply)(patch)
    _predicting(lambda task, model, batch: kept[-1])(patch)


def _growing_step(self: UniformQuantiser, weight: Tensor) -> Tensor:
    """A grid that is calibrated anew at each call."""
    self.step.mul_(1.01)
    return parametrised.straight_through(weight, self.grid(weight.detach()))


def _norm_always_trains(patch: Patch) -> None:
    def train(self: nn.Module, mode: bool = True) -> nn.Module:
        return nn.Module.train(self)

    patch.setattr(nn.modules.batchnorm._BatchNorm, "train", train)


def _zeroed(built: TrainingSetup) -> None:
    """A layer that all inputs pass has nothing but zeros."""
    for _, original in list(quantised_weights(built.job.model).values())[:2]:
        original.data.zero_()


def _collapsed(built: TrainingSetup) -> None:
    """Codebooks of the first layer whose centres lie at zero."""
    for _, centres in _books(built)[:1]:
        centres.mul_(0.0)


# --- frozen centres ---------------------------------------------------------------------------------------------------


def _without_gradient(built: TrainingSetup) -> None:
    for _, centres in quantised_weights(built.job.model).values():
        centres.requires_grad_(False)


def _left_out(built: TrainingSetup) -> None:
    own = {id(value) for _, value in quantised_weights(built.job.model).values()}
    for group in built.job.optimizer.param_groups:
        group["params"] = [each for each in group["params"] if id(each) not in own]


def _stale(built: TrainingSetup) -> None:
    """An optimiser of the model as it was before `compress`."""
    recipe = registry.optimizers.build(built.config.optimizer, facts=built.data.facts)
    model = quick(built).float_model
    assert model is not None
    built.job.optimizer.param_groups[:] = recipe.build(model).param_groups


# --- teachers ---------------------------------------------------------------------------------------------------------


def taught(built: TrainingSetup, teacher: nn.Module) -> None:
    """Give the run's task a teacher, as it is: a task would put it to rest."""
    parent: Any = built.job.task
    built.job.task = DistillationTask(parent, teacher=nn.Identity(), teacher_task=parent)
    built.job.task.teacher = teacher


def _taught(teacher: Callable[[TrainingSetup], nn.Module]) -> Callable[[TrainingSetup], None]:
    return lambda built: taught(built, teacher(built))


def _sharing(built: TrainingSetup) -> nn.Module:
    """A teacher whose unquantised tensors are the student's."""
    teacher, own = floats_of(built), dict(built.job.model.named_parameters())
    for name, parameter in teacher.named_parameters():
        if name in own:
            parameter.data = own[name].data
    return teacher


def _held(built: TrainingSetup) -> nn.Module:
    teacher = floats_of(built)
    built.job.optimizer.param_groups[0]["params"] += list(teacher.parameters())
    return teacher


def _partly_training(built: TrainingSetup) -> nn.Module:
    teacher = floats_of(built)
    list(teacher.modules())[-1].train()
    return teacher


TEACHERS = {
    "the teacher is the student": Bug("unfit-teacher", "quant.distill", edit=_taught(lambda built: built.job.model)),
    "the teacher shares tensors": Bug("unfit-teacher", "quant.distill", edit=_taught(_sharing)),
    "a copy of the quantised student teaches": Bug(
        "unfit-teacher",
        "quant.distill",
        edit=_taught(lambda built: copy.deepcopy(built.job.model).eval().requires_grad_(False)),
    ),
    "the teacher is in training mode": Bug("unfit-teacher", "eval.mode", edit=_taught(lambda b: floats_of(b).train())),
    "a layer of the teacher is in training mode": Bug("unfit-teacher", "eval.mode", edit=_taught(_partly_training)),
    "the teacher asks for gradients": Bug(
        "unfit-teacher", "optim.param_coverage", edit=_taught(lambda built: floats_of(built).requires_grad_(True))
    ),
    "the optimiser holds the teacher": Bug("unfit-teacher", "optim.param_coverage", edit=_taught(_held)),
}
BOOKS = ({"kind": "codebook", "bits": 4},)
GRIDS = ({"kind": "linear", "bits": 4},)
BUGS = {
    "linearly spaced centres": Bug("broken-codebook", "quant.empty_cluster", _clustered(_linear_start), choices=BOOKS),
    "Lloyd without re-seeding": Bug("broken-codebook", "quant.empty_cluster", _clustered(_lloyd), choices=BOOKS),
    "centres drawn with replacement": Bug(
        "broken-codebook", "quant.empty_cluster", _clustered(_sampled), choices=BOOKS
    ),
    "a centre is NaN": Bug("broken-codebook", "optim.nonfinite", edit=_centres(torch.nan)),
    "a centre is too large for half precision": Bug("broken-codebook", "optim.nonfinite", edit=_centres(7e4)),
    "a centre repeats the first": Bug("broken-codebook", "quant.empty_cluster", edit=_centres(lambda each: each[0])),
    "a cluster in the middle is empty": Bug(
        "broken-codebook", "quant.empty_cluster", edit=_labels(lambda each: torch.where(each == 3, 2, each))
    ),
    "the last cluster is empty": Bug(
        "broken-codebook", "quant.empty_cluster", edit=_labels(lambda each: each.clamp(max=int(each.max()) - 1))
    ),
    "codebooks of a bit less than stated": Bug("broken-codebook", "quant.policy", _fewer_bits),
    "the policy is applied to a copy": Bug(
        "unquantised-weights",
        "quant.no_effect",
        _applied(lambda own, model, *g, **m: own(copy.deepcopy(model), *g, **m)),
    ),
    "the first layer is skipped": Bug(
        "unquantised-weights",
        "quant.no_effect",
        _applied(lambda own, model, policy, **m: own(model, dict(list(policy.items())[1:]), **m)),
    ),
    "the last layer is skipped": Bug(
        "unquantised-weights",
        "quant.no_effect",
        _applied(lambda own, model, policy, **m: own(model, dict(list(policy.items())[:-1]), **m)),
    ),
    "grids that do not round": Bug(
        "unquantised-weights", "quant.no_effect", _forward(UniformQuantiser, lambda self, w: w + 0)
    ),
    "fp16 that does not round": Bug(
        "unquantised-weights", "quant.no_effect", _forward(HalfPrecision, lambda self, w: w + 0)
    ),
    "grids in training alone": Bug("unquantised-weights", "quant.no_effect", _only_in_training(UniformQuantiser)),
    "fp16 in training alone": Bug("unquantised-weights", "quant.no_effect", _only_in_training(HalfPrecision)),
    "codebooks in training alone": Bug("unquantised-weights", "quant.no_effect", _codebook_in_training),
    "grids of two bits more": Bug("unquantised-weights", "quant.policy", _more_bits(2)),
    "grids of two bits less": Bug("unquantised-weights", "quant.policy", _more_bits(-2)),
    "per channel where the tensor is asked": Bug(
        "unquantised-weights",
        "quant.policy",
        _applied(
            lambda own, model, policy, **m: own(
                model, _changed(policy, lambda c: c if c["kind"] == "fp16" else {**c, "per_channel": True}), **m
            )
        ),
    ),
    "grids without straight-through": Bug(
        "rounding-gradient", "loss.detached", _forward(UniformQuantiser, lambda self, weight: self.grid(weight))
    ),
    "fp16 without straight-through": Bug(
        "rounding-gradient",
        "loss.detached",
        _forward(HalfPrecision, lambda self, weight: (torch.round(weight * 2**20) / 2**20).half().float()),
    ),
    "codebooks that are detached": Bug(
        "rounding-gradient",
        "loss.detached",
        _forward(
            Codebook, lambda self, c: self.as_stored(c).detach().flatten()[self._flat_codes()].view(self.labels.shape)
        ),
    ),
    "a mean over no members": Bug(
        "rounding-gradient",
        "quant.empty_cluster",
        _divided_by_zero,
        choices=({"kind": "codebook", "bits": 8, "per_channel": True},),
    ),
    "the float model predicts": Bug("quantised-outputs", "quant.no_effect", _kept_floats),
    "a grid that moves when it is called": Bug(
        "quantised-outputs", "quant.state_leak", _forward(UniformQuantiser, _growing_step)
    ),
    "batch norms that stay in training mode": Bug("quantised-outputs", "quant.state_leak", _norm_always_trains),
    "a layer of zeros": Bug("quantised-outputs", "model.constant_output", edit=_zeroed, choices=GRIDS),
    "codebooks at zero": Bug("quantised-outputs", "quant.empty_cluster", edit=_collapsed, choices=BOOKS),
    "centres ask for no gradient": Bug("no-gradient", "model.frozen_unintended", edit=_without_gradient),
    "centres are not in the optimiser": Bug("no-gradient", "optim.param_coverage", edit=_left_out),
    "an optimiser from before compress": Bug("no-gradient", "optim.param_coverage", edit=_stale),
    **TEACHERS,
}
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


def planted(bug: Bug, patch: Patch, *, seed: int = 0) -> TrainingSetup:
    """A run with a bug."""
    bug.plant(patch)
    built = make_quantised(seed=seed, choices=bug.choices)
    bug.edit(built)
    return built


def is_found(bug: Bug, seed: int) -> bool:
    """Whether the check of a bug finds it at the start of a training, with its cause among those that are named."""
    with pytest.MonkeyPatch.context() as patch:
        found = findings_of(quick(planted(bug, patch, seed=seed)), (bug.code,))
        return any(bug.cause in (each.cause, *each.alternatives) for each in found)


def seconds(model: str) -> dict[str, float]:
    """The processor time of each check, without the step and the float model that other checks share."""
    all_checks()
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
        table(BUGS, is_found, int(sys.argv[1]))
    else:
        for each in (*MODELS, "scale_net"):
            spent = seconds(each)
            sys.stdout.write(f"{each}: " + ", ".join(f"{code} {1000 * s:.0f} ms" for code, s in spent.items()) + "\n")
