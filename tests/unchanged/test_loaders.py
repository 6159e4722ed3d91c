"""Loaders with states of all kinds: a training after their reading gets the batches that it gets without."""

from __future__ import annotations

import itertools
import logging
import threading
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, Dataset, IterableDataset, Sampler, TensorDataset

import sightline
from sightline.contract.errors import UserError
from sightline.doctor.budget import Budget
from sightline.doctor.check import check_module, examine_models
from sightline.doctor.loaders import find_obstacle
from tests.limits import limited
from tests.unchanged.loops import Augmented

ROWS = torch.randn(64, 6, generator=torch.Generator().manual_seed(1))
LABEL = ROWS[:, :3].argmax(dim=1)
GLOBAL_READS = [0]


class Drifting(Augmented):
    """Reading changes its rows, a cache and a position, and grows a list."""

    def __init__(self) -> None:
        super().__init__(1)
        self.table, self.cache, self.order, self.place = self.rows.numpy().copy(), dict[int, int](), [0], Place()

    def __getitem__(self, index: int) -> Any:
        self.table[index] *= 1.01
        self.rows[index] *= 1.01
        self.cache[index] = self.cache.get(index, 0) + 1
        self.order.append(index)
        self.place.x += 1
        shift = self.cache[index] + len(self.order) + self.place.x
        return self.rows[index] + torch.from_numpy(self.table[index]) + 1e-4 * shift, self.label[index]


class Place:
    __slots__ = ("x",)

    def __init__(self) -> None:
        self.x = 0


class Global(Dataset[Any]):
    def __len__(self) -> int:
        return 64

    def __getitem__(self, index: int) -> Any:
        GLOBAL_READS[0] += 1
        return ROWS[index] + 1e-4 * GLOBAL_READS[0], LABEL[index]


class Counting(IterableDataset[Any]):
    def __init__(self) -> None:
        self.num_reads = 0

    def __iter__(self) -> Iterator[Any]:
        for index in range(64):
            self.num_reads += 1
            yield ROWS[index] + 1e-4 * self.num_reads + 0.01 * torch.randn(6), LABEL[index]


class OfFile(IterableDataset[Any]):
    def __init__(self, folder: Path) -> None:
        path = folder / "numbers.txt"
        path.write_text("\n".join(str(number % 64) for number in range(400)))
        self.file = path.open()

    def __del__(self) -> None:
        self.file.close()

    def __iter__(self) -> Iterator[Any]:
        for line in itertools.islice(self.file, 128):
            yield ROWS[int(line)], LABEL[int(line)]


class OfGenerator(IterableDataset[Any]):
    def __init__(self) -> None:
        self.rows = ((ROWS[index % 64], LABEL[index % 64]) for index in range(400))

    def __iter__(self) -> Iterator[Any]:
        return self.rows


class Growing(Sampler[Any]):
    """Batches that depend on how often it was iterated."""

    def __init__(self) -> None:
        self.num_epochs = 0

    def __len__(self) -> int:
        return 4

    def __iter__(self) -> Iterator[Any]:
        self.num_epochs += 1
        return iter([[(16 * batch + self.num_epochs * row) % 64 for row in range(16)] for batch in range(4)])


class Own:
    """Loader of no library, with a generator of NumPy and a count; `len` where a class derives from it."""

    def __init__(self) -> None:
        self.random, self.num_batches = np.random.default_rng(0), 0

    def __iter__(self) -> Iterator[Any]:
        for rows in self.random.permutation(64).reshape(4, 16):
            self.num_batches += 1
            yield ROWS[rows] + 1e-4 * self.num_batches, LABEL[rows]


class Sized(Own):
    def __len__(self) -> int:
        return 4


class Around:
    """Loader around a loader with persistent workers."""

    def __init__(self) -> None:
        self.loader = persistent(Augmented(1))

    def __iter__(self) -> Iterator[Any]:
        yield from self.loader


def persistent(data: Dataset[Any]) -> DataLoader[Any]:
    is_indexed = not isinstance(data, IterableDataset)
    return DataLoader(data, 16, num_workers=1, persistent_workers=True, shuffle=is_indexed)


def accelerated() -> Any:
    accelerate = pytest.importorskip("accelerate")
    return accelerate.Accelerator(cpu=True).prepare_data_loader(DataLoader(Augmented(1), 16, shuffle=True))


class InThread(Own):
    """Loader whose batches another thread reads."""

    def __init__(self) -> None:
        super().__init__()
        self.ended = threading.Event()
        self.thread = threading.Thread(target=self.ended.wait, daemon=True)
        self.thread.start()


def batches() -> Iterator[Any]:
    yield from ((ROWS[rows], LABEL[rows]) for rows in torch.arange(64).split(16))


