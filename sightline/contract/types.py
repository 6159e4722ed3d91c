"""Shared types: source locations, sample keys, what a data set states of itself, and component blocks."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple, TypeAlias

import numpy as np

Sample: TypeAlias = dict[str, Any]
"""One sample: names -> tensors, numbers, text, or nested dicts, lists, tuples and dataclasses of these."""
Batch: TypeAlias = dict[str, Any]
"""Batch of samples under the same names; `sample_index` (int64) is always present."""

PREPARED = "(prepared)"
"""Key of a training batch for what a model's preparation has made of it; no field can have this name."""

Collate: TypeAlias = Literal["stack", "concatenate", "list", "pad"]


@dataclass(frozen=True, slots=True)
class SampleKey:
    """Key of a sample: everything that its values may depend on.

    `step` is the optimiser's, for draws that all samples of a step share, such as the size of its images; the
    number of the pass where several vote, else 0 in evaluation.
    """

    index: int
    epoch: int
    seed: int
    step: int = 0

    def generator(self) -> np.random.Generator:
        """Create a NumPy generator from index, epoch and seed: the same in any worker, process and order."""
        return np.random.Generator(np.random.PCG64(np.random.SeedSequence((self.seed, self.epoch, self.index))))


@dataclass(frozen=True, slots=True)
class Field:
    """Guarantees of a data set about one key of its samples; `check` tests them.

    `shape` and `dtype` are text ("points 3", "float32"); `low` and `high` bound the finite values. `frame: image` is
    the frame of the pixels of `image`: a transform that moves them must take the field, too.
    `collate` is how samples become a batch: `stack` (equal shapes), `concatenate` along the first axis (adds
    `offsets`, cumulative counts with a leading 0, length S+1), `pad` with zeros (adds `<name>_mask`), or `list`.
    `offsets` is the key of those counts: fields of equal length in every sample share one. `is_exact` values keep their
    dtype in evaluation, regardless of the run's precision. With `may_be_nan`, NaN marks values that files lack.
    """

    shape: str
    dtype: str
    unit: str = ""
    frame: str = ""
    low: float | None = None
    high: float | None = None
    collate: Collate = "stack"
    offsets: str = "offsets"
    is_exact: bool = False
    may_be_nan: bool = False


UnitSphere: TypeAlias = Literal["applied", "promised", "none"]
"""Origin of the radius 1 of clouds: `applied` by prepare, `promised` by the files, or `none`."""


@dataclass(frozen=True, slots=True)
class CloudInputSpec:
    """Input spec of clouds and meshes: preprocessing from a file to a sample, as for the set's own samples.

    A sample has `num_points` points, or all points of a file if it is None; `stored_points` is the number of points
    that the set stores per shape, in an order whose first points are a fair sample. `unit_sphere` states the
    normalisation of clouds to mean 0 and radius 1: `applied` in preparation, `promised` by the original files, or
    `none`, if scale and position are meaningful. `preparation` are the arguments of `prepare_cloud` for a set of the
    user's own, `columns` the names of columns that its files lacked; `estimates_normals` is True if the normals of a
    sample are estimated from its points. `fewest_points` is the minimal number of distinct points of its clouds,
    `radii` the smallest and largest radius of clouds about their means if size was kept; None if preparation did not
    record it. `scene` are the arguments `scale`, `colour_max` and, unless they are stored, `normals` of `prepare_scene`
    for a set of scenes, whose files have the columns `columns` unless they name others. `withheld` says what becomes of
    points that files flag as deleted.
    """

    num_points: int | None = None
    stored_points: int | None = None
    unit_sphere: UnitSphere = "none"
    preparation: Mapping[str, Any] | None = None
    columns: tuple[str, ...] | None = None
    estimates_normals: bool = False
    fewest_points: int | None = None
    radii: tuple[float, float] | None = None
    scene: Mapping[str, Any] | None = None
    withheld: Literal["drop", "keep"] = "drop"


LabelForm: TypeAlias = Literal["semantic_kitti", "nuscenes"]
"""Benchmark whose form files of labels have."""


