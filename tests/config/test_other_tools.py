"""Words of other tools: every answer is one that can be typed, and no word is one of ours."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest

from sightline.cli import SECTIONS
from sightline.commands.run import TrainOptions
from sightline.config import RunConfig, read_config
from sightline.config.other_tools import COMMANDS, find_file, find_setting, list_names
from tests.cases import run_each
from tests.command import refuse

CONFIG = "detect/synthetic_crowds_retinanet"
FLAGS = {parameter.flag for _, parameter in TrainOptions.parameters()}
WORDS = {"optimizer.name": "sgd", "schedule.name": "constant", "evaluate.votes": "1"}
"""Values of keys that take no number, or not any."""


@run_each("name", list_names())
def test_the_answer_to_a_setting_of_another_tool_can_be_typed(name: str) -> None:
    """Its keys are those of a config, its options those of `train`, with the typed value where that fits."""
    instead = find_setting(f"--{name.replace('_', '-')}", "2", command="train")
    assert instead == find_setting(f"trainer.{name.upper()}", "2", command="train")
    first, *others = instead.split()
    if first.startswith("--"):
        assert {word for word in (first, *others) if word.startswith("--")} <= FLAGS
    elif first == "sightline":
        assert others[0] in {record.name for records in SECTIONS.values() for record in records}
    else:
        key, _, value = first.partition("=")
        rate = ["optimizer.lr=0.1"] if key == "optimizer.name" else []  # another optimiser has no default of it
        read_config(Path(CONFIG), [] if key == "data.root" else [f"{key}={WORDS.get(key, value)}", *rate])


def test_no_name_of_another_tool_is_a_name_of_ours() -> None:
    ours = {field.name for field in dataclasses.fields(RunConfig)}
    sections = {hint.__name__.lower() for hint in (type(field.default) for field in dataclasses.fields(RunConfig))}
    assert not set(list_names()) & (ours | sections)
    commands = {record.name for records in SECTIONS.values() for record in records}
    words = [word for theirs in COMMANDS.values() for word in theirs.split()]
    assert len(set(words)) == len(words)
    assert not {*words} & {name.split()[0] for name in commands}
    for line in COMMANDS:
        assert line.startswith("--") or any(line.startswith(f"{name} ") for name in commands), line


def test_a_file_in_the_place_of_a_block_is_answered_with_the_way_here() -> None:
    assert "prepare yolo_txt --from photos --to prepared --config own.yaml" in find_file("data", "photos/data.yaml")
    assert "init.from='my weights.pt'" in find_file("model", "my weights.pt")
    assert not any(find_file(*words) for words in (("data", "modelnet40"), ("model", "dgcnn"), ("data", 3), ("", "")))


SHAPES = "classify/synthetic_shapes_pointnet"


@pytest.mark.parametrize(
    ("words", "answer"),
    [
        (("train", SHAPES, "--gpus", "1"), "--gpus: is not an option; write --device cuda --processes 1"),
        (("train", SHAPES, "--gpus=4"), "--gpus: is not an option; write --device cuda --processes 4"),
        (("check", SHAPES, "--gpus", "1"), "--gpus: is not an option; write --device cuda"),
        (("list", "--gpus", "1"), "No such option: --gpus"),
        (("train", SHAPES, "--epochs", "3"), "to set a value of the config, write train.epochs=3"),
        (("train", SHAPES, "--num-workers", "4"), "to set a value of the config, write loader.workers=4"),
        (("train", "--config", SHAPES), f"--config: is not an option; write sightline train {SHAPES}"),
        (("train", SHAPES, "--weights", "a.pt"), "to set a value of the config, write init.from=a.pt"),
        (("evaluate", "runs/x", "--weights", "best.pt"), "--weights: is not an option; write --checkpoint best.pt"),
        (("evaluate", "runs/x", "--tta"), "write evaluate.votes=10"),
        (("predict", "runs/x", "--conf", "0.3"), "write sightline predict RUN PATH score=0.3"),
        (("predict", "runs/x", "--source", "a.ply"), "write sightline predict RUN a.ply"),
        (("predict", "runs/x", "a.ply", "--batch", "4"), "No such option: --batch; 'sightline predict --help' lists"),
        (("train", SHAPES, "--multirun", "seed=1,2"), "write sightline sweep CONFIG --space KEY=A,B --out DIR"),
        (("train", SHAPES, "--fast-dev-run"), "write sightline check CONFIG"),
        (("train", SHAPES, "--cfg-options", "seed=2"), "write sightline train CONFIG seed=2"),
        (("train", SHAPES, "--verbose"), "No such option: --verbose; 'sightline train --help' lists them"),
        (("train", SHAPES, "--resume"), "--resume: lacks its value, auto|PATH: resume a run from its last checkpoint"),
        (("train", SHAPES, "--processes", "two"), "'--processes': found 'two'; it should be a valid integer"),
        (("train", SHAPES, "--device", "cuda:1"), "for this GPU, CUDA_VISIBLE_DEVICES=1 sightline ... --device cuda"),
        (("train", SHAPES, "-o", "a"), "-o: is not an option; write --out a"),
        (("train", SHAPES, "early_stopping=5"), "write train.early_stopping.patience=5"),
        (("train", SHAPES, "train.early_stopping=5"), "min_change; write train.early_stopping.patience=5"),
        (("train", SHAPES, "train.patience=5"), "write train.early_stopping.patience=5"),
        (("train", SHAPES, "init=runs/a"), "write init.from=runs/a"),
        (("train", SHAPES, "trainer.max_epochs=3"), "unknown key 'trainer'; write train.epochs=3"),
        (("train", SHAPES, "device=0"), "unknown key 'device'; write --device cuda"),
        (("train", SHAPES, "model=dgcn"), "its arguments; write model.name=dgcnn"),
        (("train", SHAPES, "losses=cross_entropi"), "write 'losses=[{name: cross_entropy}]'"),
        (
            ("train", "data=photos/data.yaml", "model=yolo11n.pt"),
            "the config comes first, key=value after it; photos with YOLO's labels are prepared first: "
            "sightline data prepare yolo_txt --from photos --to prepared --config own.yaml, then: "
            "sightline train own.yaml",
        ),
        (("train", SHAPES, "model=yolo11n.pt"), "init.from=yolo11n.pt the weights to start from"),
        (("train", "yolo11n.pt"), "a config names the network, and init.from=yolo11n.pt the weights to start from"),
        (("train", "model.py"), "the config comes first, and --plugin model.py adds parts of your own"),
        (("train", "yolov3"), "did you mean 'detect/synthetic_crowds_yolov3'?"),
        (("train", SHAPES, "model=PointNet++"), "write model.name=pointnet2"),
        (("TRAIN", SHAPES), "TRAIN: is no command; write: sightline train"),
        (("data", "list"), "list: is no command; write: sightline list data"),
        (("compress", "runs/x"), "runs/x: is no command; write: sightline compress run runs/x"),
        (("data", "my/photos"), "my/photos: is no command; write: sightline data info my/photos"),
        (("own.yaml",), "own.yaml: is no command; write: sightline train own.yaml"),
        (("test", "runs/x"), "test: is no command; write: sightline evaluate RUN"),
        (("help",), "help: is no command; write: sightline --help"),
        (("evalute",), "No such command 'evalute'. Did you mean 'evaluate'?"),
    ],
)  # fmt: skip
def test_what_users_of_other_tools_type_is_answered_in_one_line(
    words: tuple[str, ...], answer: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    line = refuse(*words)
    assert line.startswith("error: ")
    assert line.count("\n") == 1
    assert answer in line
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        (
            "path: ../coco8\ntrain: images/train\nval: images/val\nnames: {0: person}\n",
            "prepare yolo_txt --from photos ",
        ),
        ("nc: 80\nbackbone: [[-1, 1, Conv, [64, 3, 2]]]\nhead: [[-1, 1, Detect, [nc]]]\n", "describes a network"),
    ],
)
def test_a_file_of_another_tool_is_answered_in_one_line(
    text: str, answer: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos/data.yaml").write_text(text)
    told = refuse("train", "photos/data.yaml")
    assert told.startswith("error: photos/data.yaml: ")
    assert answer in told
    assert told.count("\n") == 1


def test_a_file_is_answered_in_the_form_of_files(tmp_path: Path) -> None:
    (tmp_path / "own.yaml").write_text(f"base: {SHAPES}\nmax_epochs: 3\ntrain: {{early_stopping: 5}}\n")
    told = refuse("show", tmp_path / "own.yaml")
    assert "own.yaml:2: max_epochs: unknown key 'max_epochs'; did you mean 'train.epochs'?" in told
    assert "own.yaml:3: train.early_stopping: found 5" in told
    assert "write train.early_stopping: {patience: 5}" in told
