"""What notes on a detector of pedestrians ask for."""

from __future__ import annotations

import json
import re
import struct
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

import sightline
from sightline.areas.detect.sets.coco import Coco
from sightline.areas.detect.sets.crowdhuman import CrowdHuman
from sightline.contract.types import SampleKey
from tests.command import document_of, refuse, succeed
from tests.data.boxes.box_writers import pattern, write_coco, write_image
from tests.data.boxes.test_crowdhuman import CROWD, write_set
from tests.data.boxes.test_people import PEOPLE, written
from tests.mission.published import assert_reached
from tests.mission.rows import part, row
from tests.mission.small import CONFIGS, CPU, document, figures, find_fault, learn, said, step
from tests.processes import ROOT
from tests.published_weights import write_weights
from tests.trained import DETECT, trained_run

_CROWDS = CONFIGS / "detect/synthetic_crowds_retinanet.yaml"


# --- networks and weights ---------------------------------------------------------------------------------------------


@row(
    "S3.1",
    "build Darknet-53, ResNet, YOLOv3, RetinaNet and FCOS",
    "`model: {name: detector, backbone: {name: darknet53}, neck: {name: yolov3}, head: {name: yolov3}}`, and others",
)
def _networks(work: Path) -> None:
    yolo = step("detect/synthetic_crowds_yolov3", work, "model.backbone={name: darknet53, width: 4}")
    kinds = [type(module).__name__ for module in yolo.job.model.modules()]
    assert sum(name == "Conv2d" for name in kinds) > 52
    for recipe, head in (("crowdhuman_retinanet", "Retina"), ("crowdhuman_fcos", "Fcos")):
        model = step(f"detect/{recipe}", work).job.model
        assert type(model.get_submodule("backbone")).__name__ == "ResNet50"
        assert head.lower() in type(model.get_submodule("head")).__name__.lower()


@row(
    "S3.2", "start from Darknet's weight files", "`sightline weights FILE --layout darknet_yolov3 --to DIR`", letter="P"
)
def _darknet(work: Path) -> None:
    header = struct.pack("<iiiq", 0, 2, 5, 32013312)
    (work / "yolov3.weights").write_bytes(header + bytes(4 * 1000))
    error = refuse("weights", work / "yolov3.weights", "--layout", "darknet_yolov3", "--to", work / "run")
    assert "1,000" in error  # of 62,001,757 numbers


@part("S3.2", "P", is_long=True)
def _whole_darknet(work: Path) -> None:
    with open(work / "yolov3.weights", "wb") as file:
        file.write(struct.pack("<iiiq", 0, 2, 5, 32013312))
        file.truncate(20 + 4 * 62_001_757)
    succeed("weights", work / "yolov3.weights", "--layout", "darknet_yolov3", "--to", work / "run")
    assert sum(p.numel() for p in sightline.load_run(work / "run").model.parameters()) == 61_949_149


# --- labels -----------------------------------------------------------------------------------------------------------


def prepare_crowd(work: Path) -> tuple[Path, Path]:
    """Write three images in CrowdHuman's line format, and prepare them; return both folders."""
    source = write_set(work / "crowd", train={"a,1": CROWD, "b,2": [], "c,3": CROWD[:1]}, val={"d,4": CROWD[:2]})
    succeed("data", "prepare", "crowdhuman", "--from", source, "--to", work / "set")
    return source, work / "set"


@row(
    "S3.3",
    "read CrowdHuman's line format, with people that are ignored",
    "`sightline data prepare crowdhuman --from PATH --to DIR`",
)
def _crowdhuman(work: Path) -> None:
    images = CrowdHuman(split="train", root=str(prepare_crowd(work)[1]), validation_share=0.0)
    sample = images[SampleKey(0, 0, 0)]
    assert sample["boxes"][0].tolist() == [-3, 2, 7, 22.5]
    assert sample["is_ignored"].tolist() == [False, False, True, True, False]
    assert images.info.split_sizes == {"train": 3, "test": 1}


