"""Conversion of 3D boxes from one form to another: what the new form cannot hold is counted, and all is read back."""

from __future__ import annotations

import shutil
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from sightline.areas.boxes3d.sets.box_listing import ListedFrame, Listing, list_frames
from sightline.areas.boxes3d.sets.box_planning import PlannedBoxes
from sightline.contract.errors import DataError, UserError
from sightline.contract.schema import suggest
from sightline.store.boxes3d.box_table import BoxTable
from sightline.store.boxes3d.label_formats import WRITTEN, WrittenForm, WrittenFrame
from sightline.store.files.atomic_write import can_link, whole_folder
from sightline.store.files.input_files import expand_home
from sightline.store.prepared.prepared_writer import Progress

_FIELDS = {
    "score": ("scores", lambda table: np.isfinite(table.score)),
    "is_ignored": ("ignore marks", lambda table: table.is_ignored),
    "track": ("numbers of objects over frames", lambda table: table.track >= 0),
    "image": ("boxes in the image, with truncation, occlusion and angle", lambda table: _has_image(table)),
}
"""Field of a table -> what a form without it loses, and the rows that have it."""
_ROUNDING_M = 1e-6
"""Largest difference of a number that is none: files have nine digits."""


def _has_image(table: BoxTable) -> np.ndarray:
    return np.full(len(table), table.image is not None)


def convert_frames(
    listing: Listing, planned: PlannedBoxes, new_form: str, target: Path, *, progress: Progress
) -> dict[str, Any]:
    """Write the boxes of frames in a new form, link their clouds, and return what was written and lost.

    What was written is read again and compared before it takes its place: the target is whole or absent. Raises
    DataError where a form cannot be read again.
    """
    form, lost = WRITTEN[new_form], Counter[str]()
    frames = []
    for done, frame in enumerate(listing.frames, start=1):
        table = _fit(planned.tables[frame.name], new_form, form, lost)
        frames.append(WrittenFrame(frame.name, f"{frame.name}{_find_suffix(frame.files[0])}", table))
        progress(done, len(listing.frames), frame.name)
    divided = {frame.split for frame in listing.frames} != {"all"}
    with whole_folder(target) as folder:
        has_links = can_link(folder)
        for listed, written in zip(listing.frames, frames, strict=True):
            _put_cloud(folder / form.clouds / written.cloud, listed.files[0], has_links=has_links)
        for path, content in form.write(frames):
            (folder / path).parent.mkdir(parents=True, exist_ok=True)
            (folder / path).write_bytes(content)
        if divided:
            _write_lists(folder, listing.frames)
        _read_back(folder, frames, new_form)
    notes = [*listing.notes, *planned.notes]
    notes += [] if has_links else ["clouds are copied: the file system of the target has no links"]
    return {
        "labels": "boxes3d_folder",
        "as": new_form,
        "root": str(target.resolve()),
        "reading": planned.choice.describe(),
        "frames": dict(sorted(Counter(frame.split for frame in listing.frames).items())),
        "boxes": sum(len(frame.table) for frame in frames),
        "lost": {what: count for what, count in sorted(lost.items()) if count},
        "differences": notes,
    }


def check_words(new_form: str, target: Path, source: Path) -> None:
    """Raise UserError for a form that is not written, and for a target that is not empty or is in the source."""
    if new_form not in WRITTEN:
        known = suggest(new_form, [*WRITTEN], otherwise=f"; there are {', '.join(WRITTEN)}")
        raise UserError(f"data convert: --as {new_form}: is no form of 3D boxes that is written{known}")
    if target.exists() and (not target.is_dir() or any(target.iterdir())):
        raise UserError(f"data convert: {target} is there and not empty; give another folder by --to")
    root = expand_home(source).resolve()
    if target.resolve().is_relative_to(root):
        raise UserError(f"data convert: {target} is in {root}, whose clouds are read; give a folder outside by --to")


def _find_suffix(path: Path) -> str:
    return ".pcd.bin" if path.name.endswith(".pcd.bin") else path.suffix


def _fit(table: BoxTable, name: str, form: WrittenForm, lost: Counter[str]) -> BoxTable:
    """Return the table with what a form holds, and count what it does not."""
    for field, (what, find) in _FIELDS.items():
        if field not in form.holds:
            lost[f"{what}: {name} has none"] += int(find(table).sum())
    if form.joins_blanks:
        lost[f"blanks in names of classes: {name} has _"] += sum(" " in table.class_names[i] for i in table.label)
    if name == "kitti" and table.image is None and len(table):
        lost["boxes in the image, which KITTI's rows state: 0 0 50 50 is written"] += len(table)
    return replace(table, image=table.image if "image" in form.holds else None)


def _put_cloud(path: Path, cloud: Path, *, has_links: bool) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.exists() or path.is_symlink():
        raise DataError(f"{cloud}: another frame has the name '{path.name}' in the new form; rename one")
    if has_links:
        path.symlink_to(cloud.resolve())
    else:
        shutil.copyfile(cloud, path)


def _write_lists(folder: Path, frames: Sequence[ListedFrame]) -> None:
    """Write the lists of names that divide the frames, as KITTI's sets have them; validation is trained on no more."""
    names = {"train": ("train", "all", "validation"), "test": ("test",)}
    (folder / "ImageSets").mkdir()
    for part, splits in names.items():
        listed = "".join(f"{frame.name}\n" for frame in frames if frame.split in splits)
        (folder / "ImageSets" / f"{part}.txt").write_text(listed, encoding="utf-8")


def _read_back(folder: Path, frames: Sequence[WrittenFrame], name: str) -> None:
    """Raise DataError if a frame, or a box of it, is not read again as it was written."""
    by_name = {frame.name: frame for frame in list_frames(folder, unlabelled="leave_out").frames}
    for frame in frames:
        again = by_name.get(frame.name)
        if again is None or len(again.stated) != len(frame.table):
            raise DataError(f"{frame.name}: {name} does not read its boxes again; rename the frame")
        forms = again.labels.forms
        form = forms.get("tracklets_cvat") or forms.get(name) or next(iter(forms.values()), None)
        if form is None or not len(frame.table):
            continue
        boxes = form.reading.to_boxes(form.rows(again.stated))
        far = np.abs(boxes - frame.table.boxes)
        far[:, 6] = np.minimum(far[:, 6], 2 * np.pi - far[:, 6])
        bound = _ROUNDING_M * (1 + np.abs(frame.table.boxes).max())
        if not far.max() <= bound:
            raise DataError(f"{frame.name}: {name} reads a box {far.max():.3g} off; please report this")
