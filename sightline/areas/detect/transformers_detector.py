"""Detectors of the library transformers (D-FINE, RT-DETR v2), with its networks, its matching and its losses.

The library divides its losses by the number of boxes of a batch. Here each is multiplied by that number again, so that
the engine divides by the boxes of the whole step, as it does for every other loss.
"""

from __future__ import annotations

import functools
import json
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from itertools import pairwise
from typing import Any, ClassVar, NamedTuple, TypedDict

import torch
from torch import Tensor, nn

from sightline.contract import registry
from sightline.contract.errors import CheckpointError, ConfigError, assert_installed, escape_to_one_line, join_some
from sightline.contract.loss import Loss
from sightline.contract.model import Model
from sightline.contract.schema import suggest
from sightline.instrument import InterceptedFunctions
from sightline.instrument.float64 import Float64Functions
from sightline.layers.images import assert_images
from sightline.ops.waits import read_list


class _Family(NamedTuple):
    """Name of a detector's classes in transformers, and the terms of its loss: key of ours -> theirs; our losses."""

    prefix: str
    terms: Mapping[str, str]
    losses: tuple[str, ...]


_TERMS = {"class_term": "loss_vfl", "l1_term": "loss_bbox", "giou_term": "loss_giou"}
_LOSSES = ("set_class", "set_l1", "set_giou")
_FAMILIES = {
    "d_fine": _Family(
        "DFine",
        {**_TERMS, "corner_term": "loss_fgl", "distillation_term": "loss_ddf"},
        (*_LOSSES, "set_corners", "set_distillation"),
    ),
    "rt_detr_v2": _Family("RTDetrV2", _TERMS, _LOSSES),
}
_BY_US = ("num_labels", "id2label", "label2id", "num_channels", "return_dict", "use_pretrained_backbone")
"""Values of the library's config that follow from the data, or that this model sets itself."""
_OF_TRAINING = ("weight_loss_", "matcher_", "focal_loss_")
_NOT_OF_NETWORK = frozenset(
    "_name_or_path activation_dropout anchor_image_size architectures attention_dropout auxiliary_loss box_noise_scale "
    "chunk_size_feed_forward dropout dtype eos_coefficient eval_size freeze_backbone_batch_norms head_dim id2label "
    "initializer_bias_prior_prob initializer_range is_encoder_decoder label2id label_noise_ratio num_channels "
    "num_denoising num_labels out_indices output_attentions output_hidden_states problem_type return_dict stage_names "
    "tie_word_embeddings transformers_version use_focal_loss".split()
)
"""Values of the library's config that two networks may differ in, and the same weights fit both."""
_CLASS_LAYERS = ("class_embed.", "enc_score_head.", "denoising_class_embed.")
"""Beginnings of the names, within their module, of layers with a row for each class."""


class SetOutput(TypedDict):
    """Boxes of Q queries: `logits` (B, Q, K), before the sigmoid, and `set_boxes` (B, Q, 4).

    `set_boxes` are centre x, centre y, width and height, in shares of the canvas.
    """

    logits: Tensor
    set_boxes: Tensor


