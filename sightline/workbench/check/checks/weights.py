"""Rules of weights: whether those of `init` fit, are loaded and trained, and what checkpoints of a run hold."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from functools import partial
from pathlib import Path

import torch
from torch import Tensor

from sightline.config.run_config import Init
from sightline.contract.errors import CheckpointError
from sightline.doctor.attempts import NotApplicableError
from sightline.doctor.evidence import measure
from sightline.doctor.finding import Fault, FindingLocation
from sightline.doctor.rules import rule
from sightline.parts.quantisation.parametrised import bake_quantised_weights, dense_state_dict
from sightline.runs.checkpoint import load_trained_state
from sightline.runs.packed import unique_tensors
from sightline.runs.weights import load_weights
from sightline.workbench.check.context import Context
from sightline.workbench.check.core.dry_run import isolated_copy

_FROM = FindingLocation(config_path="init.from")


@measure()
def loaded_init(run: Context) -> Init:
    """Return what names the weights that a run starts from; a resumed run has those of its own checkpoint."""
    if run.config.init is None or run.built.init_report is None:
        raise NotApplicableError("no init")
    return run.config.init


@rule(
    "checkpoint-match",
    "error",
    "ckpt.key_mismatch cfg.class_count model.structure",
    holds="every tensor of `init` in the model, bit for bit, but for those that `may_be_missing` names",
    do="set init.from to the run of these weights; name in init.may_be_missing only what is to stay as it is",
)
def checkpoint_match(run: Context, loaded_init: Init) -> Fault | None:
    """Load the weights of `init` again, and compare."""
    init = loaded_init
    expected = (
        "all tensors and elements of the model"
        + (f" taken from '{init.modules}'" if init.modules else "")
        + (f" under '{init.into}'" if init.into else "")
        + " matched by name and shape"
        + (f", but for {', '.join(init.may_be_missing)}" if init.may_be_missing else "")
    )
    mismatch = partial(Fault, expected=expected, evidence={"from": init.source}, where=_FROM)
    model = run.built.job.model
    try:
        weights = load_trained_state(Path(init.source))
    except CheckpointError as error:
        causes = ("ckpt.corrupt", "ckpt.incomplete_state", "ckpt.stale")
        return mismatch("the initial weights cannot be read", causes=causes, measured=str(error))
    copied = bake_quantised_weights(isolated_copy(model))
    try:
        report = load_weights(copied, weights, may_be_missing=init.may_be_missing, modules=init.modules, into=init.into)
    except CheckpointError as error:
        return mismatch("the initial weights do not fit the model", measured=str(error))
    if report.matched == 0:
        where, likely = FindingLocation(config_path="init.may_be_missing"), ("ckpt.key_mismatch", "cfg.override")
        summary = "may_be_missing names everything: nothing is loaded"
        return mismatch(summary, causes=likely, where=where, measured=str(report))
    changed = () if run.config.compress is None else run.config.compress.policy
    differing = _find_different_tensors(copied.state_dict(), dense_state_dict(model), changed)
    if differing:
        text = f"{len(differing)} tensors of the model differ from the given weights, {', '.join(differing[:5])} first"
        causes = ("ckpt.stale", "model.init", "ckpt.alias")
        return mismatch("the given weights are not in the model", causes=causes, measured=text)
    return None


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


@rule(
    "pretraining-mismatch",
    "warning",
    "data.normalisation data.layout cfg.override cfg.axis_swap",
    holds="clouds of the same form in this run and in the one that `init` takes weights from",
    do="set data and transforms alike, or accept it: checks.skip=[pretraining-mismatch]",
)
def pretraining_mismatch(run: Context) -> Fault | None:
    """Compare the number of points, the normalisation, the up axis and the transforms."""
    lineage = run.built.lineage
    if lineage is None:
        raise NotApplicableError("no run to start from")
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
