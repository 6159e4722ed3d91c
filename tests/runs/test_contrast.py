"""A contrastive run through the command: the loss trace of one process on two, and what it tells of its negatives."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from functools import cache
from pathlib import Path

import pytest

from tests.command import succeed
from tests.runs.broken_off import metrics, run_forked

pytestmark = pytest.mark.processes

# 59 of the 71 samples train: an epoch is 16 + 16 + 16 + 11, and the 11 are dealt 6 + 5. Twenty steps are five epochs.
CONFIG = """\
name: tiny
seed: 3
task: {name: contrast}
data: {name: synthetic_shapes, train_size: 71, test_size: 43, num_points: 32}
model: {name: intrapoint, points: {name: dgcnn, num_neighbours: 6, embedding: 32}, embedding: 16}
losses: [{name: intra_modal}]
metrics: [{name: pairs}]
transforms:
  train: &views
    - name: two_views
      each: [{name: normalize_unit_sphere}, {name: rotate}, {name: translate, relative: true}, {name: jitter}]
  evaluate: *views
optimizer: {name: adam, lr: 1e-3}
train: {epochs: 5, batch_size: 16, precision: float64}
evaluate: {metric: retrieval_accuracy, every: 5, batch_size: 10}
checkpoint: {every: 5}
distributed: {sync_batch_norm: true}
log: {every: 1, tensorboard: false}
"""
NUM_STEPS = 20
PAIRED = "[{name: two_views, each: [{name: normalize_unit_sphere}, {name: jitter}]}, {name: normalize_image}]"
WITH_IMAGES = (
    f"transforms.train={PAIRED}",
    f"transforms.evaluate={PAIRED}",
    "data.views={count: 3, size_px: 16}",
    "model={name: crosspoint, points: {name: dgcnn, num_neighbours: 6, embedding: 32}, images: {name: resnet18}, "
    "embedding: 16}",
    "losses=[{name: intra_modal}, {name: cross_modal, weight: 2.0}]",
    "metrics=[{name: pairs}, {name: cross_pairs}]",
    "train.epochs=1",
    "evaluate.every=1",
)
BOUND = 1e-9
"""The issue's; rounding of 1e-16 grows through batch norms of few samples and Adam over twenty steps."""


KINDS = {
    "one": (1, ()),
    "two": (2, ()),
    "process": (2, ("task.negatives=process",)),
    "one_with_images": (1, WITH_IMAGES),
    "two_with_images": (2, WITH_IMAGES),
}
"""One process; two; two that compare within each process alone; one and two with images for an epoch."""
Runs = Callable[[str], Path]


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Runs:
    """The run of a kind, made once."""
    folder = tmp_path_factory.mktemp("contrast")
    config = folder / "tiny.yaml"
    config.write_text(CONFIG)

    @cache
    def made(kind: str) -> Path:
        number, more = KINDS[kind]
        words = ["train", str(config), "--no-check", "--device=cpu", "--out", str(folder / kind), *more]
        code, text = run_forked(words, folder / f"{kind}.log", num_processes=number)
        assert code == 0, text
        return folder / kind

    return made


def train_lines(run: Path) -> list[dict]:
    return [line for line in metrics(run) if line["split"] == "train"]


@pytest.mark.parametrize(
    ("images", "num_steps"), [("", NUM_STEPS), pytest.param("_with_images", NUM_STEPS // 5, marks=pytest.mark.long)]
)
def test_two_processes_have_the_loss_trace_of_one(runs: Runs, images: str, num_steps: int) -> None:
    """Synchronised batch norm, no dropout, float64, the same global batch: every loss and gradient norm."""
    ours, theirs = train_lines(runs(f"two{images}")), train_lines(runs(f"one{images}"))
    assert [line["step"] for line in theirs] == list(range(1, num_steps + 1))
    for mine, its in zip(ours, theirs, strict=True):
        assert mine.keys() == its.keys()
        names = [name for name in its if not name.startswith("time_s") and name != "split"]
        assert [mine[name] for name in names] == pytest.approx([its[name] for name in names], rel=BOUND, abs=0)


def test_metrics_have_the_same_bits_on_any_number_of_processes(runs: Runs, tmp_path: Path) -> None:
    texts = []
    for number in (1, 3):
        document = tmp_path / f"evaluated_{number}.json"
        words = ["evaluate", str(runs("two")), "--json", str(document), "--device", "cpu"]
        code, text = run_forked(words, document.with_suffix(".log"), num_processes=number)
        assert code == 0, text
        texts.append(document.read_text())
    assert texts[0] == texts[1]
    assert json.loads(texts[0])["metrics"] == json.loads((runs("two") / "final.json").read_text())["metrics"]


def test_the_log_tells_the_true_number_of_negatives(runs: Runs) -> None:
    """16 pairs are 30 negatives for each anchor, of one process or two; 8 of its own are 14; 11 are 20."""
    for name, expected in (("one", 30), ("two", 30), ("process", 14)):
        first = train_lines(runs(name))[0]
        assert first["negatives"] == expected
        assert first["chance"] == pytest.approx(math.log(expected + 1))
        assert first["intra_modal_of_chance"] == pytest.approx(first["loss/intra_modal"] / first["chance"])
    for name, expected in (("one", 20), ("two", 20), ("process", (6 * 10 + 5 * 8) / 11)):  # 11 pairs; 6 and 5 of them
        assert train_lines(runs(name))[3]["negatives"] == pytest.approx(expected)


def test_a_run_with_images_tells_of_both_losses_and_of_what_was_learnt(runs: Runs, tmp_path: Path) -> None:
    lines = train_lines(runs("one_with_images"))
    assert lines[0]["negatives"] == 30
    for line in lines:
        assert line["loss/total"] == pytest.approx(line["loss/intra_modal"] + 2 * line["loss/cross_modal"])
        assert line["cross_modal_of_chance"] == pytest.approx(line["loss/cross_modal"] / line["chance"])
    succeed("report", runs("one_with_images"), "--out", tmp_path / "page.html")
    picture = (tmp_path / "page.html").read_text()
    for title in ("loss/cross_modal", "cross_modal_of_chance", "cross_alignment", "uniformity", "train, chance"):
        assert f">{title}<" in picture, title
    final = json.loads((runs("one_with_images") / "final.json").read_text())["metrics"]
    assert {"alignment", "uniformity", "cross_alignment", "cross_uniformity", "probe_svm_accuracy"} <= final.keys()


def test_pairs_of_one_process_alone_are_easier(runs: Runs) -> None:
    """Fewer negatives, a smaller loss: what the distributed port of CrossPoint optimised was not what it printed."""
    assert train_lines(runs("process"))[0]["loss/intra_modal"] < train_lines(runs("two"))[0]["loss/intra_modal"]


def test_a_run_without_classes_is_viewed_as_its_model_sees_it(runs: Runs, tmp_path: Path) -> None:
    done = succeed("view", runs("one"), "--out", tmp_path, "--num", 1, "--device", "cpu")
    assert "the task 'contrast' predicts nothing that can be drawn: only the model's input is shown" in done.err
    assert "two_views, second" in done.out
