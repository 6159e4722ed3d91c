"""Rules of the weights that a run starts from: they fit, are loaded, and were trained on clouds like its own."""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from sightline.compression.packed_tensors import unique_tensors
from sightline.compression.parametrised import bake_quantised_weights, dense_state_dict
from sightline.config.run_config import Init
from sightline.contract.errors import CheckpointError, UserError
from sightline.contract.types import Batch, SampleKey
from sightline.doctor.attempts import NotApplicableError
from sightline.doctor.evidence import measure
from sightline.doctor.finding import Fault, FindingLocation
from sightline.doctor.rules import rule
from sightline.engine.device.transfer import to_device
from sightline.engine.run_data import DataSubset
from sightline.runs.inputs import Range, read_inputs, read_ranges
from sightline.runs.run_documents import read_facts
from sightline.runs.weight_sources import open_source
from sightline.runs.weights import load_weights
from sightline.workbench.check.context import Context
from sightline.workbench.check.dry_run import isolated_copy

_NUM_SAMPLES = 16
_MAX_SCALE = 4.0  # augmentation by 0.5 to 2, or another data set in the same unit, stays below 2
_MAX_NONLINEARITY = 0.05
_TINY = 1e-300
_FROM = FindingLocation(config_path="init.from")


@measure()
def loaded_init(run: Context) -> Init:
    """Return what names the weights that a run starts from; a resumed run has those of its own checkpoint."""
    if run.config.init is None or run.built.init_report is None:
        raise NotApplicableError("no init")
    return run.config.init


class Match(NamedTuple):
    """How the weights of `init`, loaded again, differ from the model's, by a row below; "" where they do not."""

    source: str
    difference: str = ""
    measured: str = ""


@measure()
def match(run: Context, loaded_init: Init) -> Match:
    """Load the weights of `init` again, and compare them with those of the model."""
    init, model = loaded_init, run.built.job.model
    try:
        weights = open_source(init.source).read()
    except CheckpointError as error:
        return Match(init.source, "unreadable", str(error))
    copied = bake_quantised_weights(isolated_copy(model))
    try:
        report = load_weights(copied, weights, may_be_missing=init.may_be_missing, modules=init.modules, into=init.into)
    except CheckpointError as error:
        return Match(init.source, "unfit", str(error))
    if report.matched == 0:
        return Match(init.source, "nothing", str(report))
    changed = () if run.config.compress is None else run.config.compress.policy
    if differing := _find_different_tensors(copied.state_dict(), dense_state_dict(model), changed):
        text = f"{len(differing)} tensors of the model differ from the given weights, {', '.join(differing[:5])} first"
        return Match(init.source, "others", text)
    return Match(init.source)


_DIFFERENCES = {
    "unreadable": ("the initial weights cannot be read", "ckpt.corrupt ckpt.incomplete_state ckpt.stale", "init.from"),
    "unfit": ("the initial weights do not fit the model", "", "init.from"),
    "nothing": (
        "may_be_missing names everything: nothing is loaded",
        "ckpt.key_mismatch cfg.override",
        "init.may_be_missing",
    ),
    "others": ("the given weights are not in the model", "ckpt.stale model.init ckpt.alias", "init.from"),
}
"""Of each way to differ: what is said, the causes, if not those of the rule, and the key of the config."""


@rule(
    "checkpoint-match",
    "error",
    "ckpt.key_mismatch cfg.class_count model.structure",
    holds="every tensor of `init` in the model, bit for bit, but for those that `may_be_missing` names",
    do="set init.from to the run of these weights; name in init.may_be_missing only what is to stay as it is",
)
def checkpoint_match(match: Match) -> Fault | None:
    """Say how the model differs from the weights that it starts from."""
    if not match.difference:
        return None
    summary, causes, path = _DIFFERENCES[match.difference]
    where, evidence = FindingLocation(config_path=path), {"from": match.source}
    return Fault(summary, causes=causes.split(), measured=match.measured, where=where, evidence=evidence)


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


@measure()
def lineage(run: Context) -> Mapping[str, Any]:
    """Return what a run and the one that `init` takes weights from say of their clouds."""
    if run.built.lineage is None:
        raise NotApplicableError("no run to start from")
    return run.built.lineage


