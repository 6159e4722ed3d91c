"""Pictures that a metric of a plugin makes of the whole part: in TensorBoard, beside the run, once."""

from __future__ import annotations

from pathlib import Path

from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from tests.command import run_here

CONFIG = Path(__file__).parents[2] / "configs" / "classify" / "synthetic_shapes_pointnet.yaml"
SMALL = ("data.train_size=24", "data.test_size=12", "data.num_points=32", "train.steps=2", "train.batch_size=8")

PLUGIN = '''
import numpy as np
from torch import Tensor
from sightline import registry
from sightline.metrics.labels import Accuracy
from sightline.metrics.base import State
from sightline.draw.pictures import Picture


@registry.metrics.add("NAME")
class Drawn(Accuracy):
    """The confusion matrix as a picture, white where most samples are."""

    def __init__(self, *, num_classes: int, class_names: tuple[str, ...]) -> None:
        super().__init__(num_classes=num_classes, class_names=class_names)

    def pictures(self, state: State) -> list[Picture]:
        counts = state["confusion"].double()
        grey = (255 * counts / counts.max()).byte().numpy()
        return [MADE]
'''


def trained(tmp_path: Path, name: str, made: str, checks: str = "--no-check") -> tuple[int, str]:
    plugin = tmp_path / f"{name}.py"
    plugin.write_text(PLUGIN.replace("NAME", name).replace("MADE", made))
    words = (*SMALL, f"metrics=[{{name: {name}}}]", "log.tensorboard=true")
    code, _, err = run_here(
        *("train", CONFIG, *words, "--plugin", plugin, "--device", "cpu", *checks.split(), "--out", tmp_path / name)
    )
    return code, err


def test_a_picture_of_the_whole_part_is_written(tmp_path: Path) -> None:
    made = 'Picture("confusion", np.repeat(grey[..., None], 3, axis=2), f"{int(counts.sum())} samples")'
    code, err = trained(tmp_path, "drawn_confusion", made)
    assert code == 0, err
    events = EventAccumulator(str(tmp_path / "drawn_confusion")).Reload()
    (tag,) = [tag for tag in events.Tags()["images"] if tag.endswith("/confusion")]
    assert events.Images(tag)[0].width == 12
    assert (tmp_path / "drawn_confusion" / "predictions" / "confusion.png").is_file()


def test_a_name_that_leads_out_of_the_run_stays_in_it(tmp_path: Path) -> None:
    made = 'Picture("../../a\\x1b", np.repeat(grey[..., None], 3, axis=2))'
    code, err = trained(tmp_path, "drawn_outside", made)
    assert code == 0, err
    assert (tmp_path / "drawn_outside" / "predictions" / "a.png").is_file()
    assert (tmp_path / "drawn_outside" / "final.json").is_file()


def test_the_check_before_training_names_the_authors_method(tmp_path: Path) -> None:
    code, err = trained(tmp_path, "checked_confusion", "grey", checks="")
    assert code == 1
    assert "Drawn.pictures: gave a ndarray" in err
    assert "_Noting" not in err


def test_something_else_is_named(tmp_path: Path) -> None:
    code, err = trained(tmp_path, "undrawn_confusion", "grey")
    assert code == 1
    assert "Drawn.pictures: gave a ndarray, a list of sightline.draw.pictures.Picture is needed" in err
    assert "Traceback" not in err
