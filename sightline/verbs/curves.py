"""`sightline curves`: the numbers of one or more runs over their steps, as one picture."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from sightline.errors import UserError
from sightline.runs.run_documents import read_lines
from sightline.verbs.common import assert_writable
from sightline.verbs.output import note
from sightline.view.curves import curves_of

__all__ = ["curves"]


def curves(runs: Sequence[Path], *, svg: Path | None) -> int:
    """Draw the losses and metrics of runs; the exit code."""
    target = svg if svg is not None else runs[0] / "curves.svg"
    assert_writable(target, option="--svg")
    names = [run.resolve().name for run in runs]
    if len(set(names)) < len(names):
        names = [str(run) for run in runs]
    if len(set(names)) < len(names):
        raise UserError("curves: a run is given twice; name each once")
    lines = [read_lines(run / "metrics.jsonl") for run in runs]
    text = curves_of({name if len(runs) > 1 else "": each for name, each in zip(names, lines, strict=True)})
    target.write_text(text, encoding="utf-8")
    note(f"written: {target}; open it in a browser")
    return 0
