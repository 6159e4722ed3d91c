"""Base classes of networks: models, encoders, and the blocks that a detector is made of."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any, ClassVar, NamedTuple

from torch import Tensor, nn

from sightline.contract.binding import declared_outputs
from sightline.contract.errors import PluginError


class NetworkParts(NamedTuple):
    """Network that gathers points in tables before it computes: `compute(**gather(...))` is what `forward` returns.

    `gather` takes the keys of a batch that `forward` takes, and returns tables (B, R, ...), of which `compute` names
    all. A batch may have any number of `rows`, such as pillars, also none. `what` says in a sentence what is gathered,
    and `numbers` are those that a gathering elsewhere needs, as plain values.
    """

    gather: Callable[..., Mapping[str, Tensor]]
    compute: Callable[..., Any]
    rows: str
    what: str
    numbers: Mapping[str, Any]


class Model(nn.Module, ABC):
    """Network that a config names: a torch module with the attributes below.

    `forward` names the keys of a batch that it takes. Its return annotation is a `TypedDict` of its outputs, which
    losses, metrics and tasks name in turn. Modules of other libraries are layers of such a class.
    """

    tasks: ClassVar[Collection[str] | None] = None
    """Of the class: names of the only tasks that it is for; by default all that take its outputs."""
    transform_defaults: ClassVar[Mapping[str, Mapping[str, Any]]] = {}
    """Of the class: by names of transforms, arguments that these have for it where the config does not state them."""
    image_multiple: ClassVar[int] = 1
    """Of the class: height and width of its images are multiples of this many pixels."""
    obstacle_to_export: ClassVar[str | None] = None
    """Of the class: why no exported file can hold it, in words that follow `a network on`; None if one can."""
    targets: frozenset[str] = frozenset()
    """Optional arguments of `forward` that it computes losses of: an exported file has none of them."""
    batch_dependence: str = ""
    """Why in evaluation the outputs of a sample depend on the others of its batch; empty if they do not.

    Files are then predicted one by one.
    """
    output_keys: frozenset[str] | None = None
    """The keys that `forward` returns, where they depend on a block that the model is made of."""
    split_for_graph: Callable[[], NetworkParts] | None = None
    """`split_for_graph()`: of one that gathers points first, its parts: an exported file has the second."""
    make_preparation: Callable[[], Callable[..., Mapping[str, Any]]] | None = None
    """`make_preparation()`: of one that first computes what points alone decide, a function of keys of a batch to that.

    In training it runs where batches are read. It returns optional arguments of `forward`, trees of tensors, and has
    plain values alone, for other processes.
    """
    fit_weights: Callable[[Mapping[str, Tensor], Any], tuple[Mapping[str, Tensor], str]] | None = None
    """`fit_weights(weights, config)`: weights for `init` with a library's config beside them, fitted to this model.

    It returns them with a sentence on what was fitted.
    """

    def __init__(self) -> None:  # the registry reads signatures; that of nn.Module would take anything
        super().__init__()

    def __setattr__(self, name: str, value: Any) -> None:
        """Refuse a layer by the name of an attribute of this class, which would hide it."""
        if isinstance(value, nn.Module | nn.Parameter) and name in vars(Model):
            raise PluginError(f"self.{name} is read of every model, so no layer can be called so; give it another name")
        super().__setattr__(name, value)

    @abstractmethod
    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """Return the outputs of a batch, by name."""


class Encoder(nn.Module, ABC):
    """Network from samples to vectors, a block of models: `probe` measures what it returns.

    A model may be one too: `class MyNet(sightline.Encoder, sightline.Model)`.
    """

    feature_width: int
    """How many features `encode` returns."""

    def __init__(self) -> None:
        super().__init__()

    @abstractmethod
    def encode(self, *args: Any, **kwargs: Any) -> Tensor:
        """Return the features (B, feature_width) of each sample; the arguments name keys of the batch."""


class ImageMaps(nn.Module, ABC):
    """Network that returns maps of an image, finest first, for the blocks after it."""

    channels: tuple[int, ...]
    """Channels of each map."""
    strides: tuple[int, ...]
    """Pixels of the image that a cell of each map is wide and high."""

    def __init__(self) -> None:
        super().__init__()

    @abstractmethod
    def forward(self, *args: Any, **kwargs: Any) -> Sequence[Tensor]:
        """Return maps, each (B, C, H, W)."""


class Backbone(ImageMaps):
    """Network from images (B, C, H, W) to maps."""


class Neck(ImageMaps):
    """Network from the maps of a backbone to others."""


class Head(nn.Module, ABC):
    """Network from maps to predictions at priors. Its `forward` returns a `TypedDict`, as a model's does."""

    priors: ClassVar[str]
    """Kind of the priors that it predicts at: `anchors` or `points`."""
    priors_per_cell: int
    """Number of priors in each cell of a map."""
    predictions_per_prior: ClassVar[int] = 1
    """Number of boxes that it predicts per prior, 1 or 2."""
    to_deltas: Callable[[Tensor, Any], Tensor] | None = None
    """`to_deltas(codes, priors)`: converts its raw `codes` to deltas of the priors."""
    assigners: Collection[str] | None = None
    """Names of the only assigners that may give it targets; by default all that take its priors."""
    output_keys: frozenset[str] | None = None
    """The keys that `forward` returns, where they depend on its arguments."""

    def __init__(self) -> None:
        super().__init__()

    @abstractmethod
    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """Return the predictions at the priors of each image, by name."""


def model_output_keys(model: Any, *, owner: str) -> frozenset[str]:
    """Return the output keys of a model or head: those that it states itself, else those of its `forward`."""
    stated = model.output_keys if isinstance(model, Model | Head) else None
    return declared_outputs(model.forward, owner=owner) if stated is None else stated
