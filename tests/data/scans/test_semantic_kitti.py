"""SemanticKITTI: generated trees byte by byte, files in place, parts by sequence, the real frame, and damage."""

from __future__ import annotations

import json
import os
import pickle
import re
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from sightline.areas.scans.sets.semantic_kitti import LABEL_MAPS, SemanticKitti
from sightline.commands.data import InfoOptions
from sightline.contract.errors import ConfigError, DataError, UserError
from sightline.contract.types import SampleKey
from sightline.store.label_maps import read_label_map
from sightline.store.loading.batch_reader import BatchReader
from sightline.store.prepared import prepared_set
from sightline.verbs import data
from tests.data.scans.lidar_writers import quiet, write_bin, write_labels, write_semantic_kitti
from tests.data.scans.lidar_writers import street_scan as street_scan

SIZES = {"00": 5, "03": 4, "08": 2}


def prepare(source: Path, target: Path, **options: Any) -> dict[str, Any]:
    return SemanticKitti.prepare(source=source, target=target, name="semantic_kitti", progress=quiet, **options)


def opened(root: Path, split: str = "train", **arguments: Any) -> SemanticKitti:
    return SemanticKitti(split=split, root=str(root), **arguments)


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    write_semantic_kitti(tmp_path / "kitti", SIZES)
    return tmp_path / "kitti"


@pytest.fixture
def prepared(tree: Path, tmp_path: Path) -> Path:
    prepare(tree, tmp_path / "set")
    return tmp_path / "set"


def test_samples_are_the_written_scans(tmp_path: Path) -> None:
    scans = write_semantic_kitti(tmp_path / "kitti", SIZES)
    prepare(tmp_path / "kitti", tmp_path / "set")
    label_map = read_label_map("single", LABEL_MAPS)
    seen = []
    for split in ("train", "validation", "test"):
        part = opened(tmp_path / "set", split)
        for index in range(len(part)):
            sample, scan = part[SampleKey(index, 0, 0)], scans[part.sample_name(index)]
            seen.append(part.sample_name(index))
            assert np.array_equal(sample["points"], scan.points)
            assert np.array_equal(sample["remission"][:, 0], scan.remission)
            assert np.array_equal(label_map.ids(sample["label"].numpy()), scan.ids)
            assert set(sample) == set(part.info.fields)
    assert sorted(seen) == sorted(scans)
    counts = np.zeros(20, dtype=np.int64)
    train = opened(tmp_path / "set")
    for index in range(len(train)):
        counts += np.bincount(train[SampleKey(index, 0, 0)]["label"], minlength=20)
    assert train.info.facts["class_counts"] == tuple(counts.tolist())
    assert train.info.facts["num_classes"] == 20
    assert train.info.facts["ignore_index"] == 0
    assert train.info.facts["input_mean"] == (12.12, 10.88, 0.23, -1.04, 0.21)


def test_nothing_is_copied_and_links_are_followed(tree: Path, tmp_path: Path) -> None:
    shutil.move(tree / "sequences/03", tmp_path / "other_disk")
    (tree / "sequences/03").symlink_to(tmp_path / "other_disk")
    report = prepare(tree, tmp_path / "set")
    listed = sum(path.stat().st_size for path in tree.rglob("*") if path.suffix in (".bin", ".label"))
    there = sum(path.stat().st_size for path in (tmp_path / "other_disk").rglob("*.[bl]*"))
    assert report["listed"] == {"root": str(tree), "num_files": 22, "num_bytes": listed + there}
    assert not any(np.load(path).size > 1000 for path in (tmp_path / "set").glob("*.npy"))
    assert len(opened(tmp_path / "set")) == 5 - 1 + 4 - 1  # a tenth of five and of four is rounded up to one
    assert prepared_set.verify(tmp_path / "set") == len(report["files"]) + 22
    assert prepare(tree, tmp_path / "set")["outcome"] == "already there"


