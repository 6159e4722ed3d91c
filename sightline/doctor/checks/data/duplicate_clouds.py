"""The same cloud under two labels, or in training and in test."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from sightline.doctor.context import Context, check
from sightline.doctor.core.finding import Finding
from sightline.optional_members import DataMembers

__all__ = ["duplicate_clouds"]

_MOST_LISTED = 3


class _Kind(NamedTuple):
    """What is the matter with groups of equal clouds of one kind, and what it comes from."""

    summary: str
    cause: str
    alternative: str
    expected: str
    action: str


_KINDS = (
    _Kind(
        "the same cloud is in several classes",
        "data.label_mapping",
        "data.split",
        "one class for every cloud: at most one of these labels is right",
        "remove the files with the wrong label, and prepare the set again",
    ),
    _Kind(
        "the same cloud is in several parts",
        "data.split",
        "data.layout",
        "every cloud in one part: a test on training clouds proves nothing about others",
        "remove the copies, or give the parts yourself, and prepare the set again",
    ),
)


@check("G4", "duplicate-clouds", "preflight", severity="warning", config_path="data")
def duplicate_clouds(context: Context) -> list[Finding]:
    """No cloud stands in two classes, and none in two parts, as preparing the set noted (`duplicates` of the data)."""
    groups = DataMembers.duplicates.get(context.built.data.train.dataset)
    across_classes = [group for group in groups if len({_class_of(name) for name in group}) > 1]
    rest = [group for group in groups if group not in across_classes]
    across_parts = [group for group in rest if len({name.split("/")[0] for name in group}) > 1]
    pairs = zip(_KINDS, (across_classes, across_parts), strict=True)
    return [_of(context, kind, found) for kind, found in pairs if found]


def _class_of(name: str) -> str:
    """Of `part/class/file`; a label from a list may hold a stroke of its own."""
    return name.partition("/")[2].rpartition("/")[0]


def _of(context: Context, kind: _Kind, groups: Sequence[Sequence[str]]) -> Finding:
    listed = "; ".join(", ".join(group) for group in groups[:_MOST_LISTED])
    more = f"; and {len(groups) - _MOST_LISTED} more" if len(groups) > _MOST_LISTED else ""
    return duplicate_clouds.finding(
        context,
        f"{kind.summary}: {len(groups)} {'time' if len(groups) == 1 else 'times'}",
        causes=(kind.cause, kind.alternative),
        dataset=context.config.data.name,
        measured=f"{listed}{more}",
        expected=kind.expected,
        action=kind.action,
        evidence={"groups": [list(group) for group in groups], "looked_at": "every prepared cloud"},
    )
