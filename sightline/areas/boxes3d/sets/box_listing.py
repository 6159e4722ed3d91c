"""Frames of a folder of one's own: clouds, the files of labels that belong to them, and their splits."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from sightline.contract.errors import DataError, escape_to_one_line, join_some
from sightline.store.boxes3d.label_formats import LABEL_SUFFIXES, find_format, read_labels
from sightline.store.boxes3d.label_rows import LabelFile, StatedBox
from sightline.store.boxes3d.tracklets import FRAME_LIST
from sightline.store.files.input_files import list_files, natural_sort_key
from sightline.store.files.scan_reading import SCAN_SUFFIXES
from sightline.store.prepared.name_lists import read_name_lists
from sightline.store.prepared.prepared_set import summarise_folder

_SPLITS = {"train": "train", "training": "train", "val": "validation", "validation": "validation", "test": "test"}
"""Folders of each split, in the folder that is given; `training` alone is KITTI's, and no split."""
_LISTS = {"train.txt", "val.txt", "test.txt", "trainval.txt", "classes.txt", FRAME_LIST}
_CALIBRATION_FOLDERS = ("calib", "calibration")
_OTHER_JSON = {"meta.json", "key_id_map.json", "_classes.json"}
"""Files beside labels, of Supervisely and labelCloud, that have no boxes."""
_MAX_FAULTS = 8
_LAYOUTS = "clouds with a file of labels of the same name each, or one file of tracklets, in any folders"


class ListedFrame(NamedTuple):
    """Frame of the folder: its split (`all` for none), its name, its files, and what its labels state."""

    split: str
    name: str
    files: tuple[Path, ...]
    labels: LabelFile
    key: str = ""

    @property
    def stated(self) -> Sequence[StatedBox]:
        """The boxes that its file of labels states."""
        return self.labels.frames.get(self.key, ())


@dataclass(frozen=True)
class Listing:
    """Frames of a folder in the order of splits and names, and notes on what is left out."""

    frames: Sequence[ListedFrame]
    notes: Sequence[str]


class _Files(NamedTuple):
    """Files of a folder by what they are; labels and calibrations by split and name of the frame."""

    clouds: dict[tuple[str, str], Path]
    labels: dict[tuple[str, str], Path]
    tracklets: list[Path]
    calibrations: dict[tuple[str, str], Path]
    others: list[Path]


def list_frames(root: Path, *, unlabelled: str) -> Listing:
    """List the frames of a folder, and read their labels.

    A cloud without a file of labels is left out, with a note, or has no boxes where `unlabelled` is `no_boxes`. Raises
    DataError for a folder without frames, for two files of one frame, and with every file of labels that is damaged.
    """
    files = _sort_files(root)
    if not files.clouds:
        raise DataError(f"{root}: holds {summarise_folder(root)}, no cloud ({' '.join(SCAN_SUFFIXES)}); {_LAYOUTS}")
    frames, faults = list[ListedFrame](), list[str]()
    paired: set[Path] = set()
    for path in files.tracklets:
        try:
            frames += _pair_tracklets(read_labels(path), files.clouds, paired)
        except DataError as error:
            faults.append(str(error))
    for key, path in files.labels.items():
        cloud = files.clouds.get(key)
        if cloud is None or cloud in paired:
            continue
        try:
            calibration = files.calibrations.get(key) or files.calibrations.get((key[0], "calib"))
            labels = read_labels(path, calibration=calibration, format_name=find_format(path) or "txt")
            own = (cloud, path, *([calibration] if calibration else []))
            frames.append(ListedFrame(key[0], key[1], own, labels))
        except DataError as error:
            faults.append(str(error))
        paired.add(cloud)
    if faults:
        more = [f"and {len(faults) - _MAX_FAULTS} more"] if len(faults) > _MAX_FAULTS else []
        raise DataError.from_lines([*faults[:_MAX_FAULTS], *more, *_name_kitti(root)])
    notes = _note_others(files, paired, unlabelled)
    if unlabelled == "no_boxes":
        frames += [
            ListedFrame(key[0], key[1], (cloud,), LabelFile(cloud, "", {}, {}))
            for key, cloud in files.clouds.items()
            if cloud not in paired
        ]
    if not frames:
        raise DataError(
            "; ".join(
                [
                    f"{root}: none of {len(files.clouds)} clouds has labels of its name ({', '.join(LABEL_SUFFIXES)})",
                    f"it needs {_LAYOUTS}",
                    *_name_kitti(root),
                ]
            )
        )
    return _divide(root, frames, notes)


def _name_kitti(root: Path) -> list[str]:
    """Name the reader of KITTI's own folders, for a folder that is one, holds one or lies in one."""
    for folder in (root, root / "training", root.parent):
        if (folder / "velodyne").is_dir() and (folder / "label_2").is_dir():
            return [f"{folder} is laid out as KITTI's objects: kitti_boxes3d --from {escape_to_one_line(str(folder))}"]
    return []


