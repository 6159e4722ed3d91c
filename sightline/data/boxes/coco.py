"""COCO instances, and every export in that format: images with boxes of classes in a JSON file."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from sightline import registry
from sightline.data.boxes.coco_files import find_coco
from sightline.data.boxes.image_listing import FaultPolicy, plan_image_set, survey_images
from sightline.data.boxes.labelled_images import BoxColumns, LabelledImages
from sightline.data.boxes.records import BOX_FIELDS, box_facts
from sightline.data.store.prepared_set import prepare_command
from sightline.data.store.prepared_writer import Progress, write_prepared_set
from sightline.types import DataInfo

__all__ = ["Coco"]


@registry.data.add("coco")
class Coco(LabelledImages):
    """Images with boxes of COCO instances, prepared by `sightline data prepare coco`.

    `classes` chooses some by name, in this order; boxes of the others are left out or ignored. Crowds are ignored, and
    boxes narrower or lower than `ignore_below_px` pixels of the file. Where the files state no test part, `tested` are
    beginnings of names, or the last `test_share` is tested; COCO's own validation images are the test part. Source: Lin
    et al. 2014, Microsoft COCO.
    """

    set_name = "coco"

    @classmethod
    def expected_info(cls, *, classes: tuple[str, ...] = ()) -> DataInfo:
        """Expected DataInfo before preparation, without counts."""
        published = json.loads(Path(__file__).with_name("coco.json").read_text(encoding="utf-8"))
        return DataInfo(box_facts(classes or tuple(published["classes"].values()), BoxColumns().box_type), BOX_FIELDS)

    @classmethod
    def prepare(
        cls,
        *,
        source: Path,
        target: Path,
        name: str,
        progress: Progress,
        annotations: tuple[str, ...] | None = None,
        images: str | None = None,
        faulty: FaultPolicy = "refuse",
    ) -> dict[str, Any]:
        """List the images of a JSON file, or of a folder with some, and keep their boxes; returns the manifest.

        `annotations` (files) and `images` (a folder) are paths below the source, for other than the usual names. Raises
        DataError as `find_coco`, and for images and boxes that cannot be used unless `faulty` is `leave_out`.
        """
        assert name == cls.set_name, f"{cls.__name__} prepares '{cls.set_name}', not '{name}'"
        listed = find_coco(source, annotations=annotations, images=images)
        options = {"annotations": None if annotations is None else list(annotations), "images": images}
        plan = plan_image_set(listed, set_name=name, faulty=faulty, options=options, progress=progress, target=target)
        return write_prepared_set(plan, target, progress=progress)

    @classmethod
    def survey(cls, source: Path) -> dict[str, Any]:
        """Survey images, sizes, classes and faults of unprepared files. Raises as `find_coco`."""
        return survey_images(find_coco(source, annotations=None, images=None))

    @classmethod
    def card(cls) -> dict[str, Any]:
        """Description, accepted layouts, download page and licence."""
        return {
            "set": cls.set_name,
            "layouts": {
                "instances_json": "one JSON file with images, annotations and categories, beside its images",
                "instances_jsons": "annotations/instances_train2017.json and instances_val2017.json, with the folders "
                "train2017 and val2017 (in images/ or not), or train/, valid/ and test/ with a JSON file in each",
            },
            "home": "https://cocodataset.org",
            "terms": "annotations CC BY 4.0, images under Flickr's terms; nothing is downloaded for you",
            "cite": "Lin et al. 2014, Microsoft COCO: Common Objects in Context",
            "prepare": prepare_command(cls.set_name, "DIR"),
        }