@dataclass(frozen=True, slots=True)
class ScanInputSpec:
    """Input spec of LiDAR scans: preprocessing from a file to a sample, and files of predicted labels.

    `label_form` is the form of these, and `ids_of_classes` has the id of every class in them, class 0 first. `columns`
    are those of files without names, None if the set states none; remissions of files range from 0 to `remission_max`,
    and are required if `has_remission`. Files number `num_beams` beams in `ring_order`; None if they number none.
    `image_px` is the height and width of range images in .npy files, if the set has such files. `no_return` is the mark
    of points without a return, None if files do not mark them. `withheld` says what becomes of points that files flag
    as deleted.
    """

    ids_of_classes: tuple[int, ...]
    columns: tuple[str, ...] | None = ("x", "y", "z", "remission")
    remission_max: float = 1.0
    has_remission: bool = True
    num_beams: int | None = None
    ring_order: Literal["top_first", "bottom_first"] = "top_first"
    image_px: tuple[int, int] | None = None
    no_return: Literal["nan"] | None = None
    withheld: Literal["drop", "keep"] = "drop"
    label_form: LabelForm = "semantic_kitti"


Surroundings: TypeAlias = Literal["none", "scan", "room"]
"""What a cloud is of: an object by itself, a scan of a sensor among objects, or a room with walls around it."""


@dataclass(frozen=True, slots=True)
class Folds:
    """Cross-validation folds of a set, e.g. areas of a building, and those in the test split."""

    names: tuple[str, ...]
    tested: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Dealing:
    """Rule that assigned samples to splits (`parts`) which neither files nor config define, and its seed."""

    rule: str
    seed: int | None
    parts: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Copies:
    """Digest of each sample of a data set: samples of one digest are the same, "" is like no other.

    The same sample in training and evaluation is an error, or else a warning (`is_error`), unless it is left out of
    training (`are_left_out`). `advice` is what to do.
    """

    digests: Sequence[str]
    is_error: bool
    are_left_out: bool
    advice: str


@dataclass(frozen=True, slots=True)
class DataInfo:
    """Facts (injected into components by name), fields of a sample, and number of samples per split.

    Facts have the names of `registry.DATA_FACTS`, and plain values: numbers and text, alone or in tuples.
    `features` names fields with one row per point, other than `points` (normals, colours), that are joined, after the
    transforms, into the key `features`; `in_channels` counts `points` and these. `clouds`, and `scans` of LiDAR, state
    how `sightline predict` makes samples of files; without them the points of files are taken as they are. `folds`
    belong to a set that is tested part by part: runs that cover all of them may be evaluated as one. `dealing` is for
    the run's record.
    """

    facts: Mapping[str, Any]
    fields: Mapping[str, Field]
    split_sizes: Mapping[str, int] = field(default_factory=dict)
    features: tuple[str, ...] = ()
    clouds: CloudInputSpec | None = None
    folds: Folds | None = None
    scans: ScanInputSpec | None = None
    dealing: Dealing | None = None

    @property
    def surroundings(self) -> Surroundings:
        """What the clouds of the set are of, by its form of scans and the frame of its points."""
        if self.scans is not None:
            return "scan"
        frame = self.fields["points"].frame if "points" in self.fields else ""
        return "room" if frame.startswith(("scene", "room")) else "none"


@dataclass(frozen=True, slots=True)
class SourceLocation:
    """Source of a value: a line of a file, the command line, a default, or a fact of the data set."""

    source: str
    line: int | None = None
    path: str = ""

    def __str__(self) -> str:
        location = self.source if self.line is None else f"{self.source}:{self.line}"
        return f"{location}: {self.path}" if self.path else location


Value: TypeAlias = Any
"""Value of a config: bool, int, float, text, null, lists and mappings of these."""


@dataclass(frozen=True, slots=True)
class LinearRamp:
    """Number that moves linearly from `start`, at a run's first step, to `end` after `epochs`, and stays there."""

    start: float
    end: float
    epochs: float

    def value_at(self, step: int, *, steps_per_epoch: int) -> float:
        """Return the number at a step, counted from 0: a closed form, so that a resumed run needs no state of it."""
        num_steps = round(self.epochs * steps_per_epoch)
        if step >= num_steps:
            return self.end
        return self.start + (self.end - self.start) * (step / num_steps)


@dataclass(frozen=True, slots=True)
class ComponentConfig:
    """Component block: a registered name, its arguments, and the location of each of them.

    `weight` is the reserved key of a losses block, a number or a ramp.
    """

    name: str
    arguments: Mapping[str, Value] = field(default_factory=dict)
    weight: float | LinearRamp = 1.0
    location: SourceLocation = field(default=SourceLocation("code"), compare=False)
    origins: Mapping[str, SourceLocation] = field(default_factory=dict, compare=False)


class PrintedTable(NamedTuple):
    """Table to print: title, names of columns, and rows."""

    title: str
    columns: tuple[str, ...]
    rows: list[tuple[Any, ...]]
