"""Checks of compression: codebooks, quantised outputs, searches, teachers, weights left in float.

Checks of a bit-width search are functions of plain values that its driver calls before and after the search; each
returns findings and needs neither a model nor a run.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Collection, Hashable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from sightline.doctor.finding import Finding, FindingLocation
from sightline.parts.quantisation.clustering import cluster_weight
from sightline.parts.quantisation.parametrised import Codebook, dense_state_dict, quantised_weights
from sightline.parts.tasks.distillation import DistillationTask
from sightline.runs.packed import compression_ratios
from sightline.store.loading.batch_reader import array_leaves
from sightline.workbench.check.context import Context, FindingBuilder, check, first_steps
from sightline.workbench.check.core.dry_run import DryRun, isolated_copy
from sightline.workbench.check.core.finding import Fault, diagnose

_diagnose = functools.partial(diagnose, __file__)


@check(
    "broken-codebook",
    "static",
    causes=("quant.empty_cluster", "quant.policy", "optim.nonfinite"),
    config_path="compress.policy",
    expected="finite, distinct centres, each used by a weight; 2^bits of them, or as many as the weight has values",
    action="look at the clustering of this weight: drop or re-seed an empty cluster before its mean is computed",
)
def broken_codebook(context: Context) -> Fault | None:
    """Every centre of an initial codebook is finite, used by a weight, and distinct from the other centres.

    Finds: Codebooks with unused, equal or non-finite centres, or with fewer centres than their weights need.
    """
    plain, faults = context.float_model, {}
    floats = {} if plain is None else dict(plain.named_parameters())
    weights = quantised_weights(context.built.job.model)
    zeros = [name for name, (_, value) in weights.items() if not bool(value.any())]
    for name, (quantiser, centres) in weights.items():
        if isinstance(quantiser, Codebook) and context.config.compress is not None:
            policy = context.config.compress.policy
            measured = _describe_fault(quantiser, centres.detach())
            if name in floats and name in policy:
                measured = measured or _describe_shortage(name, quantiser, floats[name], policy[name])
            if measured:
                others = [zero for zero in zeros if not isinstance(weights[zero][0], Codebook)]
                is_zero = name in zeros and bool(others)  # no clustering made the others zero
                cause = "model.constant_output" if is_zero else _find_cause(quantiser, centres.detach(), measured)
                faults[name] = cause, measured + (f"; {others[0]}, which has none, is zero as well" if is_zero else "")
    return _join_weights("have a broken codebook", faults, broken_codebook.causes)


def _describe_fault(quantiser: Codebook, centres: Tensor) -> str:
    """Describe the non-finite, unused or repeated centres of a codebook; "" if it has none."""
    stored = quantiser.as_stored(centres).reshape(1 if centres.ndim == 1 else len(centres), -1)
    num_broken = int((~stored.isfinite()).sum())
    if num_broken:
        return f"{num_broken} of {stored.numel()} centres are NaN or infinite"
    is_used, index = _used_mask(quantiser), torch.arange(stored.shape[1], device=stored.device)
    is_hole = ~is_used & (
        index < (index * is_used).amax(dim=1, keepdim=True)
    )  # entries after the last used centre are copies of it
    if is_hole.any():
        row, centre = is_hole.nonzero()[0].tolist()
        first_hole = f"centre {centre} ({float(stored[row, centre]):.4g})" + (
            f" of channel {row}" if len(stored) > 1 else ""
        )
        return f"{int(is_hole.sum())} of {stored.numel()} centres have no weight, {first_hole} first"
    num_equal = int((stored.masked_fill(~is_used, torch.inf).sort(dim=1).values.diff(dim=1) == 0).sum())
    return f"{num_equal} of {int(is_used.sum())} centres repeat another in half precision" if num_equal else ""


def _find_cause(quantiser: Codebook, centres: Tensor, measured: str) -> str:
    """Return the cause of a broken codebook: the mean of no weights is NaN, but then no weight has it for its code."""
    stored = quantiser.as_stored(centres).reshape(1 if centres.ndim == 1 else len(centres), -1)
    if bool((~stored.isfinite() & _used_mask(quantiser)).any()):
        return "optim.nonfinite"
    return "quant.policy" if measured.startswith(_TOO_FEW) else "quant.empty_cluster"


_TOO_FEW = "a codebook of "


def _describe_shortage(name: str, quantiser: Codebook, weight: Tensor, choice: Mapping[str, Any]) -> str:
    """Describe a codebook that uses fewer centres than its float weight has clusters; "" if it uses enough."""
    num_used = _used_mask(quantiser).sum(dim=1)
    if bool((num_used >= 2 ** choice.get("bits", 0)).all()):
        return ""
    per_channel = choice.get("per_channel", False)
    best = cluster_weight(weight, bits=choice["bits"], name=name, per_channel=per_channel).weight
    needed = num_distinct(best.reshape(len(best) if per_channel else 1, -1))
    measured = f"{int(num_used.sum())} centres in use, {int(needed.sum())} expected of {choice['bits']} bits"
    is_smaller = num_used.unique().tolist() in [[2**bits] for bits in range(1, choice["bits"])]
    measured = f"{_TOO_FEW}{int(num_used[0])}: {measured}" if is_smaller else measured
    return measured if bool((num_used < needed).any()) else ""


def _used_mask(quantiser: Codebook) -> Tensor:
    """Return the mask (rows, centres) of the centres that at least one weight uses."""
    width = quantiser.shape[-1]
    rows = quantiser.labels.reshape(1 if len(quantiser.shape) == 1 else len(quantiser.labels), -1)
    return torch.stack([row.int().bincount(minlength=width) for row in rows]) > 0


def weights_with_gradient(context: Context) -> set[str]:
    """Return the names of the quantised weights that have a non-zero gradient in the dry run."""
    pairs = quantised_weights(context.dry_run.model).items()
    return {name for name, (_, value) in pairs if value.grad is not None and bool(value.grad.any())}


def num_distinct(rows: Tensor) -> Tensor:
    """Count the distinct values of each row: (R, N) -> (R,) int64."""
    return (rows.sort(dim=1).values.diff(dim=1) != 0).sum(dim=1) + 1


def _join_weights(what: str, faults: Mapping[str, tuple[str, str]], causes: Sequence[str]) -> Fault | None:
    """Join the faults of all weights, name -> (cause, measured), into one at the first; None if there are none."""
    for name, (cause, measured) in faults.items():
        return Fault(
            f"{len(faults)} quantised weight(s) {what}, '{name}' first",
            causes=(cause, *causes),
            param=name,
            measured=measured,
            evidence={"parameters": list(faults)},
        )
    return None


@check(
    "quantised-outputs",
    "preflight",
    each=first_steps,
    config_path="compress.policy",
    expected="outputs that differ from the float model's and distinguish the same inputs, and an unchanged state",
)
def quantised_outputs(context: Context, step: DryRun) -> Iterator[Fault]:
    """In evaluation, the quantised model differs from the float model, distinguishes inputs, and keeps its state.

    Finds: Outputs that quantisation does not change, or makes equal for every input; evaluations that change the model.

    The outputs must differ if a weight that quantisation changed has a gradient.
    """
    float_model, num_samples = context.float_model, step.num_samples
    if float_model is None:
        return
    model = isolated_copy(context.built.job.model).eval()
    state, initial_state = dense_state_dict(model), {name: value.clone() for name, value in model.state_dict().items()}
    floats, outputs = model_outputs(context, float_model.eval()), model_outputs(context, model)
    weights = float_model.state_dict()
    changed = [name for name in sorted(weights_with_gradient(context)) if not torch.equal(weights[name], state[name])]
    varying = [name for name, rows in floats.items() if rows.ndim and len(rows) == num_samples and not _is_flat(rows)]
    leaked = changed_tensors(initial_state, model.state_dict())
    if leaked:
        yield _diagnose("changed state", number=len(leaked), listed="; ".join(leaked[:3]))
    if changed and floats and not changed_tensors(floats, outputs):
        yield _diagnose("no effect", number=len(changed), outputs=", ".join(floats), samples=num_samples)
    if varying and all(name in outputs and _is_flat(outputs[name]) for name in varying):
        yield _diagnose("one output", outputs=", ".join(varying), samples=num_samples)


def model_outputs(context: Context, model: nn.Module) -> dict[str, Tensor]:
    """Return the floating-point tensors that a model predicts for the batch of the dry run, by path."""
    job, device = context.built.job, context.world.device
    with torch.no_grad(), job.precision.autocast(device):
        predictions = dict(job.task.predict(model, context.dry_run.batch))
    return {name: tensor for name, tensor in array_leaves(predictions) if tensor.is_floating_point()}


def changed_tensors(before: Mapping[str, Tensor], after: Mapping[str, Tensor]) -> list[str]:
    """Describe each tensor that is not bit-identical in two states; every line begins with its name."""
    changes = [f"{name} is {'missing' if name in before else 'new'}" for name in before.keys() ^ after.keys()]
    for name in before.keys() & after.keys():
        old, new = (tensor[name].detach().cpu().contiguous() for tensor in (before, after))
        if old.shape != new.shape or old.dtype != new.dtype:
            changes.append(f"{name} was {old.dtype} {list(old.shape)} and is {new.dtype} {list(new.shape)}")
        elif not torch.equal(old.view(-1).view(torch.uint8), new.view(-1).view(torch.uint8)):
            changes.append(f"{name} differs in {int((old != new).sum())} of {old.numel()} elements")
    return sorted(changes)


def _is_flat(rows: Tensor) -> bool:
    """Return True if all rows are equal, with NaN taken as 0."""
    rows = rows.nan_to_num()
    return bool((rows == rows[:1]).all())


_TOLERANCE = 1e-4
"""Relative tolerance of a reported compression ratio; rounding in reports is smaller."""
_SPLIT = FindingBuilder(
    code="search-split",
    causes=("eval.protocol", "data.split"),
    expected="no sample in common: the policy was chosen on the samples that the search reads",
    action="search on the held-out part of the training set, and report on test",
)
_EPISODE = FindingBuilder(
    code="unreset-episode",
    causes=("quant.state_leak", "eval.mode"),
    expected="the trained model, bit by bit, before and after each evaluation of a policy",
    action="quantise a copy in evaluation mode, or reload the whole state, with strict names",
)
_SIZE = FindingBuilder(
    code="size-promise",
    causes=("quant.accounting", "report.budget"),
    expected="the bytes on disk, as promised and within the budget, and the ratios of codes, codebooks and file",
    action="compute promised size and budget by packed_size, and the reported ratios by compression_ratios",
)


def search_split(calibration: Iterable[Hashable], report: Iterable[Hashable]) -> list[Finding]:
    """The search and its report have no sample in common; samples are named as (split, index) or otherwise."""
    reported, read = set(report), set(calibration)
    common = [sample for sample in read if sample in reported]
    if not common:
        return []
    summary = f"the search uses {len(common)} samples that its result is reported on"
    measured = f"{len(common)} of {len(read)}, {min(common, key=repr)} first"
    return [_SPLIT.finding(FindingLocation(config_path="data"), summary, measured=measured)]


def unreset_episode(before: Mapping[str, Tensor], after: Mapping[str, Tensor]) -> list[Finding]:
    """Evaluating policies leaves the model unchanged; `before` is a copy of its state from before any evaluation."""
    changed = changed_tensors(before, after)
    if not changed:
        return []
    measured, location = (
        f"{len(changed)} tensors: {'; '.join(changed[:3])}",
        FindingLocation(param=changed[0].split()[0]),
    )
    return [_EPISODE.finding(location, "an evaluation changes the model", measured=measured)]


def size_promise(
    file: Path,
    *,
    promised: int,
    budget: int | None,
    reported: Mapping[str, float],
    layers: Iterable[tuple[int, int, int]],
    state: Mapping[str, Tensor],
) -> list[Finding]:
    """A packed file has the promised size, is within the budget, and its three compression ratios are reported.

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
            faults.append(
                f"ratio '{name}' {'is not reported' if actual is None else f'{actual:.5g}'}, {value:.5g} found"
            )
    summary, location = "the packed file does not have the reported size", FindingLocation(file=str(file))
    return [_SIZE.finding(location, summary, measured="; ".join(faults))] if faults else []


