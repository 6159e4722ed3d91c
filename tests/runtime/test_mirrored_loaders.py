"""Targets that mirrored images and clouds contradict are found over five seeds, and correct twins raise nothing."""

from __future__ import annotations

import itertools
import resource
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch.utils.data import DataLoader, Dataset

from sightline.doctor.batches import BatchForm
from sightline.doctor.objects import get_state
from sightline.workbench.watch.plain.byte_images import judge_bytes
from sightline.workbench.watch.plain.flips import judge_flips
from sightline.workbench.watch.plain.mirrors import fit_ridge
from tests.marks import long_but
from tests.processes import run_program
from tests.runtime.blind_loaders import Items
from tests.runtime.mirrored_loaders import COINS, HEALTHY, PLANTED, face

SEEDS = range(5)
QUICK = {
    (name, 0)
    for name in ("eyes of a face", "boxes", "a direction", "ranges", "animals by height", "few scenes", "lines")
}


def _get_bits(generator: Any) -> str:
    state = get_state(generator)
    return str(state.tolist() if isinstance(state, torch.Tensor) else state)


def judge(loader: DataLoader[Any], form: BatchForm | None = None) -> list[tuple[str, str, str]]:
    found = judge_flips(loader, form or BatchForm())
    return [(rule.code, fault.severity or "", fault.summary) for rule, fault in found]


@pytest.mark.parametrize(("name", "seed"), long_but(QUICK, itertools.product(PLANTED, SEEDS)))
def test_a_target_that_contradicts_mirrored_inputs_is_named(name: str, seed: int) -> None:
    """Found for all of five seeds; the mended form raises nothing."""
    make, coin, word = PLANTED[name]
    ((code, severity, summary),) = judge(make(seed, coin, bug=True))
    assert (code, severity) == ("augmentation-mismatch", "error" if name == "boxes" else "warning")
    assert word in summary
    assert judge(make(seed, coin, bug=False)) == []


@pytest.mark.parametrize(("name", "seed"), long_but(QUICK, itertools.product(HEALTHY, SEEDS)))
def test_a_correct_twin_raises_nothing(name: str, seed: int) -> None:
    assert judge(HEALTHY[name](seed)) == []


@pytest.mark.long
@pytest.mark.parametrize("coin", COINS)
def test_any_generator_may_decide(coin: str) -> None:
    """Global ones are seeded, and those of the data set are put back before each read, and at the end."""
    torch.manual_seed(0)
    loader = face(0, coin, bug=True)
    own = getattr(loader.dataset.coin, "own", None)  # type: ignore[attr-defined]
    before = None if own is None else _get_bits(own)
    assert [summary for _, _, summary in judge(loader)] == [
        "images are mirrored left to right, and its two sides are not exchanged in the target: "
        "exchange target[0] with target[2]"
    ]
    assert own is None or _get_bits(own) == before
    assert judge(face(0, coin, bug=False)) == []


def test_numbers_under_several_keys_are_named_by_them() -> None:
    """The left eye and the right one may be two values of a mapping, in any array."""
    plain = face(0, "numpy", bug=True).dataset

    def read(index: int) -> Any:
        image, places = plain[index]
        rows = places.reshape(4, 2)
        return {"image": image.numpy(), "left": rows[0].numpy(), "right": rows[1], "nose": rows[2], "id": index}

    form = BatchForm(("image",), ("left", "right", "nose"))
    ((_, _, summary),) = judge(DataLoader(Items(read, size=240), 8), form)
    assert summary.endswith("exchange left[0] with right[0]")


def test_a_ridge_finds_the_weights_of_a_linear_relation() -> None:
    generator = torch.Generator().manual_seed(0)
    rows = torch.randn(200, 5, generator=generator, dtype=torch.float64)
    weights = torch.tensor([[1.0, 0.0], [-2.0, 0.5], [0.0, 0.0], [0.0, 3.0], [4.0, 0.0]], dtype=torch.float64)
    targets = rows @ weights + 7
    fit = fit_ridge(rows[:100], targets[:100])
    assert float((fit(rows[100:]) - targets[100:]).abs().max()) < 1e-2
    pure_noise = torch.randn(100, 1, generator=generator, dtype=torch.float64)
    assert float(fit_ridge(rows[:100], pure_noise)(rows[100:]).var()) < 0.2


MEAN, DEVIATION = (torch.tensor(row)[:, None, None] for row in ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)))
BYTES: dict[str, tuple[Callable[[torch.Tensor], torch.Tensor], str | None]] = {
    "twice": (lambda raw: raw / 255 / 255, "error"),
    "twice, normalised": (lambda raw: (raw / 255 / 255 - MEAN) / DEVIATION, "warning"),
    "twice, grey, to -1 .. 1": (lambda raw: (raw[:, :1] / 255 / 255 - 0.5) / 0.5, "warning"),
    "twice, few levels": (lambda raw: ((raw / 8).floor() / 65025 - MEAN) / DEVIATION, "warning"),
    "once": (lambda raw: (raw / 255 - MEAN) / DEVIATION, None),
    "once, to -1 .. 1": (lambda raw: (raw[:, :1] / 255 - 0.5) / 0.5, None),
    "by their own mean": (lambda raw: (raw / 65025 - 0.00196) / 0.00113, None),
    "a constant": (lambda raw: torch.full_like(raw, -2.04), None),
    "all but constant, without steps": (lambda raw: torch.rand(raw.shape) * 0.004 - 2, None),
    "degrees": (lambda raw: 293.15 + raw * 0.01, None),
    "bytes": (lambda raw: raw, None),
    "volumes": (lambda raw: raw[..., None] / 255 / 255, None),
}


@pytest.mark.parametrize("name", BYTES)
def test_bytes_that_are_divided_twice_are_named(name: str) -> None:
    change, severity = BYTES[name]
    for seed in SEEDS:
        torch.manual_seed(seed)
        found = [fault.severity for _, fault in judge_bytes(change(torch.randint(256, (8, 3, 12, 12)).float()))]
        assert found == ([severity] if severity else [])


class Squares(Dataset[Any]):
    """Large images of a square, mirrored half of the time, with its place and with a mask of it."""

    def __init__(self, *, bug: bool, side: int = 320) -> None:
        self.bug, self.side = bug, side

    def __len__(self) -> int:
        return 400

    def __getitem__(self, index: int) -> Any:
        column, row = (torch.rand(2, generator=torch.Generator().manual_seed(index)) * 0.5 + 0.2).tolist()
        image = torch.zeros(3, self.side, self.side)
        left, top = int(column * self.side), int(row * self.side)
        image[:, top : top + 20, left : left + 20] = 1
        if torch.rand(()) < 0.5:
            image, column = image.flip(-1), column if self.bug else 1 - column - 20 / self.side
        return image, (torch.tensor([column, row]), image[0].clone())


MEASURED = """
import resource
from tests.runtime.test_mirrored_loaders import Squares, judge, read_peak_mb
from torch.utils.data import DataLoader
import sightline.workbench.watch.plain.mirrored_reads as reads
reads._MAX_CPU_S = 60.0  # all 300 pairs, also on a slow machine
judge(DataLoader(Squares(bug=False, side=32)))
before = read_peak_mb()
found = judge(DataLoader(Squares(bug=True)))
assert [summary for *_, summary in found if "mirror target" in summary], found
print(read_peak_mb() - before)
"""


def read_peak_mb() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1000


@pytest.mark.long
def test_large_images_and_maps_are_not_kept() -> None:
    """300 pairs of reads are 740 MB of images, and 250 MB of masks."""
    assert float(run_program(MEASURED).stdout) < 100
