"""Checks of initial weights: whether those of `init` fit, are loaded and trained; the scheme of random ones."""

from __future__ import annotations

import math
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch
from torch import Tensor, nn

from sightline.config import read_config
from sightline.config.run_config import Init
from sightline.contract.errors import CheckpointError, UserError, join_some
from sightline.doctor.finding import FindingLocation
from sightline.engine.build import build_model
from sightline.engine.distributed import World
from sightline.engine.run_loading import open_run
from sightline.parts.quantisation.parametrised import bake_quantised_weights, dense_state_dict
from sightline.runs import checkpoint
from sightline.runs.checkpoint import load_trained_state
from sightline.runs.packed import unique_tensors
from sightline.runs.snapshots import Snapshot
from sightline.runs.weights import describe_non_finite, find_non_finite, find_spoiled, load_weights, plain_state
from sightline.workbench.check.context import Context, check, initialisations
from sightline.workbench.check.core.dry_run import isolated_copy
from sightline.workbench.check.core.finding import Fault


@check(
    "checkpoint-match",
    "static",
    each=initialisations,
    config_path="init.from",
    action="set init.from to the run of these weights; name in init.may_be_missing only what is to stay as it is",
)
def checkpoint_match(context: Context, init: Init) -> Fault | None:
    """Every tensor of `init` is in the model, bit for bit, except for those that `may_be_missing` names.

    Finds: Initial weights that do not fit the model, that match no tensor of it, or that were not loaded.
    """
    expected = (
        "all tensors and elements of the model"
        + (f" taken from '{init.modules}'" if init.modules else "")
        + (f" under '{init.into}'" if init.into else "")
        + " matched by name and shape"
        + (f", but for {', '.join(init.may_be_missing)}" if init.may_be_missing else "")
    )
    mismatch, model = partial(Fault, expected=expected, evidence={"from": init.source}), context.built.job.model
    try:
        weights = load_trained_state(Path(init.source))
    except CheckpointError as error:
        causes = ("ckpt.corrupt", "ckpt.incomplete_state", "ckpt.stale")
        return mismatch("the initial weights cannot be read", causes=causes, measured=str(error))
    copied = bake_quantised_weights(isolated_copy(model))
    try:
        report = load_weights(copied, weights, may_be_missing=init.may_be_missing, modules=init.modules, into=init.into)
    except CheckpointError as error:
        causes = ("ckpt.key_mismatch", "cfg.class_count", "model.structure")
        return mismatch("the initial weights do not fit the model", causes=causes, measured=str(error))
    if report.matched == 0:
        return mismatch(
            "may_be_missing names everything: nothing is loaded",
            causes=("ckpt.key_mismatch", "cfg.override"),
            at="init.may_be_missing",
            measured=str(report),
        )
    changed = () if context.config.compress is None else context.config.compress.policy
    differing = _find_different_tensors(copied.state_dict(), dense_state_dict(model), changed)
    if differing:
        text = f"{len(differing)} tensors of the model differ from the given weights, {', '.join(differing[:5])} first"
        causes = ("ckpt.stale", "model.init", "ckpt.alias")
        return mismatch("the given weights are not in the model", causes=causes, measured=text)
    if report.matched == report.total:
        return None
    share = report.matched_elements / max(1, report.total_elements)
    return Fault(
        f"{share:.1%} of the model's elements start from the given weights, as declared",
        severity="note",
        causes=("ckpt.key_mismatch",),
        at="init.may_be_missing",
        measured=str(report),
        expected="the patterns of may_be_missing name what differs, and nothing else",
        action="nothing, if this is intended",
    )