@check(
    "unfit-teacher",
    "preflight",
    causes=("quant.distill",),
    config_path="teacher",
    expected="a separate float model in evaluation mode that no optimiser changes",
)
def unfit_teacher(context: Context) -> Iterator[Fault]:
    """The teacher shares no weights with the student, differs from a quantised student, and is not trained.

    Finds: Distillation teachers that share weights with the student, that are trained, or whose statistics change.
    """
    job, task = context.built.job, context.built.job.task
    if isinstance(task, DistillationTask):
        optimised = [parameter for group in job.optimizer.param_groups for parameter in group["params"]]
        outputs = (lambda model: model_outputs(context, model)) if context.dry_run.is_sound else None
        yield from teacher_faults(job.model, task.teacher, optimised, outputs)


def teacher_faults(
    student: nn.Module,
    teacher: nn.Module,
    held: Collection[Tensor] = (),
    outputs: Callable[[nn.Module], Mapping[str, Tensor]] | None = None,
) -> Iterator[Fault]:
    """Yield the faults of a teacher.

    `held` are the optimiser's parameters; `outputs` returns the outputs of a model for some batch.
    """
    student_tensors, teacher_state = student.state_dict(keep_vars=True).values(), teacher.state_dict(keep_vars=True)
    pointers = {value.data_ptr() for value in student_tensors if value.numel()}
    shared = [name for name, value in teacher_state.items() if value.data_ptr() in pointers]
    if shared:
        yield _diagnose("shared teacher", number=len(shared), total=len(teacher_state), first=shared[0])
    elif outputs is not None and quantised_weights(student):
        teacher_outputs = outputs(isolated_copy(teacher).eval())
        if teacher_outputs and not changed_tensors(teacher_outputs, outputs(isolated_copy(student).eval())):
            yield _diagnose("quantised teacher", outputs=", ".join(teacher_outputs))
    if moving := [name or "all of it" for name, module in teacher.named_modules() if module.training]:
        yield _diagnose("moving teacher", number=len(moving), first=moving[0])
    ids = {id(parameter) for parameter in held}
    if trainable := [
        name for name, p in teacher.named_parameters() if (p.requires_grad or id(p) in ids) and not shared
    ]:
        num_held = sum(id(parameter) in ids for parameter in teacher.parameters())
        yield _diagnose("trained teacher", number=len(trainable), held=num_held, first=trainable[0])


