"""The user's own images with boxes in YOLO text files."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from sightline import registry
from sightline.data.boxes.image_listing import FaultPolicy, plan_image_set, survey_images
from sightline.data.boxes.labelled_images import LabelledImages
from sightline.data.boxes.yolo_files import find_yolo
from sightline.data.store.prepared_writer import Progress, write_prepared_set

__all__ = ["YoloTxt"]


@registry.data.add("yolo_txt")
class YoloTxt(LabelledImages):
    """Images with boxes in YOLO's text files, prepared by `sightline data prepare yolo_txt`.

    `classes` chooses some by name, in this order; boxes of the others are left out or ignored. Boxes narrower or
    lower than `ignore_below_px` pixels of the file are ignored. Where neither folders nor a file of names state a test
    part, `tested` are beginnings of names, or the last `test_share` is tested.
    Source: the user's files; the format is that of Darknet (Redmon and Farhadi 2018, YOLOv3).
    """

    set_name = "yolo_txt"

    @classmethod
    def prepare(
        cls,
        *,
        source: Path,
        target: Path,
        name: str,
        progress: Progress,
        names: tuple[str, ...] | None = None,
        faulty: FaultPolicy = "refuse",
    ) -> dict[str, Any]:
        """List the images below a folder, and keep the boxes of their text files; returns the manifest.

        `names` are the classes where no YAML file, classes.txt, obj.names or names.txt names them. Raises DataError as
        `find_yolo`, and for images and rows that cannot be used unless `faulty` is `leave_out`.
        """
        assert name == cls.set_name, f"{cls.__name__} prepares '{cls.set_name}', not '{name}'"
        listed = find_yolo(source, names=names)
        options = {"names": None if names is None else list(names)}
        plan = plan_image_set(listed, set_name=name, faulty=faulty, options=options, progress=progress, target=target)
        return write_prepared_set(plan, target, progress=progress)

    @classmethod
    def survey(cls, source: Path) -> dict[str, Any]:
        """Survey images, sizes, classes and faults of unprepared files. Raises as `find_yolo`."""
        return survey_images(find_yolo(source, names=None))

    @classmethod
    def card(cls) -> dict[str, Any]:
        """Description, accepted layouts, download page and licence."""
        return {
            "set": cls.set_name,
            "layouts": {
                "yolo_txt": "images/NAME.jpg with labels/NAME.txt, or FILE.txt beside FILE.jpg, in folders called "
                "train, val and test or not; a row is class, centre x, centre y, width, height, in shares of the image",
            },
            "classes": "names in a YAML file, classes.txt, obj.names or names.txt, or stated: 'names=[person, rider]'",
            "obtain": "your own files; docs/data.md says how",
            "prepare": f"sightline data prepare {cls.set_name} --from PATH --to DIR",
        }
