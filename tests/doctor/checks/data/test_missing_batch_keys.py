"""Keys that a data set promises and its samples lack."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from sightline.contract.types import SampleKey
from sightline.engine.build import TrainingSetup
from sightline.engine.distributed import World
from sightline.workbench.check.suite import run_all
from tests.doctor.planting import Wrapped, caught, make, with_data


class Singles:
    """Samples one at a time, some without a field."""

    def __init__(self, inner: Any, lacking: set[int]) -> None:
        self.inner, self.info, self.lacking = inner, inner.info, lacking

    def __len__(self) -> int:
        return len(self.inner)

    def __getitem__(self, key: SampleKey) -> dict[str, Any]:
        sample = self.inner[key]
        return {n: v for n, v in sample.items() if n != "normals" or key.index not in self.lacking}


def without(name: str) -> Any:
    return lambda inner: Wrapped(inner, lambda batch, keys: {n: v for n, v in batch.items() if n != name})


def test_a_promised_key_that_the_model_takes(tmp_path: Path) -> None:
    finding = caught(with_data(make(tmp_path), without("points")), "missing-batch-keys", "cfg.contract")
    assert "'points'" in finding.summary
    assert "label, normals, part" in finding.measured
    assert any("first-step" in line for line in finding.evidence["explains"])


def test_some_samples_lack_a_modality(tmp_path: Path) -> None:
    built = with_data(make(tmp_path), lambda inner: Singles(inner, {200}))
    finding = caught(built, "missing-batch-keys", "data.missing_modality")
    assert finding.where.sample == 200


TOLD = {"class-balance"}
"""Notes that every run gets."""


def own(built: TrainingSetup) -> TrainingSetup:
    """The run with its set in a class of the user's."""
    return with_data(built, lambda inner: Singles(inner, set()))


def test_what_nothing_reads_of_a_set_of_the_package_is_not_reported(tmp_path: Path) -> None:
    """The set serves other tasks too: nobody can turn 'normals' and 'part' off."""
    assert [f for f in run_all(make(tmp_path), World()) if f.code not in TOLD] == []


def test_what_nothing_reads_is_only_told(tmp_path: Path) -> None:
    findings = [f for f in run_all(own(make(tmp_path)), World()) if f.code not in TOLD]
    assert [(f.code, f.severity) for f in findings] == [("missing-batch-keys", "note")]
    assert "'normals', 'part'" in findings[0].summary


def test_what_travels_inside_the_features_is_read(tmp_path: Path) -> None:
    findings = [f for f in run_all(own(make(tmp_path, "data.normals=file")), World()) if f.code not in TOLD]
    assert [finding.summary for finding in findings] == ["nothing reads 'part' of a batch"]