def write_photos(work: Path, **options: Any) -> Path:
    """Write four photos with a box each, as COCO labels them."""
    for number in range(4):
        write_image(work / f"photos/images/{number}.png", pattern(48, 64, number), **options)
    for split, numbers in {"train": (0, 1, 2), "val": (3,)}.items():
        images = [(number, f"{number}.png", 64, 48) for number in numbers]
        box = {"category_id": 3, "bbox": [4, 6, 20, 30], "area": 600, "iscrowd": 0}
        boxes = [{"image_id": number, **box} for number in numbers]
        write_coco(work / f"photos/annotations/instances_{split}2017.json", images, boxes)
    return work / "photos"


@row("S3.4", "read COCO", "`sightline data prepare coco --from PATH --to DIR`")
def _coco(work: Path) -> None:
    text = said("data", "prepare", "coco", "--from", write_photos(work), "--to", work / "set")
    assert "images: train 3, test 1" in text
    assert "boxes_per_class: person 4, car 0, hat 0" in text


@row(
    "S3.5",
    "read EuroCity Persons, CityPersons and WiderPerson",
    "`sightline data prepare ecp --from PATH --to DIR`, and `citypersons`, `widerperson`",
)
def _people(work: Path) -> None:
    for name in PEOPLE:
        words = ("data", "prepare", name, "--from", written(name, work / "in" / name), "--to", work / name)
        counts = document_of(*words)["splits"]
        assert counts["train"]["num_rows"] == 2, (name, counts)


@row(
    "S3.6",
    "write the line format or EuroCity labels as COCO, and back",
    "`sightline data convert NAME --from PATH --as coco --to DIR`",
    letter="Q",
)
def _converted(work: Path) -> None:
    source, _ = prepare_crowd(work)
    text = said("data", "convert", "crowdhuman", "--from", source, "--as", "coco", "--to", work / "coco")
    assert re.search(r"\b[89] boxes|boxes:? [89]\b|head", text)
    files = list((work / "coco").rglob("*.json"))
    boxes = [each["bbox"] for file in files for each in json.loads(file.read_text()).get("annotations", ())]
    assert [-3, 2, 10, 20.5] in boxes
    succeed("data", "convert", "coco", "--from", work / "coco", "--as", "crowdhuman", "--to", work / "back")
    (lines,) = (work / "back").rglob("*train.odgt")
    again = {row["ID"]: row["gtboxes"] for row in map(json.loads, lines.read_text().splitlines())}
    assert [-3, 2, 10, 20.5] in [each["fbox"] for people in again.values() for each in people]


_VOC = """<annotation><filename>0.png</filename><size><width>64</width><height>48</height><depth>3</depth></size>
<object><name>person</name><difficult>0</difficult>
<bndbox><xmin>1</xmin><ymin>1</ymin><xmax>20</xmax><ymax>30</ymax></bndbox></object></annotation>"""


@row(
    "S3.7",
    "read the XML and JSON of labelling tools",
    "`sightline data prepare voc --from PATH --to DIR`, and `labelme`, `cvat`, `via`, `label_studio`, `supervisely`, "
    "`tensorflow_csv`",
    letter="R",
)
def _tools(work: Path) -> None:
    for number in range(4):
        write_image(work / f"voc/JPEGImages/{number}.png", pattern(48, 64, number))
        (work / "voc/Annotations").mkdir(exist_ok=True)
        (work / f"voc/Annotations/{number}.xml").write_text(_VOC.replace("0.png", f"{number}.png"))
        shape = {"label": "person", "shape_type": "rectangle", "points": [[0, 0], [20, 30]], "flags": {}}
        labels = {"version": "5", "imagePath": f"{number}.png", "imageHeight": 48, "imageWidth": 64, "shapes": [shape]}
        write_image(work / f"labelme/{number}.png", pattern(48, 64, number))
        (work / f"labelme/{number}.json").write_text(json.dumps(labels))
    for name in ("voc", "labelme"):
        text = said("data", "prepare", name, "--from", work / name, "--to", work / f"{name}_set")
        assert "person 4" in text or "person 3" in text, name


