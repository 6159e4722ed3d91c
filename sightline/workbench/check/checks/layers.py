"""Rules of single layers: outputs against the type that they derive from, gradients against finite differences."""

from __future__ import annotations

from collections.abc import Iterator

import torch

from sightline.doctor.attempts import NotApplicableError
from sightline.doctor.evidence import measure
from sightline.doctor.finding import Fault, FindingLocation
from sightline.doctor.rules import rule
from sightline.engine.device import to_device
from sightline.workbench.check.context import Context
from sightline.workbench.check.oracles.examine import FORWARD, GRADIENT, LayerResult, examine


@measure()
def compared_layers(deep: Context) -> list[LayerResult]:
    """Compare every kind of layer with finite differences, and with the type it derives from: of a deep check."""
    if not deep.dry_run.is_sound:
        raise NotApplicableError("the first step fails")
    results = examine(deep.built.job, to_device(deep.dry_run.batch, torch.device("cpu")))
    uncompared = [each for each in results if each.gradient is None and not each.is_wrong_forward]
    deep.examination.gaps += [f"the layer '{each.place}' alone: {each.note}" for each in uncompared]
    return results


@rule(
    "layer-forward",
    "error",
    "model.structure sys.backend",
    holds="outputs that are those of the type of torch's that a layer derives from",
    do="compare it with its definition; a layer that is meant to differ should derive from nn.Module",
)
def layer_forward(compared_layers: list[LayerResult]) -> Iterator[Fault]:
    """Compare the outputs of layers with those of the type that they derive from."""
    for row in compared_layers:
        if row.is_wrong_forward:
            yield Fault(
                f"the layer '{row.place}' does not compute the definition of its type"
                + (f" ({row.note})" if row.note else ""),
                where=_locate(row),
                measured=f"{row.kind}: off by {row.forward:.3g} of its largest value",
                expected=f"at most {FORWARD:g}",
                evidence={"layers": row.number, "off": row.forward},
            )


def _locate(row: LayerResult) -> FindingLocation:
    """Return the file and line of a layer's class; that of the model in the config for one of a library."""
    file, line = row.file
    return FindingLocation(file=file, line=line, layer=row.place, config_path="model" if file is None else None)


def _contains(row: LayerResult, other: LayerResult) -> bool:
    """Return True if the other layer is inside this one; the whole model contains all layers."""
    return row is not other and (row.place.startswith("(") or other.place.startswith(f"{row.place}."))


@rule(
    "layer-gradient",
    "error",
    "model.numerics loss.inplace",
    holds="gradients of a layer that are the derivative of what it computes",
    do="look for a custom backward, for .data, detach() and no_grad, and for in-place edits; an intended "
    "surrogate gradient is declared by @sightline.surrogate_gradient or surrogate_gradient = True",
)
def layer_gradient(compared_layers: list[LayerResult]) -> Iterator[Fault]:
    """Compare gradients in float64 with finite differences; only the innermost wrong layer is named."""
    wrong = [row for row in compared_layers if row.is_wrong_backward]
    for row in wrong:
        if any(_contains(row, other) for other in wrong):
            continue
        yield Fault(
            f"the gradient of '{row.weakest}' in '{row.place}' is not the derivative of what it computes",
            where=_locate(row),
            measured=f"{row.kind}: off by {row.gradient:.3g} of its size, in float64",
            expected=f"at most {GRADIENT:g}; correct gradients are a factor of ten below",
            evidence={"layers": row.number, "around": [other.place for other in wrong if _contains(other, row)]},
        )
