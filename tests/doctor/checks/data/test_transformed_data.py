"""Data after the transforms, with bugs as users plant them, and healthy plugins."""

from __future__ import annotations

import functools
import itertools
from pathlib import Path
from typing import Any

import pytest
import torch
from scipy.spatial.transform import Rotation

from sightline.engine.build import TrainingSetup
from sightline.workbench.check.checks.data.augmentation_mismatch import _find_motion
from sightline.workbench.check.checks.data.painted_images import _compute_explained, _find_change, _paint
from sightline.workbench.check.core import transform_steps
from tests.command import run_here
from tests.doctor.planting import assert_complete, caught
from tests.doctor.transformed import BUGS, HEALTHY, RUNS, SHIPPED, Bug, find
from tests.marks import long_but

built_once = functools.cache(lambda run, seed: RUNS[run](seed))
ONE_EACH = list({(bug.run, bug.code, bug.cause): name for name, bug in BUGS.items()}.values())


def make(bug: Bug, seed: int = 1) -> TrainingSetup:
    return bug.plant(built_once(bug.run, seed))


@pytest.mark.parametrize("name", long_but([*ONE_EACH, "noise by a generator of the module"], BUGS))
def test_planted_bugs_are_found_when_a_training_starts(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """One of each run, check and cause. All, on more seeds: tests/doctor/transformed.py.

    A flip by chance is seen in as many images as the time allows; each takes 6 ms here, as on a quiet core.
    """
    bug = BUGS[name]
    if bug.run == "crowds":
        clock = itertools.count(step=0.006)
        monkeypatch.setattr(transform_steps, "compute_seconds", lambda: next(clock))
    finding, *_ = find(make(bug), (bug.code,), bug.forward_s)
    assert finding.cause == bug.cause
    assert_complete(finding)


CAUSE_FIRST = [
    "a reference 250 mm too deep",
    "a reference that counts the background",
    "depth in metres by a transform",
    "reference in metres by a transform",
    "joints' axes exchanged in the set",
    "joints moved by 40 mm after the maps",
    "one cloud for every index",
    "a set's own generator",
    "noise by a new generator of one seed",
    "labels rolled within a batch",
    "images flipped, boxes not",
    "range images mirrored, labels not",
]


@pytest.mark.parametrize(
    "name",
    long_but(
        [
            *("a reference 250 mm too deep", "one cloud for every index", "labels rolled within a batch"),
            "noise by a new generator of one seed",
        ],
        CAUSE_FIRST,
    ),
)
def test_the_cause_stands_above_its_symptoms(name: str) -> None:
    bug = BUGS[name]
    caught(make(bug), bug.code, bug.cause)


HEALTHY_DAILY = HEALTHY.keys() - {"range images mirrored with labels", "image cropped, boxes taken out"}


@pytest.mark.parametrize("name", long_but(HEALTHY_DAILY, HEALTHY))
def test_plugins_without_a_bug_are_healthy(name: str) -> None:
    run, plant = HEALTHY[name]
    assert find(plant(built_once(run, 1))) == []


@pytest.mark.parametrize("run", long_but(RUNS.keys() - {"scans", "hands", "crowds"}, RUNS))
def test_runs_without_a_bug_are_healthy(run: str) -> None:
    """The others are silent with a plugin more, above."""
    assert find(built_once(run, 1)) == []


@pytest.mark.parametrize("run", long_but(SHIPPED.keys() - {"crowds"}, SHIPPED))
def test_no_transform_of_the_package_is_flagged(run: str) -> None:
    """All of them in one run, in training alone: what evaluates is refused where it draws other samples."""
    assert find(RUNS[run](1, f"transforms.train=[{', '.join(SHIPPED[run])}]")) == []


def test_a_transform_is_located_in_the_config() -> None:
    bug = BUGS["points turned, normals not"]
    finding, *_ = find(make(bug), (bug.code,))
    assert finding.where.config_path == "transforms.train.0"
    assert finding.evidence == {"field": "normals", "carrier": "points", "transform": "planted"}


def test_fields_that_nothing_reads_may_stay() -> None:
    """A classifier that takes points alone is given normals by its set; `rotate` of `two_views` takes points alone."""
    assert find(built_once("pairs", 2), ("augmentation-mismatch",)) == []


# --- what is drawn when a set is built --------------------------------------------------------------------------------

PLUGIN = """
import numpy as np
import torch
from sightline.contract import registry
from sightline.areas.clouds.sets.synthetic_shapes import SyntheticShapes

@registry.data.add("{name}")
class Shapes(SyntheticShapes):
    def __init__(self, *, split: str) -> None:
        super().__init__(split=split, num_points=64, train_size=120, test_size=24)
        self.by = float({by})

    def get_batch(self, keys):
        batch = super().get_batch(keys)
        return {{**batch, "points": batch["points"] * self.by}}
"""


@pytest.mark.parametrize(
    ("name", "by", "is_found"),
    [
        ("drawn_shapes", "np.random.uniform(0.5, 1)", True),
        ("seeded_shapes", "np.random.default_rng(3).random()", False),
    ],
)
def test_numbers_that_a_set_draws_when_it_is_built(tmp_path: Path, name: str, by: str, is_found: bool) -> None:
    """A resumed run would build it anew, and train on other clouds."""
    (tmp_path / "shapes.py").write_text(PLUGIN.format(name=name, by=by))
    (tmp_path / "run.yaml").write_text(
        f"data: {{name: {name}}}\nmodel: {{name: pointnet_plain, embedding: 16}}\nlosses: [{{name: cross_entropy}}]\n"
        "metrics: [{name: accuracy}]\noptimizer: {name: sgd, lr: 0.1}\ntrain: {epochs: 1, batch_size: 8}\n"
        "evaluate: {metric: overall_accuracy}\n"
    )
    result = run_here("check", str(tmp_path / "run.yaml"), "--plugin", str(tmp_path / "shapes.py"))
    assert ("[own-generator error data.duplicate_randomness]" in result.err) == is_found, result.err
    assert ("draws random numbers when it is built" in result.err) == is_found


# --- the parts of the rules, against what is known of them ------------------------------------------------------------


@pytest.mark.parametrize("error", [0.0, 0.01])
def test_the_motion_of_a_cloud_is_that_of_scipy(error: float) -> None:
    generator = torch.Generator().manual_seed(0)
    matrix = torch.from_numpy(Rotation.random(random_state=1).as_matrix()) @ torch.diag(
        torch.tensor([2.0, 1, 0.5]).double()
    )
    before = torch.randn(500, 3, generator=generator).double()
    after = before @ matrix + 3 + error * torch.randn(500, 3, generator=generator)
    motion = _find_motion(before, after)
    assert motion is not None
    assert motion.matrix is not None
    # each coefficient's deviation is error / sqrt(N), and five of them are one in two million
    assert torch.allclose(motion.matrix, matrix, rtol=0, atol=1e-9 + 5 * error / 500**0.5)


def test_rows_are_matched_after_points_were_dropped_and_shuffled() -> None:
    before = torch.randn(200, 3, generator=torch.Generator().manual_seed(0))
    before[7] = before[11]  # these two cannot be told apart
    chosen = torch.randperm(200, generator=torch.Generator().manual_seed(1))[:80]
    motion = _find_motion(before, before[chosen])
    assert motion is not None
    is_sure = (chosen != 7) & (chosen != 11)
    assert torch.equal(motion.target, is_sure.nonzero()[:, 0])
    assert torch.equal(motion.source, chosen[is_sure])


def test_another_cloud_has_no_motion() -> None:
    clouds = torch.randn(2, 200, 3, generator=torch.Generator().manual_seed(0))
    assert _find_motion(clouds[0], clouds[1]) is None
    assert _find_motion(clouds[0], torch.full_like(clouds[0], torch.nan)) is None


@pytest.mark.parametrize("shape", [(1, 40, 60, 3), (1, 3, 40, 60)])
def test_a_painted_box_is_found_where_it_was_painted(shape: Any) -> None:
    image = torch.rand(shape, generator=torch.Generator().manual_seed(0))
    painted = _paint(image, torch.tensor([5.0, 10, 25, 31]))
    found = _find_change(torch.full_like(image, image.min().item()), painted)
    assert found is not None
    assert found.tolist() == [5, 10, 25, 31]


def test_the_explained_share_is_that_of_an_analysis_of_variance() -> None:
    """1, 2 | 5, 6, 7: a total of 22.8, of which 2.5 within the groups."""
    values, groups = torch.tensor([1.0, 2, 5, 6, 7]).double(), torch.tensor([4, 4, 9, 9, 9])
    assert _compute_explained(values, groups) == pytest.approx(1 - 2.5 / 26.8)
