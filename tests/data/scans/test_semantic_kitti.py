"""SemanticKITTI: generated trees byte by byte, files in place, parts by sequence, the real frame, and damage."""

from __future__ import annotations

import os
import pickle
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from sightline.areas.scans.sets.semantic_kitti import LABEL_MAPS, SemanticKitti
from sightline.contract.errors import ConfigError, DataError
from sightline.contract.types import SampleKey
from sightline.store.label_maps import read_label_map
from sightline.store.loading.batch_reader import BatchReader
from sightline.store.prepared import prepared_set
from tests.data.preparing import refuse
from tests.data.scans.lidar_writers import quiet, street_scan, write_bin, write_labels, write_semantic_kitti

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
    shutil.copytree(tmp_path / "kitti/sequences/8", tmp_path / "kitti/sequences/08")
    refuse(prepare, tmp_path / "kitti", r"sequences/08: has the number of 8; rename one, or move it away")


def test_sequences_without_labels_are_left_to_predict(tree: Path, tmp_path: Path) -> None:
    _, scan = street_scan(0)
    write_bin(tree / "sequences/11/velodyne/000000.bin", scan)
    report = prepare(tree, tmp_path / "set")
    assert report["differences"] == ["sequences without labels, passed over: 11"]
    assert list(report["splits"]) == ["00", "03", "08"]
    (tree / "sequences/11").rename(tree / "sequences/08_more")
    refuse(prepare, tree, r"sequences/08_more: is a sequence without a number; rename it")


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


def test_damaged_files_are_refused_with_their_sizes(tree: Path, tmp_path: Path) -> None:
    scan, label = tree / "sequences/00/velodyne/000002.bin", tree / "sequences/00/labels/000002.label"
    sound, num_points = scan.read_bytes(), scan.stat().st_size // 16
    scan.write_bytes(sound[:-3])
    refuse(prepare, tree, rf"000002\.bin: has {len(sound) - 3} bytes, whole points of 4 float32 have")
    scan.write_bytes(sound[:-16])
    told = rf"000002\.label: has {4 * num_points} bytes, {4 * num_points - 4} are expected.*000002\.bin"
    refuse(prepare, tree, told)
    scan.write_bytes(np.float32(np.nan).tobytes() + sound[4:])
    refuse(prepare, tree, r"000002\.bin: point 0 is nan, .*remission\); coordinates must")
    scan.write_bytes(sound)
    label.rename(label.with_suffix(".lost"))
    refuse(prepare, tree, "sequences/00: 000002 has no labels; complete the sequence")
    for path in (tree / "sequences/00", tree / "nowhere"):
        refuse(prepare, path, "sequences/<nn>/velodyne is needed")


def test_a_file_that_changed_is_named_with_what_changed(tree: Path, prepared: Path) -> None:
    part = opened(prepared)
    path = tree / "sequences/00/velodyne/000000.bin"
    sound, times = path.read_bytes(), (path.stat().st_atime_ns, path.stat().st_mtime_ns)
    path.write_bytes(sound + b"0" * 16)
    told = rf"000000\.bin: has {len(sound) + 16} bytes, {len(sound)} when the set was prepared; .*put the file back, or"
    with pytest.raises(DataError, match=f"{told} delete .*set and prepare the set again"):
        part[SampleKey(0, 0, 0)]
    path.write_bytes(sound)
    os.utime(path, ns=(times[0], times[1] + 1))
    with pytest.raises(DataError, match=r"000000\.bin: was written again after the set was prepared \(20"):
        part[SampleKey(0, 0, 0)]
    with pytest.raises(DataError, match=r"before its files changed \(size or time\); delete it to prepare it"):
        prepare(tree, prepared)
    os.utime(path, ns=times)
    part[SampleKey(0, 0, 0)]
    path.rename(path.with_suffix(".moved"))
    with pytest.raises(DataError, match=r"000000\.bin: cannot be found \(No such file or directory\)"):
        pickle.loads(pickle.dumps(part))[SampleKey(0, 0, 0)]
    part[SampleKey(1, 0, 0)]  # the others are as they were
