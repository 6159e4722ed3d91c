"""Probes of whole runs: what is kept, what makes it void, the same figure from every side."""

from __future__ import annotations

import json
import re
import shutil
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from sightline.api import load_run
from sightline.areas.clouds.sets.synthetic_shapes import SyntheticShapes
from sightline.config import read_config
from sightline.contract.errors import DataError
from sightline.contract.types import ComponentConfig, SampleKey
from sightline.engine.distributed import World
from sightline.store.loading import concat
from sightline.store.loading.batch_reader import BatchReader
from sightline.verbs import probe as verb
from sightline.workbench.probe import classifiers as probe_outcome
from sightline.workbench.probe import probed_run
from sightline.workbench.probe.features import FeatureCache, Features
from sightline.workbench.probe.measure import Comparison
from sightline.workbench.probe.probed_run import FeatureComparison, extract_with_random_baselines, open_probed
from sightline.workbench.probe.svm import SVM
from tests.command import Outcome, run_here
from tests.probe.contrast import THIN, train_thin
from tests.trained import copy_run


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return copy_run("contrast", tmp_path_factory.mktemp("probe"))


@pytest.fixture
def copy(run: Path, tmp_path: Path) -> Path:
    """The run in a place of its own, without features."""
    shutil.copytree(run, tmp_path / "run", symlinks=True, ignore=shutil.ignore_patterns("features"))
    return tmp_path / "run"


def probe(run: Path, *words: object) -> tuple[dict[str, Any], Outcome]:
    """What the verb writes as JSON, and what it says."""
    file = run.parent / "probe.json"
    outcome = run_here("probe", run, *words, "--device", "cpu", "--json", file)
    assert outcome.code == 0, outcome.err
    return json.loads(file.read_text()), outcome


def twins(run: Path, *overrides: str, data: Path | None = None, cache: Path | None = None) -> FeatureComparison:
    return extract_with_random_baselines(
        open_probed(run, checkpoint="last", data=data, overrides=overrides), World(), num_random=1, cache=cache
    )


# --- features ---------------------------------------------------------------------------------------------------------


def test_features_are_those_of_the_encoder_on_the_whole_parts_in_order(run: Path) -> None:
    """By hand: the set's clouds as they lie, through the run's encoder; batches of 10, as evaluation takes them."""
    model = load_run(run).model
    found = twins(run).trained
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
    found = twins(run)
    assert list(found.random) == [1]
    config = read_config(run / "config.yaml")
    again = probed_run.random_model(config, load_run(run).facts, World(), seed=1)
    theirs = [parameter for _, parameter in again.named_parameters()]
    ours = [parameter for _, parameter in load_run(run).model.named_parameters()]
    assert [p.shape for p in ours] == [p.shape for p in theirs]
    part = open_probed(run, checkpoint="last", data=None).data.train
    batch = part.reader([SampleKey(int(index), 0, 0) for index in part.indices[:8]])
    with torch.no_grad():
        encoded = again.eval().encode(points=batch["points"]).numpy()
    np.testing.assert_allclose(found.random[1].train.rows[:8], encoded, rtol=1e-4, atol=1e-6)
    assert not np.array_equal(found.random[1].train.rows, found.trained.train.rows)


def test_any_classifier_has_features(tmp_path: Path) -> None:
    """A network that learns classes derives from an encoder: its feature is what its head reads."""
    config = tmp_path / "dgcnn.yaml"
    lines = THIN.replace("{name: contrast}", "{name: classify}").replace("uniformity", "overall_accuracy").splitlines()
    kept = [line for line in lines if not line.startswith(("transforms", "  train", "  evaluate"))]
    text = "\n".join(kept).replace("intra_modal", "cross_entropy").replace("{name: pairs}", "{name: accuracy}")
    model = "model: {name: dgcnn, num_neighbours: 8, embedding: 16}"
    config.write_text("\n".join(model if line.startswith("model") else line for line in text.splitlines()))
    trained = run_here("train", config, "--no-check", "--device", "cpu", "--out", tmp_path / "run")
    assert trained.code == 0, trained.err
    assert "probe_svm_accuracy" not in json.loads((tmp_path / "run" / "final.json").read_text())["metrics"]
    document, _ = probe(tmp_path / "run", "--method", "knn", "k=3", "folds=2")
    assert document["features"]["width"] == 32