@registry.models.add("transformers_detector")
class TransformersDetector(Model):
    """Detector of the library transformers, D-FINE or RT-DETR v2, for the task `detect_set`.

    `network` has the name `d_fine` or `rt_detr_v2`, and values of the library's own config (`DFineConfig`,
    `RTDetrV2Config`) where they differ from its defaults, under its names; the number of classes is that of the data.
    Weights are random, or those of `init.from`: a safetensors file of such a detector next to its `config.json`, or a
    repository of a hub. Images have colours of 0 to 1, which `normalize_image` gives by default for this model. With
    boxes, outputs include the library's loss terms, each multiplied by its weight in
    `network` and by the number of boxes that are not ignored (1 without any). Needs the extra `transformers`, and
    images whose sides are multiples of 32. Raises ConfigError for values that the library does not have or refuses.
    Source: Peng et al. 2024, D-FINE; Lv et al. 2024, RT-DETRv2; networks and losses are those of Hugging Face's
    transformers.
    """

    tasks = frozenset({"detect_set"})
    transform_defaults: ClassVar = {"normalize_image": {"mean": (0.0, 0.0, 0.0), "std": (1.0, 1.0, 1.0)}}
    image_multiple = 32  # stride of the coarsest map
    targets = frozenset({"boxes", "label", "is_ignored", "box_offsets"})

    def __init__(self, *, num_classes: int, class_names: tuple[str, ...] = (), network: dict[str, Any]) -> None:
        super().__init__()
        settings = dict(network)
        if (name := settings.pop("name", None)) not in _FAMILIES:
            raise ConfigError(f"network: found the name {name!r}, allowed are {' and '.join(_FAMILIES)}")
        assert_installed("transformers", "scipy", needed_by="model transformers_detector")
        self.class_names = class_names or tuple(map(str, range(num_classes)))
        self._terms = _FAMILIES[name].terms
        self.network = _make_network(name, settings, self.class_names)
        self.output_keys = frozenset({"logits", "set_boxes", *self._terms})

    def forward(
        self,
        *,
        image: Tensor,
        boxes: Tensor | None = None,
        label: Tensor | None = None,
        is_ignored: Tensor | None = None,
        box_offsets: Tensor | None = None,
    ) -> SetOutput:
        """Predict from `image` (B, 3, H, W); with the boxes of a batch also the loss terms, each a scalar ().

        In training mode the library's denoising queries are made of the boxes; in evaluation nothing of a prediction
        depends on them, and D-FINE has its last layer alone: `corner_term` and `distillation_term`, of the layers
        before it, are 0. Ignored boxes are left out, so that their regions count as background.
        """
        assert_images(image, channels=3)
        if any(side % self.image_multiple for side in image.shape[2:]):
            raise ValueError(
                f"image: found {image.shape[2]} x {image.shape[3]} pixels, transformers_detector takes multiples of "
                f"{self.image_multiple}; set height and width of fit_image"
            )
        config = self.network.config
        if (num_positions := sum(math.prod(side // s for side in image.shape[2:]) for s in config.feat_strides)) < (
            config.num_queries
        ):
            raise ValueError(
                f"image: {image.shape[2]} x {image.shape[3]} pixels have {num_positions} positions of queries, fewer "
                f"than the {config.num_queries} queries; take a larger canvas, or set model.network.num_queries"
            )
        if boxes is None or label is None or is_ignored is None or box_offsets is None:
            return self._to_outputs(self._call(image))
        targets = make_targets(image, boxes, label, is_ignored, box_offsets)
        predicted = self._call(image, labels=targets)
        num_boxes = max(1, sum(len(target["boxes"]) for target in targets))
        terms = {ours: num_boxes * _add_up(predicted.loss_dict, theirs) for ours, theirs in self._terms.items()}
        outputs: Any = {**self._to_outputs(predicted), **terms}
        return outputs

    def _call(self, image: Tensor, **named: Any) -> Any:
        with Float64Functions() if image.dtype == torch.float64 else nullcontext():
            return self.network(pixel_values=image, **named)

    def _to_outputs(self, predicted: Any) -> SetOutput:
        queries = slice(-self.network.config.num_queries, None)  # denoising queries come first
        return {"logits": predicted.logits[:, queries], "set_boxes": predicted.pred_boxes[:, queries]}

    @torch.no_grad()
    def match_boxes(
        self,
        outputs: Mapping[str, Tensor],
        *,
        image: Tensor,
        boxes: Tensor,
        label: Tensor,
        is_ignored: Tensor,
        box_offsets: Tensor,
    ) -> list[tuple[Tensor, Tensor]]:
        """Match predictions to boxes as the loss does, one for each box: indices of queries, and of boxes.

        Boxes of an image are counted without the ignored ones. In training, D-FINE and RT-DETR also match the
        predictions of the layers before the last.
        """
        from transformers.loss.loss_rt_detr import RTDetrHungarianMatcher

        predicted = {"logits": outputs["logits"], "pred_boxes": outputs["set_boxes"]}
        matcher = RTDetrHungarianMatcher(self.network.config)
        matched: list[tuple[Tensor, Tensor]] = matcher(
            predicted, make_targets(image, boxes, label, is_ignored, box_offsets)
        )
        return matched

    def fit_weights(self, weights: Mapping[str, Tensor], config: Mapping[str, Any]) -> tuple[dict[str, Tensor], str]:
        """Fit weights of a detector of other classes to this one: rows of classes are chosen by class name.

        Classes that the config's `id2label` lacks start with the rows that this model has. All other tensors stay as
        they are. Returns the weights and a sentence on the classes. Raises CheckpointError, with the `network` to
        take, for weights of another one.
        """
        _assert_same_network(self.network.config, config)
        labels = {int(index): str(name) for index, name in (config.get("id2label") or {}).items()}
        indices = {name.casefold(): index for index, name in labels.items()}
        source = [indices.get(name.casefold()) for name in self.class_names]
        copied = [(row, index) for row, index in enumerate(source) if index is not None]
        model_weights, fitted = self.state_dict(), dict(weights)
        for name, value in weights.items():
            if name not in model_weights or not any(f".{layer}" in name for layer in _CLASS_LAYERS):
                continue
            rows = model_weights[name].detach().clone()
            if len(rows) == len(source) + 1:  # the last one is of no class
                rows[-1] = value[-1]
            for row, index in copied:
                rows[row] = value[index]
            fitted[name] = rows
        new = [name for name, index in zip(self.class_names, source, strict=True) if index is None]
        note = f"{len(copied)} of {len(source)} classes start with the file's weights of the class of the same name"
        return fitted, note + (f"; new: {escape_to_one_line(join_some(new, most=8))}" if new else "")


def make_targets(
    image: Tensor, boxes: Tensor, label: Tensor, is_ignored: Tensor, box_offsets: Tensor
) -> list[dict[str, Tensor]]:
    """Make the library's labels of each image (B, 3, H, W): `class_labels` (G,), and `boxes` (G, 4) in shares of it.

    `boxes` (T, 4) are left, top, right, bottom in pixels of the canvas; ignored ones are left out.
    """
    height, width = image.shape[2:]
    corners = boxes.to(torch.promote_types(image.dtype, torch.float32)) / boxes.new_tensor([width, height] * 2)
    first, last = corners.split(2, dim=1)
    centred, is_counted = torch.cat([(first + last) / 2, last - first], dim=1), ~is_ignored
    targets = []
    for start, end in pairwise(read_list(box_offsets)):
        counted = is_counted[start:end]
        targets.append({"class_labels": label[start:end][counted].long(), "boxes": centred[start:end][counted]})
    return targets


def _make_network(name: str, settings: dict[str, Any], class_names: Sequence[str]) -> Any:
    import transformers

    config_class = _config_class(name)
    known = config_class().to_dict()
    for key in settings:
        if key in _BY_US:
            raise ConfigError(f"network: {key} follows from the data or is set by the model; leave it out")
        if key not in known:
            raise ConfigError(f"network: {config_class.__name__} has no value '{key}'{suggest(key, sorted(known))}")
    labels = dict(enumerate(class_names))
    with _describe_refusals():
        config = config_class(**settings, id2label=labels, label2id={name: index for index, name in labels.items()})
    backbone = sorted(type(config.backbone_config)().to_dict())
    for key in settings.get("backbone_config") or ():
        if key not in backbone:
            raise ConfigError(f"network.backbone_config: has no value '{key}'{suggest(key, backbone)}")
    with _describe_refusals():
        network = getattr(transformers, f"{_FAMILIES[name].prefix}ForObjectDetection")(config)
    _turn_constants_into_buffers(network)
    network.loss_function = _support_float64(network.loss_function)
    return network


@contextmanager
def _describe_refusals() -> Iterator[None]:
    """Turn the library's errors, which checks what it reads in many ways, into ConfigErrors of one line."""
    try:
        yield
    except Exception as error:
        text = escape_to_one_line(str(error))[:200]
        raise ConfigError(f"network: transformers refuses it ({type(error).__name__}: {text})") from error


def _support_float64(loss_function: Callable[..., Any]) -> Callable[..., Any]:
    """Wrap the library's losses so that those of float64 logits are computed in float64."""

    @functools.wraps(loss_function)
    def compute(logits: Tensor, *args: Any, **kwargs: Any) -> Any:
        with InterceptedFunctions(_keep_float64) if logits.dtype == torch.float64 else nullcontext():
            return loss_function(logits, *args, **kwargs)

    return compute


def _keep_float64(function: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """Convert to float64 where the library writes `.float()`, and its constants of float32."""
    if function is Tensor.float:
        return args[0].double()
    result = function(*args, **kwargs)
    return result.double() if function is torch.tensor and result.dtype == torch.float32 else result


def _turn_constants_into_buffers(network: nn.Module) -> None:
    """Turn parameters that the library never trains into buffers of the same names."""
    for module in network.modules():
        for name, parameter in [*module.named_parameters(recurse=False)]:
            if not parameter.requires_grad:
                delattr(module, name)
                module.register_buffer(name, parameter.detach())


def _add_up(loss_terms: Mapping[str, Tensor], name: str) -> Tensor:
    """Add up a term over the layers of the decoder, the encoder, and the denoising queries."""
    parts = [value for key, value in loss_terms.items() if key == name or key.startswith(f"{name}_")]
    return torch.stack(parts).sum() if parts else next(iter(loss_terms.values())).new_zeros(())


def _assert_same_network(model_config: Any, file_config: Mapping[str, Any]) -> None:
    """Raise CheckpointError, with the settings to take, if a file's config describes another network."""
    if (name := file_config["model_type"]) != model_config.model_type:
        losses = ", ".join(f"{{name: {loss}}}" for loss in _FAMILIES[name].losses)
        network = json.dumps({"name": name, **_list_changed_settings(name, file_config)})
        raise CheckpointError(
            f"is a {name}, this model is a {model_config.model_type}; set losses=[{losses}] and model.network={network}"
        )
    model_settings, file_settings = (
        _list_settings(config, model_config)
        for config in (model_config, type(model_config).from_dict(dict(file_config)))
    )
    if settings := {
        name: file_settings.get(name) for name in model_settings if file_settings.get(name) != model_settings[name]
    }:
        raise CheckpointError(
            f"is of a network with other {', '.join(settings)}; set these as in its config: "
            f"model.network={json.dumps(settings)}"
        )


def _list_settings(config: Any, model_config: Any) -> dict[str, Any]:
    """List the values of a config that decide on the network's weights and predictions.

    Of its backbone, those that the backbone of `model_config` has: files of earlier versions have names without a
    meaning.
    """
    known = model_config.backbone_config.to_dict().keys() - _NOT_OF_NETWORK
    values = {name: value for name, value in config.to_dict().items() if not name.startswith(_OF_TRAINING)}
    values["backbone_config"] = {name: value for name, value in values["backbone_config"].items() if name in known}
    plain: dict[str, Any] = json.loads(json.dumps(values))  # lists for tuples
    return {name: value for name, value in plain.items() if name not in {*_NOT_OF_NETWORK, "model_type"}}


def _list_changed_settings(name: str, theirs: Mapping[str, Any]) -> dict[str, Any]:
    """List those of a file's config that differ from the library's defaults; of a backbone, also its kind."""
    config_class = _config_class(name)
    config, default = config_class.from_dict(dict(theirs)), config_class()
    backbone = config.backbone_config
    settings, usual = _list_settings(config, config), _list_settings(default, default)
    changed = {key: value for key, value in settings.items() if value != usual[key]}
    if "backbone_config" in changed:
        usual = json.loads(json.dumps(type(backbone)().to_dict()))
        changed_backbone = {key: value for key, value in changed["backbone_config"].items() if value != usual.get(key)}
        changed["backbone_config"] = {"model_type": backbone.model_type, **changed_backbone}
    return changed


def _config_class(name: str) -> Any:
    import transformers

    return getattr(transformers, f"{_FAMILIES[name].prefix}Config")


# --- the terms as losses ----------------------------------------------------------------------------------------------


class _SetLoss(Loss):
    """Base of losses that the network has computed with its library, over all boxes that are not ignored."""

    def __init__(self) -> None:
        super().__init__()

    def count(self, *, is_ignored: Tensor) -> Tensor:
        """Count the boxes; `is_ignored` (G,) are left out."""
        return (~is_ignored).sum()


@registry.losses.add("set_class")
class SetClass(_SetLoss):
    """Varifocal loss of the classes of matched queries, whose target is the IoU of their box, and of all others, 0.

    >>> import torch
    >>> from sightline.areas.detect.transformers_detector import SetClass
    >>> SetClass()(class_term=torch.tensor(3.0)), SetClass().count(is_ignored=torch.tensor([False, True, False]))
    (tensor(3.), tensor(2))

    Source: Zhang et al. 2021, VarifocalNet; matching of Carion et al. 2020, DETR.
    """

    def forward(self, *, class_term: Tensor) -> Tensor:
        """Return the sum that the network has computed, ()."""
        return class_term


@registry.losses.add("set_l1")
class SetL1(_SetLoss):
    """L1 of centre and size of the boxes of matched queries, in shares of the canvas.

    >>> import torch
    >>> from sightline.areas.detect.transformers_detector import SetL1
    >>> SetL1()(l1_term=torch.tensor(0.5))
    tensor(0.5000)

    Source: Carion et al. 2020, DETR, section 3.1.
    """

    def forward(self, *, l1_term: Tensor) -> Tensor:
        """Return the sum that the network has computed, ()."""
        return l1_term


@registry.losses.add("set_giou")
class SetGIoU(_SetLoss):
    """GIoU loss of the boxes of matched queries.

    >>> import torch
    >>> from sightline.areas.detect.transformers_detector import SetGIoU
    >>> SetGIoU()(giou_term=torch.tensor(0.5))
    tensor(0.5000)

    Source: Rezatofighi et al. 2019; Carion et al. 2020, DETR, section 3.1.
    """

    def forward(self, *, giou_term: Tensor) -> Tensor:
        """Return the sum that the network has computed, ()."""
        return giou_term


@registry.losses.add("set_corners")
class SetCorners(_SetLoss):
    """Fine-grained localisation loss of D-FINE: cross entropy of the distributions of the four sides.

    >>> import torch
    >>> from sightline.areas.detect.transformers_detector import SetCorners
    >>> SetCorners()(corner_term=torch.tensor(0.5))
    tensor(0.5000)

    Source: Peng et al. 2024, D-FINE, section 4.1.
    """

    def forward(self, *, corner_term: Tensor) -> Tensor:
        """Return the sum that the network has computed, ()."""
        return corner_term


@registry.losses.add("set_distillation")
class SetDistillation(_SetLoss):
    """Decoupled distillation loss of D-FINE: layers of the decoder learn the distributions of the last one.

    The library averages it over queries, so that its sum over micro-batches is weighted by their boxes.

    >>> import torch
    >>> from sightline.areas.detect.transformers_detector import SetDistillation
    >>> SetDistillation()(distillation_term=torch.tensor(0.5))
    tensor(0.5000)

    Source: Peng et al. 2024, D-FINE, section 4.2.
    """

    def forward(self, *, distillation_term: Tensor) -> Tensor:
        """Return the sum that the network has computed, ()."""
        return distillation_term
