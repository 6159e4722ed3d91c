"""Lines of the user's program that a finding is about: of its model, its loss or its data set."""

from __future__ import annotations

import dataclasses
from typing import Any

from torch import nn

from sightline.doctor.examine import Examination
from sightline.doctor.finding import SEVERITIES, Finding
from sightline.doctor.objects import get_python_function
from sightline.doctor.rules import Rule
from sightline.doctor.subject import Subject

_ABOUT = {
    **dict.fromkeys(("model", "symmetry", "indices", "state"), "model"),
    **dict.fromkeys(("loss", "targets", "terms", "pairs", "counted", "samples"), "loss"),
    **dict.fromkeys(("data", "geometry"), "data"),
}
"""Part of a program that the rules of a module judge; others have no lines of their own, or name them."""
_FOREIGN = ("site-packages", "dist-packages", "/torch/")


def locate_findings(examination: Examination, subject: Subject) -> list[Finding]:
    """List the findings of an examination, the gravest first; those without a file get that of what they are about.

    A part that torch or another library defines has no lines of the user's.
    """
    parts = {"model": subject.model, "loss": subject.form.loss, "data": _get_data(subject.loader)}
    located = [
        _locate(finding, parts.get(_ABOUT.get(_get_module(judgement.rule), "")))
        for judgement in examination.judgements
        for finding in judgement.findings
    ]
    return sorted(located, key=lambda finding: SEVERITIES.index(finding.severity))


def find_source(part: Any) -> tuple[str, int] | None:
    """Find the file and first line of a function, of the `forward` of a module, or of `__getitem__` of a data set.

    None for what a library defines, and for what has no source.
    """
    if isinstance(part, nn.Module):
        part = type(part).forward
    elif hasattr(type(part), "__getitem__"):
        part = type(part).__getitem__
    function = get_python_function(part)
    if function is None or any(word in function.__code__.co_filename for word in _FOREIGN):
        return None
    return function.__code__.co_filename, function.__code__.co_firstlineno


def _get_module(rule: Rule) -> str:
    return rule.judge.__module__.rpartition(".")[2]


def _get_data(loader: Any) -> Any:
    """Return the data set of a loader, inside of the parts that torch divides it into."""
    data = getattr(loader, "dataset", None)
    while type(data).__module__.startswith("torch.") and (inner := getattr(data, "dataset", None)) is not None:
        data = inner
    return data


def _locate(finding: Finding, part: Any) -> Finding:
    source = None if part is None or finding.where.file is not None else find_source(part)
    if source is None:
        return finding
    return dataclasses.replace(finding, where=dataclasses.replace(finding.where, file=source[0], line=source[1]))