@check(
    "unquantised-weights",
    "static",
    causes=("quant.no_effect", "quant.policy"),
    config_path="compress.policy",
    expected="at most 2^bits values of a codebook, 2^bits - 1 of a grid, per channel if configured, in both modes",
    action="apply the policy to the model that is trained and evaluated, not to a copy, and return the rounded weight",
)
def unquantised_weights(context: Context) -> Fault | None:
    """Each weight that the policy names has no more values than its bits allow, in training and in evaluation.

    Finds: Quantised weights that do not follow the policy, or that pass no gradient to their float weights.
    """
    compress = context.config.compress
    faults = {} if compress is None else dict(_find_faults(isolated_copy(context.built.job.model), compress.policy))
    return _join_weights("do not follow the policy", faults, unquantised_weights.causes)


def _find_faults(model: nn.Module, policy: Mapping[str, Mapping[str, Any]]) -> Iterator[tuple[str, tuple[str, str]]]:
    quantisers = quantised_weights(model)
    training, evaluation = (dense_state_dict(model.train(mode)) for mode in (True, False))
    for name, choice in policy.items():
        (quantiser, original), bits = quantisers.get(name, (None, None)), choice.get("bits", 16)
        stated = f"; the policy states {bits} bits, {choice['kind']}"
        excess, mode = _describe_excess(training[name], choice), "training"
        if not excess and not torch.equal(training[name], evaluation[name]):
            excess, mode = _describe_excess(evaluation[name], choice), "evaluation"
        if excess:
            is_float = quantiser is None or mode == "evaluation" or _is_same(training[name], original)
            cause = "quant.no_effect" if is_float else "quant.policy"
            yield name, (cause, f"{excess} in {mode}{stated}")
        elif getattr(quantiser, "bits", bits) != bits:
            yield name, ("quant.policy", f"{quantiser}{stated}")