def test_parts_are_sequences(prepared: Path) -> None:
    names = {split: [part.sample_name(i) for i in range(len(part))] for split in ("train", "validation", "test")
             for part in [opened(prepared, split, test_sequences=(0, 8))]}  # fmt: skip
    assert names["test"] == [f"00/{i:06d}" for i in range(5)] + ["08/000000", "08/000001"]
    assert names["train"] + names["validation"] == [f"03/{i:06d}" for i in range(4)]
    part = opened(prepared)
    assert part.info.folds is not None
    assert (part.info.folds.names, part.info.folds.tested) == (("00", "03", "08"), ("08",))
    assert part.info.split_sizes == {"train": 7, "validation": 2, "test": 2}
    assert "validation" not in opened(prepared, validation_share=0.0).info.split_sizes
    with pytest.raises(DataError, match=r"holds no sequence 07, it holds 00, 03, 08; set data\.test_sequences"):
        opened(prepared, test_sequences=(7,))
    with pytest.raises(ConfigError, match="has no scan in the part 'train'"):
        opened(prepared, test_sequences=(0, 3, 8))


def test_sequences_may_be_called_by_numbers_without_zeros(tmp_path: Path) -> None:
    """Sequence 8 could not be tested on, as 08 was looked for; and one named twice was scored twice."""
    write_semantic_kitti(tmp_path / "kitti", {"0": 2, "8": 1, "101": 1})
    prepare(tmp_path / "kitti", tmp_path / "set")
    part = opened(tmp_path / "set", "test", test_sequences=(8, 8))
    assert [part.sample_name(index) for index in range(len(part))] == ["8/000000"]
    assert part.info.split_sizes == {"train": 2, "validation": 1, "test": 1}


def test_two_sequences_are_enough(tmp_path: Path) -> None:
    write_semantic_kitti(tmp_path / "kitti", {"00": 2, "01": 1})
    prepare(tmp_path / "kitti", tmp_path / "set")
    part = opened(tmp_path / "set", test_sequences=(1,))
    assert part.info.split_sizes == {"train": 1, "validation": 1, "test": 1}
    batch = BatchReader(part)([SampleKey(0, 0, 0)])
    assert batch["offsets"].tolist() == [0, len(batch["points"])]


def test_sequences_without_labels_are_left_to_predict(tree: Path, tmp_path: Path) -> None:
    _, scan = street_scan(0)
    write_bin(tree / "sequences/11/velodyne/000000.bin", scan)
    report = prepare(tree, tmp_path / "set")
    assert report["differences"] == ["sequences without labels, passed over: 11"]
    assert list(report["splits"]) == ["00", "03", "08"]
    (tree / "sequences/11").rename(tree / "sequences/08_more")
    with pytest.raises(DataError, match=r"sequences/08_more: is a sequence without a number; rename it"):
        prepare(tree, tmp_path / "set2")


def test_another_map_needs_no_new_preparation(prepared: Path, tmp_path: Path) -> None:
    multi = opened(prepared, label_map="multi")
    assert multi.info.facts["num_classes"] == 26
    mine = tmp_path / "mine.yaml"
    mine.write_text(
        "labels: {0: other, 10: car, 40: ground}\n"
        "learning_map: {0: 0, 10: 1, 30: 0, 40: 2, 48: 2, 50: 0, 71: 0, 72: 2, 80: 0}\n"
        "learning_map_inv: {0: 0, 1: 10, 2: 40}\nlearning_ignore: {0: true}\n"
    )
    merged, single = opened(prepared, label_map=str(mine)), opened(prepared)
    assert merged.info.facts["class_names"] == ("other", "car", "ground")
    fine, coarse = (part[SampleKey(0, 0, 0)]["label"] for part in (single, merged))
    assert torch.equal(coarse == 2, (fine == 9) | (fine == 11) | (fine == 17))
    mine.write_text(mine.read_text().replace("80: 0", "81: 0"))
    with pytest.raises(DataError, match=r"the label id 80 \(\d+ points\) not in the map .*mine\.yaml"):
        opened(prepared, label_map=str(mine))


def test_one_class_empty_and_all_ignored_frames_are_read(tmp_path: Path) -> None:
    write_semantic_kitti(tmp_path / "kitti", {"00": 4, "01": 1})
    folder = tmp_path / "kitti/sequences/00"
    count = (folder / "labels/000000.label").stat().st_size // 4
    write_labels(folder / "labels/000000.label", np.full(count, 40), np.zeros(count))
    (folder / "velodyne/000001.bin").write_bytes(b"")
    (folder / "labels/000001.label").write_bytes(b"")
    count = (folder / "labels/000002.label").stat().st_size // 4
    write_labels(folder / "labels/000002.label", np.full(count, 52), np.zeros(count))
    report = prepare(tmp_path / "kitti", tmp_path / "set")
    assert report["differences"] == ["1 scans without points: 00/000001"]
    part = opened(tmp_path / "set", test_sequences=(1,), validation_share=0.0)
    batch = BatchReader(part)([SampleKey(i, 0, 0) for i in range(4)])
    sizes = batch["offsets"].diff().tolist()
    assert sizes[1] == 0
    labels = batch["label"].split(sizes)
    assert labels[0].unique().tolist() == [9]
    assert labels[2].unique().tolist() == [0]