@check(
    "unsound-checkpoint",
    "offline",
    causes=("data.corrupt_sample", "model.numerics", "optim.lr"),
    expected="files as they were saved, with finite numbers wherever a new model has them",
    action="evaluate or resume an earlier checkpoint; look for a huge number in the samples, whose square overflows",
)
def unsound_checkpoint(context: Context) -> Iterator[Fault]:
    """Each checkpoint of the run can be read, and its numbers are finite where a new model's are.

    Finds: A checkpoint that is damaged, or has NaN or infinity in weights, running statistics or the optimiser.
    """
    if context.run is None or not context.is_thorough:  # a training looks at what it saves
        return
    for folder in checkpoint.list_checkpoints(context.run):
        causes: tuple[str, ...] = ()
        try:
            faults = _list_spoiled(context.built.job.model, checkpoint.load(folder))
        except CheckpointError as error:
            faults, causes = [str(error)], ("ckpt.corrupt",)
        if faults:
            summary = (
                f"the checkpoint {folder.name} {'cannot be read' if causes else 'has numbers that are not finite'}"
            )
            place, named = FindingLocation(file=str(folder)), join_some(faults, most=3, separator="; ")
            yield Fault(summary, causes=causes, measured=named, where=place)


def _list_spoiled(model: nn.Module, saved: Snapshot) -> list[str]:
    """Describe the tensors of a checkpoint that are not finite where a new model's are."""
    new, parts = plain_state(model), {"model": saved.model, "EMA": saved.ema or {}, "optimiser": saved.optimizer}
    return [
        f"'{name}' of the {part}: {describe_non_finite(tensors[name])}"
        for part, tensors in parts.items()
        for name in (find_non_finite(tensors) if part == "optimiser" else find_spoiled(new, tensors))
    ]


def _find_different_tensors(
    expected: Mapping[str, Tensor], state: Mapping[str, Tensor], changed: Collection[str]
) -> list[str]:
    """Return the names of tensors that loading the weights again would change, except for quantised tensors.

    A shared tensor is quantised under all of its names.
    """
    _, tied = unique_tensors(expected)
    quantised = {tied.get(name, name) for name in changed}
    return [
        name
        for name, value in expected.items()
        if tied.get(name, name) not in quantised
        if isinstance(value, Tensor) and not torch.equal(value.nan_to_num(), state[name].nan_to_num())
    ]


@check("pretraining-mismatch", "static", severity="warning", config_path="init.from")
def pretraining_mismatch(context: Context) -> Fault | None:
    """The run that `init` takes weights from and this run evaluate clouds of the same form.

    Finds: Initial weights trained on clouds in another form: number of points, normalisation, up axis, transforms.
    """
    lineage = context.built.lineage
    if lineage is None or not lineage["differences"]:
        return None
    lines = lineage["differences"]
    is_turned = lineage["source"]["up_axis"] != lineage["here"]["up_axis"]
    return Fault(
        f"the initial weights were trained on clouds in another form: {len(lines)} difference(s)",
        causes=("cfg.axis_swap" if is_turned else "data.normalisation", "data.layout", "cfg.override"),
        measured="; ".join(lines),
        expected="the same in both stages, or an intended difference",
        action="set data and transforms alike, or accept it: checks.skip=[pretraining-mismatch]",
        evidence={"from": lineage["from"]},
    )


@check(
    "untrained-init",
    "static",
    each=initialisations,
    config_path="init.from",
    expected="weights that training has changed",
    action="give a run that was trained, at its last checkpoint; see its metrics.jsonl and its learning rate",
)
def untrained_init(context: Context, init: Init) -> Fault | None:
    """Weights from `init` differ from the untrained weights of this run's seed, and of the source's seed.

    Finds: Initial weights that are random: nothing useful was loaded.
    """
    built = context.built
    fresh = build_model(context.config, built.data.facts, World(device=context.world.device))
    state = built.job.model.state_dict()
    names = [name for name in _find_random_parameters(fresh) if name in state]
    if not names:  # another network than the config's: `checkpoint-match` reports it
        return None
    if not any(_differs(state[name], fresh.state_dict()[name]) for name in names):
        return Fault(
            "init has changed nothing: every weight is the untrained one of this run's seed",
            causes=("ckpt.key_mismatch", "ckpt.stale", "optim.lr"),
            measured=f"0 of {len(names)} drawn tensors differ; {built.init_report}",
            evidence={"from": init.source},
        )
    source = _load_source(Path(init.source))
    if source is None:
        return None
    run, source_state, source_model = source
    names = [name for name in _find_random_parameters(source_model) if name in source_state]
    if not names or any(_differs(source_state[name], source_model.state_dict()[name]) for name in names):
        return None
    return Fault(
        f"the initial weights are untrained: the seed of {run} makes the same",
        causes=("ckpt.stale", "optim.lr", "ckpt.selection"),
        measured=f"0 of {len(names)} drawn tensors differ from a fresh model of that run's config",
        evidence={"from": init.source},
    )