READABLE: dict[str, Callable[[Path], Any]] = {
    "global numbers": lambda _: DataLoader(TensorDataset(ROWS, LABEL), 16, shuffle=True),
    "a generator": lambda _: DataLoader(
        TensorDataset(ROWS, LABEL), 16, shuffle=True, generator=torch.Generator().manual_seed(3)
    ),
    "sets that change": lambda _: DataLoader(Drifting(), 8, shuffle=True),
    "a global count": lambda _: DataLoader(Global(), 16),
    "persistent workers": lambda _: persistent(Augmented(1)),
    "persistent workers inside": lambda _: Around(),
    "workers of iterables": lambda _: persistent(Counting()),
    "iterables": lambda _: DataLoader(Counting(), 16),
    "a file": lambda folder: DataLoader(OfFile(folder), 16),
    "a sampler of batches": lambda _: DataLoader(TensorDataset(ROWS, LABEL), batch_sampler=Growing()),
    "another library": lambda _: Own(),
    "another library with a length": lambda _: Sized(),
    "accelerate": lambda _: accelerated(),
    "a list": lambda _: list(batches()),
}
UNREADABLE: dict[str, Callable[[], Any]] = {
    "each batch of an iterator (generator) comes once": batches,
    "each batch of an iterator (zip) comes once": lambda: zip(ROWS.split(16), LABEL.split(16), strict=True),
    "each batch of an iterator (list_iterator) comes once": lambda: iter(list(batches())),
    "'dataset.rows' is an iterator (generator)": lambda: DataLoader(OfGenerator(), 16),
    "'thread' is running beside the loop": InThread,
}


def train(loader: Any, open_context: Callable[..., Any] | None = None) -> tuple[list[Any], Any]:
    """Train two epochs; return all that was read and drawn, and what `open_context` returns."""
    torch.manual_seed(0)
    np.random.seed(0)
    GLOBAL_READS[0] = 0
    model = nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 3))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    read: list[Any] = []

    def run() -> None:
        for _ in range(2):
            for rows, label in loader:
                read.extend([rows.double().sum().item(), label.sum().item()])
                optimizer.zero_grad()
                F.cross_entropy(model(rows), label).backward()
                optimizer.step()

    watch = None if open_context is None else open_context(model, loader)
    if watch is None:
        run()
    else:
        with watch:
            run()
    return [*read, float(torch.rand(())), np.random.rand()], watch


def check(model: nn.Module, loader: Any, **named: Any) -> None:
    """Read without passes beyond those that cost nothing."""
    check_module(model, F.cross_entropy, loader, **named)


def check_as_evaluation(model: nn.Module, loader: Any) -> None:
    check(model, (ROWS, LABEL), evaluation=loader)


def watch_with_both(model: nn.Module, loader: Any) -> Any:
    return sightline.watch(model, loss=F.cross_entropy, loader=loader, evaluation=loader)


@pytest.fixture(autouse=True)
def _short(monkeypatch: pytest.MonkeyPatch) -> None:
    budget = Budget(0.0)
    monkeypatch.setattr("sightline.doctor.watch.watch.examine_models", partial(examine_models, budget=budget))
    monkeypatch.setattr(Budget, "allow", lambda *_, **named: budget)


@pytest.mark.parametrize("name", READABLE)
@pytest.mark.parametrize("open_context", [check, check_as_evaluation, watch_with_both])
def test_a_training_after_it_gets_the_same_batches(name: str, open_context: Any, tmp_path: Path) -> None:
    plain, _ = train(READABLE[name](tmp_path))
    assert train(READABLE[name](tmp_path), open_context)[0] == plain


@pytest.mark.parametrize("reason", UNREADABLE)
def test_what_cannot_be_put_back_is_not_read(reason: str) -> None:
    plain, _ = train(UNREADABLE[reason]())
    for open_context in (check, check_as_evaluation):
        loader = UNREADABLE[reason]()
        with pytest.raises(UserError) as error:
            open_context(nn.Linear(6, 3), loader)
        assert reason in str(error.value)
        assert "a list of batches" in str(error.value)
        assert train(loader)[0] == plain
    watched, watch = train(UNREADABLE[reason](), watch_with_both)
    assert watched == plain
    assert any(f"the model before its first step: {reason}" in line for line in watch.report.verdict)


def test_an_evaluation_that_cannot_be_put_back_is_left_out_alone() -> None:
    watch = sightline.watch(nn.Linear(6, 3), loss=F.cross_entropy, loader=(ROWS, LABEL), evaluation=batches())
    assert any(line.startswith("the batches of `evaluation`: each batch") for line in watch._loop.failures)
    assert watch.check is not None


def test_a_file_that_is_only_written_or_closed_is_no_obstacle(tmp_path: Path) -> None:
    loader = Own()
    loader.log = (tmp_path / "log.txt").open("w")  # type: ignore[attr-defined]
    loader.logger = logging.getLogger("of the user")  # type: ignore[attr-defined]
    assert find_obstacle(loader) == ""
    loader.lines = iter([1, 2])  # type: ignore[attr-defined]
    assert "'lines' is an iterator (list_iterator)" in find_obstacle(loader)
    loader.log.close()  # type: ignore[attr-defined]


def test_an_endless_loader_is_read_in_part() -> None:
    read = []

    class Endless(Own):
        def __iter__(self) -> Iterator[Any]:
            while True:
                for batch in super().__iter__():
                    read.append(None)
                    yield batch

    with limited():
        check(nn.Linear(6, 3), Endless())
    assert 0 < len(read) < 2000
