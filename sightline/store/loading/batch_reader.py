"""Batch reader: samples read by key, transformed and collated to batches.

Numeric leaves of a nested sample, and their bytes.

Collation of samples to batches: equal shapes are stacked, ragged fields as their Field declares.

Stratified split into training and held-out samples, seeded.
"""

from __future__ import annotations

import contextlib
import inspect
import itertools
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from sightline.contract.binding import AvailableKeys, BoundFunction, bind
from sightline.contract.dataset import Dataset
from sightline.contract.draws import DeviceDraws, Draws
from sightline.contract.errors import ConfigError, DataError, RunError, UserError
from sightline.contract.pytree import join_path, tree_children
from sightline.contract.transform import Transform
from sightline.contract.types import Batch, Field, Sample, SampleKey


def array_leaves(value: Any, path: str = "") -> Iterator[tuple[str, Tensor]]:
    """Yield the path and tensor of every number or array in nested dicts, lists, tuples and dataclasses; not text."""
    if isinstance(value, Tensor):
        yield path, value
    elif isinstance(value, np.ndarray):
        if value.dtype.kind in "biuf":
            yield path, torch.from_numpy(value.copy())
    elif isinstance(value, np.generic):
        yield from array_leaves(np.asarray(value), path)
    elif isinstance(value, bool | int | float):
        yield path, torch.as_tensor(value)
    else:
        for name, item in tree_children(value):
            yield from array_leaves(item, join_path(path, name))


def as_bytes(value: np.ndarray | Tensor) -> np.ndarray:
    """View or copy the bytes of an array, or of a tensor on any device, as one uint8 array."""
    if isinstance(value, Tensor):
        return value.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy()
    return np.ascontiguousarray(value).reshape(-1).view(np.uint8)


def collate(samples: Sequence[Sample], keys: Sequence[SampleKey], fields: Mapping[str, Field]) -> Batch:
    """Collate samples to one batch: stack, concatenate (adds `offsets`), pad (adds `<name>_mask`) or list, as declared.

    Raises DataError naming the sample and field if samples do not fit together.
    """
    batch: Batch = {}
    for name in samples[0]:
        declared = fields.get(name)
        values = [_get_value(sample, name, key) for sample, key in zip(samples, keys, strict=True)]
        mode = declared.collate if declared is not None else "stack"
        if mode == "list":
            batch[name] = values
        elif declared is not None and mode == "concatenate":
            batch[name] = torch.cat([torch.as_tensor(value) for value in values])
            _add_offsets(batch, values, name, declared.offsets, keys)
        elif mode == "pad":
            batch[name], batch[f"{name}_mask"] = _pad([torch.as_tensor(value) for value in values])
        else:
            batch[name] = _stack(values, name, keys)
    batch["sample_index"] = torch.tensor([key.index for key in keys], dtype=torch.int64)
    return batch


def batch_keys(fields: Mapping[str, Field], features: Sequence[str] = ()) -> frozenset[str]:
    """Return the keys of batches with these fields."""
    keys = {"sample_index", *fields, *({"features"} if features else ())}
    keys |= {f"{name}_mask" for name, field in fields.items() if field.collate == "pad"}
    keys |= {field.offsets for field in fields.values() if field.collate == "concatenate"}
    return frozenset(keys)


def _get_value(sample: Sample, name: str, key: SampleKey) -> Any:
    """Return a field of a sample. Raises DataError if it is missing."""
    if name not in sample:
        raise DataError(f"sample {key.index}: has no '{name}', which other samples of its batch have")
    return sample[name]


def _add_offsets(batch: Batch, values: Sequence[Any], name: str, offsets_key: str, keys: Sequence[SampleKey]) -> None:
    """Add the offsets (B + 1,) int64 of a concatenated field; fields that share them need equal lengths."""
    lengths = torch.tensor([len(value) for value in values])
    offsets = torch.cat([torch.zeros(1, dtype=torch.int64), lengths.cumsum(0)])
    if offsets_key in batch and not torch.equal(batch[offsets_key], offsets):
        index = int((batch[offsets_key].diff() != lengths).nonzero()[0])
        raise DataError(
            f"sample {keys[index].index}: '{name}' has {int(lengths[index])} rows, other concatenated fields have "
            f"{int(batch[offsets_key].diff()[index])}"
        )
    batch[offsets_key] = offsets


def _pad(values: list[Tensor]) -> tuple[Tensor, Tensor]:
    """Pad with zero rows to the longest, (B, longest, ...), with a mask (B, longest) that is True for real rows."""
    longest = max(len(value) for value in values)
    padded = values[0].new_zeros((len(values), longest, *values[0].shape[1:]))
    mask = torch.zeros(len(values), longest, dtype=torch.bool)
    for row, value in enumerate(values):
        padded[row, : len(value)] = value
        mask[row, : len(value)] = True
    return padded, mask


