"""The rows of before_after.py: names, commands and the files that are compared."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

__all__ = ["LAYOUTS", "SETS", "SMALLER", "Row", "recipes", "rows"]

Words = tuple[str, ...]
ROOT = Path(__file__).resolve().parents[1]
_CUBE = (
    "transforms.train=[{name: place_cube, size: 16, max_shift: 1.0}, {name: voxelize}, {name: draw_heatmaps}]",
    "transforms.evaluate=[{name: place_cube, size: 16}, {name: voxelize}, {name: draw_heatmaps}]",
)
_FEW_POINTS = "data.num_points=64"
_NARROW = ("data.num_columns=64", "transforms.train.2.width=64", "transforms.evaluate.0.width=64")
_CROWDS = ("data.validation_size=8", "schedule.warmup_epochs=0", "model.backbone.width=8")
_DETECTOR = (*_CROWDS, "model.neck.width=32")
SMALLER = {
    "classify/synthetic_shapes_dgcnn": (_FEW_POINTS,),
    "contrast/synthetic_shapes_crosspoint": ("data.num_points=192", "data.views.count=2"),
    "contrast/synthetic_shapes_intrapoint_parts": (_FEW_POINTS,),
    "detect/synthetic_crowds_fcos": _DETECTOR,
    "detect/synthetic_crowds_retinanet": _DETECTOR,
    "detect/synthetic_crowds_yolov3": _DETECTOR,
    "detect/synthetic_crowds_yolox": _CROWDS,
    "pose/synthetic_bodies_v2v_small": _CUBE,
    "pose/synthetic_hands_v2v": tuple(word.replace("size: 16", "size: 32") for word in _CUBE),  # 16 diverges
    "pose/synthetic_hands_v2v_small": _CUBE,
    "segment/synthetic_lidar_deeplabv3": (*_NARROW, "model.width=4"),
    "segment/synthetic_lidar_rangenet21": (*_NARROW, "model.width=4"),
    "segment/synthetic_lidar_salsanext": (*_NARROW, "model.width=4"),
    "segment/synthetic_lidar_squeezeseg": _NARROW,
    "segment/synthetic_rooms_point_transformer": ("data.points_per_m2=10", "transforms.train.5.max_points=512"),
    "segment/synthetic_shapes_dgcnn": (_FEW_POINTS,),
    "segment/synthetic_shapes_dgcnn_from_intrapoint": (_FEW_POINTS, "init=null"),
}
"""What brings single recipes down to seconds; the rest is the same for all."""
SMALL = ("data.train_size=24", "data.test_size=8", "train.batch_size=5", "train.tail=drop", "train.epochs=2")


class Row(NamedTuple):
    """Commands in the order in which they are run, and patterns of the files that they leave and that are compared.

    `@out` stands for the row's own folder, `@in` for that of the inputs, `@tree` for the tree's. A command is a list of
    spellings: of several, the first that the tree knows is run. `codes` are the exit codes that the last command may
    end with, `inputs` names of what before_after_sources.py makes.
    """

    name: str
    commands: Sequence[Sequence[Words]]
    files: Words
    codes: tuple[int, ...] = (0,)
    inputs: Words = ()
    is_quick: bool = False


_PLACES = ("log.tensorboard=false", "evaluate.every=1", "checkpoint.every=1", "checkpoint.keep_last=2")
_CPU = ("--device", "cpu")
_LEFT = (
    *("checkpoints/step_*/*.safetensors", "predictions/*.png"),
    *("metrics.jsonl", "final.json", "facts.json", "config.yaml"),
)
_BY_TASK = {
    "classify": "classify/synthetic_shapes_pointnet",
    "contrast": "contrast/synthetic_shapes_intrapoint_parts",
    "detect": "detect/synthetic_crowds_fcos",
    "pose": "pose/synthetic_hands_v2v_small",
    "scans": "segment/synthetic_lidar_squeezeseg",
    "scenes": "segment/synthetic_rooms_point_transformer",
}


def recipes(root: Path = ROOT) -> list[str]:
    """The shipped recipes that need no files, as `task/name`."""
    return sorted(f"{path.parent.name}/{path.stem}" for path in (root / "configs").glob("*/synthetic_*.yaml"))


def rows() -> list[Row]:
    """All rows, the parts one after the other."""
    parts = (_recipes(), _processes(), _checks(), _prepared(), _predictions(), _packed(), _records(), _converted())
    return [row for part in parts for row in part]


def _one(*words: str) -> tuple[Words]:
    """A command of one spelling."""
    return (words,)


def _small(recipe: str, *words: str) -> Words:
    return (f"@tree/configs/{recipe}.yaml", *SMALL, *SMALLER.get(recipe, ()), *_PLACES, *words, *_CPU)


def _within(folder: str, files: Sequence[str]) -> Words:
    return tuple(f"{folder}/{file}" for file in files)


def _trained(recipe: str, *words: str, out: str = "@out/run") -> tuple[Words]:
    return _one("train", *_small(recipe, *words), "--no-check", "--out", out)


def _recipes() -> Iterator[Row]:
    """Every procedural recipe: trained, resumed after its first checkpoint, and evaluated."""
    for recipe in recipes():
        yield Row(
            f"recipes/{recipe}",
            (
                _trained(recipe),
                _one("!resume-before-last", "@out/run", "@out/resumed"),
                _one("train", *_small(recipe), "--no-check", "--out", "@out/resumed", "--resume", "auto"),
                _one("evaluate", "@out/run", *_CPU, "--json", "@out/evaluated.json"),
            ),
            (*_within("run", _LEFT), *_within("resumed", _LEFT), "evaluated.json"),
            is_quick=recipe == _BY_TASK["classify"],
        )


def _processes() -> Iterator[Row]:
    """Two or three processes on this machine."""
    for task in ("classify", "detect", "scans"):
        command = _one(*_trained(_BY_TASK[task])[0], "--processes", "2")
        yield Row(f"processes/{task}", (command,), _within("run", _LEFT), is_quick=task == "classify")
    recipe = _BY_TASK["classify"]
    many = ("train.batch_size=12", "train.micro_batches=2", "train.clip_norm=0.5", "train.ema_decay=0.9")
    for precision in ("float32", "bf16"):
        words = (*many, f"train.precision={precision}", "distributed.sync_batch_norm=true")
        usual = (word for word in _trained(recipe, *words)[0] if word != "train.batch_size=5")
        command = _one(*usual, "--processes", "3")
        yield Row(f"processes/three_{precision}", (command,), _within("run", _LEFT))
    start = _trained(recipe, out="@out/first")
    teacher = "teacher={from: @out/first}"
    taught = ("losses=[{name: cross_entropy}, {name: distillation}]", teacher)
    yield Row(
        "processes/taught",
        (start, _one(*_trained(recipe, *taught)[0], "--processes", "2")),
        _within("run", _LEFT),
    )
    search = ("--method", "uniform", "--ratio", "0.2", "--calibration", "8")
    small = _one("compress", "search", "@out/first", *search, "--out", "@out/small", *_CPU)
    policy = ("init={from: @out/first}", "compress={policy: @out/small/policy.json}")
    yield Row(
        "processes/quantised",
        (start, small, _one(*_trained(recipe, *policy)[0], "--processes", "2")),
        _within("run", _LEFT),
    )


def _checks() -> Iterator[Row]:
    """Findings before a run, of every layer against an oracle, and of a run."""
    for task, recipe in _BY_TASK.items():
        words = _small(recipe, "--json", "@out/found.json")
        yield Row(f"check/{task}", (_one("check", *words),), ("found.json",), (0, 1), is_quick=task == "classify")
    deep = _one("check", *_small(_BY_TASK["classify"]), "--deep", "--json", "@out/found.json")
    yield Row("check/deep", (deep,), ("found.json",), (0, 1))
    of_run = _one("check", "@out/run", *_CPU, "--json", "@out/found.json")
    yield Row("check/run", (_trained(_BY_TASK["classify"]), of_run), ("found.json",), (0, 1))


SETS = {
    "citypersons": (),
    "cloud_folder": ("up_axis=z", "num_points=64"),
    "coco": (),
    "crowdhuman": (),
    "ecp": (),
    "hands2017": (),
    "icvl_hands": (),
    "itop": (),
    "kitti_object": (),
    "modelnet40": (),
    "msra_hands": (),
    "nyu_hands": (),
    "psb19": (),
    "s3dis": (),
    "scan_folder": ("columns=[x, y, z, remission, ring]", "num_beams=16"),
    "scanobjectnn": ("variant=obj_bg",),
    "scene_folder": ("unit=m", "up_axis=z"),
    "semantic_kitti": (),
    "shapenet_part": (),
    "shapenet_render": (),
    "squeezeseg_npy": (),
    "widerperson": (),
    "yolo_txt": (),
}
"""The sets to prepare, with how; modelnet10 and s3dis_one_room are read by the code of their larger sets."""

_INSIDE = {"psb19": "/psb19_2048.npz"}
"""What of a source is named, where it is not the folder."""


def _prepared() -> Iterator[Row]:
    """One generated source of every set; manifests, arrays and what `data info` prints of the folder and of the set."""
    for name, options in SETS.items():
        prepare = _one(
            "data", "prepare", name, *options, "--from", f"@in/{name}/source{_INSIDE.get(name, '')}", "--to", "@out/set"
        )
        info = _one("data", "info", "@out/set", "--json", "@out/info.json")
        is_quick = name in ("cloud_folder", "crowdhuman")
        yield Row(f"data/{name}", (prepare, info), ("set/**/*", "info.json"), inputs=(name,), is_quick=is_quick)
    cards = tuple(_one("data", "info", name, "--json", f"@out/{name}.json") for name in SETS)
    yield Row("data/cards", cards, ("*.json",), is_quick=True)


def _predictions() -> Iterator[Row]:
    """Files of each task, predicted by a run of two steps."""
    scans = "@in/semantic_kitti/source/sequences"
    camera = ("camera.fx=588.0", "camera.fy=-587.1", "camera.u0=320", "camera.v0=240")
    asked = {
        "classify": ("cloud_folder", "@in/cloud_folder/source"),
        "detect": ("crowdhuman", "@in/crowdhuman/source/CrowdHuman_train01/Images", "--score", "0.01"),
        "pose": ("hands2017", "@in/hands2017/source/frame/images", *camera),
        "scans": ("semantic_kitti", f"{scans}/00/velodyne", "--columns", "x,y,z,remission", "rings=order"),
        "scenes": ("room", "@in/room/source", "--columns", "x,y,z,red,green,blue"),
    }
    for task, (name, *words) in asked.items():
        out = () if task == "classify" else ("--out", "@out/files")
        spellings = [words, *([[*words[:-2], "score=0.01"]] if "--score" in words else [])]
        predict = [("predict", "@out/run", *given, *_CPU, *out, "--json", "@out/all.json") for given in spellings]
        files = ("all.json", *(("files/**/*",) if out else ()))
        yield Row(
            f"predict/{task}", (_trained(_BY_TASK[task]), predict), files, inputs=(name,), is_quick=task == "classify"
        )


def _packed() -> Iterator[Row]:
    """A run made small: its policy and packed weights, and what is told of it."""
    few = (
        "--ratio",
        "0.2",
        "--bits",
        "2,4",
        "--epochs",
        "1",
        "--calibration",
        "8",
        "--batch-norm",
        "2",
        "max_evaluations=40",
    )
    yield Row(
        "compress/classify",
        (
            _trained(_BY_TASK["classify"]),
            _one("compress", "@out/run", *few, "--out", "@out/small", *_CPU, "--json", "@out/told.json"),
            _one("evaluate", "@out/small", *_CPU, "--json", "@out/evaluated.json"),
            _one("describe", "@out/small", *_CPU, "--json", "@out/described.json"),
        ),
        (
            "small/model.slq",
            "small/config.yaml",
            "small/**/policy.json",
            "told.json",
            "evaluated.json",
            "described.json",
        ),
    )


def _records() -> Iterator[Row]:
    """A step kept by `compare record`, and another tree's numbers held against it."""
    for task in ("classify", "scans"):
        words = _small(_BY_TASK[task])
        record = _one("compare", "record", *words, "--samples", "2", "--steps", "1", "--out", "@out/record")
        held = _one("compare", *words, "--against", "float64", "--steps", "1", "--json", "@out/compared.json")
        files = ("record/record.json", "record/tensors.safetensors", "compared.json")
        yield Row(f"compare/{task}", (record, held), files, (0, 1), is_quick=task == "classify")


