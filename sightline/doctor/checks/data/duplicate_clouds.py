"""Equal clouds with different labels, or in different parts."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from sightline.doctor.context import Context, check
from sightline.doctor.core.finding import Finding
from sightline.optional_members import DataMembers

__all__ = ["duplicate_clouds"]

_MAX_LISTED = 3


class _Kind(NamedTuple):
    """Kind of duplicates: the texts of its finding, its cause and another possible cause."""

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
        "every cloud in one part: a test on training clouds says nothing about new ones",
        "remove the copies, or define the parts yourself, and prepare the set again",
    ),
)


@check("G4", "duplicate-clouds", "preflight", severity="warning", config_path="data")
def duplicate_clouds(context: Context) -> list[Finding]:
    """No cloud is in two classes or in two parts, according to the `duplicates` that preparation recorded.

    Finds: Equal clouds with different labels, or in different parts.
    """
    groups = DataMembers.duplicates.get(context.built.data.train.dataset)
    across_classes = [group for group in groups if len({_parse_class(name) for name in group}) > 1]
    others = [group for group in groups if group not in across_classes]
    across_parts = [group for group in others if len({name.split("/")[0] for name in group}) > 1]
    pairs = zip(_KINDS, (across_classes, across_parts), strict=True)
    return [_finding_duplicates(context, kind, groups_of_kind) for kind, groups_of_kind in pairs if groups_of_kind]


def _parse_class(name: str) -> str:
    """Return the class of a name `part/class/file`; classes from a list of files may contain slashes."""
    return name.partition("/")[2].rpartition("/")[0]


def _finding_duplicates(context: Context, kind: _Kind, groups: Sequence[Sequence[str]]) -> Finding:
    listed = "; ".join(", ".join(group) for group in groups[:_MAX_LISTED])
    more = f"; and {len(groups) - _MAX_LISTED} more" if len(groups) > _MAX_LISTED else ""
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