@rule(
    "pretraining-mismatch",
    "warning",
    "data.normalisation data.layout cfg.override cfg.axis_swap",
    holds="clouds of the same form in this run and in the one that `init` takes weights from",
    do="set data and transforms alike, or accept it: checks.skip=[pretraining-mismatch]",
)
def pretraining_mismatch(lineage: Mapping[str, Any]) -> Fault | None:
    """Compare the number of points, the normalisation, the up axis and the transforms."""
    if not lineage["differences"]:
        return None
    lines = lineage["differences"]
    is_turned = lineage["source"]["up_axis"] != lineage["here"]["up_axis"]
    return Fault(
        f"the initial weights were trained on clouds in another form: {len(lines)} difference(s)",
        causes=("cfg.axis_swap" if is_turned else "data.normalisation", "data.layout", "cfg.override"),
        measured="; ".join(lines),
        where=_FROM,
        evidence={"from": lineage["from"]},
    )


@measure()
def feature_ranges(run: Context, loaded_init: Init) -> dict[str, tuple[Range, Range]]:
    """Return the numbers of each feature of points where the weights were trained, and those of this run's samples.

    Where a run states none, those that its data set declares.
    """
    source = open_source(loaded_init.source).run
    if source is None:
        raise NotApplicableError("no run to start from")
    try:
        info, known = read_inputs(source, read_facts(source)), read_ranges(source)
    except UserError as error:
        raise NotApplicableError(f"no inputs of the run to start from ({error})") from None
    here, features = run.reaching.fields, run.built.data.train.dataset.info.features
    pairs = {}
    for name in (name for name in features if name in info.features and name in here):
        field = info.fields[name]
        declared = None if field.low is None or field.high is None else Range(field.low, field.high, 0.0)
        if (range_there := known.get(name, declared)) is not None:
            pairs[name] = (range_there, here[name])
    if not pairs:
        raise NotApplicableError("no feature of points in both")
    return pairs


@rule(
    "pretraining-mismatch",
    "warning",
    "data.normalisation data.layout",
    holds="features of points in the numbers in which the weights of `init` were trained on them",
    do="scale them as there: colours to 0 to 1, or to -1 to 1; or accept it: checks.skip=[pretraining-mismatch]",
)
def pretraining_ranges(feature_ranges: dict[str, tuple[Range, Range]]) -> Fault | None:
    """Compare the scale and the signs of features, such as colours, with those of the weights' training."""
    lines = [words for name, (there, here) in feature_ranges.items() if (words := there.describe_unlike(name, here))]
    if not lines:
        return None
    return Fault(
        "the initial weights were trained on features of other numbers", measured="; ".join(lines), where=_FROM
    )


# --- the scale of features ---


class LayerScale(NamedTuple):
    """RMS distance of a batch norm's inputs from its running mean, in running standard deviations (median channel)."""

    layer: str
    ratio: float


@measure()
def loaded_scales(run: Context, loaded_init: Init) -> tuple[list[LayerScale], str]:
    """Measure the scales of the first batch norms' inputs, and name the source of their running averages."""
    if run.built.job.step > 0 or "points" not in run.built.data.selection.reader.keys:
        raise NotApplicableError("no clouds of a run that has not begun")
    job, device = run.built.job, run.world.device
    batch = sampled_batch(run.built.data.selection, seed=run.config.seed)
    batch = to_device(batch, device, float_dtype=job.precision.parameter_dtype)
    with job.precision.autocast(device):
        return layer_scales(job.model, batch, job.task.predict), loaded_init.source