LAYOUTS = (
    "antao97_dgcnn_cls",
    "antao97_dgcnn_parts",
    "antao97_dgcnn_scenes",
    "crosspoint_cls",
    "crosspoint_cls_resnet18",
    "crosspoint_cls_resnet50",
    "crosspoint_parts",
    "crosspoint_seg",
    "crosspoint_seg_resnet18",
    "crosspoint_seg_resnet50",
    "crowddet_retinanet",
    "crowddet_retinanet_emd",
    "darknet_darknet53",
    "darknet_yolov3",
    "dragonbook_v2v",
    "lidar_bonnetal_darknet21",
    "lidar_bonnetal_darknet53",
    "lidar_bonnetal_squeezeseg",
    "lidar_bonnetal_squeezeseg_crf",
    "lidar_bonnetal_squeezesegv2",
    "lidar_bonnetal_squeezesegv2_crf",
    "lulutang0608_point_bert_cls",
    "lulutang0608_point_bert_parts",
    "lulutang0608_point_bert_pretrained",
    "menghaoguo_pct_parts",
    "odtask_darknet53",
    "odtask_retina_resnet101",
    "odtask_retina_resnet18",
    "odtask_retina_resnet34",
    "odtask_retina_resnet50",
    "odtask_yolov3",
    "postech_point_transformer_seg",
    "qq456cvb_pct_cls",
    "qq456cvb_point_transformer_cls",
    "qq456cvb_point_transformer_parts",
    "salsanext",
    "strawberry_pct_cls",
    "strawberry_pct_cls_new",
    "timm_vit_base",
    "timm_vit_small",
    "timm_vit_tiny",
    "torchvision_fcos_resnet50_fpn",
    "torchvision_resnet101",
    "torchvision_resnet18",
    "torchvision_resnet34",
    "torchvision_resnet50",
    "torchvision_retinanet_resnet50_fpn",
    "wangyueft_dgcnn_cls",
    "wangyueft_pointnet",
    "yanx27_pointnet2_msg_cls",
    "yanx27_pointnet2_ssg_cls",
    "yanx27_pointnet2_ssg_parts",
    "yanx27_pointnet2_ssg_scenes",
    "yanx27_pointnet_cls",
    "yanx27_pointnet_parts",
    "yanx27_pointnet_scenes",
    "yolox",
)
"""The published layouts of `data convert-weights`; a test holds that none is missing."""
_NEEDS_NO_ROOT = ("darknet_darknet53", "odtask_darknet53", "timm_", "torchvision_resnet")
"""What the names of layouts begin with whose data set is made up."""


def _converted() -> Iterator[Row]:
    """Rule-made weights under the names of every published layout, as runs."""
    for layout in LAYOUTS:
        place = f"@in/{layout}/source"
        images = ("--images", f"{place}/images.pth") if layout.startswith("crosspoint") and "resnet" in layout else ()
        words = (f"{place}/weights.pth", "--layout", layout, *images, "--to", "@out/run")
        spelling = ("data", "convert-weights", *words)
        if not layout.startswith(_NEEDS_NO_ROOT):
            spelling += ("data.root=none",)
        files = ("run/checkpoints/step_*/model.safetensors", "run/config.yaml", "run/facts.json", "run/lineage.json")
        quick = layout in ("wangyueft_pointnet", "dragonbook_v2v")
        yield Row(f"layouts/{layout}", ((spelling,),), files, inputs=(layout,), is_quick=quick)
