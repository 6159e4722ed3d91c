"""What the numbers of clouds say about how files were written: rounding, zeros for missing values, other units."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import numpy as np

from sightline.contract.errors import DataError
from sightline.store.files.column_names import COLOURS, NORMALS, POINTS
from sightline.store.remarks import CountRemark, SizeRemark

_STRAY_RATIO = 1e3
_MIN_POINTS_FOR_STRAYS = 100
"""Minimum number of points of the check: of fewer, 99 % are all."""
_MIN_ZEROS = 3
"""Least number of points at (0, 0, 0) that no measurement explains."""
_MAX_STEP = 1e-3
"""Largest step of coordinates that is accepted without a note, as a share of the extent."""
_MAX_STATED_STEP = 2e-3
"""The same of a step that the file states."""
_MAX_STEP_OF_SPACING = 0.5
"""Largest stated step that is accepted without a note, as a share of the distance between neighbouring points."""
_MIN_ROUNDED = 20
"""Minimum number of points from which steps are read: few points may lie on any grid."""
_MIN_DIGITS, _DIGITS_OF_G, _MAX_DIGITS = 4, 6, 7
"""Numbers of digits to which texts round: %g writes six, float32 has seven; of fewer than four it may be a grid."""
_MAX_STEP_OF_PLANE = 0.1
_WHOLE = 1e-6
_MAX_RESIDUE = 0.1
"""Largest distance from a float32 of a number that was one, in its steps: nine digits are off by 0.08."""
_SAMPLE_SIZE = 10_000
_MIN_UNIT_GAP = 20.0
"""Least factor between neighbouring sizes at which they may be of two units."""
_MAX_UNIT_ERROR = 4.0
"""Largest factor between the ratio of two groups of sizes and that of two units: the samples differ in size, too."""
UNIT_RATIOS = (100.0, 1000.0)
"""Ratios of units of length."""
SCALE_RATIOS = (100.0, 255.0, 65535.0)
"""Ratios of scales of remissions and colours: shares, per cent, 8 bits and 16 bits."""


def check_strays(points: np.ndarray, *, where: str) -> None:
    """Raise DataError, beginning with `where`, for a point (N, 3) a thousand times as far out as 99 % of the others.

    One such point leaves the rest of the cloud no extent, and every check relative to the extent no power.
    """
    sample = points[:: max(1, len(points) // _SAMPLE_SIZE)]
    median = np.median(sample, axis=0)
    spread = float(np.quantile(np.abs(sample - median).max(axis=1), 0.99, method="lower"))
    bound = _STRAY_RATIO * spread
    is_near = (points.min(axis=0) >= median - bound).all() and (points.max(axis=0) <= median + bound).all()
    if len(points) < _MIN_POINTS_FOR_STRAYS or spread == 0 or is_near:
        return
    distance = np.abs(points - median).max(axis=1)
    farthest = int(distance.argmax())
    raise DataError(
        f"{where}: point {farthest} lies {distance[farthest]:.4g} from the middle, 99 % of the {len(points)} points "
        f"within {spread:.4g}; take out the {int((distance > bound).sum())} points that lie beyond {bound:.4g}"
    )


def note_mixed_units(names: Sequence[str], sizes: Sequence[float], what: str) -> list[str]:
    """Return a note if sizes of files form two groups, apart by about the factor of two units of length.

    `sizes` are in the unit of the files, 0 for files without points; `what` names the files: clouds, scans.
    """
    groups = _find_two_groups(sizes, UNIT_RATIOS)
    if groups is None:
        return []
    few, size, others, count = groups
    return [
        f"units may be mixed: {len(few)} of {count} {what}, first {names[int(few.min())]}, reach about "
        f"{size:.3g}, the others {others:.3g}; "
        "convert all to one unit"
    ]


def note_mixed_scales(names: Sequence[str], largest: Sequence[float], what: str, *, values: str) -> list[str]:
    """Return a note if the largest of some `values` of files form two groups, apart by about the factor of two scales.

    `largest` are 0 or more, 0 for files without the values; `what` names the files, `values` what they hold.
    """
    groups = _find_two_groups(largest, SCALE_RATIOS)
    if groups is None:
        return []
    few, size, others, count = groups
    return [
        f"scales may be mixed: {values} of {len(few)} of {count} {what}, first {names[int(few.min())]}, run up to "
        f"about {size:.3g}, of the others up to {others:.3g}; bring all to one scale, such as 0 to 1"
    ]


def _find_two_groups(sizes: Sequence[float], ratios: Sequence[float]) -> tuple[np.ndarray, float, float, int] | None:
    """Find two groups of positive sizes about one of these ratios apart; None if there are not two.

    Returns the indices of the smaller group, the median size of it and of the others, and the number of sizes.
    """
    size = np.asarray(sizes, dtype=np.float64)
    order = np.argsort(size, kind="stable")[int((size <= 0).sum()) :]
    steps = size[order][1:] / size[order][:-1]
    if steps.max(initial=0.0) < _MIN_UNIT_GAP:
        return None
    small, large = np.split(order, [int(steps.argmax()) + 1])
    factor = float(np.median(size[large]) / np.median(size[small]))
    if not any(max(factor / ratio, ratio / factor) < _MAX_UNIT_ERROR for ratio in ratios):
        return None
    few, many = sorted((small, large), key=len)
    return few, float(np.median(size[few])), float(np.median(size[many])), len(order)


def note_values(arrays: Mapping[str, np.ndarray], *, is_mesh: bool, step: float = 0.0) -> list[str]:
    """Return notes on values that are finite and yet none: zeros for missing ones, and coordinates that are rounded.

    `step` is that of the coordinates where the file states it.
    """
    notes: list[str] = []
    axes = [arrays[name] for name in POINTS]
    num_zeros = 0 if is_mesh else int(np.logical_and.reduce([axis == 0 for axis in axes]).sum())
    if num_zeros >= _MIN_ZEROS:
        notes.append(
            CountRemark.make(
                num_zeros,
                len(axes[0]),
                "are exactly at (0, 0, 0), where sensors put those without a return: zeros=drop leaves them out",
            )
        )
    if set(NORMALS) <= set(arrays) and not any(arrays[name].any() for name in NORMALS):
        notes.append("normals are all 0: leave them out by columns=[x, y, z], or set data.normals=estimated")
    return [*notes, *_note_colours(arrays), *_note_steps(axes, step)]


def _note_colours(arrays: Mapping[str, np.ndarray]) -> list[str]:
    """Return a note on colours that are the same at all of several points, as of files without any."""
    colours = [arrays[name] for name in COLOURS if name in arrays]
    if len(colours) < len(COLOURS) or len(colours[0]) < 2 or any((values != values[0]).any() for values in colours):
        return []
    colour = ", ".join(f"{values[0]:g}" for values in colours)
    which = "0, as in files without any" if not any(values[0] for values in colours) else f"({colour})"
    return [f"colours are all {which}: a network learns nothing from them; leave them out, or get files with colours"]


def _note_steps(axes: Sequence[np.ndarray], stated: float) -> list[str]:
    """Return a note if coordinates lie on steps that are coarse for the extent of the cloud."""
    finite = [axis if axis.dtype.kind in "iu" or np.isfinite(axis).all() else axis[np.isfinite(axis)] for axis in axes]
    if not all(map(len, finite)):
        return []
    bounds = [(float(axis.min()), float(axis.max())) for axis in finite]
    lengths = sorted(high - low for low, high in bounds)
    extent, reach = lengths[-1], max(max(abs(low), abs(high)) for low, high in bounds)
    spacing = math.sqrt(lengths[-1] * lengths[-2] / len(finite[0]))
    if not extent > 0 or not math.isfinite(reach):
        return []
    if stated > _MAX_STATED_STEP * extent or stated > _MAX_STEP_OF_SPACING * spacing > 0:
        template = "coordinates are stored in steps of {size}, coarse for this cloud: write the file with a finer scale"
        return [SizeRemark.make(stated, template)]
    if stated or reach * 10.0 ** (1 - _MIN_DIGITS) <= _MAX_STEP * extent:
        return []
    if all(axis.dtype.kind == "f" and axis.dtype.itemsize < 8 for axis in axes):
        step = max(
            float(np.spacing(axis.dtype.type(max(map(abs, pair))))) for axis, pair in zip(axes, bounds, strict=True)
        )
        how = f"are {axes[0].dtype} and so far from 0 that they have"
    else:
        step = max(_find_step(axis.astype(np.float64), extent) for axis in finite)
        how = "have been rounded, by a text of few digits or by float32, to"
    if step <= _MAX_STEP * extent:
        return []
    template = "more than a thousandth of the extent: subtract an offset before they are written, or write float64"
    return [SizeRemark.make(step, f"coordinates {how} steps of {{size}}, {template}")]


def _find_step(values: np.ndarray, extent: float) -> float:
    """Find the step (in the unit of `values` (N,) float64) to which coordinates were rounded; 0 if it is fine."""
    reach = float(np.abs(values).max())
    if len(values) < _MIN_ROUNDED or reach == 0:
        return 0.0
    exponent = math.floor(math.log10(reach))
    if (values == values[0]).all():  # a plane is constant, too: only what %g may have rounded counts
        step = 10.0 ** (exponent - _DIGITS_OF_G + 1)
        return step if step > _MAX_STEP_OF_PLANE * extent and _are_multiples(values, step) else 0.0
    for digits in range(1, _MAX_DIGITS + 1):
        step = 10.0 ** (exponent - digits + 1)
        if step <= _MAX_STEP * extent:
            break
        if _are_multiples(values, step):
            return step if digits >= _MIN_DIGITS else 0.0
    spacing = float(np.spacing(np.float32(reach)))
    if spacing <= _MAX_STEP * extent:
        return 0.0
    rounded = values.astype(np.float32)
    is_single = np.abs(values - rounded) <= _MAX_RESIDUE * np.spacing(np.abs(rounded))
    return spacing if is_single.all() else 0.0


def _are_multiples(values: np.ndarray, step: float) -> bool:
    """Return True if all values (N,) are whole multiples of a step."""

    def fit(part: np.ndarray) -> bool:
        multiples = part / step
        return bool((np.abs(multiples - np.rint(multiples)) < _WHOLE).all())

    return fit(values[:_MIN_ROUNDED]) and fit(values)