@rule(
    "feature-scale",
    "warning",
    "data.normalisation clf.feature_scale data.layout cfg.override",
    holds="inputs of the first batch norms of the scale of the running averages that are loaded",
    do="normalise clouds as in the run of the weights: transforms.evaluate, or how the set was prepared "
    "(sightline data info DIR)",
    is_statistical=True,
)
def feature_scale(loaded_scales: tuple[list[LayerScale], str]) -> Fault | None:
    """Compare the inputs of the first batch norm with its running averages, which describe their training's.

    Source: Ioffe and Szegedy 2015, section 3.1 (inference uses the statistics of training).
    """
    scales, source = loaded_scales
    finite = [scale for scale in scales if math.isfinite(scale.ratio) and scale.ratio > 0]
    if not finite or 1 / _MAX_SCALE <= finite[0].ratio <= _MAX_SCALE:
        return None
    first = finite[0]
    times = f"{max(first.ratio, 1 / first.ratio):.3g} times as {'large' if first.ratio > 1 else 'small'}"
    return Fault(
        f"the inputs of the loaded weights are {times} as in their training",
        measured=f"inputs of {first.layer} are {first.ratio:.3g} times as far from its running average as in training",
        expected=f"between {1 / _MAX_SCALE:g} and {_MAX_SCALE:g} times",
        where=FindingLocation(layer=first.layer, config_path="data"),
        evidence={"from": source, "layers": [[scale.layer, scale.ratio] for scale in finite[:8]]},
    )


def sampled_batch(part: DataSubset, *, seed: int) -> Batch:
    """Read up to sixteen evenly spaced samples of a split, enough to detect another scale."""
    return part.reader([SampleKey(int(index), 0, seed) for index in part.evenly_spaced_indices(_NUM_SAMPLES)])


def layer_scales(model: nn.Module, batch: Batch, run: Callable[[nn.Module, Batch], Any]) -> list[LayerScale]:
    """Measure the input scale of each trained batch norm whose inputs double if the points are doubled.

    These are the first norms: a norm removes the scale for the layers after it. `run` runs a model on a batch; it is
    called on copies that use batch statistics, so fused kernels are included.
    """
    trained_norms = {name: module for name, module in model.named_modules() if _is_trained_norm(module)}
    doubled = {**batch, "points": 2 * batch["points"]}
    statistics, doubled_statistics = (_compute_statistics(model, inputs, run) for inputs in (batch, doubled))
    scales = []
    for name, module in trained_norms.items():
        growth = (_compute_rms(*doubled_statistics[name]) / _compute_rms(*statistics[name]).clamp(min=_TINY)).median()
        if abs(float(growth) - 2) > _MAX_NONLINEARITY:
            continue
        mean, variance = statistics[name]
        running_mean, running_variance = _get_learned_averages(module)
        deviation = variance + (mean - running_mean).square()
        expected_variance = running_variance + module.eps
        scales.append(LayerScale(name, float((deviation / expected_variance).sqrt().median())))
    return scales


def _is_trained_norm(module: Any) -> bool:
    """Return True for a batch norm whose running averages are not the initial 0 and 1."""
    if not isinstance(module, nn.modules.batchnorm._BatchNorm) or module.running_mean is None:
        return False
    assert module.running_var is not None, "averages come in pairs"
    return not (bool((module.running_mean == 0).all()) and bool((module.running_var == 1).all()))


def _get_learned_averages(module: Any) -> tuple[Tensor, Tensor]:
    """Return the running mean (C,) and variance (C,) of a norm without the share of their initial values 0 and 1.

    This share is (1 - momentum)^n after n batches; weights of other sources may not count batches.
    """
    count = 0 if module.num_batches_tracked is None else int(module.num_batches_tracked)
    share = 0.0 if count == 0 or module.momentum is None else (1 - module.momentum) ** count
    mean, variance = module.running_mean.double(), module.running_var.double()
    return mean / (1 - share), ((variance - share) / (1 - share)).clamp(min=_TINY)


def _compute_statistics(
    model: nn.Module, batch: Batch, run: Callable[[nn.Module, Batch], Any]
) -> dict[str, tuple[Tensor, Tensor]]:
    """Compute the mean (C,) and variance (C,) of the inputs of each batch norm over one batch, by module name."""
    copied = isolated_copy(model).train()
    norms = {name: m for name, m in copied.named_modules() if isinstance(m, nn.modules.batchnorm._BatchNorm)}
    for norm in norms.values():
        norm.momentum = 1.0
    with torch.no_grad():
        run(copied, batch)
    return {
        name: (norm.running_mean.double(), norm.running_var.double())
        for name, norm in norms.items()
        if norm.running_mean is not None and norm.running_var is not None
    }


def _compute_rms(mean: Tensor, variance: Tensor) -> Tensor:
    return (variance + mean.square()).sqrt()
