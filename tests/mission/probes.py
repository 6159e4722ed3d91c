"""What notes on self-supervised learning of point clouds ask for: environments, and probes of frozen features."""

from __future__ import annotations

import importlib.metadata
import itertools
import json
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any, NamedTuple
from unittest import mock

import numpy as np
import pytest
import torch
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from safetensors.numpy import load_file

import sightline
from sightline.workbench.probe import probed_run
from sightline.workbench.probe.features import Features
from sightline.workbench.probe.methods import Outcome, build_probes
from tests.command import document_of, run_here, succeed
from tests.data.preparing import cut, flip_bit
from tests.golden_parity import cloud_inputs
from tests.mission.golden import read_golden, relative_error, round_state
from tests.mission.rows import part, row
from tests.mission.small import CPU, ONE_STEP, document, learn, said
from tests.models.torch_pointcloud import draw_clouds, make_state, read_figures
from tests.processes import ROOT
from tests.recipe_steps import SmallStep
from tests.trained import copy_run, trained_run

# --- another machine --------------------------------------------------------------------------------------------------


@row(
    "S0.19", "install the same environment on another server", "`make install`, with the versions of `constraints.txt`"
)
def _same_environment(work: Path) -> None:
    words = ["make", "-n", "-B", "install"]
    planned = subprocess.run(words, cwd=ROOT, capture_output=True, text=True, check=True).stdout
    installing = [line for line in planned.splitlines() if re.search(r"pip .*install", line)]
    assert installing
    assert all("-c constraints.txt" in line for line in installing if "torch==" not in line), installing
    lines = [line.partition("#")[0].strip() for line in (ROOT / "constraints.txt").read_text().splitlines()]
    assert all(re.fullmatch(r"[\w.-]+==[\w.+]+", line) for line in filter(None, lines))  # one version, not a range
    pins = {canonicalize_name(name): version for name, version in (line.split("==") for line in filter(None, lines))}
    (chosen,) = (found[1] for line in installing if (found := re.search(r"-e '\.\[([\w,]+)\]'", line)))
    extras = [{"extra": extra} for extra in ("workbench", *chosen.split(","))]
    for need in map(Requirement, importlib.metadata.requires("sightline") or ()):
        if need.marker is None or any(map(need.marker.evaluate, extras)):
            pinned = pins.get(canonicalize_name(need.name))
            assert need.name == "sightline" or pinned is not None, f"{need.name} has no version"
            assert pinned is None or need.specifier.contains(pinned), f"{need} is not {pinned}"


