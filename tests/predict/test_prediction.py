"""Predictions beyond what evaluation shows: clouds of many sizes, models that refuse, answers that are no numbers."""

from __future__ import annotations

import os
import zlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

import sightline
from sightline.api import LoadedRun
from sightline.contract import registry
from sightline.contract.errors import ConfigError, escape_to_one_line
from sightline.contract.types import DataInfo, Field
from sightline.runs.inputs import find_range
from sightline.workbench.predict import classify
from sightline.workbench.predict import prediction as module
from sightline.workbench.predict.classify import ClassPredictor
from sightline.workbench.predict.prediction import collect_files, predict_files
from sightline.workbench.predict.predictor import Inference, ReadFile, Refusal
from sightline.workbench.weights.conversion import convert_published_weights
from tests.engine.published_weights import FactsAlone, saved, small_state

NUM_CLASSES = 4


class Loose(FactsAlone):
    """Clouds of any number of points, in metres. Source: this test."""

    def __init__(self, *, split: str, name_of_points: str = "points") -> None:
        self.info = DataInfo(
            facts={"num_classes": NUM_CLASSES, "in_channels": 3},
            fields={name_of_points: Field("points 3", "float32", "m", "", -50.0, 50.0), "label": Field("", "int64")},
        )


@pytest.fixture(autouse=True)
def _loose() -> Iterator[None]:
    registry.data.names()
    registry.data.add("loose")(Loose)
    yield
    registry.data._entries.pop("loose")


def run_of(tmp_path: Path, *overrides: str, layout: str = "wangyueft_pointnet") -> LoadedRun:
    """Random weights as a run on clouds of any size."""
    tmp_path.mkdir(exist_ok=True)
    file, target = tmp_path / "a.pth", tmp_path / "run"
    state = small_state(layout, num_classes=NUM_CLASSES)
    convert_published_weights(saved(file, state), layout=layout, target=target, data_name="loose", overrides=overrides)
    return sightline.load_run(target)


def write(folder: Path, sizes: list[int]) -> list[Path]:
    folder.mkdir()
    paths = []
    for number, size in enumerate(sizes):
        points = np.random.default_rng(number).standard_normal((size, 3))
        np.save(folder / f"{number:03d}.npy", points)
        paths.append(folder / f"{number:03d}.npy")
    return paths


def probabilities(run: LoadedRun, path: Path) -> Tensor:
    points = torch.from_numpy(np.load(path)).float()[None]
    with torch.no_grad():
        return run.model(points=points)["logits"].softmax(dim=1)[0]


@pytest.mark.parametrize("batch_size", [1, 2, 3, 64])
def test_clouds_of_many_sizes_are_batched_by_size_and_come_back_in_order(tmp_path: Path, batch_size: int) -> None:
    run = run_of(tmp_path)
    paths = write(tmp_path / "clouds", [5, 9, 5, 1, 9, 5, *range(10, 40)])
    found = predict_files(run, paths, batch_size=batch_size)
    assert [prediction.file for prediction in found.predicted] == paths
    assert (found.refused, found.exit_code) == ((), 0)
    for prediction in found.predicted:
        expected = probabilities(run, prediction.file)
        assert torch.allclose(torch.tensor(prediction.probabilities), expected, rtol=0, atol=1e-6)
        assert prediction.label == int(expected.argmax())
        assert prediction.class_name == str(prediction.label), "the data has no class names"


def test_no_more_clouds_wait_than_a_batch(tmp_path: Path) -> None:
    run = run_of(tmp_path)
    paths = write(tmp_path / "clouds", list(range(4, 44)))
    waiting, most = 0, 0

    class Counting(ClassPredictor):
        def read(self, path: Path) -> ReadFile:
            nonlocal waiting, most
            waiting += 1
            most = max(most, waiting)
            return super().read(path)

        def predict(self, files: Sequence[ReadFile], inference: Inference) -> list[Any]:
            nonlocal waiting
            waiting -= len(files)
            return super().predict(files, inference)

    found = dict(module.iterate_predictions(run, paths, predictor=Counting(run=run), batch_size=2))
    assert found.keys() == set(paths)
    assert not any(isinstance(each, Refusal) for each in found.values())
    assert most <= 2


