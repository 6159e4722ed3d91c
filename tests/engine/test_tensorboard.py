"""TensorBoard, wandb and pictures of metrics: what was written is read back, and nothing hurts a run."""

from __future__ import annotations

import io
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from sightline.config import read_config
from sightline.contract import registry
from sightline.contract.errors import MissingExtraError
from sightline.contract.metric import State
from sightline.draw.pictures import Picture
from sightline.engine.loggers.mlflow import Mlflow
from sightline.engine.loggers.tensorboard import TensorBoard
from sightline.engine.loggers.wandb import Wandb
from sightline.engine.records import Observers
from sightline.parts.metrics.accuracy import Accuracy
from sightline.training.train_run import train_run
from tests.command import Outcome, run_here
from tests.conftest import ROOT
from tests.engine.published_weights import registered
from tests.engine.told import evaluation, random_states, step
from tests.runs.small import PLAIN

# --- tensorBoard and wandb: what was written is read back, and neither can hurt a run --------------------------------


def events(directory: Path) -> Any:
    return EventAccumulator(str(directory), size_guidance={"scalars": 0, "tensors": 0, "images": 0}).Reload()


def test_tensorboard_reads_back_what_was_written(tmp_path: Path) -> None:
    board = TensorBoard(tmp_path, every=5)
    for number in range(1, 5):
        board.on_step(step(number))
    assert not list(tmp_path.iterdir())  # nothing is opened before there is something to write
    for number in range(5, 11):
        board.on_step(step(number))
    board.on_evaluation(evaluation(10))
    board.on_end("finished")
    found = events(tmp_path)
    scalars = found.Tags()["scalars"]
    assert {"train/loss/cross_entropy", "train/loss/total", "train/lr", "train/grad_norm", "train/samples_per_s"} <= {
        *scalars
    }
    assert {"validation/accuracy", "validation/loss/total", "train/time_s/data"} <= {*scalars}
    curve = found.Scalars("train/loss/total")
    assert [event.step for event in curve] == [5, 10]
    expected = [sum(2 / n for n in range(low, low + 5)) / 5 for low in (1, 6)]
    assert [event.value for event in curve] == pytest.approx(expected, rel=2.0**-23)  # stored in float32
    assert found.Scalars("train/samples_per_s")[0].value == pytest.approx(80.0, rel=2.0**-23)
    (image,) = found.Images("validation/clouds")
    assert (image.step, image.width, image.height) == (10, 20, 12)
    from PIL import Image

    pixels = np.asarray(Image.open(io.BytesIO(image.encoded_image_string)))
    assert np.array_equal(pixels, np.full((12, 20, 3), 200))