def _stack(values: list[Any], name: str, keys: Sequence[SampleKey]) -> Any:
    """Stack values, also within dicts and tuples. Raises DataError naming the first sample of another shape."""
    first = values[0]
    if isinstance(first, dict):
        return {inner: _stack([value[inner] for value in values], f"{name}.{inner}", keys) for inner in first}
    if isinstance(first, str):
        return values
    if isinstance(first, list | tuple) and first and not isinstance(first[0], int | float):
        return type(first)(
            _stack(list(column), f"{name}[{i}]", keys) for i, column in enumerate(zip(*values, strict=True))
        )
    tensors = [torch.from_numpy(v.copy()) if isinstance(v, np.ndarray) else torch.as_tensor(v) for v in values]
    for tensor, key in zip(tensors, keys, strict=True):
        if tensor.shape != tensors[0].shape:
            raise DataError(
                f"sample {key.index}: '{name}' has shape {tuple(tensor.shape)}, sample {keys[0].index} has "
                f"{tuple(tensors[0].shape)}; declare its field as concatenate, pad or list"
            )
    return torch.stack(tensors)


_DrawSamples = Callable[[int], list[Batch]]


class NamedTransform(NamedTuple):
    """Transform with its name in the config, which also names its stream of random numbers."""

    name: str
    apply: Transform


class TransformPipeline:
    """Composition of transforms; each is called with the batch keys that its signature names. Stateless.

    `added` are the fields that transforms add to those of the samples, `facts` the facts that they state. A transform
    with a parameter `draw_samples` combines samples: it gets a function `(count) -> batches` that draws as many of
    `mixing_indices` for a sample and reads them with `read`, each as a batch of one changed by the preceding
    transforms; or None, from its `until_epoch` on. Raises ConfigError if a transform names a field that does not exist,
    or combines samples outside training.
    """

    def __init__(
        self,
        transforms: Sequence[NamedTransform],
        fields: Collection[str],
        *,
        source: str,
        read: Callable[[SampleKey], Batch] | None = None,
        mixing_indices: np.ndarray | None = None,
    ) -> None:
        self.added: dict[str, Field] = {}
        self.facts: dict[str, Any] = {}
        self._transforms: list[tuple[str, BoundFunction, int | None, bool]] = []
        self._read, self._indices = read, mixing_indices
        for index, (name, transform) in enumerate(transforms):
            available = AvailableKeys(source, {*fields, *self.added})
            bound = bind(transform.__call__, available, owner=f"transform '{name}'", exclude=("draws", "draw_samples"))
            mixes = mixes_samples(bound)
            if mixing_indices is None and mixes:
                raise ConfigError(
                    f"transform '{name}' combines several samples of the training part; it belongs in transforms.train"
                )
            until_epoch = transform.until_epoch
            self._transforms.append((f"{index}.{name}", bound, until_epoch, mixes))
            self.added |= transform.adds
            self.facts |= transform.facts

    def __call__(self, batch: Batch, keys: Sequence[SampleKey]) -> Batch:
        for _, transformed in self.apply_stepwise(batch, keys):
            batch = transformed
        return batch

    def __len__(self) -> int:
        return len(self._transforms)

    def apply_stepwise(self, batch: Batch, keys: Sequence[SampleKey]) -> Iterator[tuple[str, Batch]]:
        """Yield the name of each transform, in order, and the batch after it."""
        if not self._transforms:
            return
        draws = Draws.for_samples(keys)
        for index, name in enumerate(self.names):
            batch = self.apply_one(index, batch, keys, draws)
            yield name, batch

    @property
    def names(self) -> list[str]:
        """Names of the transforms, in order."""
        return [stream.partition(".")[2] for stream, *_ in self._transforms]

    @property
    def mixes(self) -> bool:
        """True if a transform combines samples."""
        return any(mixes for *_, mixes in self._transforms)

    @property
    def functions(self) -> list[BoundFunction]:
        """Bound functions of the transforms, in order."""
        return [bound for _, bound, *_ in self._transforms]

    def apply_one(self, index: int, batch: Batch, keys: Sequence[SampleKey], draws: Draws | None = None) -> Batch:
        """Return the batch after the transform of this index alone, with its random numbers for these keys."""
        stream, bound, until_epoch, mixes = self._transforms[index]
        transform_draws = (draws or Draws.for_samples(keys)).stream(stream)
        mixing = {"draw_samples": self._make_draw(transform_draws, keys, index, until_epoch)} if mixes else {}
        changed = bound.function(transform_draws, **mixing, **bound.select(batch))
        if not isinstance(changed, Mapping):
            raise UserError(
                f"the transform '{self.names[index]}' returned a {type(changed).__name__}; return a dict of fields"
            )
        return {**batch, **changed}

    def _make_draw(
        self, draws: Draws, keys: Sequence[SampleKey], index: int, until_epoch: int | None
    ) -> _DrawSamples | None:
        """Return a reader of random training samples for a mixing transform, or None after its `until_epoch`."""
        read, indices, (key,) = self._read, self._indices, keys
        assert read is not None
        assert indices is not None

        def draw_samples(count: int) -> list[Batch]:
            batches = []
            for offset, seed in draws.stream("others").bits(count, 2)[0].tolist():
                # A separate seed: elsewhere in this epoch the same sample gets other random numbers.
                other_key = SampleKey(int(indices[offset % len(indices)]), key.epoch, seed >> 1, key.step)
                batch = read(other_key)
                batches.append(
                    [
                        batch,
                        *(result for _, result in itertools.islice(self.apply_stepwise(batch, [other_key]), index)),
                    ][-1]
                )
            return batches

        return None if until_epoch is not None and key.epoch >= until_epoch else draw_samples


