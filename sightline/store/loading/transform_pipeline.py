"""Composition of transforms: each is called with the batch keys that its signature names."""

from __future__ import annotations

import inspect
import itertools
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from sightline.contract.binding import AvailableKeys, BoundFunction, bind
from sightline.contract.draws import Draws
from sightline.contract.errors import ConfigError, UserError
from sightline.contract.transform import Transform
from sightline.contract.types import Batch, Field, SampleKey

_DrawSamples = Callable[[int], list[Batch]]
_OF_PIPELINE = frozenset({"draw_samples", "pass_number"})
"""Parameters of transforms that no field gives."""


class NamedTransform(NamedTuple):
    """Transform with its name in the config, which also names its stream of random numbers."""

    name: str
    apply: Transform


def _assert_takes_draws(name: str, transform: Transform) -> None:
    """Raise ConfigError for a transform whose first argument, in which it gets its random numbers, is a field."""
    parameters = inspect.signature(transform.__call__).parameters
    first = next(iter(parameters.values()), None)
    if first is None or first.name != "draws" or first.kind is inspect.Parameter.KEYWORD_ONLY:
        fields = ", ".join(key for key in parameters if key != "draws") or "points"
        raise ConfigError(
            f"transform '{name}': {type(transform).__name__}.__call__ does not begin with draws, its random numbers; "
            f"write def __call__(self, draws, *, {fields})"
        )


class TransformPipeline:
    """Composition of transforms; each is called with the batch keys that its signature names. Stateless.

    `added` are the fields that transforms add to those of the samples, `made_of` what each is made of, `facts` what
    they state. A transform with a parameter `draw_samples` combines samples: it gets a function `(count) -> batches`
    that draws as many of `mixing_indices` for a sample and reads them with `read`, each as a batch of one changed by
    the preceding transforms; or None, from its `until_epoch` on. One with a parameter `pass_number` gets the number of
    the pass of `evaluate.votes`, from 1: the pass without `transforms.vote` is 0. Raises ConfigError if a transform
    names a field that does not exist, combines samples outside training, or asks for a pass outside `transforms.vote`.
    """

    def __init__(
        self,
        transforms: Sequence[NamedTransform],
        fields: Collection[str],
        *,
        source: str,
        read: Callable[[SampleKey], Batch] | None = None,
        mixing_indices: np.ndarray | None = None,
        is_voting: bool = False,
    ) -> None:
        self.added: dict[str, Field] = {}
        self.facts: dict[str, Any] = {}
        self.made_of: dict[str, frozenset[str]] = {}
        self._transforms: list[tuple[str, BoundFunction, int | None, frozenset[str]]] = []
        self._read, self._indices = read, mixing_indices
        for index, (name, transform) in enumerate(transforms):
            available = AvailableKeys(source, {*fields, *self.added})
            _assert_takes_draws(name, transform)
            bound = bind(transform.__call__, available, owner=f"transform '{name}'", exclude=("draws", *_OF_PIPELINE))
            asked = _OF_PIPELINE & inspect.signature(bound.function).parameters.keys()
            if mixing_indices is None and "draw_samples" in asked:
                raise ConfigError(
                    f"transform '{name}' combines several samples of the training part; it belongs in transforms.train"
                )
            if not is_voting and "pass_number" in asked:
                raise ConfigError(
                    f"transform '{name}' varies the passes of evaluate.votes one by one; it belongs in transforms.vote"
                )
            self._transforms.append((f"{index}.{name}", bound, transform.until_epoch, asked))
            self.added |= transform.adds
            self.made_of |= dict.fromkeys(transform.adds, frozenset(bound.names))
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
        return any("draw_samples" in asked for *_, asked in self._transforms)

    @property
    def functions(self) -> list[BoundFunction]:
        """Bound functions of the transforms, in order."""
        return [bound for _, bound, *_ in self._transforms]

    def apply_one(self, index: int, batch: Batch, keys: Sequence[SampleKey], draws: Draws | None = None) -> Batch:
        """Return the batch after the transform of this index alone, with its random numbers for these keys."""
        stream, bound, until_epoch, asked = self._transforms[index]
        transform_draws = (draws or Draws.for_samples(keys)).stream(stream)
        given: dict[str, Any] = {}
        if "draw_samples" in asked:
            given["draw_samples"] = self._make_draw(transform_draws, keys, index, until_epoch)
        if "pass_number" in asked:
            (given["pass_number"],) = {key.step for key in keys}
        changed = bound.function(transform_draws, **given, **bound.select(batch))
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


def mixes_samples(transform: BoundFunction) -> bool:
    """Return True if a transform combines samples."""
    return "draw_samples" in inspect.signature(transform.function).parameters
