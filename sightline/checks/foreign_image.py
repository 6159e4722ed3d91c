"""Guard G2: pictures of other objects than the clouds that they are paired with."""

from __future__ import annotations

from typing import Any

import numpy as np

from sightline.checks.finding import Finding
from sightline.checks.suite import Context, check
from sightline.checks.survey import read_samples
from sightline.engine.build import Part
from sightline.types import SampleKey

__all__ = ["foreign_image"]

CODE = "foreign-image"
_MOST_SAMPLES = 8
_NEIGHBOURS = (-2, -1, 1, 2)


@check(code=CODE, moment="preflight")
def foreign_image(context: Context) -> list[Finding]:
    """The picture of a sample is, bit for bit, one of those that the view store has under the name of its cloud."""
    part = context.built.data.train
    pictures = getattr(part.dataset, "pictures", None)
    if pictures is None or "image" not in part.dataset.info.fields or not hasattr(part.dataset, "name_of"):
        return []
    count = min(_MOST_SAMPLES, len(part.indices))
    chosen = np.unique(part.indices[np.linspace(0, len(part.indices) - 1, count).astype(int)])
    keys = [SampleKey(int(index), 0, context.config.seed) for index in chosen]
    try:
        samples = read_samples(part.dataset, keys)
    except Exception:  # noqa: BLE001 - a data set may fail in any way; `first-step` reports it
        return []
    foreign = [
        (key.index, whose)
        for key, sample in zip(keys, samples, strict=True)
        if (whose := _whose(part, pictures, key.index, np.asarray(sample["image"]))) != part.name_of(key.index)
    ]
    return [_finding(context, part, foreign, len(keys))] if foreign else []


def _whose(part: Part, pictures: Any, index: int, image: np.ndarray) -> str:
    """The name of the object that the picture is of: its own, one that is read next to it, or none that was found."""
    size = len(part.dataset)
    for near in (index, *(index + step for step in _NEIGHBOURS)):
        name = part.name_of(near % size)
        if name in pictures.views.names and _is_view(pictures, name, image):
            return name
    return ""


def _is_view(pictures: Any, name: str, image: np.ndarray) -> bool:
    views = pictures.views
    number = int(views.counts(views.rows_of([name], of="the check"))[0])
    return any(np.array_equal(views.image(name, view, background=pictures.background), image) for view in range(number))


def _finding(context: Context, part: Part, foreign: list[tuple[int, str]], num_read: int) -> Finding:
    told = "; ".join(
        f"the picture of {part.name_of(index)} is {f'of {whose}' if whose else 'none of its own'}"
        for index, whose in foreign[:3]
    )
    root = part.dataset.pictures.views.root  # type: ignore[attr-defined]
    return Finding(
        guard="G2",
        code=CODE,
        severity="error",
        summary=f"clouds are paired with pictures of other objects: {len(foreign)} of {num_read} looked at",
        cause="data.pairing",
        alternatives=("data.path", "data.ordering"),
        where=context.place("data", dataset=f"{context.config.data.name}/train", sample=foreign[0][0]),
        measured=told,
        expected=f"one of the views that {root} has under the cloud's own name",
        action="pair clouds and pictures by their names, never by their order",
        evidence={"foreign": [[part.name_of(index), whose] for index, whose in foreign]},
    )