# --- the cache --------------------------------------------------------------------------------------------------------


def test_the_same_bits_from_the_cache_and_from_scratch(copy: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = twins(copy)
    files = sorted(copy.glob("features/*.npz"))
    assert len(files) == 4  # two parts by two sets of weights
    scratch = twins(copy, cache=copy.parent / "elsewhere")
    monkeypatch.setattr(probed_run, "extract", None)  # whoever calls it now fails
    kept = twins(copy)
    for ours, *others in zip(*map(parts_of, (first, scratch, kept)), strict=True):
        for other in others:
            assert np.array_equal(ours.rows, other.rows)
            assert np.array_equal(ours.labels, other.labels)
    assert sorted(copy.glob("features/*.npz")) == files


def parts_of(found: FeatureComparison) -> list[Features]:
    return [part for split in (found.trained, *found.random.values()) for part in (split.train, split.test)]


def test_probe_twice_gives_the_same_document(copy: Path) -> None:
    assert probe(copy)[0] == probe(copy)[0] == probe(copy, "--cache", copy.parent / "fresh")[0]


def test_another_weight_file_makes_the_cache_void(copy: Path, run: Path, tmp_path: Path) -> None:
    before = twins(copy)
    other = train_thin(tmp_path, "train.epochs=2", name="other")
    shutil.rmtree(copy / "checkpoints")
    shutil.copytree(other / "checkpoints", copy / "checkpoints", symlinks=True)
    after = twins(copy)
    assert not np.array_equal(before.trained.train.rows, after.trained.train.rows)
    assert np.array_equal(after.trained.train.rows, twins(other, cache=tmp_path / "none").trained.train.rows)
    assert np.array_equal(before.random[1].train.rows, after.random[1].train.rows)
    assert len(list(copy.glob("features/*.npz"))) == 6  # those of random weights are still good


@pytest.mark.parametrize(
    "change",
    [
        "data.num_points=32",
        "model.points.num_neighbours=4",
        "transforms.evaluate=[{name: rotate, axis: up}]",
        "data.data_seed=1",
    ],
)
def test_points_neighbours_transforms_and_data_make_the_cache_void(copy: Path, change: str) -> None:
    before = twins(copy)
    after = twins(copy, change)
    assert not np.array_equal(before.trained.train.rows, after.trained.train.rows)
    assert len(list(copy.glob("features/*.npz"))) == 8
    again = twins(copy)
    assert np.array_equal(before.trained.train.rows, again.trained.train.rows)


def test_a_damaged_file_is_computed_anew(copy: Path, caplog: pytest.LogCaptureFixture) -> None:
    before = twins(copy)
    for file in copy.glob("features/*.npz"):
        data = bytearray(file.read_bytes())
        data[-40] ^= 1
        file.write_bytes(bytes(data))
    after = twins(copy)
    assert np.array_equal(before.trained.train.rows, after.trained.train.rows)
    assert caplog.text.count("differs from what was written (SHA-256)") == 4


def test_a_set_that_does_not_say_what_it_holds_is_not_kept(copy: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(SyntheticShapes, "fingerprint")
    twins(copy)
    assert not (copy / "features").exists()


def test_a_folder_that_takes_no_features_is_told_before_any_are_computed(
    copy: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (copy / "features").write_text("a file stands in the way")
    monkeypatch.setattr(probed_run, "extract", None)
    code, _, err = run_here("probe", copy, "--device", "cpu")
    assert code == 2
    assert f"{copy}/features: features cannot be saved there" in err
    assert "give another folder with --cache DIR" in err


def test_kept_features_need_no_folder_that_can_be_written_to(copy: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = twins(copy)
    monkeypatch.setattr(FeatureCache, "assert_writable", None)
    assert np.array_equal(before.trained.train.rows, twins(copy).trained.train.rows)


def test_no_view_is_rendered_for_features(copy: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """And they are the same with views as without, from the same files."""
    monkeypatch.setattr(concat, "render_cloud", None)
    before = twins(copy)
    after = twins(copy, "data.views={count: 3, size_px: 8}")
    assert np.array_equal(before.trained.train.rows, after.trained.train.rows)
    assert len(list(copy.glob("features/*.npz"))) == 4


@pytest.mark.parametrize(
    ("given", "kept"),
    [
        ({"views": "/not/there", "background": "white", "num_points": 8}, {"num_points": 8}),
        ({"views": "/not/there"}, {}),
    ],
)
def test_views_that_choose_no_cloud_are_not_opened(given: dict[str, Any], kept: Any) -> None:
    assert probed_run._remove_views(ComponentConfig("modelnet40", given)).arguments.keys() == set(kept)


def test_the_key_is_compared_and_not_only_its_digest(tmp_path: Path) -> None:
    cache = FeatureCache(tmp_path)
    cache.save({"split": "train", "k": 1}, Features(np.ones((2, 3), np.float32), np.array([0, 1])))
    assert cache.load({"split": "train", "k": 2}) is None
    (document,) = tmp_path.glob("*.json")
    document.write_text(document.read_text().replace('"k": 1', '"k": 3'))
    assert cache.load({"split": "train", "k": 1}) is None


# --- figures ----------------------------------------------------------------------------------------------------------


def test_training_evaluation_and_probe_say_the_same_figure(copy: Path) -> None:
    final = json.loads((copy / "final.json").read_text())["metrics"]
    assert set(final) == {"alignment", "uniformity", "retrieval_accuracy", "probe_svm_accuracy"}
    file = copy.parent / "evaluated.json"
    assert run_here("evaluate", copy, "--device", "cpu", "--json", file).code == 0
    assert json.loads(file.read_text())["metrics"] == final
    document, _ = probe(copy)
    assert document["metrics"]["probe_svm_accuracy"] == final["probe_svm_accuracy"]
    split = twins(copy).trained  # tests/probe/test_svm.py compares the machine with scikit-learn's own search
    assert final["probe_svm_accuracy"] == SVM(standardise="no")(split.train, split.test).metrics["probe_svm_accuracy"]


def test_the_figure_is_of_the_last_weights_where_others_were_the_best(tmp_path: Path) -> None:
    """Rates this high make each epoch worse: the first is the best. The probe of either says which it read."""
    run = train_thin(tmp_path, "train.epochs=3", "evaluate.every=1", "optimizer.lr=0.5")
    shelf = run / "checkpoints"
    assert (shelf / "best").resolve() != (shelf / "last").resolve()
    final = json.loads((run / "final.json").read_text())["metrics"]["probe_svm_accuracy"]
    last = twins(run).trained
    assert final == SVM(standardise="no")(last.train, last.test).metrics["probe_svm_accuracy"]
    best = extract_with_random_baselines(open_probed(run, checkpoint="best", data=None), World(), num_random=0).trained
    assert not np.array_equal(best.train.rows, last.train.rows)


def test_chance_and_random_weights_always_stand_beside(copy: Path) -> None:
    document, outcome = probe(copy, "--random", "2", "standardise=both")
    metrics = document["metrics"]
    for name in ("probe_svm_accuracy", "probe_svm_accuracy_standardised"):
        values = [document["random"][seed]["metrics"][name] for seed in ("1", "2")]
        assert metrics[f"{name}_random"] == pytest.approx(np.mean(values))
        assert metrics[f"{name}_random_std"] == pytest.approx(np.std(values))
    assert document["chance"]["uniform_guess"] == pytest.approx(1 / 12)
    assert "random (seed 1, 2)" in outcome.out
    assert "chance" in outcome.out
    told = document["features"]
    assert f"{told['width']:.0f} wide, mean norm {told['mean_norm']:.4g}, deviation of a dimension" in outcome.err
    assert f"{told['dead_share']:.1%} never change; random weights (seed 1, 2): mean norm " in outcome.err
    assert "transforms.evaluate two_views" in outcome.err


def test_few_shot_episodes_are_repeated_from_the_document(copy: Path) -> None:
    words = ("--method", "few-shot", "ways=3", "shots=[2, 3]", "queries=2", "runs=4")
    first, _ = probe(copy, *words)
    assert set(first["metrics"]) >= {"fewshot_3w2s", "fewshot_3w2s_std", "fewshot_3w3s_test_queries"}
    kept = shutil.copy(copy.parent / "probe.json", copy.parent / "kept.json")
    (beside,) = (copy / "features").glob("episodes_*.json")
    for file in (kept, beside):
        again, outcome = probe(copy, "--method", "few-shot", f"episodes={file}")
        assert again["metrics"] == first["metrics"]
    assert f"episodes={beside} repeats them" in outcome.err


def test_where_no_episodes_can_be_kept_it_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A file stands where the folder ought to be; the figures are there already, so nothing fails."""
    (tmp_path / "features").write_text("no folder")
    said: list[str] = []
    monkeypatch.setattr(verb, "print_note", said.append)
    outcome = probe_outcome.Outcome(metrics={}, chance={}, details={"few_shot": {"labels": "", "episodes": []}})
    verb._save_episodes(tmp_path / "features", Comparison(outcome, {}, {}, {}, {}))
    (line,) = said
    assert line.startswith(f"episodes: not saved, {tmp_path / 'features'} cannot be written; --json FILE contains them")


def test_out_writes_the_document(copy: Path) -> None:
    document, _ = probe(copy, "--method", "linear", "C=0.1", "folds=2", "--out", copy.parent / "told")
    assert json.loads((copy.parent / "told" / "linear.json").read_text()) == document


# --- what cannot be probed --------------------------------------------------------------------------------------------


def written(folder: Path, text: str) -> Path:
    (folder / "thin.yaml").write_text(text)
    return folder / "thin.yaml"


def final_of(run: Path) -> tuple[dict[str, float], str]:
    """What `evaluate` measures of a run, and what it says besides."""
    file = run.parent / "evaluated.json"
    outcome = run_here("evaluate", run, "--device", "cpu", "--json", file)
    assert outcome.code == 0, outcome.err
    return json.loads(file.read_text())["metrics"], outcome.err


def test_data_without_classes_leaves_the_figure_out(copy: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(probed_run, "label_key", lambda part: None)
    metrics, told = final_of(copy)
    assert set(metrics) == {"alignment", "uniformity", "retrieval_accuracy"}
    assert "probe_svm_accuracy is left out: " in told
    assert "gives no class for each cloud (label or category)" in told


def test_too_few_samples_leave_the_figure_out(tmp_path: Path) -> None:
    """One training cloud of a class and one of another: no fold could learn two classes."""
    run = train_thin(tmp_path, "data.train_size=2", "data.test_size=2", "evaluate.select=test", "train.batch_size=2")
    assert "probe_svm_accuracy" not in json.loads((run / "final.json").read_text())["metrics"]
    assert "leave no two classes to learn" in final_of(run)[1]


def test_too_many_samples_leave_the_figure_out_before_anything_is_computed(
    copy: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(SVM, "most_rows", 71)
    monkeypatch.setattr(probed_run, "extract", None)
    assert "the training part has 72 samples, SVM takes 71 at most" in final_of(copy)[1]
    code, _, err = run_here("probe", copy, "--device", "cpu")
    assert code == 2
    assert "the training part has 72 samples" in err


def test_without_scikit_learn_probes_say_how_to_get_it(copy: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "sklearn", None)
    command = "pip install 'sightline[probe]'"
    metrics, told = final_of(copy)
    assert "probe_svm_accuracy" not in metrics
    assert command in told
    code, _, err = run_here("probe", copy, "--device", "cpu")
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
    views = "[{name: two_views, each: [{name: sample_points, num_points: 32}, {name: jitter}]}]"
    points = "model.points={name: dgcnn_parts, num_neighbours: 8, embedding: 16}"
    run = train_thin(tmp_path, f"transforms.train={views}", f"transforms.evaluate={views}", points)
    told = "\n".join(open_probed(run, checkpoint="last", data=None).notes)
    assert "of 64 points 8 reach less far: model.points.num_neighbours=16 keeps their reach\n" in told + "\n"


@pytest.mark.parametrize(("factor", "is_told"), [(100.0, True), (1.0, False)])
def test_clouds_of_another_scale_are_told(copy: Path, factor: float, is_told: bool) -> None:
    document, outcome = probe(
        copy, "--method", "knn", f"transforms.evaluate=[{{name: scale, low: {factor}, high: {factor}}}]"
    )
    told = re.findall(r"the inputs of the loaded weights are ([0-9.]+) times as large", " ".join(document["notes"]))
    assert len(told) == is_told
    assert all(50 < float(times) < 200 for times in told), "about a hundred: views were scaled and turned in training"
    assert any("the evaluation transforms of points: " in note for note in document["notes"])
    assert ("warning: the inputs of the loaded weights are" in outcome.err) == is_told


def test_a_cloud_of_a_pair_is_brought_into_the_unit_sphere_where_the_set_is_not(copy: Path) -> None:
    views = "transforms.evaluate=[{name: two_views, each: [{name: normalize_unit_sphere}, {name: jitter}]}]"
    probed = open_probed(copy, checkpoint="last", data=None, overrides=[views])
    batch = probed.data.train.reader([SampleKey(int(probed.data.train.indices[0]), 0, 0)])
    (points,) = batch["points"]
    assert points.norm(dim=-1).max() == pytest.approx(1.0, abs=1e-6)
    assert points.mean(dim=0).abs().max() < 1e-6


@pytest.mark.parametrize("by_path", [False, True])
def test_a_test_selected_checkpoint_is_told_however_it_is_named(tmp_path: Path, by_path: bool) -> None:
    run = train_thin(tmp_path, "evaluate.select=test")
    which = str((run / "checkpoints" / "best").resolve()) if by_path else "best"
    document, outcome = probe(run, "--checkpoint", which, "C=1", "standardise=no")
    assert document["selection"].startswith("the test part chose the checkpoint")
    assert "(test-selected)" in outcome.err
    document, _ = probe(run, "C=1", "standardise=no")
    assert document["selection"].startswith("the test part chose neither")


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["--method", "smv"], "--method: no probe is called 'smv'; did you mean 'svm'?"),
        (["flods=5"], "'svm' has no such argument; did you mean 'folds'?"),
        (["folds=1"], "command line: folds: found 1, allowed is a whole number from 2 to 100"),
        (["C=-1"], "C.0: found -1"),
        (["train.epochs=3"], "found 'train.epochs=3', allowed is key=value of the method, or model.*"),
        (["folds=2", "folds=3"], "each key once"),
        (["--data", "nosuch.yaml"], "nosuch.yaml: no such file"),
        (["data.normals=file"], "was trained on 3 channels a point; the data to probe on has 6"),
        (["--method", "few-shot"], "needs 5 classes with"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_a_slip_gets_one_line(run: Path, words: list[str], expected: str) -> None:
    code, out, err = run_here("probe", run, *words, "--device", "cpu")
    assert code == 2, err
    assert expected in err
    assert "metric" not in out


def test_parts_are_probed_by_their_category(run: Path) -> None:
    """Where labels are of points, the class of the cloud is what is learnt."""
    found = twins(run, "data.target=parts").trained
    assert np.array_equal(found.train.labels, twins(run).trained.train.labels)


def test_a_set_without_classes_of_clouds_is_refused(run: Path, tmp_path: Path) -> None:
    rooms = written(
        tmp_path, THIN.replace("synthetic_shapes, train_size: 72, test_size: 36, num_points: 64", "synthetic_rooms")
    )
    with pytest.raises(DataError, match="gives no class for each cloud"):
        open_probed(run, checkpoint="last", data=rooms)
