"""Class counts of the facts against those of the samples, and samples of a single class."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from sightline.contract.types import Sample
from sightline.doctor.finding import Finding
from sightline.engine.distributed import World
from sightline.workbench.check.checks.data.classes import class_counts
from sightline.workbench.check.context import Context
from tests.doctor.scanning import Edit, make_scans
from tests.marks import long_but


def relabelled(change: Callable[[Tensor, Sample, int], Tensor]) -> Edit:
    return lambda dataset, sample, key: {**sample, "label": change(sample["label"], sample, key.index)}


def cropped(share: int) -> Edit:
    """All but one of `share` scans are cropped to the points of their largest class."""

    def edit(dataset: object, sample: Sample, key: object) -> Sample:
        if key.index % share == 0:  # type: ignore[attr-defined]
            return sample
        is_kept = sample["label"] == sample["label"].mode().values
        return {name: value[is_kept] for name, value in sample.items()}

    return edit


BUGS: dict[str, tuple[Edit, str]] = {
    "buildings are ignored": (relabelled(lambda x, s, i: torch.where(x == 5, 0, x)), "data.ignore_handling"),
    "roads are ignored": (relabelled(lambda x, s, i: torch.where(x == 3, 0, x)), "data.ignore_handling"),
    "roads are sidewalks": (relabelled(lambda x, s, i: torch.where(x == 3, 4, x)), "data.label_mapping"),
    "instances stay in the labels": (
        relabelled(lambda x, s, i: (x + 65536 * (s["points"][:, 0].long() // 4)) % 9),
        "data.label_mapping",
    ),
    "classes are numbered from the other end": (
        relabelled(lambda x, s, i: torch.where(x > 0, 9 - x, x)),
        "data.label_mapping",
    ),
    "seven of eight scans are cropped": (cropped(8), "data.sampling"),
}


def judge(monkeypatch: pytest.MonkeyPatch, seed: int, edit: Edit, *words: str) -> list[Finding]:
    built = make_scans(monkeypatch, "data.count_classes=true", f"data.data_seed={seed}", *words, edit=edit)
    return class_counts(Context(built, World(), forward_s=1.5))


@pytest.mark.parametrize("seed", long_but([0], [0, 1, 2]))
@pytest.mark.parametrize("name", BUGS)
def test_labels_that_are_not_as_they_were_counted(monkeypatch: pytest.MonkeyPatch, name: str, seed: int) -> None:
    edit, cause = BUGS[name]
    (finding,) = judge(monkeypatch, seed, edit)
    assert (finding.cause, finding.severity) == (cause, "warning")
    assert None not in (finding.value, finding.bound)


def thinned(label: Tensor, sample: Sample, index: int) -> Tensor:
    """Ignore 19 of 20 points; a fifth of the scans keep one class."""
    is_kept = torch.rand(len(label), generator=torch.Generator().manual_seed(index)) < 0.05
    return torch.where(is_kept & ((label == label.mode().values) | (index % 5 > 0)), label, 0)


@pytest.mark.parametrize("seed", long_but([0], [0, 1, 2]))
@pytest.mark.parametrize("change", [lambda x, s, i: x, thinned], ids=["as they are", "thinned"])
def test_labels_as_they_were_counted(monkeypatch: pytest.MonkeyPatch, change: object, seed: int) -> None:
    assert judge(monkeypatch, seed, relabelled(change)) == []  # type: ignore[arg-type]


def test_without_counts_only_single_classes_are_found(monkeypatch: pytest.MonkeyPatch) -> None:
    edit, _ = BUGS["roads are ignored"]
    built = make_scans(monkeypatch, "data.count_classes=false", "losses=[{name: cross_entropy}]", edit=edit)
    assert "class_counts" not in built.data.facts
    assert class_counts(Context(built, World())) == []


def test_a_few_of_many_scans_prove_little(monkeypatch: pytest.MonkeyPatch) -> None:
    """Four scans without a building, of 12, may be from the country."""
    built = make_scans(monkeypatch, "data.count_classes=true", edit=BUGS["buildings are ignored"][0])
    context = Context(built, World(), forward_s=1.5)
    survey = context.statistics[0]
    del survey.labellings[4:]
    survey.num_sampled = 4
    assert class_counts(context) == []


def test_the_finding_is_complete(monkeypatch: pytest.MonkeyPatch) -> None:
    (finding,) = judge(monkeypatch, 0, cropped(8))
    document = finding.to_dict()
    assert {"value", "bound"} <= document.keys()
    assert "single class" in finding.summary
    assert finding.where.dataset == "synthetic_lidar/train"