def _is_same(weight: Tensor, original: Tensor | None) -> bool:
    return original is not None and weight.shape == original.shape and torch.equal(weight, original.to(weight))


def _describe_excess(value: Tensor, choice: Mapping[str, Any]) -> str:
    """Describe the values that a weight has beyond its policy entry; "" if it conforms."""
    if choice["kind"] == "fp32":
        return ""
    if choice["kind"] == "fp16":
        num_off = int((value.half().to(value.dtype) != value).sum())
        return f"{num_off} of {value.numel()} values are not of half precision" if num_off else ""
    max_values = 2 ** choice["bits"] - (choice["kind"] == "linear")
    num_values = int(num_distinct(value.nan_to_num().reshape(len(value) if choice.get("per_channel") else 1, -1)).max())
    return f"{num_values} different values" if num_values > max_values else ""


@check(
    "rounding-gradient",
    "static",
    causes=("loss.detached", "quant.policy"),
    config_path="compress.policy",
    expected="a finite gradient that is not zero everywhere, for a gradient of 1 at the weight",
    action="round by a straight-through estimate: the rounded number forward, the gradient unchanged backward",
)
def rounding_gradient(context: Context) -> Fault | None:
    """A gradient of ones at each quantised weight reaches the float weight that it is computed from, and is finite.

    Finds: Quantised weights that do not follow the policy, or that pass no gradient to their float weights.
    """
    model, faults = isolated_copy(context.built.job.model), {}
    owners = dict(model.named_modules())  # `get_submodule` would return a method that has a module's name
    for name, (_, original) in quantised_weights(model).items():
        path, _, attribute = name.rpartition(".")
        weight, slope = getattr(owners[path], attribute), None
        if weight.requires_grad:
            (slope,) = torch.autograd.grad(weight.sum(), original, allow_unused=True)
        if original.requires_grad and (slope is None or not slope.any()):
            faults[name] = "loss.detached", "no gradient" if slope is None else "zero everywhere"
        elif slope is not None and not slope.isfinite().all():
            faults[name] = "quant.empty_cluster", f"{int((~slope.isfinite()).sum())} of {slope.numel()} are not finite"
    return _join_weights("pass no gradient on", faults, rounding_gradient.causes)