@row(
    "S3.8",
    "overrule what a photo says about its orientation",
    "`sightline data prepare coco --from PATH --to DIR orientation=ignore`",
)
def _orientation(work: Path) -> None:
    """Photos that say that they lie on their side, with labels of the stored sizes: these decide."""
    made = document_of("data", "prepare", "coco", "--from", write_photos(work, orientation=6), "--to", work / "set")
    assert made["splits"]["train"]["num_rows"] == 3


@part("S3.8", "R")
def _orientation_said(work: Path) -> None:
    source = write_photos(work, orientation=6)
    made = document_of("data", "prepare", "coco", "--from", source, "--to", work / "set", "orientation=ignore")
    assert made["splits"]["train"]["num_rows"] == 3
    text = said("data", "prepare", "coco", "--from", source, "--to", work / "turned", "orientation=apply")
    assert "4 images have labels that state the size of the other orientation, which is overruled" in text
    sizes = {
        name: Coco(split="train", root=str(work / name))[SampleKey(0, 0, 0)]["image"].shape
        for name in ("set", "turned")
    }
    assert (tuple(sizes["set"][:2]), tuple(sizes["turned"][:2])) == ((48, 64), (64, 48))


# --- pictures, boxes, priors ------------------------------------------------------------------------------------------


@row("S3.9", "see the ground truth drawn", "`sightline view CONFIG --out DIR`")
def _ground_truth(work: Path) -> None:
    text = said("view", _CROWDS, *DETECT, "--num", 1, *CPU, "--out", work / "a")
    assert re.search(r"train/train_00000 │ raw │ 0 │ 256 x 192 pixels, \S+ to \S+, 8 boxes", text)
    (picture,) = (work / "a").glob("*.png")
    assert picture.stat().st_size > 20_000


@row("S3.10", "see anchors, and what is assigned to them, at every level", "`sightline view CONFIG --out DIR`")
def _assignment(work: Path) -> None:
    text = said("view", _CROWDS, *DETECT, "--num", 1, *CPU, "--out", work / "a")
    assert "stride 8: 24 x 32 cells, 9 anchors" in text
    assert re.search(r"stride 32: 6 x 8 cells", text)


@row("S3.11", "compute IoU fast, without compiling kernels", "`sightline.ops.pairwise_iou(boxes, others)`")
def _iou(work: Path) -> None:
    boxes = torch.tensor([[0.0, 0.0, 10.0, 10.0], [5.0, 5.0, 15.0, 15.0]])
    assert torch.allclose(sightline.ops.box_iou(boxes, boxes), torch.tensor([[1.0, 25 / 175], [25 / 175, 1.0]]))


@row("S3.12", "choose the assigner: maximum IoU, FCOS, OTA, FreeAnchor, SimOTA", "`task.assigner={name: simota}`")
def _assigners(work: Path) -> None:
    recipes = {
        "max_iou": ("crowdhuman_retinanet", ()),
        "fcos": ("crowdhuman_fcos", ()),
        "ota": ("crowdhuman_fcos", ("task.assigner={name: ota}",)),
        "free_anchor": ("crowdhuman_retinanet_freeanchor", ()),
        "simota": ("crowdhuman_yolox_simota", ()),
    }
    for name, (recipe, words) in recipes.items():
        task = step(f"detect/{recipe}", work, *words).job.task
        kind = type(task._assigner).__name__.lower()  # type: ignore[attr-defined]
        assert kind.replace("assigner", "") == name.replace("_", ""), kind


# --- silent bugs ------------------------------------------------------------------------------------------------------

_FAULTS = {
    "S3.13": ("give an anchor to every box", "unmatched-boxes", ("O52",)),
    "S3.14": ("catch values that are changed before the backward pass", "loss-gradient", ("O58",)),
    "S3.15": ("catch boxes that are scaled in place at every reading", "data-mutation", ("O49",)),
    "S3.16": ("catch a cross entropy that is written backwards", "loss-direction", ("O53",)),
    "S3.17": ("catch a squared loss of boxes in place of smooth L1", "loss-direction", ("O55",)),
    "S3.18": ("catch a class loss that is averaged over all priors", "loss-normaliser", ("O54",)),
    "S3.19": ("catch exchanged width and height", "swapped-canvas", ("O50",)),
    "S3.26": ("keep ignored regions out of the negatives", "ignored-regions", ("O56",)),
}