def test_poses_are_those_of_the_scanner(tree: Path, tmp_path: Path) -> None:
    """By hand: the camera moves along its z a metre a scan, which is the scanner's x."""
    prepare(tree, tmp_path / "set")
    part = opened(tmp_path / "set")
    assert part.sample_name(3) == "00/000003"
    expected = np.hstack([np.eye(3), [[3.0], [0.0], [0.0]]])
    assert np.allclose(part.get_pose(3), expected, atol=1e-12)
    (tree / "sequences/00/poses.txt").write_text("1 0 0 0 0 1 0 0 0 0 1 0\n")
    short = prepare(tree, tmp_path / "short")["differences"]
    assert [note.partition("sequences/")[2] for note in short] == [
        "00/poses.txt: has 1 poses for 5 scans; none of them is taken"
    ]
    assert all(np.array_equal(opened(tmp_path / "short").get_pose(index), np.eye(3, 4)) for index in range(4))
    (tree / "sequences/00/poses.txt").write_text("1 0 0 0 0 1 0 0 0 0 1 x\n")
    with pytest.raises(DataError, match=r"poses\.txt:1: 'x' is not a number"):
        prepare(tree, tmp_path / "again")
    (tree / "sequences/00/poses.txt").unlink()
    assert prepare(tree, tmp_path / "again")["differences"] == ["sequences without poses.txt: 00"]
    assert np.array_equal(opened(tmp_path / "again").get_pose(0), np.eye(3, 4))


def test_the_real_frame(shared: Path, tmp_path: Path) -> None:
    """50 points of sequence 00, by hand from the files' bytes."""
    source = shared / "data/mmdet3d_tests_data/tests/data/semantickitti"
    report = prepare(source, tmp_path / "set")
    assert report["points_per_id"] == {"0": 2, "50": 25, "52": 1, "70": 17, "71": 3, "80": 2}
    part = opened(tmp_path / "set", "test", test_sequences=(0,))
    sample = part[SampleKey(0, 0, 0)]
    expected = np.fromfile(source / "sequences/00/velodyne/000000.bin", dtype="<f4").reshape(50, 4)
    assert np.array_equal(sample["points"], expected[:, :3])
    assert torch.bincount(sample["label"], minlength=20).nonzero()[:, 0].tolist() == [0, 13, 15, 16, 18]


# --- what is refused --------------------------------------------------------------------------------------------------


def test_points_without_a_return_keep_their_places_and_count_for_nothing(tmp_path: Path) -> None:
    """Every third point is NaN, whatever its remission and label: it lies at the origin and is ignored."""
    scans, num_missing = write_semantic_kitti(tmp_path / "kitti", {"00": 2, "08": 1}), 0
    for path in (tmp_path / "kitti").rglob("*.bin"):
        table = np.fromfile(path, "<f4").reshape(-1, 4)
        table[::3, :3], table[::6, 3] = np.nan, np.nan
        num_missing += len(table[::3])
        table.tofile(path)
    told = r"000000\.bin: point 0 of \d+ is NaN at x, y and z, and so are \d+ more; give no_return=nan"
    with pytest.raises(DataError, match=told):
        prepare(tmp_path / "kitti", tmp_path / "set")
    with pytest.raises(DataError, match=told):
        SemanticKitti.survey(tmp_path / "kitti")
    SemanticKitti.survey(tmp_path / "kitti", no_return="nan")
    manifest = prepare(tmp_path / "kitti", tmp_path / "set", no_return="nan")
    assert f"{num_missing} points without a return: not counted, not drawn and not scored" in manifest["differences"]
    part = opened(tmp_path / "set", "test")
    sample, scan = part[SampleKey(0, 0, 0)], scans["08/000000"]
    is_return = np.arange(len(scan.points)) % 3 > 0
    assert np.array_equal(sample["points"], np.where(is_return[:, None], scan.points, 0))
    assert np.array_equal(sample["remission"][:, 0], np.where(is_return, scan.remission, 0))
    classes = part.label_map.classes(scan.ids, where="")
    ignored = part.label_map.ignore_index
    assert np.array_equal(sample["label"], np.where(is_return, classes, ignored))
    assert part.info.scans is not None
    assert part.info.scans.no_return == "nan"


