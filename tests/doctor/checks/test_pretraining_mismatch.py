"""Stages whose clouds differ are named; alike ones, and runs from random weights, are not."""

from __future__ import annotations

from pathlib import Path

import pytest

from sightline.config import read_config
from sightline.contract.types import CloudInputSpec, DataInfo, Field
from sightline.engine.build import TrainingSetup
from sightline.engine.distributed import World
from sightline.runs.preprocessing_signature import preprocessing_signature, signature_differences
from sightline.workbench.check.context import Context
from sightline.workbench.check.init_rules import pretraining_mismatch
from tests.command import succeed
from tests.doctor.planting import CONFIG, assert_healthy, caught, judge, make
from tests.planted.planting import BENCHES

SIXTY_FOUR = CloudInputSpec(64)


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of the healthy config."""
    folder = tmp_path_factory.mktemp("source")
    (folder / "first.yaml").write_text(CONFIG)
    succeed("train", folder / "first.yaml", "train.steps=1", "--out", folder / "run", "--no-check")
    return folder / "run"


def tuned(tmp_path: Path, source: Path, *overrides: str) -> TrainingSetup:
    return make(tmp_path, f"init={{from: '{source}'}}", *overrides)


def test_stages_alike_are_healthy(tmp_path: Path, source: Path) -> None:
    assert_healthy(tuned(tmp_path, source))


@pytest.mark.parametrize(
    ("override", "told"),
    [
        ("data.num_points=64", "the number of points of a cloud: "),
        ("transforms.evaluate=[{name: sample_points, num_points: 16}]", "16 in small (synthetic_shapes)"),
        (
            "transforms.evaluate=[{name: jitter, std: 0.5}]",
            "the evaluation transforms of points: none in first (synthetic_shapes), jitter {std: 0.5",
        ),
    ],
)
def test_other_clouds_are_named_with_both_stages(tmp_path: Path, source: Path, override: str, told: str) -> None:
    (finding,) = judge(pretraining_mismatch, Context(tuned(tmp_path, source, override), World()))
    assert (finding.cause, finding.severity) == ("data.normalisation", "warning")
    assert told in finding.measured
    assert finding.where.config_path == "init.from"


def test_another_up_axis_is_the_first_suspect(tmp_path: Path, source: Path) -> None:
    built = tuned(tmp_path, source)
    lineage = dict(built.lineage)
    lineage["here"] = lineage["here"] | {"up_axis": "y"}
    lineage["differences"] = signature_differences(lineage["source"], lineage["here"])
    vars(built)["lineage"] = lineage  # of the cached property
    finding = caught(built, "pretraining-mismatch", "cfg.axis_swap", "warning")
    assert finding.measured == "the up axis: z in first (synthetic_shapes), y in small (synthetic_shapes)"


def stage(word: str = "seed=0", form: CloudInputSpec | None = SIXTY_FOUR) -> dict[str, object]:
    """The signature of the bench CLS with another word, on a set that gives its clouds in this form."""
    info = DataInfo({"up_axis": "z"}, {"points": Field("points 3", "float32")}, clouds=form)
    return preprocessing_signature(read_config(BENCHES / "CLS.yaml", [word]), info)


def test_what_the_set_does_and_what_a_transform_does_is_the_same() -> None:
    """A set in the unit sphere equals one that a transform puts there; of two counts the last holds."""
    by_set = stage(form=CloudInputSpec(64, unit_sphere="promised"))
    transforms = "{name: normalize_unit_sphere}, {name: sample_points, num_points: 64}"
    assert by_set == stage(f"transforms.evaluate=[{transforms}]", CloudInputSpec(2048))
    assert signature_differences(by_set, stage()) == [
        "whether clouds lie in the unit sphere about their mean: yes in CLS (synthetic_shapes), "
        "no in CLS (synthetic_shapes)"
    ]


def test_views_of_a_method_are_no_transform_of_its_data() -> None:
    views = "transforms.evaluate=[{name: two_views, transforms: [{name: rotate}, {name: jitter}]}]"
    assert signature_differences(stage(), stage(views)) == []


def test_what_is_not_known_is_no_difference() -> None:
    assert signature_differences(stage(form=None), stage()) == []


GRAPH = "{name: dgcnn, num_neighbours: 8}"
BERT = "{{name: point_bert, num_heads: {}, width: 96, depth: 1}}"


@pytest.mark.parametrize(
    ("theirs", "ours", "told"),
    [
        (
            GRAPH,
            "{name: dgcnn, num_neighbours: 4}",
            "how far the encoder's graph reaches: 8 neighbours of 64 points in there, 4 of 64 in here",
        ),
        (GRAPH, "{name: dgcnn, num_neighbours: 8, dropout: 0.1}", None),
        (GRAPH, f"{{name: intrapoint, points: {GRAPH}}}", None),
        (GRAPH, "{name: intrapoint, points: {name: dgcnn, num_neighbours: 16, neighbours_at: 128}}", None),
        (BERT.format(6), BERT.format(3), "the encoder's num_heads: 6 in there, 3 in here"),
        ("{name: dgcnn}", "{name: pointnet}", None),
    ],
)
def test_arguments_that_no_tensor_shows(theirs: str, ours: str, told: str | None) -> None:
    """All of these fit by name and shape; another function is another network."""
    stages = [stage(f"model={model}") for model in (theirs, ours)]
    assert signature_differences(*stages, names=("there", "here")) == ([] if told is None else [told])
