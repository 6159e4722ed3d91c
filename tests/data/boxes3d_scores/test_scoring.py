"""What `score` makes of files of 3D detections: figures, and a remark for each trap that hides behind them."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch

from sightline.areas.boxes3d.prediction_writer import Box3dWriter
from sightline.areas.boxes3d.sets.labels3d import Labels3d
from sightline.contract.types import SampleKey
from sightline.draw.page import PageTable, PageText
from sightline.engine.distributed import World
from sightline.engine.evaluate import make_evaluation
from sightline.engine.run_data import DataSubset
from sightline.runs.run_records import ReportedRun
from sightline.store.loading.batch_reader import BatchReader
from sightline.view.run_report import make_report
from tests.command import document_of, refuse, succeed
from tests.data.boxes3d_scores.streets import Edit, Row, detect, draw_streets, write_config, write_rows

FRAMES = draw_streets()
FOUND = detect(FRAMES)


def flat(kind: str, row: Row) -> tuple[str, Row]:
    return kind, [*row[:3], 0, 0, 0, 0, *row[7:]]


def assumed(kind: str, row: Row) -> tuple[str, Row]:
    return kind, [*row[:3], 0, 0, 50, 50, *row[7:]]


def hidden(kind: str, row: Row) -> tuple[str, Row]:
    return kind, [0, 3 if kind == "Cyclist" else 0, *row[2:]]


def reversed_heading(kind: str, row: Row) -> tuple[str, Row]:
    return kind, [*row[:13], row[13] + math.pi, *row[14:]]


def swapped(kind: str, row: Row) -> tuple[str, Row]:
    height, width, length = row[7:10]
    return kind, [*row[:7], height, length, width, *row[10:]]


def renamed(old: str, new: str) -> Edit:
    return lambda kind, row: (new if kind == old else kind, row)


NONE_COUNTS = "126 of 126 labels have no image box, or one of no height: KITTI's rules do not count them"
PLANTED: dict[str, tuple[Edit | None, Edit | None, int, list[str]]] = {
    "healthy": (None, None, 14, []),
    "T3 labels without image boxes": (flat, None, 14, [NONE_COUNTS]),
    "T3 detections without image boxes": (None, flat, 14, ["126 of 126 detections have no image box"]),
    "T3 one image box for all": (
        assumed,
        assumed,
        14,
        ["126 of 126 labels have the same image box 0 0 50 50", "126 of 126 detections have the same image box"],
    ),
    "T3 none counts": (
        hidden,
        None,
        14,
        [
            "no label of 'Cyclist, hard' counts, so that it has no AP: 42 occluded over 2",
            "labels of 'Cyclist, easy' that do not count: 42 occluded over 0",
        ],
    ),
    "T4": (
        None,
        None,
        5,
        [
            f"'{kind}': so few labels count that no detector reaches 1: 15 easy (at most 0.35 at 40 recalls"
            for kind in ("Car", "Cyclist")
        ],
    ),
    "T5 cut": (
        None,
        renamed("Pedestrian", "Ped"),
        14,
        ["42 boxes of the class 'Ped' are not scored: it looks like 'Pedestrian', cut to 3 letters"],
    ),
    "T5 unknown": (
        None,
        renamed("Car", "Bus"),
        14,
        ["are not scored: 'Bus' (42 boxes); names are compared letter by letter"],
    ),
    "T5 a detection of no class": (
        None,
        renamed("Car", "DontCare"),
        14,
        ["hardest classes by ap_3d_r40_moderate: Car (0)"],
    ),
    "T16 headings": (None, reversed_heading, 14, ["'Car': 42 of 42 found boxes point backwards", "0.0"]),
    "T16 sizes": (
        None,
        swapped,
        14,
        ["'Car': the error of sizes (1 - IoU) of 42 found boxes is 0.7", "read as width, length, height"],
    ),
}
WORDS = ("image box", "do not count", "so few labels", "not scored", "backwards", "the error of sizes", "no figure")
"""Of the sentences of all traps."""


@pytest.mark.parametrize("name", PLANTED)
def test_each_trap_is_remarked_and_its_healthy_twin_is_not(tmp_path: Path, name: str) -> None:
    edit_labels, edit_results, count, sentences = PLANTED[name]
    chosen = [*FRAMES][:count]
    labels = write_rows(tmp_path / "labels", {frame: FRAMES[frame] for frame in chosen}, edit_labels)
    results = write_rows(tmp_path / "results", {frame: FOUND[frame] for frame in chosen}, edit_results)
    done = succeed("score", results, "--data", write_config(tmp_path, labels))
    said = " ".join(done.err.split())
    for sentence in sentences:
        assert sentence in said
    if not sentences:
        assert not [word for word in WORDS if word in said], said


def test_figures_are_named_beside_the_number_that_counts_and_the_ceiling(tmp_path: Path) -> None:
    """All of 15 easy cars are found, so that 40 recalls give (15 - 1) / 40, and 11 recalls 4 of 11 slots."""
    chosen = [*FRAMES][:5]
    labels = write_rows(tmp_path / "labels", {frame: FRAMES[frame] for frame in chosen})
    results = write_rows(tmp_path / "results", {frame: FOUND[frame] for frame in chosen})
    found = document_of("score", results, "--data", write_config(tmp_path, labels))
    car = found["by_difficulty"]["Car, easy"]
    assert (car["count"], car["ceiling_r40"], car["ceiling_r11"]) == (15, 0.35, pytest.approx(4 / 11))
    assert (car["ap_3d_r40"], car["ap_3d_r11"], car["ap_2d_r40"]) == (0.35, pytest.approx(4 / 11), 0.35)
    assert 0.349 < car["aos_r40"] < 0.35
    assert found["metrics"]["ap_3d_r40_easy"] == pytest.approx(0.35)
    assert found["metrics"]["ap_overlap"] == 1
    interval = found["class_intervals"]["Car"]["ap_overlap"]
    assert interval == {"low": 1, "high": 1, "level": 0.95, "num_samples": 5, "method": "bootstrap over frames"}
    assert 0 < found["metrics"]["yaw_error_rad"] < 0.05
    assert found["metrics"]["yaw_error_rad"] == found["metrics"]["axis_error_rad"]


def test_own_forms_and_other_frames(tmp_path: Path) -> None:
    """Detections in our text give what KITTI's rows give; frames that are not scored are said."""
    labels = write_rows(tmp_path / "labels", FRAMES)
    results = write_rows(tmp_path / "results", {**FOUND, "900001": FOUND["000010"]})
    lines = []
    for frame, rows in FOUND.items():
        for kind, (*_, height, width, length, x, y, z, turn, score) in rows:
            box = (z, -x, height / 2 - y, length, width, height, -turn - math.pi / 2)
            lines.append(f"{frame} {' '.join(map(repr, box))} {score:.6f} {kind}\n")
    (tmp_path / "own.txt").write_text("".join(lines))
    config = write_config(tmp_path, labels, metrics="[{name: boxes3d_ap}]")
    theirs, ours = (document_of("score", path, "--data", config) for path in (results, tmp_path / "own.txt"))
    assert ours["metrics"] == pytest.approx(theirs["metrics"], abs=1e-5)
    assert (
        "not scored: 1 frames outside the test part, such as 900001" in succeed("score", results, "--data", config).err
    )


