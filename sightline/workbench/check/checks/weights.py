"""Checks of the weights that `init` names: whether they fit, are loaded, are trained, and on clouds of what form."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from functools import partial
from pathlib import Path

import torch
from torch import Tensor, nn

from sightline.compute.layers.quantisation.parametrised import bake_quantised_weights, dense_state_dict
from sightline.config import read_config
from sightline.config.run_config import Init
from sightline.contract.errors import CheckpointError, UserError
from sightline.engine.build import build_model
from sightline.engine.distributed import World
from sightline.engine.run_loading import open_run
from sightline.runs import checkpoint
from sightline.runs.checkpoint import load_trained_state
from sightline.runs.packed import unique_tensors
from sightline.runs.weights import load_weights
from sightline.workbench.check.context import Context, check, initialisations
from sightline.workbench.check.core.dry_run import isolated_copy
from sightline.workbench.check.core.finding import Fault


@check(
    "G11",
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


@check("G3", "pretraining-mismatch", "static", severity="warning", config_path="init.from")
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
    "G11",
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
