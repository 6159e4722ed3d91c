"""Data sets of images whose labels are files of one format of `store/boxes`: what a config can say of each."""

from __future__ import annotations

import json
from pathlib import Path

from sightline.contract import registry
from sightline.contract.types import DataInfo
from sightline.store.box_fields import BOX_FIELDS
from sightline.store.boxes.coco import COCO
from sightline.store.boxes.kitti import KITTI, REGION
from sightline.store.boxes.labelled_images import LabelledImages
from sightline.store.boxes.records import box_facts
from sightline.store.boxes.tools.cvat import CVAT
from sightline.store.boxes.tools.label_studio import LABEL_STUDIO
from sightline.store.boxes.tools.labelme import LABELME
from sightline.store.boxes.tools.supervisely import SUPERVISELY
from sightline.store.boxes.tools.tensorflow_csv import TENSORFLOW_CSV
from sightline.store.boxes.tools.via import VIA
from sightline.store.boxes.tools.voc import VOC
from sightline.store.boxes.tools.wider_face import WIDER_FACE
from sightline.store.boxes.yolo_txt import YOLO_TXT
from sightline.store.prepared.prepared_data import SetSpec


@registry.data.add("coco")
class Coco(LabelledImages):
    """Images with boxes of COCO instances, prepared by `sightline data prepare coco`.

    `classes` chooses some by name, in this order; boxes of the others are left out or ignored. Crowds are ignored, and
    boxes narrower or lower than `ignore_below_px` pixels of the file. Where the files state no test part, `tested` are
    beginnings of names, or the last `test_share` is tested; COCO's own validation images are the test part. Source: Lin
    et al. 2014, Microsoft COCO.
    """

    spec = SetSpec(name="coco", is_own=True)
    label_format = COCO

    @classmethod
    def expected_info(cls, *, classes: tuple[str, ...] = ()) -> DataInfo:
        """Return the DataInfo expected before preparation, without counts."""
        published = json.loads(Path(__file__).with_name("coco.json").read_text(encoding="utf-8"))
        return DataInfo(box_facts(classes or tuple(published["classes"].values()), "annotated"), BOX_FIELDS)


@registry.data.add("yolo_txt")
class YoloTxt(LabelledImages):
    """Images with boxes in YOLO's text files, prepared by `sightline data prepare yolo_txt`.

    `classes` chooses some by name, in this order; boxes of the others are left out or ignored. Boxes narrower or
    lower than `ignore_below_px` pixels of the file are ignored. Where neither folders nor a file of names state a test
    part, `tested` are beginnings of names, or the last `test_share` is tested.
    Source: the user's files; the format is that of Darknet (Redmon and Farhadi 2018, YOLOv3).
    """

    spec = SetSpec(name="yolo_txt", is_own=True)
    label_format = YOLO_TXT


@registry.data.add("kitti_boxes")
class KittiBoxes(LabelledImages):
    """Images with the 2D boxes of KITTI, prepared by `sightline data prepare kitti_boxes`.

    `classes` chooses some by name, in this order; boxes of the others are left out or ignored. DontCare regions are
    ignored, and boxes narrower or lower than `ignore_below_px` pixels of the file. Where no folder is called after a
    test part, `tested` are beginnings of names, or the last `test_share` is tested. Source: Geiger et al. 2012, Are we
    ready for autonomous driving?
    """

    spec = SetSpec(name="kitti_boxes")
    label_format = KITTI
    regions = (REGION,)


@registry.data.add("cvat")
class Cvat(LabelledImages):
    """Images with boxes in the XML of 'CVAT for images 1.1', prepared by `sightline data prepare cvat`.

    `classes` chooses some by name, in this order; boxes of the others are left out or ignored. Polygons, ellipses and
    masks become the boxes about them. Boxes narrower or lower than `ignore_below_px` pixels of the file are ignored.
    Where neither subsets nor folders state a test part, `tested` are beginnings of names, or `test_share` is tested.
    Source: the user's files; the format is that of CVAT (Sekachev et al.).
    """

    spec = SetSpec(name="cvat", is_own=True)
    label_format = CVAT