def test_tensorboard_after_a_resume_voids_the_abandoned_future(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    clock = iter(range(1_000_000_000, 1_000_000_100))
    monkeypatch.setattr("time.time", lambda: float(next(clock)))
    killed = TensorBoard(tmp_path, every=1)
    for number in range(1, 8):
        killed.on_step(step(number))
    killed.on_end("killed")
    resumed = TensorBoard(tmp_path, every=1)
    for number in range(5, 10):
        resumed.on_step(step(number))
    resumed.on_end("finished")
    assert [event.step for event in events(tmp_path).Scalars("train/lr")] == list(range(1, 10))


@pytest.mark.parametrize("package", ["tensorboard", "wandb", "mlflow"])
def test_a_missing_package_is_named_with_its_remedy(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, package: str
) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    build: dict[str, Any] = {
        "tensorboard": lambda: TensorBoard(tmp_path),
        "wandb": lambda: Wandb(tmp_path, project="p", name="n"),
        "mlflow": lambda: Mlflow(tmp_path, uri="mlruns", name="n", config={}, text=""),
    }
    with pytest.raises(MissingExtraError, match=rf"pip install 'sightline\[{package}\]'"):
        build[package]()
    config = read_config(
        ROOT / "configs/classify/synthetic_shapes_pointnet.yaml",
        [f"log.{package}={'true' if package == 'tensorboard' else 'offline'}"],
    )
    for resume in (None, "auto"):
        with pytest.raises(MissingExtraError, match=rf"log\.{package} needs the package '{package}'"):
            train_run(config, out=tmp_path / "run", resume=resume, device="cpu")
    assert not (tmp_path / "run").exists()


def test_a_folder_that_went_away_only_warns(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    observers = Observers([TensorBoard(tmp_path / "gone", every=1)])
    observers.on_step(step(1))
    assert len(observers) == 0
    assert caplog.records[0].getMessage().startswith("observer-failed: TensorBoard is switched off, training goes on")


def test_wandb_offline_writes_only_inside_and_leaves_random_states_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run, home = tmp_path / "run", tmp_path / "home"
    run.mkdir()
    home.mkdir()
    for name in ("HOME", "XDG_CACHE_HOME", "XDG_CONFIG_HOME", "XDG_DATA_HOME"):
        monkeypatch.setenv(name, str(home))
    monkeypatch.chdir(home)
    before = random_states()
    watcher = Wandb(run, project="p", name="n", config={"seed": 1}, every=2)
    assert not list(run.iterdir())
    for number in range(1, 5):
        watcher.on_step(step(number))
        assert random_states() == before
    watcher.on_evaluation(evaluation(4))
    watcher.on_end("finished")
    assert random_states() == before
    assert not list(home.rglob("*"))
    assert {path.name for path in run.iterdir()} == {"wandb"}
    assert list((run / "wandb").rglob("*.wandb"))
    assert list((run / "wandb").rglob("*.png"))

    resumed = Wandb(run, project="p", name="n", every=1)
    resumed.on_step(step(5))
    resumed.on_end("finished")
    parts = [path.stem.removeprefix("run-") for path in (run / "wandb").rglob("*.wandb")]
    assert len(parts) == 2
    assert set(parts) == {(run / "wandb" / "run_id").read_text(encoding="utf-8")}


def test_wandb_that_cannot_start_only_warns(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def refuse() -> None:
        raise ConnectionError("no route to host")

    watcher = Wandb(tmp_path, project="p", name="n", mode="online", every=1)
    monkeypatch.setattr(watcher, "_start", refuse)
    observers = Observers([watcher])
    observers.on_step(step(1))
    observers.on_end("finished")
    assert [record.getMessage() for record in caplog.records] == [
        "observer-failed: Wandb is switched off, training goes on; it failed with ConnectionError: no route to host"
    ]


# --- pictures that a metric makes -------------------------------------------------------------------------------------


CONFIG = Path(__file__).parents[2] / "configs" / "classify" / "synthetic_shapes_pointnet.yaml"
SMALL = ("data.train_size=24", "data.test_size=12", "data.num_points=32", "train.steps=2", "train.batch_size=8")


class Drawn(Accuracy):
    """The confusion matrix as a picture, white where most samples are."""

    name: str | None = "confusion"
    """None: it gives the numbers instead of pictures."""

    def pictures(self, state: State) -> list[Any]:
        counts = state["confusion"].double()
        grey = (255 * counts / counts.max()).byte().numpy()
        return [grey if self.name is None else Picture(self.name, np.repeat(grey[..., None], 3, axis=2))]


@pytest.fixture
def train(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., Outcome]]:
    """Trains with a metric that draws a picture of some name."""

    def train(name: str | None, *checks: str) -> Outcome:
        monkeypatch.setattr(Drawn, "name", name)
        words = (*SMALL, *PLAIN, "metrics=[{name: drawn}]", "log.tensorboard=true")
        return run_here("train", CONFIG, *words, "--device", "cpu", *checks, "--out", tmp_path / "run")

    with registered(registry.metrics, drawn=Drawn):
        yield train


def test_a_picture_of_the_whole_part_is_written(train: Callable[..., Outcome], tmp_path: Path) -> None:
    done = train("confusion", "--no-check")
    assert done.code == 0, done.err
    found = events(tmp_path / "run")
    (tag,) = [tag for tag in found.Tags()["images"] if tag.endswith("/confusion")]
    assert found.Images(tag)[0].width == 12
    assert (tmp_path / "run" / "predictions" / "confusion.png").is_file()


def test_a_name_that_leads_out_of_the_run_stays_in_it(train: Callable[..., Outcome], tmp_path: Path) -> None:
    done = train("../../a\x1b", "--no-check")
    assert done.code == 0, done.err
    assert (tmp_path / "run" / "predictions" / "a.png").is_file()
    assert (tmp_path / "run" / "final.json").is_file()


@pytest.mark.parametrize("checks", [["--no-check"], []], ids=["after training", "in the check before it"])
def test_something_else_is_named(train: Callable[..., Outcome], checks: list[str]) -> None:
    done = train(None, *checks)
    assert done.code == 1
    assert "Drawn.pictures: gave a ndarray, a list of sightline.draw.pictures.Picture is needed" in done.err
    assert "Traceback" not in done.err
    assert "_Noting" not in done.err
