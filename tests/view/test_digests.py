"""Whether raw items change: digests over epochs, an edit in place planted, and why worker processes hide it."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from sightline.contract.draws import Draws
from sightline.contract.types import DataInfo, Field, Sample, SampleKey
from sightline.engine.batch_stream import read_batches
from sightline.store.loading.batch_reader import BatchReader, NamedTransform
from sightline.view.samples import RawReads, item_digest

EPOCHS = 3
Item = Callable[["Stored", SampleKey], Tensor]


class Stored:
    """One number in memory; `item` says how it is read."""

    def __init__(self, item: Item) -> None:
        self.values = torch.zeros(1, 1)
        self.item = item
        self.info = DataInfo({}, {"value": Field("1", "float32")})

    def __len__(self) -> int:
        return 1

    def __getitem__(self, key: SampleKey) -> Sample:
        return {"value": self.item(self, key)}


def edited(data: Stored, key: SampleKey) -> Tensor:
    """The mistake: `value` is the stored row itself, so that this writes into the data set."""
    value = data.values[key.index]
    value += 1
    return value.clone()


def edited_after_an_operation(data: Stored, key: SampleKey) -> Tensor:
    """The same edit behind an operation that makes a new tensor: nothing stored is touched."""
    value = data.values[key.index] - 0.0
    value += 1
    return value


def kept(data: Stored, key: SampleKey) -> Tensor:
    return data.values[key.index]


def drawn(data: Stored, key: SampleKey) -> Tensor:
    return torch.from_numpy(key.generator().random(1))


class Shifted:
    """A transform that writes into what it is given."""

    def __call__(self, draws: Draws, *, value: Tensor) -> dict[str, Tensor]:
        value += 1
        return {"value": value}


def reads(item: Item, *transforms: NamedTransform, epochs: tuple[int, ...] = (0, 1, 2)) -> RawReads:
    return RawReads.read(BatchReader(Stored(item), transforms), index=0, seed=7, epochs=epochs)


def test_an_item_that_stays_is_said_to_stay() -> None:
    found = reads(kept)
    assert found.is_constant
    assert found.is_pure
    assert found.line == f"raw item the same in epochs 0 to 2, also when read again (digest {found.first[0]})"
    assert found.to_dict()["digests"].keys() == {"0", "1", "2"}
    assert reads(kept, epochs=(4,)).line.startswith("raw item the same in epoch 4, also when")
    assert reads(kept, epochs=(0, 5)).line.startswith("raw item the same in epochs 0, 5, also")


def test_an_edit_in_place_changes_the_digest_of_every_read() -> None:
    found = reads(edited)
    assert len({*found.first, *found.again}) == 6
    assert not found.is_pure
    assert found.line.startswith("RAW ITEM CHANGES by being read: epochs 0 to 2, then again, ")
    assert found.to_dict()["is_pure"] is False
    assert reads(edited_after_an_operation).is_constant


def test_a_transform_that_writes_into_its_input_is_caught() -> None:
    found = reads(kept, NamedTransform("shifted", Shifted()))
    assert not found.is_pure


def test_an_item_that_is_drawn_in_each_epoch_is_no_edit() -> None:
    found = reads(drawn)
    assert found.is_pure
    assert not found.is_constant
    assert found.line.startswith("raw item drawn anew in each epoch, the same when an epoch is read again")


def test_a_digest_is_of_names_types_shapes_and_bytes() -> None:
    value = torch.arange(6.0)
    different = [{"a": value}, {"b": value}, {"a": value.view(2, 3)}, {"a": value.double()}, {"a": value + 1}]
    assert len({item_digest(sample) for sample in different}) == 5
    assert item_digest({"a": value, "b": value}) == item_digest({"b": value.clone(), "a": value.numpy().copy()})


# --- the table of docs/run/view.md -----------------------------------------------------------------------------------


class _OfTorch(Dataset[float]):
    """The data set in the shape that torch's loader asks for."""

    def __init__(self, item: Item) -> None:
        self.stored = Stored(item)

    def __len__(self) -> int:
        return 1

    def __getitem__(self, index: int) -> float:
        return float(self.stored[SampleKey(index, 0, 0)]["value"])


def seen(item: Item, workers: int, *, persistent: bool = False) -> list[float]:
    """What the item is in each epoch, read by torch's loader."""
    how = {"multiprocessing_context": "fork"} if workers else {}
    loader = DataLoader(_OfTorch(item), num_workers=workers, persistent_workers=persistent, **how)  # type: ignore[arg-type]
    return [float(batch) for _ in range(EPOCHS) for batch in loader]


@pytest.mark.parametrize(
    ("item", "workers", "persistent", "expected"),
    [
        (edited, 0, False, [1, 2, 3]),
        (edited, 2, True, [1, 2, 3]),
        (edited, 2, False, [1, 1, 1]),
        (edited_after_an_operation, 0, False, [1, 1, 1]),
        (edited_after_an_operation, 2, True, [1, 1, 1]),
        (edited_after_an_operation, 2, False, [1, 1, 1]),
    ],
)
def test_what_an_edit_in_place_shows_over_epochs(
    item: Item, workers: int, persistent: bool, expected: list[int]
) -> None:
    assert seen(item, workers, persistent=persistent) == expected


@pytest.mark.parametrize("workers", [0, 1])
def test_our_workers_live_through_all_epochs_and_hide_nothing(workers: int) -> None:
    reader = BatchReader(Stored(edited))
    keys = iter([[SampleKey(0, epoch, 0)] for epoch in range(EPOCHS)])
    assert [float(batch["value"]) for batch in read_batches(reader, keys, workers)] == [1, 2, 3]
