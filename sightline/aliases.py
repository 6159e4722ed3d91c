"""Old names that plugins were written against: modules, names of modules, members and keywords.

Plugins of an earlier version continue to work: `install` allows imports by old module paths, `old_names` looks up old
names in a module, `keep_old_members` keeps old members and keywords of a class, `keep_old_keywords` those of a
function. The package itself uses no old name.
"""

from __future__ import annotations

import functools
import importlib
import inspect
import sys
from collections.abc import Callable, Mapping, Sequence
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import Any, TypeVar

T = TypeVar("T")

_MERGED: Mapping[str, str] = {
    "sightline.assigners.base": "candidates",
    "sightline.assigners.optimal_transport": "ota simota sinkhorn",
    "sightline.assigners.static": "max_iou atss fcos free_anchor",
    "sightline.compress.search.base": "problem evaluations",
    "sightline.compress.search.baselines": "nsga2",
    "sightline.compress.search.ddpg": "agent",
    "sightline.compress.search.knapsack": "sensitivity hybrid",
    "sightline.describe.drawing": "figure",
    "sightline.geometry.boxes.overlaps": "box_coder",
    "sightline.geometry.boxes.priors": "affine anchor_fitting bags",
    "sightline.geometry.capsules": "capsule_kernels beams",
    "sightline.geometry.neighbours": "neighbour_products balls interpolation",
    "sightline.geometry.packed": "point_pyramid",
    "sightline.geometry.pinhole": "cameras crops",
    "sightline.geometry.rendering": "rendering_kernels",
    "sightline.geometry.sampling": "sampling_kernels",
    "sightline.geometry.scans.lift": "lift_kernels projection_summary",
    "sightline.geometry.scans.projection": "borders",
    "sightline.geometry.surfaces": "surfels parametric_surfaces normals",
    "sightline.geometry.trees": "curve_trees",
    "sightline.geometry.volumes": "heatmaps v2v_release_voxels volume_kernels",
    "sightline.layers.batch_norm": "native_batch_norm",
    "sightline.layers.dense_vector_attention": "dense_attention_function dense_transition",
    "sightline.layers.edge_conv": "edge_mlp edge_products edge_propagation",
    "sightline.layers.images": "volumetric activation_checkpointing",
    "sightline.layers.mlp": "cloud",
    "sightline.layers.pooling": "pool_kernels",
    "sightline.layers.quantisation.activations": "choices",
    "sightline.layers.quantisation.clustering": "cluster_kernels",
    "sightline.layers.quantisation.linear": "halves quantisable_weights",
    "sightline.layers.set_abstraction": "grouped_mlp feature_propagation",
    "sightline.layers.transformer": "stochastic_depth patch_tokens offset_attention",
    "sightline.layers.transitions": "transition_down_kernels",
    "sightline.layers.vector_attention": "fused_vector_attention",
    "sightline.losses.boxes": "box_functional",
    "sightline.losses.classification": "cross_entropy focal lovasz class_weights distillation",
    "sightline.losses.embeddings": "contrast feature_transform",
    "sightline.losses.pose": "heatmaps centres",
    "sightline.metrics.box_groups": "average_precision",
    "sightline.metrics.crowds": "crowd_ap miss_rate jaccard",
    "sightline.metrics.joints": "joint_errors keypoint_precision keypoints centre_error",
    "sightline.metrics.labels": "accuracy confusion iou predicted_labels scan_iou",
    "sightline.metrics.part_iou": "part_counts",
    "sightline.models.detection.backbones": "csp fpn detector",
    "sightline.models.detection.heads": "head retina fcos yolo",
    "sightline.models.dgcnn": "dgcnn_segmentation",
    "sightline.models.point_bert": "point_bert_parts",
    "sightline.models.pointnet": "pointnet_segmentation",
    "sightline.models.pointnet2": "pointnet2_segmentation",
    "sightline.models.range_image.rangenet": "network deeplabv3",
    "sightline.models.resnet": "image_classifier",
    "sightline.models.v2v": "scale_net",
    "sightline.probe.classifiers": "outcome choice folds",
    "sightline.probe.features": "cache source_digest",
    "sightline.probe.few_shot": "episodes",
    "sightline.probe.linear": "knn",
    "sightline.probe.measure": "final",
    "sightline.probe.probed_run": "probed_data data_mismatch",
    "sightline.probe.svm": "threads",
    "sightline.tasks.detection_output": "detection_decoding",
    "sightline.tasks.segment": "sliding_windows",
    "sightline.tasks.supervised": "classify pose centre",
    "sightline.transforms.combined_images": "boxes",
    "sightline.transforms.images": "colours",
    "sightline.transforms.point_selection": "crops",
    "sightline.transforms.points": "elastic two_views",
}
"""Module -> names that parts of it had as modules of the same folder."""