def test_frames_are_matched_by_id_alone(tmp_path: Path) -> None:
    """T25: missing frames are an error that names them. T27: so are results that are numbered by position."""
    labels = write_rows(tmp_path / "labels", FRAMES)
    config = write_config(tmp_path, labels)
    missing = write_rows(tmp_path / "missing", {name: rows for name, rows in FOUND.items() if name > "000015"})
    assert "no results of 2 of 14 frames: 000010, 000013; found are 000016" in refuse(
        "score", missing, "--data", config
    )
    numbered = {f"{place:06d}": rows for place, rows in enumerate(FOUND.values())}
    assert (
        "results are numbered by position, 0 to 13, and the 14 frames are 000010, 000013, 000016 and 11 more: store "
        "the frame's own id" in refuse("score", write_rows(tmp_path / "numbered", numbered), "--data", config)
    )


@pytest.mark.parametrize(
    ("metrics", "message"),
    [
        ("[{name: kitti_ap}]", "KITTI states no overlap for the class 'Bus', only for Car, Pedestrian, Cyclist"),
        (
            "[{name: kitti_ap, min_overlap: {bus: 0.5}}]",
            "min_overlap: the data set has no class 'bus', but Bus, Cyclist",
        ),
        ("[{name: boxes3d_ap, min_overlap: {bus: 0.5}}]", "min_overlap: the data set has no class 'bus', but Bus"),
        ("[{name: kitti_ap, min_overlap: {Bus: 0.6}}]", ""),
    ],
)
def test_own_classes_need_own_overlaps(tmp_path: Path, metrics: str, message: str) -> None:
    labels = write_rows(tmp_path / "labels", FRAMES, renamed("Car", "Bus"))
    results = write_rows(tmp_path / "results", FOUND, renamed("Car", "Bus"))
    config = write_config(tmp_path, labels, metrics=metrics)
    if message:
        assert message in refuse("score", results, "--data", config)
    else:
        assert document_of("score", results, "--data", config)["by_difficulty"]["Bus, easy"]["ap_3d_r40"] == 1