def _add_fault(id: str, thing: str, code: str, cases: tuple[str, ...]) -> None:
    @row(id, thing, f"`sightline check CONFIG`, finding `{code}`")
    def find(work: Path) -> None:
        for case in cases:
            assert find_fault(case, code)["severity"] in ("error", "warning")


for _id, (_thing, _code, _cases) in _FAULTS.items():
    _add_fault(_id, _thing, _code, _cases)


@part("S3.13")
def _coverage(work: Path) -> None:
    assert find_fault("B23", "anchor-coverage")["severity"] == "warning"


# --- parts ------------------------------------------------------------------------------------------------------------


@row("S3.20", "take the transforms apart from the data set", "`sightline.load_data(CONFIG, SPLIT, transforms='none')`")
def _detached(work: Path) -> None:
    words = [word for word in DETECT if word.startswith("data")]
    raw = sightline.load_data(_CROWDS, "train", overrides=words, transforms="none")[0]
    ready = sightline.load_data(_CROWDS, "train", overrides=words)[0]
    assert (raw["image"].dtype, ready["image"].dtype) == (torch.uint8, torch.float32)
    other = sightline.load_data(
        _CROWDS,
        "train",
        overrides=[*words, "transforms={train: [{name: normalize_image}], evaluate: [{name: normalize_image}]}"],
    )[0]
    assert torch.equal(other["boxes"], raw["boxes"])


@row("S3.21", "configure by YAML, extend by decorators, override by options", "`sightline show CONFIG KEY=VALUE`")
def _configured(work: Path) -> None:
    text = said(
        "show",
        ROOT / "examples/my_plugin.yaml",
        "--plugin",
        ROOT / "examples/my_plugin.py",
        "--plugin",
        ROOT / "examples/my_transform.py",
        "optimizer.lr=0.02",
        "model.width=8",
    )
    assert re.search(r"lr: 0\.02 # command line", text)
    assert re.search(r'name: "offset_net" # \S*my_plugin\.yaml:3', text)
    assert re.search(r"width: 8 # command line", text)
    assert re.search(r"dropout: 0\.2 # default", text)


@row("S3.22", "evaluate by COCO's metrics, with objects sized in pixels of the file", "`sightline evaluate RUN`")
def _coco_metrics(work: Path) -> None:
    words = (trained_run("detect"), *CPU)
    found = document_of("evaluate", *words)
    assert found["metrics"] == figures(trained_run("detect"))
    assert {"ap", "ap50", "ap75", "ap_small", "ap_medium", "ap_large", "ar1", "ar10"} <= found["metrics"].keys()
    words = [word for word in DETECT if word.startswith("data")]
    fitted = "[{name: fit_image, height: 384, width: 512}]"
    larger = sightline.load_data(
        _CROWDS, "test", overrides=[*words, f"transforms={{train: {fitted}, evaluate: {fitted}}}"]
    )[0]
    raw = sightline.load_data(_CROWDS, "test", overrides=words, transforms="none")[0]
    assert torch.allclose(larger["boxes"], 2 * raw["boxes"], atol=1e-3)
    assert torch.equal(larger["truth"], raw["truth"])  # boxes and areas that are scored


@row("S3.23", "build pyramids of three or five levels, and finer ones", "`model.backbone.finest_stride=4`")
def _pyramids(work: Path) -> None:
    strides = {}
    for recipe, words in {
        "synthetic_crowds_retinanet": ("model.backbone.finest_stride=4",),
        "crowdhuman_fcos": (),
        "synthetic_crowds_yolov3": (),
    }.items():
        strides[recipe] = step(f"detect/{recipe}", work, *words).job.model.get_submodule("neck").strides
    assert strides["synthetic_crowds_retinanet"][0] == 4
    assert list(strides.values())[1:] == [(8, 16, 32, 64, 128), (8, 16, 32)]