_MOVED: Mapping[str, str] = {
    "areas.detect.anchors": "areas.detect.anchor_coverage",
    "areas.detect.backbones": "areas.detect.networks",
    "areas.detect.combined_images": "areas.detect.transforms",
    "areas.detect.free_anchor": "areas.detect.free_anchor_losses",
    "arguments": "contract.arguments",
    "assigners": "areas.detect.assigners",
    "binding": "contract.binding",
    "compare": "workbench.compare",
    "compress": "workbench.compress",
    "data": "store",
    "data.boxes": "areas.detect.sets",
    "data.clouds": "areas.clouds.sets",
    "data.clouds.shapenet_render": "areas.contrast.shapenet_render",
    "data.depth": "areas.pose.sets",
    "data.files": "store.files",
    "data.files.depth_files": "areas.pose.depth_files",
    "data.loading": "store.loading",
    "data.render": "areas.clouds.render",
    "data.scans": "areas.scans.sets",
    "data.scans.scan_reading": "store.files.scan_reading",
    "data.scans.scan_samples": "store.files.scan_samples",
    "data.scenes": "areas.scenes.sets",
    "data.store": "store.prepared",
    "data.synthetic": "store",
    "data.synthetic.synthetic_crowds": "areas.detect.sets.synthetic_crowds",
    "data.synthetic.synthetic_figures": "areas.pose.sets.synthetic_figures",
    "data.synthetic.synthetic_hands": "areas.pose.sets.synthetic_hands",
    "data.synthetic.synthetic_lidar": "areas.scans.sets.synthetic_lidar",
    "data.synthetic.synthetic_rooms": "areas.scenes.sets.synthetic_rooms",
    "data.synthetic.synthetic_shapes": "areas.clouds.sets.synthetic_shapes",
    "data.synthetic.synthetic_solids": "areas.clouds.sets.synthetic_solids",
    "describe": "workbench.describe",
    "doctor": "workbench.check",
    "doctor.checks.data.boxes": "areas.detect.checks",
    "doctor.overfit": "workbench.fit",
    "draws": "contract.draws",
    "errors": "contract.errors",
    "evaluation": "workbench.evaluate",
    "evaluation.box_results": "areas.detect.box_results",
    "facts": "contract.facts",
    "gc_pause": "contract.gc_pause",
    "geometry": "compute.geometry",
    "layers": "compute.layers",
    "losses": "parts.losses",
    "losses.base": "contract.loss",
    "losses.boxes": "areas.detect.losses",
    "losses.free_anchor": "areas.detect.free_anchor_losses",
    "losses.pose": "areas.pose.losses",
    "metrics": "parts.metrics",
    "metrics.base": "contract.metric",
    "metrics.box_ap": "areas.detect.metrics.box_ap",
    "metrics.box_bins": "areas.detect.metrics.label_bins",
    "metrics.box_errors": "areas.detect.metrics.box_errors",
    "metrics.box_header": "areas.detect.metrics.detection_curves",
    "metrics.crowds": "areas.detect.metrics.crowds",
    "metrics.detection_curves": "areas.detect.metrics.detection_curves",
    "metrics.joints": "areas.pose.metrics",
    "metrics.pairs": "areas.contrast.metrics",
    "models": "parts.models",
    "models.crosspoint": "areas.contrast.crosspoint",
    "models.darknet": "parts.models.darknet",
    "models.detection": "areas.detect",
    "models.detection.backbones": "areas.detect.networks",
    "models.dgcnn": "areas.clouds.models.dgcnn",
    "models.pct": "areas.clouds.models.pct",
    "models.point_bert": "areas.clouds.models.point_bert",
    "models.point_transformer": "areas.scenes.point_transformer",
    "models.point_transformer_dense": "areas.clouds.models.point_transformer_dense",
    "models.pointnet": "areas.clouds.models.pointnet",
    "models.pointnet2": "areas.clouds.models.pointnet2",
    "models.range_image": "areas.scans.models",
    "models.resnet": "parts.models.resnet",
    "models.v2v": "areas.pose.v2v",
    "models.vit": "parts.models.vit",
    "numba_kernels": "compute.numba_kernels",
    "optional_members": "contract.members",
    "plugins": "contract.plugins",
    "predict": "workbench.predict",
    "predict.depth_reader": "areas.pose.depth_reader",
    "predict.detect": "areas.detect.predictor",
    "predict.frame_centres": "areas.pose.frame_centres",
    "predict.pose": "areas.pose.predictor",
    "predict.predictor": "workbench.predict.predictor",
    "probe": "workbench.probe",
    "pytree": "contract.pytree",
    "registry": "contract.registry",
    "regular_files": "contract.regular_files",
    "schema": "contract.schema",
    "studies": "workbench.study",
    "surrogates": "compute.surrogates",
    "tasks": "parts.tasks",
    "tasks.contrast": "areas.contrast.task",
    "tasks.detect": "areas.detect.task",
    "tasks.detection_output": "areas.detect.output",
    "tasks.detection_pictures": "areas.detect.pictures",
    "tasks.target_pictures": "areas.detect.pictures",
    "transforms": "parts.transforms",
    "transforms.combined_images": "areas.detect.transforms",
    "transforms.range_projection": "areas.scans.range_projection",
    "transforms.scene_points": "areas.scenes.transforms",
    "transforms.volumes": "areas.pose.transforms",
    "types": "contract.types",
    "view.depth_stages": "areas.pose.stages",
    "view.run_pages": "runs.curves",
}
"""Folder or module of the package -> its path since the areas became folders; the longest beginning counts."""


