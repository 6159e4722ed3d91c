"""Parts of sets of images with boxes: seeded, alike in classes and folders, the same again."""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest

from sightline.areas.detect.sets.formats import Coco
from sightline.config import read_config, read_sections, render_config
from sightline.contract.errors import ConfigError
from sightline.engine.distributed import World
from sightline.engine.run_data import build_data, log_unused_validation
from sightline.runs.inputs import inputs_document
from sightline.store.boxes.labelled_images import hold_out_images
from tests.data.boxes.box_writers import pattern, quiet, write_coco, write_image
from tests.data.preparing import names_of


def pairs_of(shown: Sequence[Sequence[int]]) -> tuple[np.ndarray, np.ndarray]:
    """The places of images and the classes that they show, in order."""
    pairs = [(place, label) for place, labels in enumerate(shown) for label in sorted({*labels})]
    places, labels = np.array(pairs, dtype=np.int64).reshape(-1, 2).T
    return places, labels


def test_as_many_are_held_out_as_were_asked_for_however_rare_classes_are() -> None:
    """Over 200 random sets, and 40 images of 20 classes: the size asked for, the same again by the same seed."""
    rng = np.random.default_rng(5)
    for seed in range(200):
        size, num_classes = int(rng.integers(20, 60)), int(rng.integers(1, 7))
        shown = [np.flatnonzero(rng.random(num_classes) < 0.5 / (1 + np.arange(num_classes))) for _ in range(size)]
        folders = [f"folder{place % 2}" for place in range(size)]
        held = hold_out_images(*pairs_of(shown), folders, count=size // 5, seed=seed)
        assert held == hold_out_images(*pairs_of(shown), folders, count=size // 5, seed=seed)
        assert sum(held) == size // 5
    twice = [[place // 2] for place in range(40)]
    for count in range(1, 40):
        assert sum(hold_out_images(*pairs_of(twice), [""] * 40, count=count, seed=count)) == count


def test_one_class_is_dealt_over_folders_in_proportion() -> None:
    """Of 300, 100 and 50 images in three folders a fifth each, to one image: 60, 20 and 10."""
    folders = ["a"] * 300 + ["b"] * 100 + ["c"] * 50
    chosen = set()
    for seed in range(20):
        held = hold_out_images(*pairs_of([[0]] * 450), folders, count=90, seed=seed)
        found = Counter(folder for folder, is_held in zip(folders, held, strict=True) if is_held)
        assert all(abs(found[name] - size) <= 1 for name, size in (("a", 60), ("b", 20), ("c", 10)))
        assert sum(held) == 90
        chosen.add(tuple(held))
    assert len(chosen) == 20


def test_a_class_of_one_image_is_trained_on() -> None:
    """Hand-made: 18 images of class 0, of which one shows class 1."""
    shown: list[list[int]] = [[0]] * 17 + [[0, 1]]
    for seed in range(50):
        held = hold_out_images(*pairs_of(shown), [""] * 18, count=4, seed=seed)
        assert not held[17]
        assert sum(held) == 4
    alone = [[place] for place in range(5)]
    assert all(sum(hold_out_images(*pairs_of(alone), [""] * 5, count=1, seed=seed)) == 1 for seed in range(20))
    assert sum(hold_out_images(*pairs_of([[], [], []]), [""] * 3, count=1, seed=0)) == 1
    assert hold_out_images(*pairs_of([[0]]), [""], count=0, seed=0) == [False]


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Forty images in two folders; the last eight, all of the second folder, show no hat."""
    folder = tmp_path_factory.mktemp("coco")
    images, rows = [], []
    for number in range(40):
        name = f"{'a' if number < 30 else 'b'}/{number:02d}.png"
        write_image(folder / "in" / name, pattern(8, 8))
        images.append((number, name, 8, 8))
        labels = (3, 90) if number in (4, 11) else (7,) if number < 32 else (3,)
        rows += [{"image_id": number, "category_id": label, "bbox": [1, 1, 4, 4]} for label in labels]
    write_coco(folder / "in" / "labels.json", images, rows)
    Coco.prepare(source=folder / "in", target=folder / "set", name="coco", progress=quiet)
    return folder / "set"


@pytest.mark.parametrize(
    ("test_share", "validation_share", "sizes"), [(0.2, 0.1, (29, 3, 8)), (0.5, 0.5, (10, 10, 20))]
)
def test_parts_are_disjoint_whole_and_of_the_shares_asked_for(
    root: Path, test_share: float, validation_share: float, sizes: tuple[int, int, int]
) -> None:
    """The share of validation is of what the test part leaves. What a seed draws is pinned, for any machine."""
    shares: dict[str, float] = {"test_share": test_share, "validation_share": validation_share}
    parts = [names_of(Coco(split=split, root=str(root), **shares)) for split in ("train", "validation", "test")]
    assert tuple(map(len, parts)) == sizes
    assert sorted(itertools.chain(*parts)) == [
        f"{'a' if number < 30 else 'b'}/{number:02d}.png" for number in range(40)
    ]
    if test_share == 0.2:
        assert " ".join(name[2:4] for name in parts[2]) == "01 12 16 22 28 30 37 38"


def test_parts_that_files_do_not_state_are_seeded(root: Path) -> None:
    """Images of both folders are tested, and other ones with another seed."""
    parts = {split: Coco(split=split, root=str(root)) for split in ("train", "validation", "test")}
    names = {split: names_of(images) for split, images in parts.items()}
    assert all(each == sorted(each) for each in names.values())
    assert {name[0] for name in names["test"]} == {"a", "b"}
    assert names_of(Coco(split="test", root=str(root), classes=("hat",))) == names["test"]
    assert names_of(Coco(split="test", root=str(root), split_seed=1)) != names["test"]
    dealt = inputs_document(parts["train"].info)["split"]
    assert dealt == {"rule": "seeded", "seed": 0, "parts": ("validation", "test")}
    chosen = Coco(split="test", root=str(root), tested=("b/3",))
    assert names_of(chosen) == [f"b/{number}.png" for number in range(30, 40)]
    assert inputs_document(chosen.info)["split"]["parts"] == ("validation",)


@pytest.mark.parametrize(("words", "count"), [((), 0), (("data.validation_share=0",), 0), (("data.split_seed=1",), 1)])
def test_a_part_that_is_held_out_and_not_scored_is_named(
    root: Path, caplog: pytest.LogCaptureFixture, words: tuple[str, ...], count: int
) -> None:
    base = Path(__file__).parents[3] / "configs" / "detect" / "photos_scratch.yaml"
    select = ("evaluate.select=test",) * bool(words)
    config = read_config(base, ["data.name=coco", f"data.root={root}", *select, *words])
    log_unused_validation(config, build_data(config), World())
    told = "the 3 samples of the validation part are neither trained on nor scored; data.vali"
    assert caplog.text.count(told) == count


@pytest.mark.parametrize(
    ("data", "path"),
    [("{name: coco, root: ROOT}", "data"), ("{name: concat, sets: [{name: coco, root: ROOT}]}", "data.sets.0")],
)
def test_a_recorded_config_without_the_seed_of_the_parts_is_refused(
    root: Path, tmp_path: Path, data: str, path: str
) -> None:
    """It never follows today's default; what the command line replaces has it."""
    base, recorded = Path(__file__).parents[3] / "configs/detect/synthetic_crowds_retinanet.yaml", tmp_path / "run"
    recorded.mkdir()
    (recorded / "facts.json").write_text("{}")
    (tmp_path / "new.yaml").write_text(f"base: {base}\ndata: {data.replace('ROOT', str(root))}\n")
    text = render_config(read_config(tmp_path / "new.yaml"), origins=False)
    lines = [line for line in text.splitlines(keepends=True) if "split_seed" not in line]
    (recorded / "config.yaml").write_text("".join(lines))
    for read in (read_config, lambda path: read_sections(path, ("data",))):
        with pytest.raises(ConfigError, match=rf"config\.yaml: lacks {path}\.split_seed, which"):
            read(recorded / "config.yaml")
    (recorded / "config.yaml").write_text(text)
    replaced = read_config(recorded / "config.yaml", [f"data={{name: coco, root: {root}}}"])
    assert replaced.data.arguments["split_seed"] == 0
