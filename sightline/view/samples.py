"""Samples of a data set after each transform on their way to the model, and a model's predictions for them.

Digests of a data set's raw items, read in this process: do they stay the same from epoch to epoch?

In-place edits of a data set's storage are lost with the worker process that made them; reading without workers shows
them.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar, Literal, Protocol

from sightline.contract.catalogue import load_members
from sightline.contract.errors import ConfigError
from sightline.contract.members import TaskMembers
from sightline.contract.types import Batch, DataInfo, Sample, SampleKey
from sightline.draw.pictures import Frame
from sightline.engine.train import Task
from sightline.store.loading.batch_reader import BatchReader, array_leaves, as_bytes
from sightline.view.cloud_stages import CloudStages
from sightline.view.image_stages import ImageStages, draws_pictures, target_stages
from sightline.view.stages import SHOWN, SamplePredictor, Stage, ViewedSample


def item_digest(sample: Sample) -> str:
    """Compute the BLAKE2b digest (16 hex digits) of the names, dtypes, shapes and bytes of a sample's arrays."""
    state = hashlib.blake2b(digest_size=8)
    for path, tensor in array_leaves(dict(sorted(sample.items()))):
        state.update(f"{path} {tensor.dtype} {tuple(tensor.shape)}:".encode())
        state.update(as_bytes(tensor).tobytes())
    return state.hexdigest()


@dataclass(frozen=True)
class RawReads:
    """Digests of one raw item per epoch: `first` when read and transformed in turn, `again` when read once more."""

    epochs: tuple[int, ...]
    first: tuple[str, ...]
    again: tuple[str, ...]

    @classmethod
    def read(cls, reader: BatchReader, *, index: int, seed: int, epochs: Sequence[int]) -> RawReads:
        """Read an item twice in each epoch by `reader`, transforms included: they too could write into it."""
        first = tuple(_digest(reader, SampleKey(index, epoch, seed)) for epoch in epochs)
        return cls(tuple(epochs), first, tuple(_digest(reader, SampleKey(index, epoch, seed)) for epoch in epochs))

    @property
    def is_pure(self) -> bool:
        """True if reading an epoch again returns the same bits."""
        return self.first == self.again

    @property
    def is_constant(self) -> bool:
        """True if all epochs have the same bits."""
        return len({*self.first, *self.again}) == 1

    @property
    def line(self) -> str:
        """One line of text: whether the raw item changed, with its digests."""
        span = f"epoch {self.epochs[0]}" if len(self.epochs) == 1 else f"epochs {_format_epochs(self.epochs)}"
        if self.is_constant:
            return f"raw item the same in {span}, also when read again (digest {self.first[0]})"
        if self.is_pure:
            shown = ", ".join(f"{epoch}: {digest}" for epoch, digest in zip(self.epochs, self.first, strict=True))
            return f"raw item drawn anew in each epoch, the same when an epoch is read again (digests {shown})"
        shown = ", ".join((*self.first, *self.again))
        return (
            f"RAW ITEM CHANGES by being read: {span}, then again, {shown}; run `sightline check`, which names the line"
        )

    def to_dict(self) -> dict[str, Any]:
        """Return plain values for JSON."""
        digests = {
            str(epoch): [first, again] for epoch, first, again in zip(self.epochs, self.first, self.again, strict=True)
        }
        return {"digests": digests, "is_constant": self.is_constant, "is_pure": self.is_pure}


def _format_epochs(epochs: Sequence[int]) -> str:
    is_whole = list(epochs) == list(range(epochs[0], epochs[-1] + 1))
    return f"{epochs[0]} to {epochs[-1]}" if is_whole else ", ".join(map(str, epochs))


def _digest(reader: BatchReader, key: SampleKey) -> str:
    """Compute the digest of the raw item, and then run its transforms."""
    stages = reader.sample_stages(key)
    digest = item_digest(next(stages)[1])
    for _ in stages:
        pass
    return digest


_MODEL_INPUT = {"train": "model input in training", "evaluate": "model input in evaluation"}


@dataclass(frozen=True)
class Branch:
    """Branch from the data set to the model (training or evaluation); `reader` applies its transforms, in `epoch`."""

    name: Literal["train", "evaluate"]
    reader: BatchReader
    epoch: int = 0