def test_saved_detections_are_scored_as_they_are(tmp_path: Path, shared: Path) -> None:
    """An evaluation writes JSON, and KITTI's rows of frames with a camera; both have the scores of what was found."""
    root = shared / "data/kitti_object_mini"
    frames = tmp_path / "frames.txt"
    frames.write_text("000001\n000002\n000003\n")
    sources = {"labels": str(root / "label_2"), "calibrations": str(root / "calib"), "frames": str(frames)}
    dataset = Labels3d(split="test", classes=("Car", "Cyclist"), **sources)
    config = tmp_path / "score.yaml"
    listed = ", ".join(f"{name}: '{path}'" for name, path in sources.items())
    metrics = "[{name: kitti_ap}, {name: boxes3d_ap}]"
    config.write_text(f"data: {{name: labels3d, classes: [Car, Cyclist], {listed}}}\nmetrics: {metrics}\n")
    part = DataSubset(dataset, np.arange(3), BatchReader(dataset), "test")
    writer = Box3dWriter(tmp_path / "out", part, World())
    samples = [dataset[SampleKey(number, 0, 0)] for number in range(3)]
    rows = [np.column_stack([one["boxes"], np.linspace(0.5, 0.9, len(one["label"])), one["label"]]) for one in samples]
    for chosen in ([0], [1, 2]):
        offsets = torch.tensor([0, *(len(rows[number]) for number in chosen)]).cumsum(0)
        detections = torch.from_numpy(np.concatenate([rows[number] for number in chosen]))
        writer({"sample_index": torch.tensor(chosen)}, {"detections3d": detections, "detections3d_offsets": offsets})
    writer.finish(make_evaluation([], num_samples=3, seconds=0.0), {"checkpoint": "last"})
    assert sorted(file.name for file in (tmp_path / "out/kitti").iterdir()) == [
        "000001.txt",
        "000002.txt",
        "000003.txt",
    ]
    manifest = json.loads((tmp_path / "out/manifest.json").read_text())
    assert (manifest["num_frames"], manifest["num_detections"], manifest["class_names"]) == (3, 4, ["Car", "Cyclist"])
    found = [document_of("score", path, "--data", config) for path in (tmp_path / "out", tmp_path / "out/kitti")]
    for document in found:
        assert document["metrics"]["ap_overlap"] == 1
        assert document["by_difficulty"]["Car, easy"]["count"] == 1  # 000003; the others are lower than 40 px
        assert document["by_difficulty"]["Car, moderate"]["ap_3d_r40"] == pytest.approx(1 / 40)
        assert document["by_difficulty"]["Car, moderate"]["ap_2d_r11"] == pytest.approx(1 / 11)


