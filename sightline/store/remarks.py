"""Remarks on files whose numbers differ from file to file: those of one kind are joined to one line."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Self


class CountRemark(str):
    """Remark that begins with a count, as in "3 of 9 points (33.3%) are ...": counts of one kind add up."""

    num_counted: int
    total: int
    noun: str
    what: str

    @classmethod
    def make(cls, count: int, total: int, what: str, *, noun: str = "points") -> Self:
        """Make a remark on `count` of `total` nouns; `what` goes on with the verb."""
        remark = cls(f"{count} of {total} {noun} ({count / max(total, 1):.1%}) {what}")
        remark.num_counted, remark.total, remark.noun, remark.what = count, total, noun, what
        return remark


class SizeRemark(str):
    """Remark with a size, of which the largest of a kind is told. `template` has {size}, a number and its unit."""

    size: float
    template: str

    @classmethod
    def make(cls, size: float, template: str, *, unit: str = "") -> Self:
        """Make a remark on a size in a unit, by default that of the file."""
        remark = cls(template.format(size=f"{size:.3g} {unit}".rstrip()))
        remark.size, remark.template = size, template
        return remark


def in_metres(remarks: Sequence[str], metres: float) -> tuple[str, ...]:
    """Return remarks with their sizes in metres; `metres` is the length of the file's unit."""
    return tuple(
        SizeRemark.make(each.size * metres, each.template, unit="m") if isinstance(each, SizeRemark) else each
        for each in remarks
    )


def join_remarks(remarks: Sequence[str]) -> str:
    """Join the remarks of one kind: counts are added, of sizes the largest is told."""
    first = remarks[0]
    if isinstance(first, CountRemark):
        counts = [each for each in remarks if isinstance(each, CountRemark)]
        count, total = sum(each.num_counted for each in counts), sum(each.total for each in counts)
        return CountRemark.make(count, total, first.what, noun=first.noun)
    return max((each for each in remarks if isinstance(each, SizeRemark)), key=lambda each: each.size, default=first)


def remark_kind(remark: str) -> str:
    """Return what remarks of one kind have in common: their text without the numbers of the file."""
    if isinstance(remark, CountRemark):
        return f"{remark.noun} {remark.what}"
    return remark.template if isinstance(remark, SizeRemark) else remark
