"""Probes of whole runs: their features, and the same figure from every side."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import sightline
from sightline.api import load_run
from sightline.areas.clouds.sets.synthetic_shapes import SyntheticShapes
from sightline.config import read_config
from sightline.contract.errors import DataError, UserError
from sightline.contract.types import ComponentConfig, SampleKey
from sightline.engine.distributed import World
from sightline.store.loading import rendered_views
from sightline.store.loading.batch_reader import BatchReader
from sightline.workbench.probe import probed_run
from sightline.workbench.probe.classifiers import SVM
from sightline.workbench.probe.features import FeatureSplit
from sightline.workbench.probe.probed_run import extract_with_random, open_probed
from tests.command import Outcome, run_here, succeed
from tests.probe.contrast import THIN, train_thin
from tests.trained import copy_run

pytestmark = pytest.mark.usefixtures("package_digested_once")


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return copy_run("contrast", tmp_path_factory.mktemp("probe"))


def probe(run: Path, *words: object) -> tuple[dict[str, Any], Outcome]:
    """What `evaluate --probe svm`, or by other methods, writes as JSON of a run, and what it says."""
    file = run.parent / "probe.json"
    methods = () if "--probe" in words else ("--probe", "svm")
    outcome = succeed("evaluate", run, *methods, *words, "--device", "cpu", "--json", file)
    (document,) = json.loads(file.read_text())["runs"]
    return document, outcome


def features_of(run: Path, *overrides: str, checkpoint: str = "last") -> tuple[FeatureSplit, FeatureSplit]:
    probed = open_probed(run, checkpoint=checkpoint, data=None, overrides=overrides)
    return extract_with_random(probed, World(), note=[].append)


# --- features ---------------------------------------------------------------------------------------------------------


def test_features_are_those_of_the_encoder_on_the_whole_parts_in_order(run: Path) -> None:
    """By hand: the set's clouds as they lie, through the run's encoder; batches of 10, as evaluation takes them."""
    model = load_run(run).model
    found, _ = features_of(run)
    for split, features, size in (("train", found.train, 72), ("test", found.test, 36)):
        dataset = SyntheticShapes(split=split, train_size=72, test_size=36, num_points=64)
        reader = BatchReader(dataset)
        assert np.array_equal(features.labels, dataset.strata)
        assert features.rows.shape == (size, 32)
        assert features.rows.dtype == np.float32
        for start in range(0, size, 10):
            batch = reader([SampleKey(index, 0, 0) for index in range(start, min(start + 10, size))])
            with torch.no_grad():
                expected = model.encode(points=batch["points"])  # type: ignore[operator]
            assert np.array_equal(features.rows[start : start + 10], expected.numpy())


def test_random_weights_are_the_same_network_of_another_seed(run: Path) -> None:
    trained, random = features_of(run)
    config = read_config(run / "config.yaml")
    again = probed_run.random_model(config, load_run(run).facts, World(), seed=1)
    theirs = [parameter for _, parameter in again.named_parameters()]
    ours = [parameter for _, parameter in load_run(run).model.named_parameters()]
    assert [p.shape for p in ours] == [p.shape for p in theirs]
    part = open_probed(run, checkpoint="last", data=None).data.train
    batch = part.reader([SampleKey(int(index), 0, 0) for index in part.indices[:8]])
    with torch.no_grad():
        encoded = again.eval().encode(points=batch["points"]).numpy()
    np.testing.assert_allclose(random.train.rows[:8], encoded, rtol=1e-4, atol=1e-6)
    assert not np.array_equal(random.train.rows, trained.train.rows)


def test_any_classifier_has_features(tmp_path: Path) -> None:
    """A network that learns classes derives from an encoder: its feature is what its head reads."""
    config = tmp_path / "dgcnn.yaml"
    lines = THIN.replace("{name: contrast}", "{name: classify}").replace("uniformity", "overall_accuracy").splitlines()
    kept = [line for line in lines if not line.startswith(("transforms", "  train", "  evaluate"))]
    text = "\n".join(kept).replace("intra_modal", "cross_entropy").replace("{name: pairs}", "{name: accuracy}")
    model = "model: {name: dgcnn, num_neighbours: 8, embedding: 16}"
    config.write_text("\n".join(model if line.startswith("model") else line for line in text.splitlines()))
    succeed("train", config, "--no-check", "--device", "cpu", "--out", tmp_path / "run")
    assert "probe_svm_accuracy" not in json.loads((tmp_path / "run" / "final.json").read_text())["metrics"]
    document, _ = probe(tmp_path / "run", "C=1", "folds=2")
    assert set(document["metrics"]) == {"probe_svm_accuracy", "probe_svm_accuracy_random"}


def test_no_view_is_rendered_for_features(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """And they are the same with views as without, from the same files."""
    monkeypatch.setattr(rendered_views, "render_cloud", None)
    (before, _), (after, _) = features_of(run), features_of(run, "data.views={count: 3, size_px: 8}")
    assert np.array_equal(before.train.rows, after.train.rows)


def test_views_that_choose_no_cloud_are_not_opened() -> None:
    given = ComponentConfig("modelnet40", {"views": "/not/there", "background": "white", "num_points": 8})
    assert probed_run._remove_views(given).arguments.keys() == {"num_points"}


# --- figures ----------------------------------------------------------------------------------------------------------


def test_training_evaluation_and_probe_say_the_same_figure(run: Path) -> None:
    final = json.loads((run / "final.json").read_text())["metrics"]
    assert set(final) == {"alignment", "uniformity", "retrieval_accuracy", "probe_svm_accuracy"}
    assert final_of(run)[0] == final
    document, _ = probe(run)
    assert document["metrics"]["probe_svm_accuracy"] == final["probe_svm_accuracy"]
    split, _ = features_of(run)  # tests/probe/test_classifiers.py compares the machine with scikit-learn's own search
    assert final["probe_svm_accuracy"] == SVM()(split.train, split.test).metrics["probe_svm_accuracy"]


def test_python_gets_what_the_command_says(run: Path) -> None:
    document, _ = probe(run, "C=0.1")
    found = sightline.evaluate(run, probe="svm", overrides=["C=0.1"], device="cpu")
    assert found.to_dict()["metrics"] == document["metrics"]
    name, value = "probe_svm_accuracy", found.metrics["probe_svm_accuracy"]
    random, chance = found.baselines[name]
    assert f"{name} {value:.4g} (random weights {random:.4g}, chance {chance:.4g})" in repr(found)
    with pytest.raises(UserError, match="no_such"):
        sightline.evaluate(run, probe="svm", overrides=["no_such=1"], device="cpu")


def test_the_figure_is_of_the_last_weights_where_others_were_the_best(tmp_path: Path) -> None:
    """Rates this high make each epoch worse: the first is the best. The probe of either says which it read."""
    run = train_thin(tmp_path, "train.epochs=3", "evaluate.every=1", "optimizer.lr=0.5")
    shelf = run / "checkpoints"
    assert (shelf / "best").resolve() != (shelf / "last").resolve()
    final = json.loads((run / "final.json").read_text())["metrics"]["probe_svm_accuracy"]
    (last, _), (best, _) = features_of(run), features_of(run, checkpoint="best")
    assert final == SVM()(last.train, last.test).metrics["probe_svm_accuracy"]
    assert not np.array_equal(best.train.rows, last.train.rows)


QUICK = ("folds=2", "ways=3", "shots=2", "queries=2", "C=1")


def test_runs_and_methods_have_a_row_each_beside_chance_and_random_weights(run: Path, tmp_path: Path) -> None:
    """Figures of a method are the same alone and beside others."""
    other = train_thin(tmp_path, "seed=1", name="other")
    words = (other, "--probe", "svm,few-shot", *QUICK)
    outcome = succeed("evaluate", run, *words, "--device", "cpu", "--json", tmp_path / "both.json")
    documents = json.loads((tmp_path / "both.json").read_text())["runs"]
    assert [document["run"] for document in documents] == [str(run), str(other)]
    names = {"probe_svm_accuracy", "fewshot_3w2s"}
    for document in documents:
        assert set(document["metrics"]) == {*names, *(f"{name}_random" for name in names), "fewshot_3w2s_std"}
        chance = {"probe_svm_accuracy": 1 / 12, "fewshot_3w2s": 1 / 3, "uniform_guess": 1 / 12}
        assert chance.items() <= document["chance"].items()
    alone, _ = probe(run, "folds=2", "C=1")
    assert alone["metrics"].items() <= documents[0]["metrics"].items()
    assert "transforms.evaluate two_views" in outcome.err


# --- what cannot be probed --------------------------------------------------------------------------------------------


def final_of(run: Path) -> tuple[dict[str, float], str]:
    """What `evaluate` measures of a run, and what it says besides."""
    file = run.parent / "evaluated.json"
    outcome = succeed("evaluate", run, "--device", "cpu", "--json", file)
    return json.loads(file.read_text())["metrics"], outcome.err


def test_too_few_samples_leave_the_figure_out(tmp_path: Path) -> None:
    """One training cloud of a class and one of another: no fold could learn two classes."""
    run = train_thin(tmp_path, "data.train_size=2", "data.test_size=2", "evaluate.select=test", "train.batch_size=2")
    assert "probe_svm_accuracy" not in json.loads((run / "final.json").read_text())["metrics"]
    assert "leave no two classes to learn" in final_of(run)[1]


def test_too_many_samples_leave_the_figure_out_before_anything_is_computed(
    run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(SVM, "most_rows", 71)
    monkeypatch.setattr(probed_run, "extract", None)
    assert "the training part has 72 samples, SVM takes 71 at most" in final_of(run)[1]
    code, _, err = run_here("evaluate", run, "--probe", "svm", "--device", "cpu")
    assert code == 2
    assert "the training part has 72 samples" in err


def test_without_scikit_learn_probes_say_how_to_get_it(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "sklearn", None)
    command = "pip install 'sightline[probe]'"
    metrics, told = final_of(run)
    assert "probe_svm_accuracy" not in metrics
    assert command in told
    code, _, err = run_here("evaluate", run, "--probe", "svm", "--device", "cpu")
    assert code == 2
    assert err == f"error: probe needs the package 'scikit-learn': {command}\n"


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        ([], None),
        (["data.num_points=128"], "of 128 points 8 reach less far: model.points.neighbours_at=64 keeps"),
        (["data.num_points=32"], "of 32 points 8 reach farther: model.points.neighbours_at=64 keeps"),
        (["model.points.num_neighbours=4"], "of 64 points 4 reach less far: model.points.num_neighbours=8 keeps"),
        (["data.num_points=128", "model.points.neighbours_at=64"], None),
        (["data.num_points=128", "model.points.num_neighbours=16"], None),
    ],
)
def test_a_graph_of_another_reach_is_told(run: Path, words: list[str], expected: str | None) -> None:
    """Weights of 64 points with 8 neighbours each."""
    told = "\n".join(open_probed(run, checkpoint="last", data=None, overrides=words).notes)
    assert ("learnt on clouds of 64 points with 8 neighbours each" in told) == (expected is not None)
    assert expected is None or expected in told


def test_advice_on_a_graph_that_grows_is_in_its_own_count(tmp_path: Path) -> None:
    """8 of 64 points were learnt with (4 at 32). 3 at 32 are 6 of 64; the advice is 4, which counts at 32 as 3 does."""
    run = train_thin(tmp_path, "model.points.neighbours_at=32", "model.points.num_neighbours=4")
    words = ["model.points.num_neighbours=3"]
    told = "\n".join(open_probed(run, checkpoint="last", data=None, overrides=words).notes)
    assert "64 points 6 reach less far: model.points.num_neighbours=4 keeps" in told
    assert "reach" not in "\n".join(open_probed(run, checkpoint="last", data=None, overrides=[]).notes)


def test_a_graph_of_an_encoder_that_does_not_grow_is_told_as_well(tmp_path: Path) -> None:
    views = "[{name: two_views, transforms: [{name: sample_points, num_points: 32}, {name: jitter}]}]"
    points = "model.points={name: dgcnn_parts, num_neighbours: 8, embedding: 16}"
    run = train_thin(tmp_path, f"transforms.train={views}", f"transforms.evaluate={views}", points)
    told = "\n".join(open_probed(run, checkpoint="last", data=None).notes)
    assert "of 64 points 8 reach less far: model.points.num_neighbours=16 keeps their reach\n" in told + "\n"


def test_a_cloud_of_a_pair_is_brought_into_the_unit_sphere_where_the_set_is_not(run: Path) -> None:
    views = "transforms.evaluate=[{name: two_views, transforms: [{name: normalize_unit_sphere}, {name: jitter}]}]"
    probed = open_probed(run, checkpoint="last", data=None, overrides=[views])
    batch = probed.data.train.reader([SampleKey(int(probed.data.train.indices[0]), 0, 0)])
    (points,) = batch["points"]
    assert points.norm(dim=-1).max() == pytest.approx(1.0, abs=1e-6)
    assert points.mean(dim=0).abs().max() < 1e-6


def test_a_test_selected_checkpoint_is_told_however_it_is_named(tmp_path: Path) -> None:
    run = train_thin(tmp_path, "evaluate.select=test")
    for which in ("best", (run / "checkpoints" / "best").resolve()):
        document, outcome = probe(run, "--checkpoint", which, "C=1")
        assert document["is_test_selected"]
        assert "(test-selected)" in outcome.err
    assert not probe(run, "C=1")[0]["is_test_selected"]


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["--probe", "smv"], "--probe: no probe is called 'smv'; did you mean 'svm'?"),
        (["--probe", "svm,svm"], "--probe svm,svm: a method is given twice"),
        (["--probe", "svm,few-shot", "x=3"], "found 'x=3'; none of svm, few-shot has such an argument"),
        (["--ensemble"], "--ensemble: has no use with --probe"),
        (["--against", "published"], "--against: has no use with --probe"),
        (["flods=5"], "'svm' has no such argument; did you mean 'folds'?"),
        (["folds=1"], "command line: folds: found 1, allowed is a whole number from 2 to 100"),
        (["C=-1"], "C.0: found -1"),
        (["train.epochs=3"], "found 'train.epochs=3', allowed is key=value of a method, or model.*"),
        (["folds=2", "folds=3"], "each key once"),
        (["--data", "nosuch.yaml"], "nosuch.yaml: no such file"),
        (["data.normals=file"], "was trained on 3 channels a point; the data to probe on has 6"),
        (["--probe", "few-shot"], "needs 5 classes with"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_a_slip_gets_one_line(run: Path, words: list[str], expected: str) -> None:
    code, out, err = run_here("evaluate", run, "--probe", "svm", *words, "--device", "cpu")
    assert code == 2, err
    assert expected in err
    assert "metric" not in out


def test_parts_are_probed_by_their_category(run: Path) -> None:
    """Where labels are of points, the class of the cloud is what is learnt."""
    (parts, _), (classes, _) = features_of(run, "data.target=parts"), features_of(run)
    assert np.array_equal(parts.train.labels, classes.train.labels)


def test_a_set_without_classes_of_clouds_is_refused(run: Path, tmp_path: Path) -> None:
    rooms = tmp_path / "thin.yaml"
    rooms.write_text(THIN.replace("synthetic_shapes, train_size: 72, test_size: 36, num_points: 64", "synthetic_rooms"))
    with pytest.raises(DataError, match="gives no class for each cloud"):
        open_probed(run, checkpoint="last", data=rooms)
