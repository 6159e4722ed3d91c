"""Names of the published weights of V2V-PoseNet's PyTorch port in terms of ours."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

from sightline.errors import CheckpointError
from sightline.geometry.volumes import Axes

__all__ = ["VOLUME_LAYOUTS", "with_axes"]


def _block(theirs: str, ours: str) -> dict[str, str]:
    """Return the names of a convolution or a deconvolution with its batch norm."""
    kind = "deconv" if theirs.rpartition("_")[2].startswith("upsample") else "conv"
    return {f"{theirs}.block.0": f"{ours}.{kind}", f"{theirs}.block.1": f"{ours}.norm"}


def _residual(theirs: str, ours: str, *, has_shortcut: bool = False) -> dict[str, str]:
    inner = ("first", "first_norm", "", "second", "second_norm")
    names = {f"{theirs}.res_branch.{index}": f"{ours}.{name}" for index, name in enumerate(inner) if name}
    if has_shortcut:
        names |= {f"{theirs}.skip_con.{index}": f"{ours}.shortcut.{index}" for index in (0, 1)}
    return names


_DRAGONBOOK = {
    **_block("front_layers.0", "stem.0"),
    **_residual("front_layers.2", "front.0", has_shortcut=True),
    **_residual("front_layers.3", "front.1"),
    **_residual("front_layers.4", "front.2"),
    **_residual("encoder_decoder.encoder_res1", "down.1", has_shortcut=True),
    **_residual("encoder_decoder.encoder_res2", "middle.1", has_shortcut=True),
    **_residual("encoder_decoder.mid_res", "middle.2"),
    **_residual("encoder_decoder.decoder_res2", "middle.3"),
    **_block("encoder_decoder.decoder_upsample2", "inner_up"),
    **_residual("encoder_decoder.decoder_res1", "inner"),
    **_block("encoder_decoder.decoder_upsample1", "outer_up"),
    **_residual("encoder_decoder.skip_res1", "outer_skip"),
    **_residual("encoder_decoder.skip_res2", "inner_skip"),
    **_residual("back_layers.0", "back.0"),
    **_block("back_layers.1", "back.1"),
    **_block("back_layers.2", "back.2"),
    "output_layer": "output",
}

VOLUME_LAYOUTS: Mapping[str, Mapping[str, str]] = {"dragonbook_v2v": _DRAGONBOOK}
"""Per published layout: their module -> ours, as `published.LAYOUTS`."""


def with_axes(weights: Mapping[str, Tensor], axes: Axes, layout: str) -> dict[str, Tensor]:
    """Convert kernels between the axis order `axes` and x, y, z; the conversion is its own inverse.

    The converted network maps a volume to the original's output for the transposed volume. Raises CheckpointError for
    an order other than x, y, z of a layout without volumes.
    """
    if axes == "xyz":
        return dict(weights)
    if layout not in VOLUME_LAYOUTS:
        raise CheckpointError(f"--axes {axes}: the layout '{layout}' has no kernels over volumes; leave it out")
    return {name: value.transpose(-1, -3).contiguous() if value.ndim == 5 else value for name, value in weights.items()}