class BatchReader:
    """Reader of batches of a data set with transforms; the same keys give the same bits, in any process.

    Raises ConfigError if a transform names a field that the data set does not have, or selects points and would not
    select the rows of another field of these points; DataError if the set's own `collate` drops a key of `info.fields`.
    `mixing_indices` are the indices of the training split, from which transforms that combine samples draw.
    """

    draw_keys = ("(draws)", "(draws of the step)")
    """Keys of a raw batch that no field can have."""

    def __init__(
        self, dataset: Dataset, transforms: Sequence[NamedTransform] = (), *, mixing_indices: np.ndarray | None = None
    ) -> None:
        _assert_points_stay_whole(transforms, dataset.info.fields)
        _assert_pixels_move_together(transforms, dataset.info.fields)
        self.dataset = dataset
        mixing_indices = None if dataset.get_batch is not None else mixing_indices
        read = None if mixing_indices is None else self._read_one  # else no reference cycle, which keeps files open
        arguments: Any = {"source": "the data set", "read": read, "mixing_indices": mixing_indices}
        self._transform = TransformPipeline(transforms, dataset.info.fields, **arguments)
        self._fields = {**dataset.info.fields, **self._transform.added}
        for name in dataset.info.features[:1]:  # the concatenation is collated like each feature
            self._fields["features"] = self._fields[name]

    @property
    def keys(self) -> frozenset[str]:
        """Keys of every batch."""
        return batch_keys(self._fields, self.dataset.info.features)

    @property
    def facts(self) -> Mapping[str, Any]:
        """Facts stated by the transforms, which override those of the data set."""
        return self._transform.facts

    @property
    def fields(self) -> Mapping[str, Field]:
        """Fields of a sample after the transforms, with the collation of each."""
        return self._fields

    @property
    def has_transforms(self) -> bool:
        """True if there are transforms."""
        return len(self._transform) > 0

    @property
    def transforms(self) -> TransformPipeline:
        """The transforms, composed."""
        return self._transform

    def __call__(self, keys: Sequence[SampleKey]) -> Batch:
        get_batch, combine = self.dataset.get_batch, self.dataset.collate
        if get_batch is not None:
            with self._convert_errors(keys):
                batch = _as_tensors(get_batch(keys))
            return self._with_features(_concatenate_added(self._transform(batch, keys), self._transform.added))
        samples = []
        for key in keys:
            sample = self._transform(self._read_one(key), [key])
            samples.append(_lower(self._with_features(sample)))
        if combine is not None:
            indices = {"sample_index": torch.tensor([key.index for key in keys], dtype=torch.int64)}
            return self._check_keys({**indices, **combine(samples)})
        return collate(samples, keys, self._fields)

    @property
    def can_finish(self) -> bool:
        """True if whole batches are read, and all that their transforms draw depends on keys."""
        return self.dataset.get_batch is not None and not self._transform.mixes

    def read_raw(self, keys: Sequence[SampleKey]) -> Batch:
        """Read a batch without transforms, for `finish`: with the keys of its draws."""
        get_batch = self.dataset.get_batch
        assert get_batch is not None
        with self._convert_errors(keys):
            batch = _as_tensors(get_batch(keys))
        return {**batch, **self.make_draw_keys(keys)}

    def reads_index_alone(self, keys: Sequence[SampleKey]) -> bool:
        """Return True if the samples of these keys depend on their index: the set reads nothing else of a key."""
        get_batch = self.dataset.get_batch
        assert get_batch is not None
        read: set[str] = set()

        class NotedKey(SampleKey):
            def __getattribute__(self, name: str) -> Any:
                if not name.startswith("__"):
                    read.add(name)
                return super().__getattribute__(name)

        with self._convert_errors(keys):
            get_batch([NotedKey(key.index, key.epoch, key.seed, key.step) for key in keys])
        return read <= {"index"}

    def make_draw_keys(self, keys: Sequence[SampleKey]) -> Batch:
        """Return what the draws of a batch depend on, by the names of `draw_keys`."""
        return dict(zip(self.draw_keys, Draws.for_samples(keys).keys, strict=True))

    def finish(self, raw: Batch) -> Batch:
        """Transform a batch of `read_raw` on its device; what no transform reads may be missing."""
        batch = {name: value for name, value in raw.items() if name not in self.draw_keys}
        draws = DeviceDraws(*(raw[name] for name in self.draw_keys))
        for index in range(len(self._transform)):
            batch = self._transform.apply_one(index, batch, (), draws)
        return self._with_features(_concatenate_added(batch, self._transform.added))

    def read_sample(self, key: SampleKey) -> Sample:
        """Read one sample after all transforms, with the key `features` if there are any, as batches have it."""
        *_, (_, batch) = self.batch_stages(key)
        return _lower(self._with_features(batch))

    def sample_stages(self, key: SampleKey) -> Iterator[tuple[str, Sample]]:
        """Yield a sample as the data set returns it, with an empty name, and after each transform, with its name.

        The last one is what batches contain, bit for bit.
        """
        yield from ((name, _lower(batch)) for name, batch in self.batch_stages(key))

    def batch_stages(self, key: SampleKey) -> Iterator[tuple[str, Batch]]:
        """Yield the same as `sample_stages`, each a batch of one, as transforms receive it."""
        if (get_batch := self.dataset.get_batch) is not None:
            with self._convert_errors([key]):
                batch = _as_tensors(get_batch([key]))
        else:
            batch = self._read_one(key)
        yield "", batch
        yield from self._transform.apply_stepwise(batch, [key])

    def _read_one(self, key: SampleKey) -> Batch:
        """Read a sample of the data set as a batch of one."""
        with self._convert_errors([key]):
            return _lift(_as_tensors(self.dataset[key]))

    @contextlib.contextmanager
    def _convert_errors(self, keys: Sequence[SampleKey]) -> Iterator[None]:
        """Convert any exception raised while reading into a DataError that names the samples."""
        try:
            yield
        except (UserError, RunError):
            raise
        except Exception as error:
            samples = f"sample {keys[0].index}" if len(keys) == 1 else f"samples {keys[0].index} to {keys[-1].index}"
            reason = " ".join(str(error).split())
            raise DataError(f"{type(self.dataset).__name__}: {samples}: {type(error).__name__}: {reason}") from error

    def _check_keys(self, batch: Batch) -> Batch:
        """Check that the batch of a set's own collate has all keys to which models and losses are bound."""
        missing = sorted(self.keys - batch.keys())
        if missing:
            raise DataError(
                f"{type(self.dataset).__name__}.collate gives {', '.join(sorted(batch))}, but info.fields promises "
                f"'{missing[0]}' in every batch; add it, or take it out of info.fields"
            )
        return batch

    def _with_features(self, batch: Batch) -> Batch:
        """Add the key `features`: the feature fields, concatenated along the last dimension."""
        if not self.dataset.info.features:
            return batch
        return {**batch, "features": torch.cat([batch[name] for name in self.dataset.info.features], dim=-1)}


