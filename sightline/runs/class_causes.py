"""Likely causes of the poor figures of classes: few training samples, and points that lie beside another class's."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from typing import Any

_FEW = 0.5
"""Share of the median of all classes below which a class has few training samples."""
_MIN_WRONG, _MIN_BESIDE, _TIMES_BESIDE = 30, 0.5, 1.5
"""Least number of wrong points that are judged; how many of them lie beside another class, and how many times as often
as all points of the class, where that is their likely cause."""


def group_classes(facts: Mapping[str, Any]) -> dict[str, list[int]]:
    """Return the indices of the labels that the rows of classes are about: those of a class, or a category's parts."""
    rows = {name: [index] for index, name in enumerate(facts.get("class_names", ()))}
    parts = facts.get("parts_of_category", ())
    return rows | {name: [*of] for name, of in zip(facts.get("category_names", ()), parts, strict=False)}


def describe_class_causes(
    described: Mapping[str, Any], ranked: Mapping[str, float], facts: Mapping[str, Any], *, are_points: bool
) -> dict[str, Any]:
    """Describe why classes are worse than the median class, as far as it is known: `class_causes`, class → sentences.

    `described` is what a document states of metrics, `ranked` the figure of each class, the worst first, and `facts`
    are those of the training data, whose `class_counts` count points or samples. They are stated as `training_counts`.
    Empty where nothing is known.
    """
    counts = _count_training(described["per_class"], facts)
    few = _describe_few(counts, are_points=are_points)
    beside = _describe_beside(described.get("class_surroundings", {}))
    middle = statistics.median(ranked.values()) if ranked else 0.0
    poor = [name for rank, (name, value) in enumerate(ranked.items()) if 2 * rank < len(ranked) and value != middle]
    causes = {name: [texts[name] for texts in (few, beside) if name in texts] for name in poor}
    training = {"of": "points" if are_points else "samples", "median": _median(counts), "classes": counts}
    return {
        **({"training_counts": training} if counts else {}),
        **(
            {"class_causes": nonempty} if (nonempty := {name: texts for name, texts in causes.items() if texts}) else {}
        ),
    }


def _count_training(rows: Mapping[str, Any], facts: Mapping[str, Any]) -> dict[str, int]:
    """Count the training samples or points of each row; empty if the training data do not state them."""
    counts: Sequence[int] = facts.get("class_counts") or ()
    ignored = facts.get("ignore_index")
    groups = {name: [i for i in indices if i != ignored] for name, indices in group_classes(facts).items()}
    if len(counts) != len(facts.get("class_names", ())):
        return {}
    return {name: sum(counts[index] for index in groups[name]) for name in rows if groups.get(name)}


def _median(counts: Mapping[str, int]) -> float:
    return statistics.median(counts.values()) if counts else 0.0


def _describe_few(counts: Mapping[str, int], *, are_points: bool) -> dict[str, str]:
    median, total = _median(counts), max(1, sum(counts.values()))
    few = {name: count for name, count in counts.items() if count < _FEW * median}
    if are_points:  # of some sets shares are known, not counts
        return {n: f"{c / total:.2%} of the training points (median {median / total:.2%})" for n, c in few.items()}
    return {name: f"{count:,} training samples (median {median:,g})" for name, count in few.items()}


def _describe_beside(surroundings: Mapping[str, Mapping[str, int]]) -> dict[str, str]:
    texts = {}
    for name, row in surroundings.items():
        if row["wrong"] < _MIN_WRONG:
            continue
        of_all, of_wrong = row["beside"] / row["points"], row["wrong_beside"] / row["wrong"]
        if of_wrong >= max(_MIN_BESIDE, _TIMES_BESIDE * of_all):
            texts[name] = f"{of_wrong:.0%} of its wrong points lie beside another class (of all {of_all:.0%})"
    return texts