def test_a_file_far_outside_of_the_training_is_predicted_with_a_warning(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    run = run_of(tmp_path)
    (file,) = write(tmp_path / "clouds", [4])
    for factor, num_warned in ((1, 0), (0.01, 1)):  # of the numbers that the training had, by those of the file
        caplog.clear()
        run.files.__dict__["ranges"] = {"points": find_range(factor * np.load(file))}
        assert len(run.predict([file]).predicted) == 1
        assert len(caplog.messages) == num_warned
    text = f"{file}: the input is unlike all of training, and so its prediction may be anything: points: "
    assert caplog.messages[0].startswith(text)


def test_a_file_given_twice_or_by_its_folder_too_is_predicted_once(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    run = run_of(tmp_path)
    paths = write(tmp_path / "clouds", [4, 4])
    (tmp_path / "disk").mkdir()
    (tmp_path / "clouds" / "deeper").symlink_to("../disk")
    np.save(tmp_path / "clouds" / "deeper" / "x.npy", np.eye(4, 3))
    (tmp_path / "clouds" / "notes.md").write_text("not a cloud")
    found = run.predict([paths[1], tmp_path / "clouds", paths[1]])
    names = [prediction.file.name for prediction in found.predicted]
    assert names == ["001.npy", "000.npy", "x.npy"]
    assert caplog.messages == [f"{tmp_path / 'clouds'}: 1 file of another kind passed over: notes.md"]


def test_what_the_model_refuses_is_told_by_file_and_the_others_go_on(tmp_path: Path) -> None:
    run = run_of(tmp_path, "model.num_neighbours=8", layout="wangyueft_dgcnn_cls")
    paths = write(tmp_path / "clouds", [30, 5, 30, 6])
    found = run.predict(paths)
    assert [prediction.file for prediction in found.predicted] == [paths[0], paths[2]]
    assert [refusal.file for refusal in found.refused] == [paths[1], paths[3]]
    assert f"{paths[1]}: the model cannot process this cloud: " in found.refused[0].reason
    assert found.exit_code == 2


def test_an_answer_that_is_no_number_is_the_models_failure(tmp_path: Path) -> None:
    run = run_of(tmp_path)
    with torch.no_grad():
        run.model.head[2].bias[0] = torch.nan
    found = run.predict(write(tmp_path / "clouds", [4]))
    assert "the model's output is not finite" in found.refused[0].reason
    assert found.exit_code == 1


def test_one_bad_file_does_not_end_the_others(tmp_path: Path) -> None:
    """Each is refused by name; neither is a pipe waited for, nor a name that is no UTF-8 in the way."""
    run = run_of(tmp_path)
    good = write(tmp_path / "clouds", [5, 9])
    odd = Path(os.fsdecode(os.fsencode(tmp_path / "clouds") + b"/\xff\n.npy"))
    np.save(odd, np.eye(4, 3))
    bad = {
        "digits.off": f"OFF\n{'1' * 5000} 1 0\n0 0 0\n".encode(),
        "signs.npy": b"\x93NUMPY\1\0" + (9001).to_bytes(2, "little") + b"-" * 9000 + b"\n",
        "cut.npz": b"PK\x03\x04",
        "empty.h5": b"",
        os.fsdecode(b"bad\xfe\x1b.ply"): b"junk",
    }
    for name, content in bad.items():
        (tmp_path / "clouds" / name).write_bytes(content)
    os.mkfifo(tmp_path / "clouds" / "pipe.ply")
    (tmp_path / "clouds" / "link.txt").symlink_to("nowhere")
    long = tmp_path / ("n" * 300)
    found = run.predict([long, tmp_path / "clouds"])
    assert {prediction.file for prediction in found.predicted} == {*good, odd}
    assert {refusal.file.name for refusal in found.refused} == {*bad, "pipe.ply", "link.txt", long.name}
    for refusal in found.refused:
        assert refusal.reason.startswith(escape_to_one_line(str(refusal.file)))
        assert refusal.reason.isprintable()
    assert found.exit_code == 2


@pytest.mark.parametrize(
    "error", [ValueError("a\nb"), OSError(5, "disk"), MemoryError(), EOFError(), zlib.error("bits")]
)
def test_what_a_reader_overlooks_is_a_refusal(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    run = run_of(tmp_path)
    paths = write(tmp_path / "clouds", [5, 6])
    read = classify.read_sample

    def faulty(path: Path, *given: Any, **options: Any) -> Any:
        if path == paths[0]:
            raise error
        return read(path, *given, **options)

    monkeypatch.setattr(classify, "read_sample", faulty)
    found = run.predict(paths)
    assert [prediction.file for prediction in found.predicted] == [paths[1]]
    assert found.refused[0].reason.startswith(f"{paths[0]}: cannot be read ({type(error).__name__}")
    assert found.refused[0].reason.isprintable()


def test_a_mistake_of_the_caller_is_no_refusal(tmp_path: Path) -> None:
    with pytest.raises(ConfigError):
        run_of(tmp_path).predict(write(tmp_path / "clouds", [5]), columns=["x", "x"])


def test_scale_is_checked_unless_the_run_itself_normalises(tmp_path: Path) -> None:
    far = tmp_path / "far.npy"
    np.save(far, 1000 * np.random.default_rng(0).standard_normal((20, 3)))
    refused = run_of(tmp_path / "a").predict([far]).refused
    assert "from -50 to 50 (m)" in refused[0].reason
    normalising = run_of(tmp_path / "b", "transforms.evaluate=[{name: normalize_unit_sphere}]")
    assert len(normalising.predict([far]).predicted) == 1


def test_draws_of_transforms_follow_the_file_alone(tmp_path: Path) -> None:
    run = run_of(tmp_path, "transforms.evaluate=[{name: sample_points, num_points: 4}]")
    paths = write(tmp_path / "clouds", [50, 50, 50])
    together = {p.file: p.probabilities for p in run.predict(paths).predicted}
    backwards = {p.file: p.probabilities for p in run.predict(paths[::-1]).predicted}
    alone = run.predict([paths[2]]).predicted[0].probabilities
    # A row of a matrix product may differ in its last bit by where it stands in the batch.
    for file, found in together.items():
        assert np.allclose(backwards[file], found, rtol=0, atol=1e-6)
    assert np.allclose(alone, together[paths[2]], rtol=0, atol=1e-6)
    whole = probabilities(run, paths[2])
    assert not np.allclose(alone, whole, rtol=0, atol=1e-6), "four points of fifty were drawn"


def test_a_run_on_something_else_than_clouds_is_refused(tmp_path: Path) -> None:
    run = run_of(tmp_path, "data.name_of_points=voxels")
    with pytest.raises(ConfigError, match="was trained on voxels, label, not on points; predict takes clouds"):
        run.predict(write(tmp_path / "clouds", [4]))


def test_a_folder_of_photos_of_a_kind_that_is_not_read_is_told_what_to_do(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "a.HEIC").write_bytes(b"")
    told = "a.HEIC is of a kind that is not read: save them as JPEG or PNG"
    _, [refused] = collect_files([tmp_path], suffixes=(".jpg", ".png"))
    assert refused.reason.startswith(f"{tmp_path}: holds no file of the kinds .jpg, .png; {told}")
    assert told not in collect_files([tmp_path], suffixes=(".ply",))[1][0].reason
    (tmp_path / "b.png").write_bytes(b"")
    caplog.clear()
    assert collect_files([tmp_path], suffixes=(".jpg", ".png"))[1] == []
    assert told in caplog.text