def mixes_samples(transform: BoundFunction) -> bool:
    """Return True if a transform combines samples."""
    return "draw_samples" in inspect.signature(transform.function).parameters


def _assert_points_stay_whole(transforms: Sequence[NamedTransform], fields: Mapping[str, Field]) -> None:
    """Raise ConfigError if a transform selects points but not the rows of a field of these points.

    Nor may one follow `score_all`, whose `nearest` contains indices of the selected points.
    """
    scored = ""
    rows = fields["points"].shape.split()[:1] if "points" in fields else []
    point_fields = {name for name, field in fields.items() if rows and field.shape.split()[:1] == rows}
    for name, transform in transforms:
        parameters = inspect.signature(transform.__call__).parameters
        selects = transform.chooses_points
        if selects and scored:
            raise ConfigError(
                f"transform '{name}' chooses points and cannot follow '{scored}' with score_all: the values for each "
                f"point of the whole cloud would be lost; put '{name}' before it, or take it out of transforms.evaluate"
            )
        scored = name if "nearest" in transform.adds else scored
        unselected = sorted(point_fields - set(parameters)) if selects else []
        if unselected:
            field_names = ", ".join(sorted(set(parameters) - {"draws", "points"}))
            raise ConfigError(
                f"transform '{name}' chooses points, and would leave '{unselected[0]}' of the data set unchanged, "
                "which has a row for each point: rows would belong to other points; the transform takes "
                f"{field_names}: use such a name, or a transform of your own"
            )