def _sort_files(root: Path) -> _Files:
    """Sort the files of a folder. Raises DataError for two clouds, or two files of labels, of one frame."""
    found = _Files({}, {}, [], {}, [])
    paths = sorted(list_files(root), key=lambda path: natural_sort_key(path.relative_to(root).as_posix()))
    names_of_clouds = {path.name for path in paths if path.suffix.lower() in SCAN_SUFFIXES}
    texts = {path.stem for path in paths if path.suffix.lower() in SCAN_SUFFIXES and path.suffix != ".txt"}
    divides = _has_split_folders(root)
    for path in paths:
        split, suffix, folders = (
            _find_split(path, root, divides=divides),
            path.suffix.lower(),
            path.relative_to(root).parts[:-1],
        )
        stem = Path(path.stem).stem if path.stem in names_of_clouds else path.stem
        key = (split, stem)
        if path.name in _LISTS | _OTHER_JSON or "ImageSets" in folders:
            continue
        if suffix == ".txt" and (set(folders) & {*_CALIBRATION_FOLDERS} or path.name == "calib.txt"):
            found.calibrations[key] = path
        elif suffix in LABEL_SUFFIXES and _is_label(path, is_beside=path.stem in texts):
            if find_format(path) == "tracklets":
                found.tracklets.append(path)
                continue
            _put(found.labels, key, path)
        elif suffix in SCAN_SUFFIXES:
            _put(found.clouds, key, path)
        else:
            found.others.append(path)
    return found


def _put(paths: dict[tuple[str, str], Path], key: tuple[str, str], path: Path) -> None:
    if key in paths:
        raise DataError(f"{path}: has the name of another file of its kind, {paths[key]}; rename one, or take it out")
    paths[key] = path


def _is_label(path: Path, *, is_beside: bool) -> bool:
    """Return True for a file of labels; text that is none is a cloud, unless it is beside a cloud of its name."""
    if path.suffix.lower() in (".json", ".xml"):
        return bool(find_format(path)) or is_beside
    return is_beside or bool(find_format(path))


def _has_split_folders(root: Path) -> bool:
    """Return True if the folders of a root are training and evaluated parts."""
    names = {each.name for each in root.iterdir() if each.is_dir()}
    return bool(names & {"train", "training"}) and bool(names & {"val", "validation", "test"})


def _find_split(path: Path, root: Path, *, divides: bool) -> str:
    """Return the split of a file by the first folder below the root; `all` where folders divide nothing."""
    parts = path.relative_to(root).parts[:-1]
    return _SPLITS.get(parts[0], "all") if divides and parts else "all"


def _pair_tracklets(labels: LabelFile, clouds: Mapping[tuple[str, str], Path], paired: set[Path]) -> list[ListedFrame]:
    """Pair the frames of a file of tracklets with the clouds below its folder, by name or by number."""
    folder = labels.path.parent
    mine = {name: (split, path) for (split, name), path in clouds.items() if path.is_relative_to(folder)}
    numbers = {int(name): name for name in mine if name.isdecimal() and len(name) < 19}
    by_name = {}
    for key in labels.frames:
        name = numbers.get(int(key[1:]), "") if key.startswith("#") else key
        if name not in mine:
            raise DataError(
                f"{labels.path}: has boxes in frame {key.removeprefix('#')}, of which no cloud is below {folder}; put "
                f"it there, or name the frames in {FRAME_LIST}"
            )
        by_name[name] = key
    has_list = not any(key.startswith("#") for key in labels.frames)
    frames = []
    for name, (split, path) in mine.items():
        if name in by_name or not has_list:
            frames.append(ListedFrame(split, name, (path, labels.path), labels, by_name.get(name, "#")))
            paired.add(path)
    return frames


def _note_others(files: _Files, paired: set[Path], unlabelled: str) -> list[str]:
    """Return notes on clouds without labels, labels without a cloud, and files of other kinds."""
    notes = []
    bare = [path.name for path in files.clouds.values() if path not in paired]
    if bare and unlabelled == "leave_out":
        notes.append(
            f"{len(bare)} clouds have no file of labels and are left out (unlabelled=no_boxes keeps them): "
            f"{join_some([*map(escape_to_one_line, bare)], most=3)}"
        )
    lone = [path.name for key, path in files.labels.items() if key not in files.clouds]
    if lone:
        notes.append(
            f"{len(lone)} files of labels have no cloud and are left out: "
            f"{join_some([*map(escape_to_one_line, lone)], most=3)}"
        )
    if files.others:
        names = [escape_to_one_line(path.name) for path in files.others]
        notes.append(f"{len(names)} files of other kinds are passed over: {join_some(names, most=3)}")
    return notes


def _divide(root: Path, frames: Sequence[ListedFrame], notes: Sequence[str]) -> Listing:
    """Return the frames in the order of their splits: by folders, else by lists of names, else `all`."""
    if any(frame.split != "all" for frame in frames):
        stray = [frame.files[0] for frame in frames if frame.split == "all"]
        if stray:
            raise DataError(
                f"{stray[0]}: is in none of the folders train, validation and test beside it; move it there"
            )
        seen: defaultdict[str, list[ListedFrame]] = defaultdict(list)
        for frame in frames:
            seen[frame.name].append(frame)
        frames = [
            frame._replace(name=f"{frame.split}_{frame.name}") if len(alike) > 1 else frame
            for alike in seen.values()
            for frame in alike
        ]
        order = [*dict.fromkeys(_SPLITS.values())]
        ordered = sorted(frames, key=lambda frame: (order.index(frame.split), natural_sort_key(frame.name)))
        return Listing(ordered, notes)
    by_name = {frame.name: frame for frame in sorted(frames, key=lambda frame: natural_sort_key(frame.name))}
    folder = next((path for path in (root / "ImageSets", root) if (path / "train.txt").is_file()), root)
    parts, list_notes = read_name_lists(folder, [*by_name])
    divided = [by_name[name]._replace(split=part) for part, names in parts.items() for name in names]
    return Listing(divided, [*notes, *list_notes])
