"""A preset reads a folder that was prepared as another set of its area; what the user typed is not replaced."""

from __future__ import annotations

from pathlib import Path

import pytest

from sightline.config import RunConfig, read_config, read_sections
from sightline.training.config_source import read_source, read_with_plugins

PHOTOS = Path("detect/photos_scratch")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """The beginning of a prepared folder, as the config reads it."""
    return prepared(tmp_path / "photos", "yolo_txt")


def prepared(folder: Path, name: str) -> Path:
    folder.mkdir()
    (folder / "manifest.json").write_text(f'{{"format": 3,\n"set": "{name}",\n"layout": "x"}}\n')
    return folder


def name_of(config: RunConfig) -> tuple[str, str]:
    return config.data.name, Path(config.origins["data.name"].source).name


def test_a_preset_takes_the_set_of_the_folder_with_one_line(folder: Path) -> None:
    words = [f"data.root={folder}", "data.classes=[cat]", "data.split_seed=3"]
    read = read_with_plugins(PHOTOS, words)
    assert name_of(read.config) == ("yolo_txt", "manifest.json")
    arguments = read.config.data.arguments
    assert (arguments["root"], arguments["classes"], arguments["split_seed"]) == (str(folder), ("cat",), 3)
    assert read.notes == (f"data.name: yolo_txt, as {folder} was prepared, in the place of the config's",)
    assert read_sections(PHOTOS, ["data"], words)["data"].name == "yolo_txt"
    assert read_with_plugins(PHOTOS, []).notes == ()


def test_a_config_over_a_preset_names_the_folder(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "own.yaml").write_text(f"base: {PHOTOS}\ndata: {{root: {folder}, classes: [cat]}}\n")
    config = read_source(tmp_path / "own.yaml").config
    assert name_of(config) == ("yolo_txt", "manifest.json")
    assert config.data.arguments["classes"] == ("cat",)


@pytest.mark.parametrize("words", [["data.name=coco"], ["data={name: coco}"]])
def test_a_typed_name_stays(words: list[str], folder: Path, tmp_path: Path) -> None:
    """Opening the folder then refuses it."""
    assert name_of(read_config(PHOTOS, [*words, f"data.root={folder}"])) == ("coco", "command line")
    (tmp_path / "own.yaml").write_text(f"base: {PHOTOS}\ndata: {{name: coco, root: {folder}}}\n")
    assert name_of(read_config(tmp_path / "own.yaml")) == ("coco", "own.yaml")


@pytest.mark.parametrize(
    ("config", "name"),
    [
        ("classify/modelnet10_pointnet", "modelnet40"),  # which modelnet10 reads
        ("classify/modelnet10_pointnet", "yolo_txt"),  # of another area
        ("detect/photos_scratch", "no_such_set"),
        ("detect/photos_scratch", "coco"),
    ],
)
def test_a_set_stays_where_no_other_can_take_its_place(config: str, name: str, tmp_path: Path) -> None:
    folder = prepared(tmp_path / "folder", name)
    assert Path(read_config(Path(config), [f"data.root={folder}"]).origins["data.name"].source).suffix == ".yaml"


@pytest.mark.parametrize("content", [b"", b"\xff" * 2**17, b'{"set": "yolo_txt"}', b'"set": "yo/lo",\n'])
def test_other_manifests_name_no_set(content: bytes, folder: Path) -> None:
    (folder / "manifest.json").write_bytes(content)
    assert read_config(PHOTOS, [f"data.root={folder}"]).data.name == "coco"