def _assert_pixels_move_together(transforms: Sequence[NamedTransform], fields: Mapping[str, Field]) -> None:
    """Raise ConfigError if a transform moves the pixels but not a field in image coordinates."""
    image_fields = {name for name, field in fields.items() if field.frame == "image"}
    for name, transform in transforms:
        if not transform.moves_pixels:
            continue
        parameters = inspect.signature(transform.__call__).parameters
        if unmoved := sorted(image_fields - set(parameters)):
            raise ConfigError(
                f"transform '{name}' moves pixels but not '{unmoved[0]}' of the data set; flip_image, fit_image, "
                "cut_image and turn_image take both, or write a transform that does"
            )


def _as_tensors(value: Any) -> Any:
    """Convert NumPy arrays in a nested dict to tensors; one that torch does not share is copied.

    Those are read-only arrays, flipped ones (negative strides), and those of the other byte order.
    """
    if isinstance(value, np.ndarray):
        is_shared = value.flags.writeable and value.dtype.isnative and min(value.strides, default=0) >= 0
        return torch.from_numpy(value if is_shared else value.astype(value.dtype.newbyteorder("="), order="C"))
    if isinstance(value, dict):
        return {name: _as_tensors(item) for name, item in value.items()}
    return value


def _concatenate_added(batch: Batch, added: Mapping[str, Field]) -> Batch:
    """Concatenate the stacked fields of transforms that are declared so, and add their offsets."""
    ragged = {name: batch[name] for name, field in added.items() if field.collate == "concatenate" and name in batch}
    offsets = {added[name].offsets: torch.arange(len(value) + 1) * value.shape[1] for name, value in ragged.items()}
    return {**batch, **{name: value.flatten(0, 1) for name, value in ragged.items()}, **offsets}


def _lift(sample: dict[str, Any]) -> Batch:
    """Add a batch dimension to a sample, so that transforms need one form only."""
    return {name: value.unsqueeze(0) if isinstance(value, Tensor) else value for name, value in sample.items()}


def _lower(batch: Batch) -> dict[str, Any]:
    """Remove the batch dimension of a batch of one."""
    return {name: value.squeeze(0) if isinstance(value, Tensor) else value for name, value in batch.items()}


def stratified_split(
    size: int, strata: np.ndarray | None, *, share: float = 0.1, seed: int = 0
) -> tuple[np.ndarray, np.ndarray]:
    """Split the indices of samples into remaining and held-out ones, both sorted: `share` of every stratum, rounded.

    A stratum of two or more keeps at least one on either side; a stratum of one sample stays in training.
    """
    classes = np.zeros(size, dtype=np.int64) if strata is None else np.asarray(strata)
    assert len(classes) == size, f"{len(classes)} strata for {size} samples"
    order = Draws.for_samples([SampleKey(0, 0, seed)]).stream("held out").permutation(size)[0].numpy()
    held_by_stratum: list[np.ndarray] = []
    for stratum in np.unique(classes):
        members = order[classes[order] == stratum]
        num_held = round(share * len(members))
        held_by_stratum.append(members[: min(max(num_held, 1), len(members) - 1)] if len(members) > 1 else members[:0])
    held_out = np.sort(np.concatenate(held_by_stratum)) if held_by_stratum else np.zeros(0, dtype=np.int64)
    return np.setdiff1d(np.arange(size), held_out), held_out


def stratified_subset(strata: np.ndarray, fraction: float, *, seed: int) -> np.ndarray:
    """Select sorted indices of a share of every stratum, rounded, at least one; pure.

    With the same seed a smaller share is a subset of a larger one.
    """
    order = Draws.for_samples([SampleKey(0, 0, seed)]).stream("fraction").permutation(len(strata))[0].numpy()
    members = [order[strata[order] == stratum] for stratum in np.unique(strata)]
    selected = [stratum_rows[: max(1, round(fraction * len(stratum_rows)))] for stratum_rows in members]
    return np.sort(np.concatenate(selected)) if selected else np.zeros(0, dtype=np.int64)