@registry.data.add("label_studio")
class LabelStudio(LabelledImages):
    """Images with boxes in Label Studio's JSON or JSON-MIN, prepared by `sightline data prepare label_studio`.

    `classes` chooses some by name, in this order; boxes of the others are left out or ignored. Polygons and ellipses
    become the boxes about them. Boxes narrower or lower than `ignore_below_px` pixels of the file are ignored. Where
    neither names of files nor folders state a test part, `tested` are beginnings of names, or `test_share` is tested.
    Source: the user's files; the format is that of Label Studio (HumanSignal).
    """

    spec = SetSpec(name="label_studio", is_own=True)
    label_format = LABEL_STUDIO


@registry.data.add("labelme")
class LabelMe(LabelledImages):
    """Images with boxes in LabelMe's JSON, prepared by `sightline data prepare labelme`.

    `classes` chooses some by name, in this order; boxes of the others are left out or ignored. Polygons, circles and
    masks become the boxes about them. Boxes narrower or lower than `ignore_below_px` pixels of the file are ignored.
    Where folders state no test part, `tested` are beginnings of names, or `test_share` is tested. Source: the user's
    files; the format is that of LabelMe (Wada).
    """

    spec = SetSpec(name="labelme", is_own=True)
    label_format = LABELME


@registry.data.add("supervisely")
class Supervisely(LabelledImages):
    """Images with boxes in Supervisely's JSON, prepared by `sightline data prepare supervisely`.

    `classes` chooses some by name, in this order; boxes of the others are left out or ignored. Polygons and bitmaps
    become the boxes about them. Boxes narrower or lower than `ignore_below_px` pixels of the file are ignored. Where
    neither tags nor folders state a test part, `tested` are beginnings of names, or `test_share` is tested. Source: the
    user's files; the format is that of Supervisely.
    """

    spec = SetSpec(name="supervisely", is_own=True)
    label_format = SUPERVISELY


@registry.data.add("tensorflow_csv")
class TensorflowCsv(LabelledImages):
    """Images with boxes in tables with TensorFlow's columns, prepared by `sightline data prepare tensorflow_csv`.

    `classes` chooses some by name, in this order; boxes of the others are left out or ignored. Boxes narrower or lower
    than `ignore_below_px` pixels of the file are ignored. Where neither names of tables nor folders state a test part,
    `tested` are beginnings of names, or `test_share` is tested. Source: the user's files.
    """

    spec = SetSpec(name="tensorflow_csv", is_own=True)
    label_format = TENSORFLOW_CSV


@registry.data.add("via")
class Via(LabelledImages):
    """Images with boxes in the files of VGG Image Annotator (VIA), prepared by `sightline data prepare via`.

    `classes` chooses some by name, in this order; boxes of the others are left out or ignored. Polygons, circles and
    ellipses become the boxes about them. Boxes narrower or lower than `ignore_below_px` pixels of the file are ignored.
    Where neither names of files nor folders state a test part, `tested` are beginnings of names, or `test_share` is
    tested. Source: the user's files; Dutta and Zisserman 2019, The VIA Annotation Software.
    """

    spec = SetSpec(name="via", is_own=True)
    label_format = VIA


@registry.data.add("voc")
class Voc(LabelledImages):
    """Images with boxes in Pascal VOC's XML, prepared by `sightline data prepare voc`.

    `classes` chooses some by name, in this order; boxes of the others are left out or ignored. Difficult objects are
    ignored, and boxes narrower or lower than `ignore_below_px` pixels of the file. Where neither ImageSets/Main nor
    folders state a test part, `tested` are beginnings of names, or `test_share` is tested. Source: Everingham et al.
    2010, The PASCAL Visual Object Classes (VOC) Challenge.
    """

    spec = SetSpec(name="voc", is_own=True)
    label_format = VOC


@registry.data.add("wider_face")
class WiderFace(LabelledImages):
    """Photos of faces, prepared by `sightline data prepare wider_face`. Source: Yang et al. 2016, WIDER FACE."""

    spec = SetSpec(name="wider_face")
    label_format = WIDER_FACE
