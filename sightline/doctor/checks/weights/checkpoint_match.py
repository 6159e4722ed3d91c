"""Initial weights that do not fit the model, that match no tensor of it, or that were not loaded."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from pathlib import Path

import torch
from torch import Tensor

from sightline.doctor.context import Context, check
from sightline.doctor.core.dry_run import isolated_copy
from sightline.doctor.core.finding import Finding
from sightline.errors import CheckpointError
from sightline.layers.quantisation.parametrised import bake_quantised_weights, dense_state_dict
from sightline.runs.checkpoint import WeightLoadReport, load_weights
from sightline.runs.packed import unique_tensors
from sightline.runs.trained_weights import load_trained_state

__all__ = ["checkpoint_match"]


@check("G11", "checkpoint-match", "static")
def checkpoint_match(context: Context) -> list[Finding]:
    """Every tensor of `init` is in the model, bit for bit, except for those that `may_be_missing` names.

    Finds: Initial weights that do not fit the model, that match no tensor of it, or that were not loaded.
    """
    init, model = context.config.init, context.built.job.model
    if init is None or context.built.init_report is None:  # a resumed run has its weights from its own checkpoint
        return []
    try:
        weights = load_trained_state(Path(init.source))
    except CheckpointError as error:
        causes = ("ckpt.corrupt", "ckpt.incomplete_state", "ckpt.stale")
        return [_finding_mismatch(context, "init.from", causes, "the initial weights cannot be read", str(error))]
    copied = bake_quantised_weights(isolated_copy(model))
    try:
        report = load_weights(copied, weights, may_be_missing=init.may_be_missing, modules=init.modules, into=init.into)
    except CheckpointError as error:
        causes = ("ckpt.key_mismatch", "cfg.class_count", "model.structure")
        return [_finding_mismatch(context, "init.from", causes, "the initial weights do not fit the model", str(error))]
    if report.matched == 0:
        text = "may_be_missing names everything: nothing is loaded"
        return [
            _finding_mismatch(context, "init.may_be_missing", ("ckpt.key_mismatch", "cfg.override"), text, str(report))
        ]
    changed = () if context.config.compress is None else context.config.compress.policy
    differing = _find_different_tensors(copied.state_dict(), dense_state_dict(model), changed)
    if differing:
        causes = ("ckpt.stale", "model.init", "ckpt.alias")
        text = f"{len(differing)} tensors of the model differ from the given weights, {', '.join(differing[:5])} first"
        return [_finding_mismatch(context, "init.from", causes, "the given weights are not in the model", text)]
    return [] if report.matched == report.total else [_finding_partial(context, report)]


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


def _finding_mismatch(context: Context, at: str, causes: tuple[str, ...], summary: str, measured: str) -> Finding:
    init = context.config.init
    assert init is not None, "only for a run that starts from weights"
    return checkpoint_match.finding(
        context,
        summary,
        causes=causes,
        at=at,
        measured=measured,
        expected="all tensors and elements of the model"
        + (f" taken from '{init.modules}'" if init.modules else "")
        + (f" under '{init.into}'" if init.into else "")
        + " matched by name and shape"
        + (f", but for {', '.join(init.may_be_missing)}" if init.may_be_missing else ""),
        action="set init.from to the run of these weights; name in init.may_be_missing only what is to stay as it is",
        evidence={"from": init.source},
    )


def _finding_partial(context: Context, report: WeightLoadReport) -> Finding:
    share = report.matched_elements / max(1, report.total_elements)
    return checkpoint_match.finding(
        context,
        f"{share:.1%} of the model's elements start from the given weights, as declared",
        severity="note",
        causes=("ckpt.key_mismatch",),
        at="init.may_be_missing",
        measured=str(report),
        expected="the patterns of may_be_missing name what differs, and nothing else",
        action="nothing, if this is intended",
    )