@row("S3.24", "suppress softly", "`sightline evaluate RUN task.suppression.name=soft_linear`")
def _softly(work: Path) -> None:
    found = document_of("evaluate", trained_run("detect"), "task.suppression.name=soft_linear", *CPU)["metrics"]
    assert found["ap50"] > figures(trained_run("detect"))["ap50"]  # neighbours that greedy suppression would drop


@row(
    "S3.25",
    "suppress adaptively, by the density that is predicted",
    "`sightline evaluate RUN task.suppression.name=adaptive`",
    letter="S",
)
def _adaptively(work: Path) -> None:
    run = learn("detect/crowdhuman_retinanet_adaptive", work / "run", *_own_crowds(work), *_small_canvas())
    kept = {}
    for name in ("adaptive", "greedy"):
        words = (f"task.suppression={{name: {name}}}", "task.score=0.0", "--save-predictions", "--out", work / name)
        succeed("evaluate", run, *words, *CPU)
        kept[name] = len(json.loads((work / name / "detections.json").read_text()))
    assert kept["adaptive"] != kept["greedy"], kept


def _own_crowds(work: Path) -> tuple[str, ...]:
    words = "data={name: synthetic_crowds, train_size: 8, validation_size: 4, test_size: 4}"
    return (words, "model.backbone.width=8", "model.neck.width=16", "model.head.num_convs=1", "train.batch_size=4")


def _small_canvas() -> tuple[str, ...]:
    fitted = "[{name: fit_image, height: 64, width: 64}, {name: normalize_image}]"
    return (f"transforms.train={fitted}", f"transforms.evaluate={fitted}", "init=null", "train.precision=float32")


@row("S3.27", "swap losses", "`losses=[{name: sigmoid_focal}, {name: box_overlap}]`")
def _losses(work: Path) -> None:
    values = {}
    for boxes in ("{name: box_smooth_l1}", "{name: box_overlap, overlap: giou}"):
        small = step("detect/synthetic_crowds_retinanet", work, f"losses=[{{name: sigmoid_focal}}, {boxes}]")
        values[boxes] = set(small.job.loss_weights)
    assert len({frozenset(each) for each in values.values()}) == 2


@row("S3.28", "put attention into backbones", "`sightline describe CONFIG model.backbone.attention=se`", letter="T")
def _attention(work: Path) -> None:
    rows = document_of("describe", _CROWDS, *DETECT, "model.backbone.attention=se")["modules"]
    assert "SqueezeExcitation" in [each["class_name"] for each in rows]
    step("detect/synthetic_crowds_retinanet", work, "model.backbone.attention=se")


@row(
    "S3.29", "augment as modern YOLO does: mosaic and mix-up", "`transforms: {train: [{name: mosaic}, {name: mix_up}]}`"
)
def _mosaic(work: Path) -> None:
    words = [word for word in DETECT if word.startswith("data")]
    plain = sightline.load_data(_CROWDS, "train", overrides=words, transforms="none")
    most = max(len(plain[index]["boxes"]) for index in range(len(plain)))
    same = "{name: fit_image, height: 192, width: 256}"
    combined = f"[{{name: mosaic, height: 192, width: 256}}, {{name: mix_up, probability: 1.0}}, {same}]"
    mixed = f"transforms={{train: {combined}, evaluate: [{same}]}}"
    data = sightline.load_data(_CROWDS, "train", overrides=[*words, mixed])
    assert max(len(data[index]["boxes"]) for index in range(4)) > most


# --- scores, logs, speed ----------------------------------------------------------------------------------------------


@row(
    "S3.30",
    "learn why predictions are wrong: confusions, and AP lost by each kind of error",
    "`sightline evaluate RUN 'metrics=[{name: box_errors}]'`",
)
def _why(work: Path) -> None:
    table = document(trained_run("detect"))["confusion"]
    assert table["classes"] == ["person", "background"]
    assert sum(table["counts"][0]) == 69  # labels, of which some are background
    assert table["counts"][1][0] > 0  # detections of nothing


