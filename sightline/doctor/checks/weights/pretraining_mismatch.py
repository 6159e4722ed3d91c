"""Initial weights trained on clouds in another form: number of points, normalisation, up axis, transforms."""

from __future__ import annotations

from sightline.doctor.context import Context, check
from sightline.doctor.core.finding import Finding

__all__ = ["pretraining_mismatch"]


@check("G3", "pretraining-mismatch", "static", severity="warning", config_path="init.from")
def pretraining_mismatch(context: Context) -> list[Finding]:
    """The run that `init` takes weights from and this run evaluate clouds of the same form.

    Finds: Initial weights trained on clouds in another form: number of points, normalisation, up axis, transforms.
    """
    lineage = context.built.lineage
    if lineage is None or not lineage["differences"]:
        return []
    lines = lineage["differences"]
    is_turned = lineage["source"]["up_axis"] != lineage["here"]["up_axis"]
    return [
        pretraining_mismatch.finding(
            context,
            f"the initial weights were trained on clouds in another form: {len(lines)} difference(s)",
            causes=("cfg.axis_swap" if is_turned else "data.normalisation", "data.layout", "cfg.override"),
            measured="; ".join(lines),
            expected="the same in both stages, or an intended difference",
            action=f"set data and transforms alike, or accept it: checks.skip=[{pretraining_mismatch.code}]",
            evidence={"from": lineage["from"]},
        )
    ]