def _load_source(path: Path) -> tuple[Path, Mapping[str, Tensor], nn.Module] | None:
    """Return the run of a checkpoint, its weights and its untrained model; None if the run cannot be opened."""
    run = checkpoint.enclosing_run(path)
    if run is None:
        return None
    try:
        model = open_run(run, config=read_config(run / "config.yaml")).untrained_model()
        return run, checkpoint.load_trained_state(path), model
    except UserError:  # a missing plugin, or another release; `checkpoint-match` reports the rest
        return None


def _find_random_parameters(model: nn.Module) -> list[str]:
    """Return the names of the parameters that the seed determines: those that are not constant."""
    return [
        name
        for name, value in model.named_parameters()
        if value.numel() > 1 and bool((value.detach() != value.detach().flatten()[0]).any())
    ]


def _differs(tensor: Tensor, other: Tensor) -> bool:
    return tensor.shape != other.shape or not torch.equal(tensor.cpu(), other.cpu().to(tensor.dtype))


_LAYERS = (nn.Linear, nn.modules.conv._ConvNd)
_NORMS = (nn.modules.batchnorm._BatchNorm, nn.LayerNorm, nn.GroupNorm)
_MAX_Z = 6.0
_MAX_Z_CERTAIN = 3.0
_MAX_RATIO = 3.0
"""Maximum ratio of a weight's deviation to the largest deviation of all schemes for its size."""
_MIN_SIZE = 16
_ROUND_STDS = (1e-3, 1e-2, 2e-2)
"""Standard deviations stated in papers: V2V-PoseNet, VGG, transformers."""
_COLUMNS = ("layer", "weights", "mean", "std", "scheme", "std by the scheme", "z")


@dataclass(frozen=True)
class InitialWeight:
    """Initial weights of a layer and the scheme that explains them.

    `expected` is the standard deviation of the scheme, `z` the difference from it in standard errors, and `largest` the
    largest deviation of all schemes for a layer of these sizes.
    """

    name: str
    size: int
    mean: float
    std: float
    scheme: str | None
    expected: float
    z: float
    largest: float


@check(
    "untrained-frozen",
    "preflight",
    severity="note",
    causes=("ckpt.key_mismatch", "model.frozen_unintended", "model.init"),
    config_path="model",
)
def untrained_frozen(context: Context) -> Fault | None:
    """Layers that no optimiser trains hold trained weights: their norms are not those that a layer is made with.

    Finds: A frozen backbone or teacher whose weights were never loaded, as by load_state_dict with strict=False.

    Frozen random features, which have no norms, averages that begin as a copy of trained layers, and modules that
    `optimizer.frozen` declares are none.
    """
    if "frozen" in context.config.optimizer.arguments:
        return None
    frozen = {
        name: module
        for name, module in context.built.job.model.named_modules()
        if (own := list(module.parameters(recurse=False))) and not any(p.requires_grad for p in own)
    }
    norms = {name: module for name, module in frozen.items() if isinstance(module, _NORMS)}
    layers = {n: m for n, m in frozen.items() if isinstance(m, _LAYERS) and m.weight.numel() >= _MIN_SIZE}
    if not norms or not layers or not all(map(_is_as_made, norms.values())):
        return None
    trained = {_hash(p) for p in context.built.job.model.parameters() if p.requires_grad}
    if all(_hash(module.weight) in trained for module in layers.values()):
        return None
    weights = [find_scheme(name, module.weight.detach()) for name, module in layers.items()]
    if any(weight.scheme is None for weight in weights):
        return None
    name = next(iter(frozen))
    return Fault(
        f"frozen layers were never trained: '{name}' and {len(frozen) - 1} more are as they were made",
        layer=name,
        measured=f"{len(norms)} norms with weights of 1, biases and means of 0; the spread of {len(layers)} weights is "
        "that of an initialisation",
        expected="weights that were loaded, or a layer that trains",
        action="compare the names in the checkpoint with the model's ('module.', 'backbone.'); load with strict=True",
    )


