"""nuScenes lidarseg: classes by the names of categories, parts of the development kit, its score, and refusals."""

from __future__ import annotations

import json
import math
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from sightline.areas.scans.sets.nuscenes_lidarseg import CLASSES, IGNORED, NuScenesLidarseg, benchmark_map
from sightline.areas.scans.sets.scan_folder import ScanFolder
from sightline.contract.errors import ConfigError, DataError
from sightline.contract.types import SampleKey
from sightline.parts.metrics import IoU, Meter
from sightline.store.scans.nuscenes_tables import find_tokens
from tests.cases import run_each
from tests.data.preparing import refuse
from tests.data.scans import nuscenes_writers as writers
from tests.data.scans.lidar_writers import quiet

TABLES = "v1.0-trainval"


def prepare(source: Path, target: Path) -> dict[str, Any]:
    return NuScenesLidarseg.prepare(source=source, target=target, name="nuscenes_lidarseg", progress=quiet)


# --- classes and parts ---


def test_classes_are_those_of_the_benchmark() -> None:
    """Each category is of one class, or ignored, as the benchmark's page numbers them."""
    found = {name: index + 1 for index, members in enumerate(CLASSES.values()) for name in members}
    assert found | dict.fromkeys(IGNORED, 0) == writers.BENCHMARK
    assert len(found) + len(IGNORED) == 32
    assert benchmark_map().class_names == tuple(CLASSES)
    assert benchmark_map().ids(np.arange(16)).tolist() == list(range(1, 17))


ORDERS = [list(range(32)), list(range(31, -1, -1)), np.random.default_rng(3).permutation(32).tolist()]


@run_each("order, folder", [(ORDERS[0], "."), (ORDERS[1], TABLES), (ORDERS[2], ".")])
def test_classes_follow_the_names_whatever_the_ids(
    tmp_path_factory: pytest.TempPathFactory, order: list[int], folder: str
) -> None:
    root = tmp_path_factory.mktemp("nuscenes")
    writers.write_nuscenes(root, order=order)
    report = prepare(root / folder, root / "set")
    assert (report["layout"], report["version"]) == ("nuscenes_lidarseg", TABLES)
    assert report["points_per_id"] == {
        f"{raw} {name}": 18 for raw, name in sorted(zip(order, writers.BENCHMARK, strict=True))
    }
    sweeps, unstated = report["differences"]
    assert sweeps == "1 sweeps between key frames have no labels, and are left out"
    assert unstated.startswith("which scenes validate is not stated: put the development kit's splits.py beside v1.0-t")
    options: dict[str, Any] = {"root": str(root / "set"), "tested": ("scene-0003",), "validation_share": 0.0}
    train, test = (NuScenesLidarseg(split=split, **options) for split in ("train", "test"))
    facts = train.info.facts
    assert facts["class_names"] == tuple(CLASSES)
    assert (facts["num_classes"], facts["ignore_index"], facts["num_beams"]) == (16, 255, 32)
    named = writers.frame_names()
    names = [f"{scene}/{at}" for scene, count in writers.FRAMES.items() for at in range(count)]
    expected = [f"{name[:11]}{int(name[11:]):03d}-{writers.token_of('data', at)}" for at, name in enumerate(names)]
    seen = [part.sample_name(at) for part in (train, test) for at in range(len(part))]
    assert sorted(seen) == sorted(expected)
    assert [test.sample_name(at) for at in range(2)] == expected[3:5]  # in the order of time, not of tokens
    benchmark = np.array([*writers.BENCHMARK.values()])
    for at, (_, number, name) in enumerate(named[3:5]):
        sample, rows = test[SampleKey(at, 0, 0)], writers.make_scan(number)
        assert np.array_equal(sample["points"], rows[:, :3])
        assert np.array_equal(sample["remission"][:, 0], rows[:, 3] / np.float32(255))
        assert np.array_equal(sample["ring"], 31 - rows[:, 4])
        official = benchmark[(np.arange(writers.NUM_POINTS) + number) % 32]
        assert np.array_equal(sample["label"], np.where(official == 0, 255, official - 1)), name