def test_damaged_files_are_refused_with_their_sizes(tree: Path, tmp_path: Path) -> None:
    scan, label = tree / "sequences/00/velodyne/000002.bin", tree / "sequences/00/labels/000002.label"
    sound, num_points = scan.read_bytes(), scan.stat().st_size // 16
    scan.write_bytes(sound[:-3])
    with pytest.raises(
        DataError, match=rf"000002\.bin: has {len(sound) - 3} bytes, whole points of 4 float32 have a m"
    ):
        prepare(tree, tmp_path / "set")
    scan.write_bytes(sound[:-16])
    with pytest.raises(
        DataError, match=rf"000002\.label: has {4 * num_points} bytes, {4 * num_points - 4} are expected.*000002\.bin"
    ):
        prepare(tree, tmp_path / "set")
    scan.write_bytes(np.float32(np.nan).tobytes() + sound[4:])
    with pytest.raises(DataError, match=r"000002\.bin: point 0 is nan, .*remission\); coordinates must"):
        prepare(tree, tmp_path / "set")
    scan.write_bytes(sound)
    label.rename(label.with_suffix(".lost"))
    with pytest.raises(DataError, match="sequences/00: 000002 has no labels; complete the sequence"):
        prepare(tree, tmp_path / "set")
    for path in (tree / "sequences/00", tree / "nowhere"):
        with pytest.raises(DataError, match="sequences/<nn>/velodyne is needed"):
            prepare(path, tmp_path / "set")


def test_remissions_on_another_scale_are_refused(prepared: Path) -> None:
    with pytest.raises(DataError, match=r"run to 0\.\d+, and sensor.remission_max is 255; set sensor.remission_max=1"):
        opened(prepared, sensor={"remission_max": 255.0})


def test_a_file_that_changed_is_named_with_what_changed(tree: Path, prepared: Path) -> None:
    part = opened(prepared)
    path = tree / "sequences/00/velodyne/000000.bin"
    sound, times = path.read_bytes(), (path.stat().st_atime_ns, path.stat().st_mtime_ns)
    path.write_bytes(sound + b"0" * 16)
    with pytest.raises(
        DataError,
        match=rf"000000\.bin: has {len(sound) + 16} bytes, {len(sound)} when the set was prepared; .*put the file "
        r"back, or delete .*set and prepare the set again",
    ):
        part[SampleKey(0, 0, 0)]
    path.write_bytes(sound)
    os.utime(path, ns=(times[0], times[1] + 1))
    with pytest.raises(DataError, match=r"000000\.bin: was written again after the set was prepared \(20"):
        part[SampleKey(0, 0, 0)]
    with pytest.raises(DataError, match="before its files changed; delete it to prepare it again"):
        prepare(tree, prepared)
    os.utime(path, ns=times)
    part[SampleKey(0, 0, 0)]
    path.rename(path.with_suffix(".moved"))
    with pytest.raises(DataError, match=r"000000\.bin: cannot be found \(No such file or directory\)"):
        pickle.loads(pickle.dumps(part))[SampleKey(0, 0, 0)]
    part[SampleKey(1, 0, 0)]  # the others are as they were


# --- a look at files that are not prepared ----------------------------------------------------------------------------