class StageBuilder(Protocol):
    """Builder of the stages of one kind of sample: raw, after each transform, and prediction.

    It is called with a raw sample, its `DataInfo` and facts. `kind` names the samples, which have the fields `needs`.
    `whole` are facts about the whole sample, `frame` is the coordinate frame of its stages.
    """

    kind: ClassVar[str]
    needs: ClassVar[frozenset[str]]
    whole: dict[str, str]
    frame: Frame

    def raw_stage(self, sample: Sample) -> Stage: ...

    def after_transform(self, stage: str, before: Sample, sample: Sample) -> Iterable[Stage]: ...

    def prediction_stages(
        self, clouds: Sequence[Stage], batch: Batch, predictions: Mapping[str, Any], predictor: SamplePredictor
    ) -> tuple[Stage, dict[str, Any]]: ...


def view_sample(
    index: int,
    *,
    name: str,
    branches: Sequence[Branch],
    seed: int,
    facts: Mapping[str, Any],
    task: Task | None = None,
    predictor: SamplePredictor | None = None,
    raw_epochs: Sequence[int] = (),
) -> ViewedSample:
    """Build the stages of a sample: raw, after each transform of each branch and, with a predictor, as predicted.

    The stages contain exactly the bits that training in the branch's epoch, or evaluation, reads; with a predictor the
    last branch is evaluation. First the sample is read and transformed by the first branch in `raw_epochs`, to show
    whether its raw item changes. What `task` computes before the forward pass, such as an assignment, follows the first
    branch. Raises ConfigError for a data set that cannot be drawn.
    """
    description: dict[str, Any] = {"index": index}
    reads = RawReads.read(branches[0].reader, index=index, seed=seed, epochs=raw_epochs) if raw_epochs else None
    clouds: list[Stage] = []
    kind: StageBuilder | None = None
    for branch in branches:
        stages = branch.reader.sample_stages(SampleKey(index, branch.epoch, seed))
        _, sample = next(stages)
        if kind is None:
            kind = _choose_builder(sample, branch.reader.dataset.info, facts)
            clouds.append(
                _add_description(kind.raw_stage(sample), reads.line if reads else "", _describe_raw(branches))
            )
        transformed_stages: list[Stage] = []
        first_of_last_stage = len(clouds)
        for transform_index, (transform, transformed) in enumerate(stages, start=1):
            first_of_last_stage = len(clouds) + len(transformed_stages)
            transformed_stages += kind.after_transform(
                f"{branch.name} {transform_index}: {transform}", sample, transformed
            )
            sample = transformed
        clouds += transformed_stages
        clouds[first_of_last_stage:] = [
            _add_description(cloud, _MODEL_INPUT[branch.name]) for cloud in clouds[first_of_last_stage:]
        ]
        if task is not None and branch is branches[0]:
            pixels = kind.pixels if isinstance(kind, ImageStages) else None
            clouds += target_stages(task, branch.reader([SampleKey(index, branch.epoch, seed)]), pixels=pixels)
    assert kind is not None, "a sample is read by one branch at least"
    description |= kind.whole
    if reads is not None:
        description["raw"] = reads.to_dict()
    if predictor is not None:  # the last branch is the one that evaluates
        batch, predictions = predictor(SampleKey(index, 0, seed))
        predicted, description["prediction"] = kind.prediction_stages(
            [clouds[0], *transformed_stages], batch, predictions, predictor
        )
        clouds.append(predicted)
    return ViewedSample(name, tuple(clouds), kind.frame, description)


def _list_builders() -> list[Any]:
    """List the classes of builders by kind: a sample is of the first kind whose needed fields it has."""
    return sorted([CloudStages, ImageStages, *load_members("stages")], key=lambda builder: builder.kind)


def can_draw_predictions(task: Task, info: DataInfo) -> bool:
    """Return True if predictions of a task can be drawn over the samples of a set."""
    first_kind = next((builder for builder in _list_builders() if builder.needs <= info.fields.keys()), None)
    return draws_pictures(task) if first_kind is ImageStages else bool(SHOWN.keys() & TaskMembers.predicts.get(task))


def _choose_builder(sample: Sample, info: DataInfo, facts: Mapping[str, Any]) -> StageBuilder:
    builders = _list_builders()
    for builder in builders:
        if builder.needs <= sample.keys():
            chosen: StageBuilder = builder(sample, info, facts)
            return chosen
    kinds = ", ".join(f"{builder.kind} ({', '.join(sorted(builder.needs))})" for builder in builders)
    raise ConfigError(f"view: the data set has the fields {', '.join(sorted(sample))}; view shows {kinds}")


def _describe_raw(branches: Sequence[Branch]) -> str:
    return ", ".join(_MODEL_INPUT[branch.name] for branch in branches if not branch.reader.has_transforms)


def _add_description(cloud: Stage, *more: str) -> Stage:
    """Return the stage with a longer description."""
    return replace(cloud, description="; ".join(line for line in (cloud.description, *more) if line))
