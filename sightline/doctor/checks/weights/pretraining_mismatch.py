"""Guard G3: weights that learned on clouds of another form than this run reads: number, place, axis, transforms."""

from __future__ import annotations

from sightline.doctor.context import Context, check
from sightline.doctor.core.finding import Finding

__all__ = ["pretraining_mismatch"]

CODE = "pretraining-mismatch"


@check(code=CODE, moment="static")
def pretraining_mismatch(context: Context) -> list[Finding]:
    """The run that `init` takes weights from and this one evaluate clouds of one form; what differs is named."""
    lineage = context.built.lineage
    if lineage is None or not lineage["differences"]:
        return []
    lines = lineage["differences"]
    is_turned = lineage["source"]["up_axis"] != lineage["here"]["up_axis"]
    return [
        Finding(
            guard="G3",
            code=CODE,
            severity="warning",
            summary=f"the weights to start from learned on clouds of another form: {len(lines)} thing(s) differ",
            cause="cfg.axis_swap" if is_turned else "data.normalisation",
            alternatives=("data.layout", "cfg.override"),
            where=context.place("init.from"),
            measured="; ".join(lines),
            expected="the same in both stages, or a difference that is meant",
            action=f"set data and transforms alike, or say that it is meant: checks.skip=[{CODE}]",
            evidence={"from": lineage["from"]},
        )
    ]