def _hash(tensor: Tensor) -> int:
    return hash((tuple(tensor.shape), tensor.detach().cpu().float().numpy().tobytes()))


def _is_as_made(norm: nn.Module) -> bool:
    """Return True for a norm that has seen no data, and no step."""
    wanted = {"weight": 1.0, "bias": 0.0, "running_mean": 0.0, "running_var": 1.0}
    tensors = {name: getattr(norm, name, None) for name in wanted}
    return all(bool((tensor == wanted[name]).all()) for name, tensor in tensors.items() if isinstance(tensor, Tensor))


def find_scheme(name: str, weight: Tensor, *, is_transposed: bool = False) -> InitialWeight:
    """Find the scheme of a weight (out, in, kernel...), for transposed convolutions (in, out, kernel...)."""
    window = math.prod(weight.shape[2:])
    sizes = (weight.shape[1] * window, weight.shape[0] * window)
    fan_in, fan_out = sizes[::-1] if is_transposed else sizes
    values = weight.double().flatten()
    mean, std = float(values.mean()), float(values.std(correction=0))
    kurtosis = float(((values - mean) / std).pow(4).mean()) if std > 0 else 3.0
    schemes = dict(_iter_schemes(fan_in, fan_out, sizes[0]))
    largest = max(schemes.values())
    if std == 0:
        return InitialWeight(name, len(values), mean, std, "constant", 0.0, 0.0, largest)
    error = math.sqrt(max(kurtosis - 1, 0.1) / (4 * len(values)))
    misses = {scheme: abs(std / expected - 1) / error for scheme, expected in schemes.items()}
    fitting = [scheme for scheme, miss in misses.items() if miss <= _MAX_Z_CERTAIN]  # the most common first
    nearest = fitting[0] if fitting else min(misses, key=lambda scheme: misses[scheme])
    is_known = misses[nearest] <= _MAX_Z
    return InitialWeight(
        name, len(values), mean, std, nearest if is_known else None, schemes[nearest], misses[nearest], largest
    )


def _iter_schemes(fan_in: int, fan_out: int, second: int) -> Iterator[tuple[str, float]]:
    """Yield the name and the standard deviation of each scheme, which uniform and normal forms share.

    Torch computes its default from the second axis of a weight, in transposed convolutions too.
    """
    yield "torch's default, U(-1/sqrt(fan_in), 1/sqrt(fan_in))", 1 / math.sqrt(3 * second)
    yield "LeCun, 1/sqrt(fan_in)", 1 / math.sqrt(fan_in)
    yield "He, sqrt(2/fan_in)", math.sqrt(2 / fan_in)
    yield "He, sqrt(2/fan_out)", math.sqrt(2 / fan_out)
    yield "Glorot, sqrt(2/(fan_in + fan_out))", math.sqrt(2 / (fan_in + fan_out))
    yield "orthogonal, 1/sqrt(the larger)", 1 / math.sqrt(max(fan_in, fan_out))
    for std in _ROUND_STDS:
        yield f"N(0, {std:g})", std