def locate_moved(path: str) -> str:
    """Return today's path of a module or folder of the package; a path that did not move is returned as it is."""
    parts = path.split(".")[1:]
    for length in range(len(parts), 0, -1):
        moved = _MOVED.get(".".join(parts[:length]))
        if moved is not None:
            return ".".join(["sightline", moved, *parts[length:]])
    return path


_RENAMED: Mapping[str, str] = {
    "sightline.box_pictures": "sightline.draw.boxes",
    "sightline.chart": "sightline.draw.charts",
    "sightline.compress.report": "sightline.studies.compression_report",
    "sightline.data.depth_files": "sightline.data.files.depth_files",
    "sightline.data.views": "sightline.data.store.views",
    "sightline.engine.conversion": "sightline.published.conversion",
    "sightline.engine.loading": "sightline.engine.run_loading",
    "sightline.engine.own_frames": "sightline.predict.depth_reader",
    "sightline.models.published": "sightline.published",
    "sightline.models.published.published": "sightline.published.translation",
    "sightline.models.published.published_files": "sightline.published.files",
    "sightline.pictures": "sightline.draw.pictures",
    "sightline.predict.own_frames": "sightline.predict.depth_reader",
    "sightline.studies.train_run": "sightline.training.train_run",
    **{f"{path.rpartition('.')[0]}.{name}": path for path, names in _MERGED.items() for name in names.split()},
}
"""Old path of a module -> the path that it had before the areas became folders."""

MODULES: Mapping[str, str] = {
    **{f"sightline.{path}": locate_moved(f"sightline.{path}") for path in _MOVED},
    **{old: locate_moved(path) for old, path in _RENAMED.items()},
}
"""Old path of a module -> its path."""

NAMES: Mapping[str, Mapping[str, str]] = {
    "sightline.contract.arguments": {
        "Factor": "NonNegativeFloat",
        "Fraction": "FractionBelowOne",
        "QuantisedAs": "WeightQuantisation",
        "Share": "PositiveFraction",
        "Size": "PositiveFloat",
    },
    "sightline.areas.detect.assigners.base": {"Predicted": "PriorPredictions"},
    "sightline.areas.detect.metrics.box_ap": {
        **dict.fromkeys(
            ("CALTECH_4", "DetectionCurve", "MISS_RATE_RULES", "MissRateRule", "detection_curve", "nan_mean"),
            "sightline.areas.detect.metrics.detection_curves",
        ),
        **dict.fromkeys(("BINS", "Bin", "in_bin", "label_values"), "sightline.areas.detect.metrics.label_bins"),
    },
    "sightline.areas.detect.output": {
        "Candidates": "UnsuppressedDetections",
        **dict.fromkeys(
            "COLORS LEVEL_COLORS MIN_DRAWN_SCORE get_image_pixels show_assignments show_detections show_priors".split(),
            "sightline.areas.detect.pictures",
        ),
    },
    "sightline.contract.binding": {"Offer": "AvailableKeys"},
    "sightline.workbench.compress.search.base": {"Evaluator": "PolicyEvaluator"},
    "sightline.areas.pose.sets.depth_frames": {"FramePart": "FrameSplit"},
    "sightline.workbench.check.context": {"Check": "Rule"},
    "sightline.engine.optimizers": {"Recipe": "OptimizerSpec"},
    "sightline.draw.pictures": {
        "colors_of": "label_colors",
        "in_space": "pad_to_3d",
        "ramp": "apply_colormap",
        "stretched": "normalize_to_uint8",
    },
    "sightline.contract.errors": {"in_one_line": "escape_to_one_line", "summary_of": "summarise_error"},
    "sightline.compute.geometry.boxes.suppression": {"Kept": "SuppressionResult"},
    "sightline.compute.layers.quantisation.activations": {"calibrated": "calibrate_activations"},
    "sightline.contract.metric": {"fault_of_state": "find_state_fault", "fresh_state": "make_state"},
    "sightline.areas.detect.heads": {"at_priors": "flatten_to_priors"},
    "sightline.areas.pose.depth_reader": {"OwnFrames": "DepthFrameOptions"},
    "sightline.workbench.predict.predictor": {"not_finite": "refuse_non_finite"},
    "sightline.contract.types": {
        "CloudForm": "CloudInputSpec",
        "Component": "ComponentConfig",
        "Ramp": "LinearRamp",
        "ScanForm": "ScanInputSpec",
        "Where": "SourceLocation",
    },
}
"""Module -> old name -> the name that it has there, or the module that has it now."""