def test_every_category_or_a_map_of_the_users_own(tmp_path: Path) -> None:
    order = ORDERS[2]
    writers.write_nuscenes(tmp_path / "in", order=order)
    prepare(tmp_path / "in", tmp_path / "set")
    options: dict[str, Any] = {"root": str(tmp_path / "set"), "split": "train", "tested": ("scene-0003",)}
    whole = NuScenesLidarseg(label_map="all", **options)
    by_id = dict(zip(order, writers.BENCHMARK, strict=True))
    assert whole.info.facts["class_names"] == tuple(by_id[raw] for raw in range(32))
    spec = whole.info.scans
    assert spec is not None
    assert (spec.label_form, spec.ids_of_classes) == ("semantic_kitti", tuple(range(32)))
    own = NuScenesLidarseg(label_map=(None, "thing", *[None] * 30), **options)
    assert own.info.facts["class_names"] == ("unlabeled", "thing")
    with pytest.raises(DataError, match="lidarsek: cannot be read as a label map"):
        NuScenesLidarseg(label_map="lidarsek", **options)
    with pytest.raises(ConfigError, match="num_beams is 64, the rings of nuScenes are 0 to 31"):
        NuScenesLidarseg(sensor={"num_beams": 64}, **options)


@run_each("version, place, tested", [(TABLES, ".", "scene-0003"), ("v1.0-mini", "v1.0-mini", "scene-0103")])
def test_the_development_kit_states_the_parts(
    tmp_path_factory: pytest.TempPathFactory, version: str, place: str, tested: str
) -> None:
    """Its file is parsed and never run; of the whole set the list `val` holds, of the small one `mini_val`."""
    root = tmp_path_factory.mktemp("nuscenes")
    writers.write_nuscenes(root, version=version)
    writers.write_splits(root / place / "splits.py")
    report = prepare(root, root / "set")
    assert report["split"].startswith("train and test are given by the validation scenes of splits.py")
    assert ("1 of the 2 scenes of val are there" in report["differences"]) == (version == TABLES)
    parts = {split: NuScenesLidarseg(split=split, root=str(root / "set")) for split in ("train", "validation", "test")}
    scenes = {split: {part.sample_name(at)[:10] for at in range(len(part))} for split, part in parts.items()}
    assert scenes["test"] == {tested}
    assert scenes["train"] | scenes["validation"] == {*writers.FRAMES} - {tested}
    assert not (root / place / "was_run").exists()


def test_lists_of_other_scenes_are_refused(tmp_path: Path) -> None:
    writers.write_nuscenes(tmp_path)
    path = tmp_path / "splits.py"
    for text, message in (
        ("val = ['scene-9999']", "val names none of the 3 scenes of v1.0-trainval; get python-sdk/nuscenes/utils"),
        (f"val = {[*writers.FRAMES]}", "val names all of the 3 scenes of v1.0-trainval"),
        ("val = [1]", "val is not a list of names; get"),
        ("val = sorted(x)", "splits.py:1: val is not a plain list of values; get"),
        ("train = []", "splits.py: assigns no val; get python-sdk/nuscenes/utils/splits.py of github.com"),
    ):
        path.write_text(text)
        refuse(prepare, tmp_path, re.escape(message))


