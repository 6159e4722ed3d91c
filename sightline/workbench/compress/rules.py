"""Rules of quantised runs: codebooks, the policy, gradients through rounding, outputs, and teachers.

Those of a search for bits read plain values, which its driver gives before and after it (`find_by`).
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from sightline.compression.codebooks import Codebook, cluster_weight
from sightline.compression.parametrised import dense_state_dict, quantised_weights
from sightline.compression.policy import WeightFormat, trained_policy
from sightline.compression.ratios import compression_ratios
from sightline.doctor.attempts import NotApplicableError
from sightline.doctor.evidence import measure
from sightline.doctor.finding import Fault, FindingLocation
from sightline.doctor.rules import rule
from sightline.parts.tasks.distillation import DistillationTask
from sightline.store.loading.leaves import array_leaves
from sightline.workbench.check.context import Context
from sightline.workbench.check.dry_run import DryRun, isolated_copy

_TOLERANCE = 1e-4  # of a reported ratio, which is rounded


class QuantisedWeight(NamedTuple):
    """Weight that the policy names: its quantiser and what it is computed from, its values in both modes."""

    name: str
    choice: WeightFormat
    quantiser: Any
    original: Tensor | None
    training: Tensor
    evaluation: Tensor

    @property
    def centres(self) -> Tensor | None:
        """Centres of a codebook as they are stored (rows, centres)."""
        if not isinstance(self.quantiser, Codebook) or self.original is None:
            return None
        return self.quantiser.rows(self.quantiser.as_stored(self.original.detach()))

    @property
    def is_used(self) -> Tensor:
        """Mask (rows, centres) of the centres that at least one weight has."""
        labels = self.quantiser.rows(self.quantiser.labels)
        return torch.stack([row.int().bincount(minlength=self.quantiser.shape[-1]) for row in labels]) > 0


@measure()
def quantised(run: Context) -> list[QuantisedWeight]:
    """Compute the weights of the policy on a copy of the model, in both modes."""
    if run.config.compress is None:
        raise NotApplicableError("no compress")
    model = isolated_copy(run.built.job.model)
    training, evaluation = (dense_state_dict(model.train(mode)) for mode in (True, False))
    weights, policy = quantised_weights(model), trained_policy(run.config)
    return [
        QuantisedWeight(name, choice, quantiser, original, training[name], evaluation[name])
        for name, choice in policy.items()
        for quantiser, original in [weights.get(name, (None, None))]
    ]


def _join(what: str, faults: Mapping[str, tuple[str, str]]) -> Iterator[Fault]:
    """Yield one fault of all weights, name -> (cause, measured), at the first."""
    for name, (cause, measured) in list(faults.items())[:1]:
        where = FindingLocation(param=name, config_path="compress.policy")
        summary = f"{len(faults)} quantised weight(s) {what}, '{name}' first"
        yield Fault(summary, measured=measured, causes=[cause], where=where)


def _count_distinct(rows: Tensor) -> Tensor:
    return (rows.sort(dim=1).values.diff(dim=1) != 0).sum(dim=1) + 1


@rule(
    "broken-codebook",
    "error",
    "quant.empty_cluster quant.policy optim.nonfinite",
    holds="finite, distinct centres, each used by a weight; 2^bits of them, or as many as the weight has values",
    do="look at the clustering of this weight: drop or re-seed an empty cluster before its mean is computed",
)
def broken_codebook(run: Context, quantised: list[QuantisedWeight]) -> Iterator[Fault]:
    """Look for centres that are not finite, unused or repeated, and for codebooks of too few."""
    floats, faults = dict(run.float_model.named_parameters()) if run.float_model is not None else {}, {}
    untrained = [
        w.name for w in quantised if w.centres is None and w.quantiser is not None and not bool(w.training.any())
    ]
    for weight in quantised:
        fault = None if weight.centres is None else _judge_centres(weight) or _judge_count(weight, floats)
        if fault is not None:
            is_zero = bool(untrained) and not bool(weight.training.any())  # no clustering made the others zero
            faults[weight.name] = ("model.constant_output", fault[1]) if is_zero else fault
    yield from _join("have a broken codebook", faults)


def _judge_centres(weight: QuantisedWeight) -> tuple[str, str] | None:
    stored, is_used = weight.centres, weight.is_used
    assert stored is not None
    if bool((~stored.isfinite()).any()):
        cause = "optim.nonfinite" if bool((~stored.isfinite() & is_used).any()) else "quant.empty_cluster"
        return cause, f"{int((~stored.isfinite()).sum())} of {stored.numel()} centres are NaN or infinite"
    index = torch.arange(stored.shape[1], device=stored.device)
    is_hole = ~is_used & (index < (index * is_used).amax(dim=1, keepdim=True))  # later ones are copies of the last used
    if bool(is_hole.any()):
        return "quant.empty_cluster", f"{int(is_hole.sum())} of {stored.numel()} centres have no weight"
    equal = int((stored.masked_fill(~is_used, torch.inf).sort(dim=1).values.diff(dim=1) == 0).sum())
    return ("quant.empty_cluster", f"{equal} centres repeat another in half precision") if equal else None


def _judge_count(weight: QuantisedWeight, floats: Mapping[str, Tensor]) -> tuple[str, str] | None:
    """Compare the number of centres in use with that of the clusters of the float weight."""
    used, (_, bits, per_channel, _) = weight.is_used.sum(dim=1), weight.choice
    if weight.name not in floats or bool((used >= 2**bits).all()):
        return None
    best = cluster_weight(floats[weight.name], bits=bits, name=weight.name, per_channel=per_channel).centres
    needed = _count_distinct(best.reshape(len(best) if per_channel else 1, -1))
    is_smaller = used.unique().tolist() in [[2**fewer] for fewer in range(1, bits)]
    measured = f"{int(used.sum())} centres in use, {int(needed.sum())} expected of {bits} bits"
    return ("quant.policy" if is_smaller else "quant.empty_cluster", measured) if bool((used < needed).any()) else None


@rule(
    "unquantised-weights",
    "error",
    "quant.no_effect quant.policy",
    holds="at most 2^bits values of a codebook, 2^bits - 1 of a grid, per channel if configured, in both modes",
    do="apply the policy to the model that is trained and evaluated, not to a copy, and return the rounded weight",
)
def unquantised_weights(quantised: list[QuantisedWeight]) -> Iterator[Fault]:
    """Count the values of each weight in training and in evaluation."""
    faults = {}
    for weight in quantised:
        excess = [_describe_excess(values, weight.choice) for values in (weight.training, weight.evaluation)]
        bits = weight.choice.bits
        stated = f"; the policy states {bits} bits, {weight.choice.kind}"
        original, now = weight.original, weight.training
        if any(excess):
            is_plain = original is not None and original.shape == now.shape and torch.equal(now, original.to(now))
            cause = "quant.no_effect" if weight.quantiser is None or not excess[0] or is_plain else "quant.policy"
            faults[weight.name] = cause, (excess[0] or f"{excess[1]} in evaluation") + stated
        elif getattr(weight.quantiser, "bits", bits) != bits:
            faults[weight.name] = "quant.policy", f"{weight.quantiser}{stated}"
    yield from _join("do not follow the policy", faults)


def _describe_excess(value: Tensor, choice: WeightFormat) -> str:
    """Describe the values that a weight has beyond its policy entry; "" if it conforms."""
    if choice.kind in ("fp32", "fp16"):
        off = 0 if choice.kind == "fp32" else int((value.half().to(value.dtype) != value).sum())
        return f"{off} of {value.numel()} values are not of half precision" if off else ""
    most = 2**choice.bits - (choice.kind == "linear")
    num_distinct = int(_count_distinct(value.nan_to_num().reshape(len(value) if choice.per_channel else 1, -1)).max())
    return f"{num_distinct} different values" if num_distinct > most else ""


@rule(
    "rounding-gradient",
    "error",
    "loss.detached quant.policy",
    holds="a finite gradient that is not zero everywhere, for a gradient of 1 at the weight",
    do="round by a straight-through estimate: the rounded number forward, the gradient unchanged backward",
)
def rounding_gradient(run: Context) -> Iterator[Fault]:
    """Ask each quantised weight for its gradient at the float weight that it is computed from."""
    model, faults = isolated_copy(run.built.job.model), {}
    owners = dict(model.named_modules())  # `get_submodule` would return a method that has a module's name
    weights = quantised_weights(model)
    if not weights:
        raise NotApplicableError("no quantised weights")
    for name, (_, original) in weights.items():
        path, _, attribute = name.rpartition(".")
        weight, slope = getattr(owners[path], attribute), None
        if weight.requires_grad:
            (slope,) = torch.autograd.grad(weight.sum(), original, allow_unused=True)
        if original.requires_grad and (slope is None or not slope.any()):
            faults[name] = "loss.detached", "no gradient" if slope is None else "zero everywhere"
        elif slope is not None and not slope.isfinite().all():
            faults[name] = "quant.empty_cluster", f"{int((~slope.isfinite()).sum())} of {slope.numel()} are not finite"
    yield from _join("pass no gradient on", faults)


def _predict(run: Context, model: nn.Module) -> dict[str, Tensor]:
    """Return the floating-point tensors that a copy of a model predicts for the first batch, in evaluation mode."""
    with torch.no_grad(), run.built.job.precision.autocast(run.world.device):
        predictions = dict(run.built.job.task.predict(model, run.dry_run.batch))
    return {name: tensor for name, tensor in array_leaves(predictions) if tensor.is_floating_point()}


def _is_flat(rows: Tensor) -> bool:
    return bool((rows.nan_to_num() == rows[:1].nan_to_num()).all())


def _list_changes(before: Mapping[str, Tensor], after: Mapping[str, Tensor]) -> list[str]:
    """List each tensor that is not bit-identical in two states, missing or new."""
    changes = [f"{name} is {'missing' if name in before else 'new'}" for name in before.keys() ^ after.keys()]
    for name in before.keys() & after.keys():
        old, new = (tensors[name].detach().cpu().contiguous() for tensors in (before, after))
        if old.shape != new.shape or old.dtype != new.dtype:
            changes.append(f"{name} was {old.dtype} {list(old.shape)} and is {new.dtype} {list(new.shape)}")
        elif not torch.equal(old.view(-1).view(torch.uint8), new.view(-1).view(torch.uint8)):
            changes.append(f"{name} differs in {int((old != new).sum())} of {old.numel()} elements")
    return sorted(changes)


@rule(
    "quantised-outputs",
    "error",
    "quant.no_effect quant.state_leak model.constant_output",
    holds="outputs that differ from the float model's and distinguish the same inputs, and an unchanged state",
    do="look for a copy of the float weights that evaluation uses, for codebooks of one centre, for norms in training",
)
def quantised_outputs(run: Context, first_step: DryRun) -> Iterator[Fault]:
    """Compare the quantised model with the float one, and with itself after an evaluation."""
    plain, where = run.float_model, FindingLocation(config_path="compress.policy")
    if plain is None:
        raise NotApplicableError("no float model")
    model = isolated_copy(run.built.job.model).eval()
    state, before = dense_state_dict(model), {name: value.clone() for name, value in model.state_dict().items()}
    floats, outputs, weights = _predict(run, plain.eval()), _predict(run, model), plain.state_dict()
    trained = {
        n for n, (_, v) in quantised_weights(first_step.model).items() if v.grad is not None and bool(v.grad.any())
    }
    changed = [name for name in trained if not torch.equal(weights[name], state[name])]
    leaked = _list_changes(before, model.state_dict())
    num = first_step.num_samples
    varying = [n for n, rows in floats.items() if rows.ndim and len(rows) == num and not _is_flat(rows)]
    if leaked:
        summary, causes = "evaluating the quantised model changes it", ["quant.state_leak", "model.norm_mode"]
        yield Fault(summary, measured="; ".join(leaked[:3]), causes=causes, where=where)
    if changed and floats and not _list_changes(floats, outputs):
        summary = f"{len(changed)} weights are quantised, and the outputs are those of the float model"
        yield Fault(summary, measured="equal bit by bit", causes=["quant.no_effect", "ckpt.alias"], where=where)
    if varying and all(name in outputs and _is_flat(outputs[name]) for name in varying):
        causes = ["model.constant_output", "quant.empty_cluster"]
        summary = "the quantised model returns the same for every input"
        yield Fault(summary, measured=f"one value of {', '.join(varying)}", causes=causes, where=where)


@rule(
    "unfit-teacher",
    "error",
    "quant.distill",
    holds="a separate float model in evaluation mode that no optimiser changes",
    do="load the float run as a separate model, call eval() and requires_grad_(False), and no train() after it",
)
def unfit_teacher(run: Context) -> Iterator[Fault]:
    """Compare a teacher with its student, its mode, and what the optimiser holds."""
    job, task, where = run.built.job, run.built.job.task, FindingLocation(config_path="teacher")
    if not isinstance(task, DistillationTask):
        raise NotApplicableError("no teacher")
    teacher, weights = task.teacher, job.model.state_dict(keep_vars=True).values()
    pointers = {value.data_ptr() for value in weights if value.numel()}
    shared = [n for n, value in teacher.state_dict(keep_vars=True).items() if value.data_ptr() in pointers]
    if shared:
        yield Fault("the teacher shares its weights with the student", measured=f"{shared[0]} first", where=where)
    elif run.dry_run.is_sound and quantised_weights(job.model):
        outputs = [_predict(run, isolated_copy(model).eval()) for model in (teacher, job.model)]
        if outputs[0] and not _list_changes(*outputs):
            summary = "the teacher has the outputs of the quantised student"
            yield Fault(summary, measured="equal bit by bit", where=where)
    moving = [name or "all of it" for name, module in teacher.named_modules() if module.training]
    if moving:
        causes, measured = ["eval.mode", "quant.distill"], f"{len(moving)} modules, {moving[0]} first"
        yield Fault("the teacher is in training mode", measured=measured, causes=causes, where=where)
    held = {id(parameter) for group in job.optimizer.param_groups for parameter in group["params"]}
    trained = [n for n, p in teacher.named_parameters() if (p.requires_grad or id(p) in held) and not shared]
    if trained:
        causes, measured = ["optim.param_coverage", "quant.distill"], f"{len(trained)} parameters, {trained[0]} first"
        yield Fault("the teacher would be trained", measured=measured, causes=causes, where=where)


@rule(
    "size-promise",
    "error",
    "quant.accounting report.budget",
    holds="the bytes on disk, as promised and within the budget, and the ratios of codes, codebooks and file",
    do="compute promised size and budget by packed_size, and the reported ratios by compression_ratios",
)
def size_promise(
    file: Path,
    promised: int,
    budget: int | None,
    reported: Mapping[str, float],
    layers: Iterable[tuple[int, int, int]],
    state: Mapping[str, Tensor],
) -> Fault | None:
    """Compare a packed file with its promised size, the budget, and the three ratios that are reported.

    `reported` maps the names of `Ratios` to ratios; `layers` and `state` are passed to `compression_ratios`.
    """
    size, faults = file.stat().st_size, []
    if size != promised:
        faults.append(f"{size:,} bytes on disk, {promised:,} promised")
    if budget is not None and size > budget:
        faults.append(f"{size:,} bytes on disk, {size - budget:,} above the budget of {budget:,}")
    for name, value in compression_ratios(layers, file_bytes=size, state=state)._asdict().items():
        actual = reported.get(name)
        if actual is None or not math.isclose(actual, value, rel_tol=_TOLERANCE):
            told = "is not reported" if actual is None else f"{actual:.5g}"
            faults.append(f"ratio '{name}' {told}, {value:.5g} found")
    if not faults:
        return None
    summary, where = "the packed file does not have the reported size", FindingLocation(file=str(file))
    return Fault(summary, measured="; ".join(faults), where=where)