class _Finder(MetaPathFinder):
    """Import of a module by its old path: the same module object, not a copy."""

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        if not fullname.startswith("sightline."):
            return None
        path = MODULES.get(fullname) or locate_moved(fullname)
        return None if path == fullname else ModuleSpec(fullname, _Loader(path, fullname))


class _Loader(Loader):
    def __init__(self, name: str, old_name: str) -> None:
        self._module = importlib.import_module(name)
        self._spec = self._module.__spec__
        self._old_name = old_name

    def create_module(self, spec: ModuleSpec) -> ModuleType:
        return self._module

    def exec_module(self, module: ModuleType) -> None:
        module.__spec__ = self._spec  # the import system has put the old path's in its place
        package, _, name = self._old_name.rpartition(".")
        if package == "sightline.compare":  # a function by now, of which `import sightline.compare.steps as s` asks it
            setattr(sys.modules["sightline"].compare, name, module)


def install() -> None:
    """Let modules be imported by their old paths. Safe to call twice.

    The finder comes first: a folder of an old path may still hold compiled files, and would be imported as empty.
    """
    if not any(isinstance(finder, _Finder) for finder in sys.meta_path):
        sys.meta_path.insert(0, _Finder())


def old_names(module: str) -> Callable[[str], Any]:
    """Return a module's `__getattr__`, which looks up the old names of `NAMES`."""
    names = NAMES[module]

    def find(name: str) -> Any:
        if name not in names:
            raise AttributeError(f"module {module!r} has no attribute {name!r}")
        if "." in names[name]:
            return getattr(importlib.import_module(names[name]), name)
        return getattr(sys.modules[module], names[name])

    return find


class _RenamedMember:
    """A member of a class under its old name; subclasses that override it have both names (`keep_old_members`)."""

    def __init__(self, owner: type, name: str) -> None:
        self._owner = owner
        self._name = name

    def __get__(self, instance: object, owner: type) -> Any:
        if self._name in getattr(instance, "__dict__", ()):
            return getattr(instance, self._name)
        if instance is None and not hasattr(self._owner, self._name):
            return self  # annotated alone
        member = inspect.getattr_static(self._owner, self._name)  # of this class: `super()` asks for it, too
        return member.__get__(instance, owner) if hasattr(member, "__get__") else member

    def __set__(self, instance: object, value: object) -> None:
        setattr(instance, self._name, value)


def keep_old_members(**names: str) -> Callable[[T], T]:
    """Decorate a class whose members had other names: `keep_old_members(old="new")`.

    The old names can be read, set, overridden by subclasses, and given as keywords of the constructor.
    """

    def add(cls: Any) -> Any:
        def adopt(subclass: Any, **keywords: Any) -> None:
            super(cls, subclass).__init_subclass__(**keywords)
            for old, new in names.items():
                for name, other in ((old, new), (new, old)):
                    if name in vars(subclass) and other not in vars(subclass):
                        setattr(subclass, other, vars(subclass)[name])

        is_tuple = issubclass(cls, tuple)
        constructor = cls.__new__ if is_tuple else cls.__init__
        keywords = {old: new for old, new in names.items() if new in inspect.signature(constructor).parameters}
        if keywords:
            wrapped = keep_old_keywords(**keywords)(constructor)
            setattr(cls, "__new__" if is_tuple else "__init__", staticmethod(wrapped) if is_tuple else wrapped)
        cls.__init_subclass__ = classmethod(adopt)
        for old, new in names.items():
            if hasattr(cls, new) or new in inspect.get_annotations(cls):
                setattr(cls, old, _RenamedMember(cls, new))
        return cls

    return add


def keep_old_keywords(**names: str) -> Callable[[T], T]:
    """Decorate a function whose parameters had other names: `keep_old_keywords(old="new")`."""

    def add(function: Any) -> Any:
        @functools.wraps(function)
        def call(*values: Any, **keywords: Any) -> Any:
            if twice := [f"{old} and {new}" for old, new in names.items() if {old, new} <= keywords.keys()]:
                raise TypeError(f"{function.__qualname__}: {twice[0]} name one argument; give only the second")
            return function(*values, **{names.get(name, name): value for name, value in keywords.items()})

        call.__dict__["old_keywords"] = frozenset(names)
        return call

    return add