def test_a_look_at_a_tree_proposes_a_map_with_every_id(
    tree: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    label = tree / "sequences/03/labels/000001.label"
    ids = np.frombuffer(label.read_bytes(), dtype="<u4") & 0xFFFF
    write_labels(label, np.where(ids == 40, 300, ids), np.zeros(len(ids)))
    assert data.info(InfoOptions(dataset="semantic_kitti", source=tree, json=tmp_path / "told.json")) == 0
    printed = capsys.readouterr().out
    mine = tmp_path / "mine.yaml"
    mine.write_text("".join(line for line in printed.splitlines(keepends=True) if re.match("label|learning", line)))
    proposed = read_label_map(str(mine), LABEL_MAPS)
    assert proposed.class_names == (*read_label_map("single", LABEL_MAPS).class_names, "id_300")
    assert proposed.ignore_index == 0
    told = json.loads((tmp_path / "told.json").read_text())
    assert told["scans"] == "11 of 11 looked at"
    assert told["points_per_id"]["300 id 300"] == (ids == 40).sum()
    assert told["unlike"] == []
    prepare(tree, tmp_path / "set")
    with pytest.raises(DataError, match="the label id 300"):
        opened(tmp_path / "set")
    assert opened(tmp_path / "set", label_map=str(mine)).info.facts["num_classes"] == 21


def test_a_look_names_what_is_unlike_the_expected_sensor(tree: Path) -> None:
    for path in (tree / "sequences").glob("*/velodyne/*.bin"):
        table = np.frombuffer(path.read_bytes(), dtype="<f4").reshape(-1, 4).copy()
        table[:, 3] *= 255
        table[:, [0, 2]] = table[:, [2, 0]]  # axes swapped
        path.write_bytes(table.tobytes())
    unlike = SemanticKitti.survey(tree)["unlike"]
    assert any("outside the field of view from 3 to -25 degrees" in line for line in unlike)
    assert any("remissions run to" in line for line in unlike)
    assert any("the mean remission is" in line for line in unlike)
    with pytest.raises(UserError, match=r"--from reads files of .*semantic_kitti"):
        data.info(InfoOptions(dataset="synthetic_lidar", source=tree))


# --- which scans an epoch trains on -----------------------------------------------------------------------------------


def test_scans_with_few_labels_are_left_out(tree: Path, tmp_path: Path) -> None:
    label = tree / "sequences/00/labels/000001.label"
    count = label.stat().st_size // 4
    write_labels(label, np.where(np.arange(count) < count // 100, 40, 0), np.zeros(count))
    prepare(tree, tmp_path / "set")
    part = opened(tmp_path / "set", min_labelled=0.05)
    names = [part.sample_name(index) for index in range(len(part))]
    assert "00/000001" not in names
    assert part.info.split_sizes["train"] == len(part) == 6
    assert opened(tmp_path / "set", min_labelled=0.005).info.split_sizes["train"] == 7
    assert opened(tmp_path / "set", "test", min_labelled=0.05).info.split_sizes == {
        "train": 6,
        "validation": 2,
        "test": 2,
    }
    for path in tree.glob("sequences/*/labels/*.label"):
        write_labels(path, np.zeros(path.stat().st_size // 4), np.zeros(path.stat().st_size // 4))
    prepare(tree, tmp_path / "none")
    with pytest.raises(ConfigError, match=r"min_labelled: no scan of .* has 0\.05 of its points labelled"):
        opened(tmp_path / "none", min_labelled=0.05)


def test_balanced_epochs_show_rare_classes_more_often(tree: Path, tmp_path: Path) -> None:
    """By hand: one of seven scans shows the rare class, so it weighs sqrt(7) against 1."""
    for number, path in enumerate(sorted(tree.glob("sequences/*/labels/*.label"))):
        count = path.stat().st_size // 4
        write_labels(path, np.where((np.arange(count) < 5) & (number == 2), 32, 40), np.zeros(count))
    prepare(tree, tmp_path / "set")
    part = opened(tmp_path / "set", balanced=True)
    draws = [part[SampleKey(index % 7, epoch, 0)]["label"] for epoch in range(100) for index in range(7)]
    share = float(np.mean([bool((label == 8).any()) for label in draws]))
    expected = 7**0.5 / (7**0.5 + 6)
    assert abs(share - expected) < 4 * np.sqrt(expected * (1 - expected) / len(draws))
    for index in range(3):
        again = pickle.loads(pickle.dumps(part))[SampleKey(index, 5, 3)]
        assert torch.equal(again["points"], part[SampleKey(index, 5, 3)]["points"])
    test = opened(tmp_path / "set", "test", balanced=True)
    plain = opened(tmp_path / "set", "test")
    assert torch.equal(test[SampleKey(0, 3, 1)]["points"], plain[SampleKey(0, 0, 0)]["points"])