def test_a_real_frame(shared: Path, tmp_path: Path) -> None:
    (frame,) = (shared / "data/mmdet3d_demo/nuscenes").glob("*.pcd.bin")
    writers.write_nuscenes(tmp_path / "in")
    for path in (tmp_path / "in/samples/LIDAR_TOP").iterdir():
        shutil.copy(frame, path)
    for path in (tmp_path / f"in/lidarseg/{TABLES}").iterdir():
        path.write_bytes(bytes([[*writers.BENCHMARK].index("vehicle.truck")]) * (frame.stat().st_size // 20))
    prepare(tmp_path / "in", tmp_path / "set")
    sample = NuScenesLidarseg(split="test", root=str(tmp_path / "set"))[SampleKey(0, 0, 0)]
    assert set(sample["label"].tolist()) == {9}
    assert sample["ring"].bincount().tolist() == [1084] * 32
    assert sample["remission"].max() == 1.0
    top = sample["ring"] == 0
    assert sample["points"][top, 2].double().mean() > sample["points"][~top, 2].double().mean()


# --- the score ---


def official_score(labels: list[int], answers: list[int]) -> tuple[list[float], float]:
    """The evaluator of the benchmark in plain loops, of numbers from 0: IoU of the classes 1 to 16, and their mean.

    Points of class 0 do not count, a class that neither has is NaN and not in the mean, and 0 may not be predicted.
    """
    ious = []
    for number in range(1, 17):
        both = either = 0
        for label, answer in zip(labels, answers, strict=True):
            assert answer in range(1, 17)
            if label != 0:
                both += label == answer == number
                either += number in (label, answer)
        ious.append(both / either if either else math.nan)
    known = [iou for iou in ious if not math.isnan(iou)]
    return ious, sum(known) / len(known) if known else math.nan


def draw_set(seed: int) -> list[tuple[np.ndarray, np.ndarray]]:
    """Labels 0 to 16 and answers 1 to 16 of some scans, of few classes in most sets, and all ignored in some."""
    generator = np.random.default_rng(seed)
    classes = generator.choice(17, size=generator.integers(1, 17), replace=False)
    answered = generator.choice(np.arange(1, 17), size=generator.integers(1, 16), replace=False)
    scans = []
    for _ in range(int(generator.integers(1, 4))):
        size = int(generator.integers(0, 60))
        labels = generator.choice(classes, size=size) if seed % 10 else np.zeros(size, dtype=np.int64)
        is_right = (generator.random(size) < 0.5) & (labels > 0)
        scans.append((labels, np.where(is_right, labels, generator.choice(answered, size=size))))
    return scans


def test_the_score_is_the_official_one_on_a_hundred_sets() -> None:
    facts = {"num_classes": 16, "class_names": tuple(CLASSES), "ignore_index": 255}
    num_absent = num_void = 0
    for seed in range(100):
        scans = draw_set(seed)
        meter = Meter(IoU(**facts), num_samples=len(scans))
        for at, (labels, answers) in enumerate(scans):
            target = torch.from_numpy(np.where(labels == 0, 255, labels - 1))
            classes = benchmark_map().classes(answers, where="answers")
            offsets, index = torch.tensor([0, len(labels)]), torch.tensor([at])
            meter.update(probabilities=torch.eye(16)[classes], target=target, cloud_offsets=offsets, sample_index=index)
        ious, mean = official_score(*(np.concatenate(side).tolist() for side in zip(*scans, strict=True)))
        rows = meter.metric.per_class(meter.state)
        assert [rows[name]["iou"] for name in CLASSES] == pytest.approx(ious, abs=1e-15, nan_ok=True)
        assert meter.compute()["miou"] == pytest.approx(mean, abs=1e-14, nan_ok=True)
        num_absent, num_void = num_absent + any(map(math.isnan, ious)), num_void + math.isnan(mean)
    assert num_absent > 80
    assert 10 <= num_void < 20


# --- tokens of files to predict ---


def test_tokens_of_scans_in_their_place(tmp_path: Path) -> None:
    writers.write_nuscenes(tmp_path)
    (_, _, first), *_, (_, number, last) = writers.frame_names()
    row = {"token": "t" * 32, "filename": f"samples/LIDAR_TOP/{first}.pcd.bin"}
    writers.write_tables(tmp_path / "v1.0-test", {"sample_data": [row]})
    files = [tmp_path / f"samples/LIDAR_TOP/{name}.pcd.bin" for name in (first, last, "other")]
    foreign = tmp_path / "elsewhere" / f"{first}.pcd.bin"
    found = find_tokens([*files, foreign])
    assert {path: tuple(token) for path, token in found.items()} == {
        files[0]: ("test", "t" * 32),
        files[1]: ("val", writers.token_of("data", number)),
    }


# --- refusals ---


def edit(table: str, change: Callable[[list[Any]], Any]) -> Callable[[Path], None]:
    """Make a fault: what `change` makes of the rows of a table."""

    def plant(root: Path) -> None:
        path = root / f"{TABLES}/{table}.json"
        path.write_text(json.dumps(change(json.loads(path.read_text()))))

    return plant


def label_file(root: Path) -> Path:
    return root / f"lidarseg/{TABLES}/{writers.token_of('data', 1)}_lidarseg.bin"


FAULTS: list[tuple[Callable[[Path], Any], str]] = [
    (edit("lidarseg", lambda rows: rows[:-1]), "lidarseg.json: has no labels of 1 key frames, first samples/LIDAR"),
    (edit("lidarseg", lambda rows: []), "lidarseg.json: has no labels of 6 key frames"),
    (edit("lidarseg", lambda rows: [*rows, rows[0]]), "lidarseg.json: row 6 repeats the sample_data_token"),
    (edit("lidarseg", lambda rows: [rows[0], {"sample_data_token": "s1"}]), "json: row 1 has no text 'filename'"),
    (edit("lidarseg", lambda rows: [{**rows[0], "filename": "../../a"}]), "'../../a' lies outside"),
    (edit("sample_data", lambda rows: rows[1:]), "sample_data.json: has no row '"),
    (edit("sample", lambda rows: []), "sample.json: has no row '"),
    (edit("scene", lambda rows: {}), "scene.json: is no list of rows"),
    (
        edit("category", lambda rows: [{**row, "index": None} for row in rows]),
        "category.json: 'noise' has no index; that is the table of nuScenes without lidarseg: unpack lidarseg's over",
    ),
    (edit("category", lambda rows: [{**rows[0], "index": 256}]), "category.json: 'noise' has the index 256"),
    (
        edit("category", lambda rows: [rows[0], {**rows[1], "index": 0}]),
        "category.json: 'noise' and 'animal' have the index 0; the tables are damaged",
    ),
    (lambda root: (root / f"{TABLES}/scene.json").write_text("[{"), "scene.json: does not read as JSON"),
    (lambda root: (root / f"{TABLES}/sample.json").unlink(), "sample.json: cannot be read"),
    (
        lambda root: (root / f"{TABLES}/lidarseg.json").unlink(),
        "has no tables of labels; unpack nuScenes lidarseg",
    ),
    (lambda root: label_file(root).unlink(), "_lidarseg.bin: there is no such file, and 0 more of 12 are missing"),
    (
        lambda root: label_file(root).write_bytes(b"1" * 95),
        "_lidarseg.bin: has 95 bytes, 96 are expected: one uint8 for each of the 96 points",
    ),
    (lambda root: shutil.copytree(root / TABLES, root / "v1.0-mini"), "has 2 sets of tables; give one: "),
]


@run_each("plant, message", FAULTS)
def test_faulty_tables_are_refused(
    tmp_path_factory: pytest.TempPathFactory, plant: Callable[[Path], Any], message: str
) -> None:
    root = tmp_path_factory.mktemp("nuscenes")
    writers.write_nuscenes(root)
    plant(root)
    refuse(prepare, root, re.escape(message))


@run_each(
    "change, message",
    [
        (
            lambda rows: [row for row in rows if row["name"] != "vehicle.trailer"],
            "names no category of the class 'trailer' (vehicle.trailer); get it again",
        ),
        (
            lambda rows: [row for row in rows if row["name"] != "animal"],
            "the label id 1 (18 points) not in the map category.json of ",
        ),
        (
            lambda rows: [{**row, "name": row["name"].replace("animal", "dragon")} for row in rows],
            "the label id 1 (18 points) not in the map category.json of ",
        ),
    ],
)
def test_categories_that_are_not_the_benchmarks_are_refused(
    tmp_path_factory: pytest.TempPathFactory, change: Callable[[list[Any]], Any], message: str
) -> None:
    """But read as they are, if every category is a class."""
    root = tmp_path_factory.mktemp("nuscenes")
    writers.write_nuscenes(root)
    edit("category", change)(root)
    prepare(root, root / "set")
    with pytest.raises(DataError, match=re.escape(message)):
        NuScenesLidarseg(split="train", root=str(root / "set"))
    assert NuScenesLidarseg(split="train", root=str(root / "set"), label_map="all").info.facts["num_classes"] == 32


def test_the_set_of_own_scans_names_this_one(tmp_path: Path) -> None:
    writers.write_nuscenes(tmp_path / "in")
    with pytest.raises(DataError, match="has the tables of nuScenes lidarseg; prepare the set nuscenes_lidarseg,"):
        ScanFolder.prepare(source=tmp_path / "in", target=tmp_path / "set", name="scan_folder", progress=quiet)
