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
    "sightline.metrics.box_ap": "detection_curves box_header box_bins",
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
    "sightline.tasks.detection_output": "detection_decoding detection_pictures target_pictures",
    "sightline.tasks.segment": "sliding_windows",
    "sightline.tasks.supervised": "classify pose centre",
    "sightline.transforms.combined_images": "boxes",
    "sightline.transforms.images": "colours",
    "sightline.transforms.point_selection": "crops",
    "sightline.transforms.points": "elastic two_views",
}
"""Module -> names that parts of it had as modules of the same folder."""

MODULES: Mapping[str, str] = {
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
"""Old path of a module -> its path."""

NAMES: Mapping[str, Mapping[str, str]] = {
    "sightline.arguments": {
        "Factor": "NonNegativeFloat",
        "Fraction": "FractionBelowOne",
        "QuantisedAs": "WeightQuantisation",
        "Share": "PositiveFraction",
        "Size": "PositiveFloat",
    },
    "sightline.assigners.base": {"Predicted": "PriorPredictions"},
    "sightline.binding": {"Offer": "AvailableKeys"},
    "sightline.compress.search.base": {"Evaluator": "PolicyEvaluator"},
    "sightline.data.depth.depth_frames": {"FramePart": "FrameSplit"},
    "sightline.doctor.context": {"Check": "Rule"},
    "sightline.engine.optimizers": {"Recipe": "OptimizerSpec"},
    "sightline.draw.pictures": {
        "colors_of": "label_colors",
        "in_space": "pad_to_3d",
        "ramp": "apply_colormap",
        "stretched": "normalize_to_uint8",
    },
    "sightline.errors": {"in_one_line": "escape_to_one_line", "summary_of": "summarise_error"},
    "sightline.geometry.boxes.suppression": {"Kept": "SuppressionResult"},
    "sightline.layers.quantisation.activations": {"calibrated": "calibrate_activations"},
    "sightline.metrics.base": {"fault_of_state": "find_state_fault", "fresh_state": "make_state"},
    "sightline.models.detection.heads": {"at_priors": "flatten_to_priors"},
    "sightline.predict.depth_reader": {"OwnFrames": "DepthFrameOptions"},
    "sightline.predict.predictor": {"not_finite": "refuse_non_finite"},
    "sightline.types": {
        "CloudForm": "CloudInputSpec",
        "Component": "ComponentConfig",
        "Ramp": "LinearRamp",
        "ScanForm": "ScanInputSpec",
        "Where": "SourceLocation",
    },
}
"""Module -> old name -> the name that it has there."""


class _Finder(MetaPathFinder):
    """Import of a module by its old path: the same module object, not a copy."""

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        return ModuleSpec(fullname, _Loader(MODULES[fullname])) if fullname in MODULES else None


class _Loader(Loader):
    def __init__(self, name: str) -> None:
        self._module = importlib.import_module(name)
        self._spec = self._module.__spec__

    def create_module(self, spec: ModuleSpec) -> ModuleType:
        return self._module

    def exec_module(self, module: ModuleType) -> None:
        module.__spec__ = self._spec  # the import system has put the old path's in its place


def install() -> None:
    """Let the modules of `MODULES` be imported by their old paths. Safe to call twice."""
    if not any(isinstance(finder, _Finder) for finder in sys.meta_path):
        sys.meta_path.append(_Finder())


def old_names(module: str) -> Callable[[str], Any]:
    """Return a module's `__getattr__`, which looks up the old names of `NAMES`."""
    names = NAMES[module]

    def find(name: str) -> Any:
        if name not in names:
            raise AttributeError(f"module {module!r} has no attribute {name!r}")
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