def test_the_page_of_a_run_has_remarks_and_the_table_by_difficulty(tmp_path: Path) -> None:
    chosen = [*FRAMES][:5]
    labels = write_rows(tmp_path / "labels", {frame: FRAMES[frame] for frame in chosen})
    results = write_rows(tmp_path / "results", {frame: FOUND[frame] for frame in chosen}, reversed_heading)
    final = {**document_of("score", results, "--data", write_config(tmp_path, labels)), "checkpoint": "last"}
    blocks, _ = make_report([ReportedRun(tmp_path, "run", {}, final, [], None, {})])
    notes = next(block.lines for block in blocks if isinstance(block, PageText) and block.style == "notes")
    assert any("'Car': 15 of 15 found boxes point backwards" in line for line in notes)
    assert any("'Car': so few labels count that no detector reaches 1: 15 easy (at most 0.35" in line for line in notes)
    [table] = [block for block in blocks if isinstance(block, PageTable) and "ceiling_r40" in block.head]
    row = dict(zip(table.head, next(row for row in table.rows if row[0] == "Car, easy"), strict=True))
    assert (row["count"], row["ceiling_r40"], row["ap_3d_r40"]) == ("15", "0.3500", "0.3500")


def test_prepared_sets_are_scored_as_their_labels(tmp_path: Path, shared: Path) -> None:
    """KITTI's prepared set and the labels alone have the same score, to the last bit but one, by the same files."""
    root, frames = shared / "data/kitti_object_mini", ("000000", "000001", "000002", "000003")
    source = tmp_path / "in"
    for folder, suffix in (("velodyne", "bin"), ("label_2", "txt"), ("calib", "txt"), ("image_2", "png")):
        (source / folder).mkdir(parents=True)
        for name in frames:
            (source / f"{folder}/{name}.{suffix}").symlink_to(root / f"{folder}/{name}.{suffix}")
    results = tmp_path / "results"
    results.mkdir()
    for name in frames:
        rows = [
            row for row in (root / f"label_2/{name}.txt").read_text().splitlines() if not row.startswith("DontCare")
        ]
        scored = [f"{row} {0.9 - 0.1 * place:g}\n" for place, row in enumerate(rows)]
        (results / f"{name}.txt").write_text("".join(scored))
    succeed("data", "prepare", "kitti_boxes3d", "--from", source, "--to", tmp_path / "set")
    sources = {
        "set": f"{{name: kitti_boxes3d, root: '{tmp_path / 'set'}', tested: ['0']}}",
        "labels": f"{{name: labels3d, labels: '{source / 'label_2'}', calibrations: '{source / 'calib'}', "
        "classes: [Car, Pedestrian, Cyclist]}",
    }
    found = {}
    for name, data in sources.items():
        config = tmp_path / f"{name}.yaml"
        config.write_text(f"data: {data}\nmetrics: [{{name: kitti_ap}}, {{name: boxes3d_ap}}]\n")
        found[name] = document_of("score", results, "--data", config)
    assert found["set"]["metrics"] == pytest.approx(found["labels"]["metrics"], abs=1e-9, nan_ok=True)
    assert str(found["set"]["by_difficulty"]) == str(found["labels"]["by_difficulty"])
    assert [found["set"]["by_difficulty"][f"{name}, easy"]["count"] for name in ("Car", "Pedestrian")] == [1, 1]
    assert found["set"]["scored_boxes_kitti"]["num_boxes"] == 5