@row(
    "S0.20", "load the weights of a parallel run on one process; damaged files are refused", "`sightline evaluate RUN`"
)
def _parallel_weights(work: Path) -> None:
    run = copy_run("pair", work)
    assert document(run, "environment.json")["num_processes"] == 2
    words, weights = (run, "--plugin", work / "own.py", *CPU), run / "checkpoints/last/model.safetensors"
    state = sightline.load_run(run, plugins=[work / "own.py"]).model.state_dict()
    saved = load_file(weights)
    assert all(np.array_equal(saved[name], value.numpy()) for name, value in state.items())
    assert document_of("evaluate", *words)["metrics"] == document(run)["metrics"]
    content = weights.read_bytes()
    for damage in (flip_bit, lambda path: flip_bit(path, len(content) // 2), cut):  # in numbers: each can be read
        weights.write_bytes(content)
        damage(weights)
        done = run_here("evaluate", *words)
        assert done.code != 0, "damaged weights are evaluated"
        assert "model.safetensors: damaged" in done.err


# --- probes -----------------------------------------------------------------------------------------------------------

ONE_SAMPLE = 1 / 36
"""Of the accuracy on the 36 clouds of the test part: what rounding may cost a machine that is fitted elsewhere."""


class Rows(NamedTuple):
    """Features and classes of both parts."""

    train: np.ndarray
    labels: np.ndarray
    test: np.ndarray
    test_labels: np.ndarray


def probe(run: Path, *words: object) -> dict[str, Any]:
    """Probe a run; return its document."""
    (found,) = document_of("evaluate", run, "--probe", *words, *CPU)["runs"]
    probed: dict[str, Any] = found
    return probed


def copy_contrast(work: Path) -> Path:
    """Copy the run `contrast` without features that probes of it saved."""
    run = copy_run("contrast", work)
    shutil.rmtree(run / "features", ignore_errors=True)
    return run


def read_features(run: Path) -> Rows:
    """Read the features that the last probe of a run saved, which must be those that its encoder computes here."""
    (file,) = (run / "features").glob("trained-*.safetensors")
    saved = load_file(file)
    rows = Rows(*(saved[f"{name}.{kind}"].astype(float) for name in ("train", "test") for kind in ("rows", "labels")))
    model = sightline.load_run(run).model
    parts = ((("train", "validation"), rows.train, rows.labels), (("test",), rows.test, rows.test_labels))
    for splits, features, labels in parts:
        loaded = [sightline.load_data(run, split, transforms="none") for split in splits]
        samples = sorted(itertools.chain.from_iterable(loaded), key=lambda sample: int(sample["sample_index"]))
        assert [int(sample["label"]) for sample in samples] == labels.tolist()
        own = encode(model, torch.stack([sample["points"] for sample in samples]))
        assert np.abs(own.double().numpy() - features).max() < 1e-2 * np.abs(features).max()
    return rows


def probe_rows(name: str, rows: Rows, *words: str) -> Outcome:
    """Apply a probe to features that are made up."""
    (built,) = build_probes([name], words).values()
    train, test = (
        Features(values.astype(np.float32), labels.astype(np.int64))
        for values, labels in ((rows.train, rows.labels), (rows.test, rows.test_labels))
    )
    return built(train, test)


def scatter(num_samples: int, *, width: int, distance: float, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Draw features of two classes in turn, of deviation 1 about centres that are twice `distance` apart."""
    labels = np.arange(num_samples) % 2
    rows = np.random.default_rng(seed).normal(size=(num_samples, width))
    return rows + (2 * labels[:, None] - 1) * distance / np.sqrt(width), labels


def fit_svm(rows: Rows, cost: float) -> float:
    """Return the test accuracy of scikit-learn's linear SVM."""
    from sklearn.svm import SVC

    return float(SVC(C=cost, kernel="linear").fit(rows.train, rows.labels).score(rows.test, rows.test_labels))


@row("S0.21", "fit a linear SVM on frozen features, on the CPU", "`sightline evaluate RUN --probe svm`")
def _svm(work: Path) -> None:
    run = copy_contrast(work)
    weights = (run / "checkpoints/last/model.safetensors").read_bytes()
    found = probe(run, "svm", "C=100")["metrics"]
    assert found["probe_svm_accuracy"] == document(run)["metrics"]["probe_svm_accuracy"] > 0.25
    assert found["probe_svm_accuracy_random"] != found["probe_svm_accuracy"]
    assert found["probe_svm_accuracy"] == pytest.approx(fit_svm(read_features(run), 100), abs=1.01 * ONE_SAMPLE)
    assert (run / "checkpoints/last/model.safetensors").read_bytes() == weights
    # Of three classes on a line: one against one tells them apart, with any C that allows no error.
    places, labels = np.repeat([[-1.0, 5], [0, 5], [1, 5]], 10, axis=0), np.repeat([0, 1, 2], 10)
    line = Rows(places, labels, places + np.array([0.2, 0]), labels)
    assert probe_rows("svm", line, "C=100").metrics == {"probe_svm_accuracy": 1.0}
    assert probe_rows("svm", line._replace(test_labels=labels[::-1]), "C=100").metrics["probe_svm_accuracy"] < 0.4
    rows, labels = scatter(260, width=30, distance=1.2, seed=1)
    mixed = Rows(rows[:60], labels[:60], rows[60:], labels[60:])
    for cost in (0.001, 100):
        expected = pytest.approx(fit_svm(mixed, cost), abs=0.011)  # of 200
        assert probe_rows("svm", mixed, f"C={cost}").metrics["probe_svm_accuracy"] == expected


@row("S0.22", "run few-shot episodes", "`sightline evaluate RUN --probe few-shot`")
def _few_shot(work: Path) -> None:
    run, words = trained_run("contrast"), ("few-shot", "ways=[2]", "shots=[2]", "queries=2")
    found = probe(run, *words)
    assert 0.5 < found["metrics"]["fewshot_2w2s"] <= 1
    assert found["metrics"]["fewshot_2w2s_std"] > 0
    assert found["chance"]["fewshot_2w2s"] == 0.5
    # The first episodes of many are those of few: their accuracies follow from means, and so does the deviation.
    few = [probe(run, *words, f"runs={number}")["metrics"] for number in (1, 2, 3)]
    sums = [number * metrics["fewshot_2w2s"] for number, metrics in enumerate(few, start=1)]
    episodes = np.diff([0.0, *sums])
    assert {round(4 * accuracy, 6) for accuracy in episodes} <= {0, 1, 2, 3, 4}  # of two queries of two classes
    assert few[-1]["fewshot_2w2s_std"] == pytest.approx(np.std(episodes), abs=1e-6)


@part("S0.22")
def _made_up_episodes(work: Path) -> None:
    """Noise is as good as guessing, so that no query is learnt from.

    Classes are found by numbers a thousandth of another, which does not tell them apart.
    """
    random, labels = np.random.default_rng(0), np.repeat(np.arange(4), 25)
    noise, settings = random.normal(size=(100, 64)), ("ways=[2]", "shots=[3]", "queries=5")
    found = probe_rows("few-shot", Rows(noise, labels, np.zeros((4, 64)), np.arange(4)), *settings, "runs=100").metrics
    assert found["fewshot_2w3s"] == pytest.approx(1 / 2, abs=0.05)
    told = np.concatenate([1e-3 * np.eye(4)[labels], random.normal(size=(100, 1))], axis=1)
    settings = ("ways=[2,4]", "shots=[3]", "queries=5", "runs=20")
    found = probe_rows("few-shot", Rows(told, labels, np.zeros((4, 5)), np.arange(4)), *settings).metrics
    assert found["fewshot_2w3s"] > 0.9
    assert found["fewshot_4w3s"] > 0.9


@row(
    "S0.23",
    "rate features by their neighbours and by logistic regression, too",
    "`sightline evaluate RUN --probe knn,linear`",
    letter="A",
)
def _neighbours(work: Path) -> None:
    run = copy_contrast(work)
    found = probe(run, "knn,linear", "k=5", "C=0.1")["metrics"]
    assert 1 / 12 < found["probe_knn_accuracy"] <= 1
    assert 1 / 12 < found["probe_linear_accuracy"] <= 1
    rows = read_features(run)
    assert found["probe_knn_accuracy"] == pytest.approx(score_neighbours(rows, 5), abs=1.01 * ONE_SAMPLE)
    assert found["probe_linear_accuracy"] == pytest.approx(score_regression(rows, 0.1), abs=1.01 * ONE_SAMPLE)


def score_neighbours(rows: Rows, count: int) -> float:
    """Return the test accuracy of a vote of the nearest rows by angle."""
    known, asked = (values / np.linalg.norm(values, axis=1, keepdims=True) for values in (rows.train, rows.test))
    nearest = np.argsort(-(asked @ known.T), axis=1, kind="stable")[:, :count]
    votes = [np.bincount(rows.labels.astype(int)[near]).argmax() for near in nearest]
    return float((np.array(votes) == rows.test_labels).mean())


def score_regression(rows: Rows, cost: float) -> float:
    """Return the test accuracy of scikit-learn's logistic regression on features of deviation 1."""
    from sklearn.linear_model import LogisticRegression

    scale = rows.train.std(axis=0)
    centre, scale = rows.train.mean(axis=0), np.where(scale > 0, scale, 1)
    fitted = LogisticRegression(C=cost, max_iter=1000).fit((rows.train - centre) / scale, rows.labels)
    return float(fitted.score((rows.test - centre) / scale, rows.test_labels))


@part("S0.23", "A")
def _made_up_neighbours(work: Path) -> None:
    """Neighbours are near by angle, not by distance; all of k have a vote; regression sees small features, too."""
    train = np.array([[10, 0], [10, 1], [10, -1], [0, 0.5], [0.05, 0.5], [-0.05, 0.5]])
    known = Rows(train, np.array([0, 0, 0, 1, 1, 1]), np.array([[1, 0.05], [0.1, 3]]), np.array([0, 1]))
    assert probe_rows("knn", known, "k=[1]", "folds=2").metrics == {"probe_knn_accuracy": 1.0}
    outlier = known._replace(labels=np.array([1, 0, 0, 1, 1, 1]))  # at an angle of zero: the nearest of all
    first = outlier._replace(test=np.array([[1, 0], [0.1, 3]]))
    assert probe_rows("knn", first, "k=[1]", "folds=2").metrics == {"probe_knn_accuracy": 0.5}
    assert probe_rows("knn", first, "k=[3]", "folds=2").metrics == {"probe_knn_accuracy": 1.0}
    rows, labels = scatter(60, width=3, distance=5, seed=1)
    rows = np.concatenate([1e-4 * rows, 10 * np.random.default_rng(2).normal(size=(60, 2))], axis=1)
    mixed = Rows(rows[:40], labels[:40], rows[40:], labels[40:])
    assert probe_rows("linear", mixed, "C=1").metrics == {"probe_linear_accuracy": 1.0}
    assert probe_rows("linear", mixed, "C=1", "standardise=false").metrics["probe_linear_accuracy"] < 1
    rows, labels = scatter(260, width=30, distance=1.2, seed=1)
    mixed = Rows(rows[:60], labels[:60], rows[60:], labels[60:])
    for cost in (0.001, 10):
        expected = pytest.approx(score_regression(mixed, cost), abs=0.011)  # of 200
        assert probe_rows("linear", mixed, f"C={cost}").metrics["probe_linear_accuracy"] == expected


@row(
    "S0.24",
    "see why a small C wins: the accuracy by C, and the scale of the features",
    "`sightline evaluate RUN --probe svm`",
)
def _by_c(work: Path) -> None:
    run = copy_contrast(work)
    words = ("--probe", "svm", "C=[0.001, 100]", *CPU, "--json", work / "found.json")
    text = said("evaluate", run, *words)
    listed = [re.findall(rf"│ {c} │ .*?\d\.\d{{4}} │", text) for c in (r"0\.001", "100")]
    assert all(listed), text
    assert float(listed[0][0].split()[-2]) <= float(listed[1][0].split()[-2])
    (found,) = json.loads((work / "found.json").read_text())["runs"]
    rows = read_features(run)
    variance = float(np.square(rows.train - rows.train.mean(axis=0)).sum(axis=1).mean())
    scale = found["features"]["run"]
    assert scale["width"] == rows.train.shape[1]
    assert scale["mean_norm"] == pytest.approx(np.sqrt(np.square(rows.train).sum(axis=1)).mean())
    assert scale["variance"] == pytest.approx(variance)
    table = found["tables"]["svm"]["rows"]
    assert [line[0] for line in table] == ["0.001", "100"]
    for cost, by_variance, validated, deviation, tested, _ in table:
        assert float(by_variance) == pytest.approx(float(cost) * variance, rel=1e-2)
        assert tested == pytest.approx(fit_svm(rows, float(cost)), abs=1.01 * ONE_SAMPLE)
        assert 0 <= validated <= 1
        assert 0 <= deviation <= 0.5
    assert [line[-1] for line in table] == ["", "chosen"]


@part("S0.24")
def _small_c_wins(work: Path) -> None:
    """Of classes that overlap in thirty numbers; cross-validation, not the test part, chooses it."""
    rows, labels = scatter(260, width=30, distance=1.2, seed=1)
    known = Rows(rows[:60], labels[:60], rows[60:], labels[60:])
    outcome = probe_rows("svm", known, "C=[0.001,100]")
    (small, large) = outcome.table.rows
    assert small[2] > large[2] + 0.03
    assert small[4] > large[4] + 0.03
    assert (small[-1], outcome.metrics) == ("chosen", {"probe_svm_accuracy": small[4]})
    assert fit_svm(known._replace(test=known.train, test_labels=known.labels), 100) == 1
    assert large[2] < 0.9  # not of the samples that it is fitted to
    swapped = probe_rows("svm", known._replace(test_labels=1 - known.test_labels), "C=[0.001,100]")
    assert [line[-1] for line in swapped.table.rows] == ["chosen", ""]
    assert swapped.metrics["probe_svm_accuracy"] == pytest.approx(1 - small[4])
    larger = probe_rows("svm", known._replace(train=8 * known.train, test=8 * known.test), "C=[0.001,100]").table.rows
    assert float(larger[0][1]) == pytest.approx(64 * float(small[1]), rel=1e-2)


@part("S0.24", "B")
def _by_c_and_scale(work: Path) -> None:
    words = ("--probe", "svm", "C=[0.001, 100]", *CPU, "--json", work / "found.json")
    text = said("evaluate", trained_run("contrast"), *words)
    columns = re.search(r"│ 100 │ (\S+) │ (\S+) │ (\S+) │ (\S+) │ chosen │", text)
    assert columns is not None
    (found,) = json.loads((work / "found.json").read_text())["runs"]
    assert float(columns[4]) == pytest.approx(found["metrics"]["probe_svm_accuracy"], abs=1e-4)
    variance = re.search(r"variance (\S+),", text)
    assert variance is not None
    assert float(columns[1]) == pytest.approx(100 * float(variance[1]), rel=1e-2)


@row(
    "S0.25",
    "save features once, and load them the next time",
    "`sightline evaluate RUN --probe svm`, twice",
    letter="C",
)
def _saved_features(work: Path) -> None:
    run = copy_contrast(work)
    first = probe(run, "svm", "C=100")["metrics"]
    files = {path: path.read_bytes() for path in (run / "features").glob("*.safetensors")}
    assert len(files) == 2  # of the run's weights, and of random ones
    with mock.patch("sightline.workbench.probe.probed_run.extract", wraps=probed_run.extract) as extract:
        again = said("evaluate", run, "--probe", "svm", "C=100", *CPU, "--json", work / "again.json")
    assert f"features from {run / 'features'}" in again
    assert extract.call_count == 0
    assert json.loads((work / "again.json").read_text())["runs"][0]["metrics"] == first
    assert {path: path.read_bytes() for path in (run / "features").glob("*.safetensors")} == files


@part("S0.25", "C")
def _features_of_something_else(work: Path) -> None:
    """Those of other weights, of other clouds, and damaged ones are computed anew."""
    run = copy_contrast(work)
    first = probe(run, "svm", "C=100")["metrics"]
    files = sorted((run / "features").glob("trained-*.safetensors"))
    text = said("evaluate", run, "--probe", "svm", "C=100", "data.num_points=48", *CPU)
    assert "features are computed anew" in text
    assert "differ in data" in text
    trained = learn_again(run, work / "again")
    shutil.copytree(run / "features", trained / "features")
    text = said("evaluate", trained, "--probe", "svm", "C=100", *CPU)
    assert "computed anew" in text
    assert "differ in weights" in text
    flip_bit(files[0])
    text = said("evaluate", run, "--probe", "svm", "C=100", *CPU, "--json", work / "mended.json")
    assert "is damaged" in text
    assert json.loads((work / "mended.json").read_text())["runs"][0]["metrics"] == first


def learn_again(run: Path, out: Path) -> Path:
    """Train the recipe of a run for a step at another rate: equal settings of all that features depend on."""
    words = ("optimizer.lr=0.02", *ONE_STEP)
    succeed("train", run / "config.yaml", *words, "--no-check", *CPU, "--out", out)
    return out


# --- Point-BERT -------------------------------------------------------------------------------------------------------


@row(
    "S0.26",
    "use a pre-trained Point-BERT as a frozen extractor",
    "`sightline weights convert FILE --to DIR`, then `sightline train "
    "configs/classify/modelnet40_point_bert_frozen_cpu.yaml init.from=DIR`",
)
def _extractor(work: Path) -> None:
    small = SmallStep("classify/modelnet40_point_bert_frozen_cpu", work)
    frozen = [name for name, value in small.job.model.named_parameters() if not value.requires_grad]
    assert {name.partition(".")[0] for name in frozen} >= {"embed", "trunk"}
    assert not any(name.startswith("head") for name in frozen)
    before = {name: value.clone() for name, value in small.job.model.state_dict().items()}
    small.run()
    after = small.job.model.state_dict()
    assert all(bool(value.isfinite().all()) for value in small.numbers().values())
    assert all(torch.equal(after[name], before[name]) for name in before if not name.startswith("head"))
    assert all(not torch.equal(after[name], before[name]) for name in before if name.startswith("head"))


@part("S0.26", "W")
def _extractor_weights(work: Path) -> None:
    """A file of names as its pre-training gives them, beside those of the networks that it alone needs."""
    golden = read_golden("pointbert_cls_full")
    state = round_state(golden.state(), "transformer_q.")
    head = {key: state.pop(key) for key in list(state) if "cls_head" in key}
    momentum = {key.replace("_q.", "_k."): -value for key, value in state.items()}
    torch.save({"base_model": {f"module.{key}": value for key, value in (state | momentum).items()}}, work / "file.pth")
    text = said("weights", "convert", work / "file.pth", "--to", work / "run")
    assert "layout: lulutang0608_point_bert_pretrained" in text
    model = sightline.load_run(work / "run").model
    features = encode(model.double(), cloud_inputs(golden)["points"])
    assert features.shape == (3, 768)
    weight, bias, last, last_bias = (head[f"transformer_q.cls_head_finetune.{name}"].double() for name in HEAD)
    logits = (features @ weight.T + bias).relu() @ last.T + last_bias
    assert relative_error(logits, golden.tensor("eval.out.logits")) < 1e-4


def encode(model: torch.nn.Module, points: torch.Tensor) -> torch.Tensor:
    """Compute the features of clouds in evaluation mode."""
    with torch.no_grad():
        features: torch.Tensor = model.eval().encode(points=points)  # type: ignore[operator]
    return features


HEAD = ("0.weight", "0.bias", "3.weight", "3.bias")


@part("S0.26", "D")
def _extractor_of_the_hub(work: Path) -> None:
    """Of the names that its file on the hub has, and what the library there computes by such weights."""
    layout = "torch_pointcloud_point_bert_pretrained"
    assert layout in said("list", "layouts")
    figures = read_figures()[layout]
    torch.save(round_state(make_state(figures["shapes"], layout)), work / "a.pth")
    assert f"layout: {layout}" in said("weights", "convert", work / "a.pth", "--to", work / "run")
    model = sightline.load_run(work / "run").model
    extractor = {name: value.numpy() for name, value in model.state_dict().items() if not name.startswith("head")}
    few = ("data={name: synthetic_shapes, train_size: 6, test_size: 3, num_points: 64}", "train.batch_size=3")
    cuts = ("transforms.train.0.num_points=48", "transforms.evaluate.0.num_points=48", "evaluate.select=test")
    start = (f"init.from={work / 'run'}", "init.may_be_missing=[head]")
    learnt = learn("classify/modelnet40_point_bert_frozen_cpu", work / "learnt", *few, *cuts, *start)
    saved = load_file(learnt / "checkpoints/last/model.safetensors")
    assert all(np.array_equal(saved[name], value) for name, value in extractor.items())
    features = encode(model.double(), draw_clouds(layout)[..., :3])
    assert relative_error(features, torch.tensor(figures["outputs"], dtype=torch.float64)) < 1e-4