@part("S3.30", "U")
def _box_errors(work: Path) -> None:
    found = document_of("evaluate", trained_run("detect"), "metrics=[{name: box_errors}]", *CPU)["metrics"]
    gains = {name: value for name, value in found.items() if name.startswith("gain_")}
    assert {"gain_localisation", "gain_background", "gain_missed"} <= gains.keys()
    assert max(value for value in gains.values() if value is not None) > 0.1


@row("S3.31", "show test pictures and figures while it trains", "`sightline train CONFIG log.tensorboard=true`")
def _tensorboard(work: Path) -> None:
    tags = EventAccumulator(str(trained_run("detect")), size_guidance={"images": 0, "tensors": 0}).Reload().Tags()
    assert "validation/ap" in tags["scalars"]
    assert [name for name in tags["images"] if name.startswith("validation/detections")]


@row("S3.32", "time a step", "`sightline profile CONFIG`")
def _timed(work: Path) -> None:
    found = document_of("profile", _CROWDS, *DETECT, "--steps", 1, *CPU)
    parts = {each["part"]: each["seconds"] for each in found["parts"]}
    assert {"data", "forward", "loss", "backward", "optimise"} <= parts.keys()
    assert found["untraced_step_s"] == pytest.approx(sum(parts.values()), rel=0.2)
    assert "Detector" in [each["class"] for each in found["modules"]]


@row("S3.33", "train at scale, each process with a GPU of its own", "`sightline train CONFIG --processes 2`")
def _at_scale(work: Path) -> None:
    run = trained_run("pair")
    assert document(run, "environment.json")["num_processes"] == 2
    steps = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert next(line for line in steps if line["split"] == "train")["num_samples"] == 60  # of both processes


@row(
    "S3.34",
    "run somebody's detector as a baseline",
    "`sightline weights FILE --to DIR`, then `sightline evaluate DIR --data CONFIG`",
    letter="W",
)
def _baseline(work: Path) -> None:
    write_weights(work / "file", "odtask_retina_resnet18")
    assert "layout: odtask_retina_resnet18" in said("weights", work / "file/weights.pth", "--to", work / "run")
    model = sightline.load_run(work / "run").model
    with torch.no_grad():
        outputs = model(image=torch.zeros(1, 3, 64, 64))
    assert outputs["codes"].shape[1:] == (4 * (64 + 16 + 4 + 1 + 1), 4)  # anchors of five levels


@part("S3.34", "W", is_long=True)
def _predicted_by_it(work: Path) -> None:
    write_weights(work / "file", "torchvision_retinanet_resnet50_fpn")
    succeed("weights", work / "file/weights.pth", "--to", work / "run")
    photo = write_image(work / "photo.png", pattern(48, 64))
    assert "boxes" in json.dumps(document_of("predict", work / "run", photo, *CPU))


@row(
    "S3.35",
    "stand beside the published figures of CrowdHuman, and come near them",
    "`sightline evaluate RUN --against published`",
)
def _published(work: Path) -> None:
    _, root = prepare_crowd(work)
    words = (f"data={{name: crowdhuman, root: '{root}', validation_share: 0.0}}", *_own_crowds(work)[1:4])
    sizes = _small_canvas()
    run = learn(
        "detect/crowdhuman_retinanet", work / "run", *words, *sizes, "evaluate.select=test", "train.batch_size=2"
    )
    done = said("evaluate", run, "--against", "published", *CPU)
    assert "4,370 there" in done  # images; ours is one


@part("S3.35", "E")
def _near(work: Path) -> None:
    assert_reached("crowdhuman")


@row(
    "S3.36",
    "convert predicted boxes to the form that the evaluation reads",
    "`sightline evaluate RUN --save-predictions`, `sightline score FILE --data RUN`; finding `box-corners`",
)
def _saved(work: Path) -> None:
    run = trained_run("detect")
    succeed("evaluate", run, "--save-predictions", "--out", work / "saved", *CPU)
    found = document_of("score", work / "saved/detections.json", "--data", run)
    assert found["metrics"]["ap"] == pytest.approx(figures(run)["ap"], rel=1e-3)
    boxes = json.loads((work / "saved/detections.json").read_text())
    assert np.array([box["bbox"] for box in boxes])[:, 2:].min() > 0
