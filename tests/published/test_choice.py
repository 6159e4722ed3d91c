"""Layouts chosen by what a file contains: the names that each row gives its model, the model's shapes, and parts."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor

from sightline.contract.errors import CheckpointError
from sightline.published.files import choose_layout, read_source
from sightline.published.rows import PublishedLayout, list_layouts, read_layout
from sightline.published.translation import published_name
from sightline.runs.weight_sources import open_source
from tests.published.test_rows import list_expected

SAME_RUN = {"wangyueft_dgcnn_cls": "antao97_dgcnn_cls", "crosspoint_parts": "antao97_dgcnn_parts"}
"""Layouts that another one stands for: the network, its arguments and its recipe are the same."""
ALIKE = (("dragonbook_v2v", "dragonbook_v2v_zyx"), ("qq456cvb_pct_cls", "strawberry_pct_cls"))
"""Networks of the same names and shapes, by other authors, whose axes or arguments differ."""


def published_state(layout: PublishedLayout) -> dict[str, Tensor]:
    return {published_name(name, layout.name): value for name, value in list_expected(layout).items()}


@pytest.mark.parametrize("layout", [row for row in list_layouts() if row.name != "yolox"], ids=lambda row: row.name)
def test_names_and_shapes_tell_a_layout_or_it_is_asked_for(layout: PublishedLayout) -> None:
    """Never another one; of layouts that read weights alike, the weights themselves need no choice."""
    state, twins = published_state(layout), next((pair for pair in ALIKE if layout.name in pair), None)
    if twins is None:
        chosen = choose_layout(state, "a.pth", is_for_weights=False, advice="ask")
        assert chosen == SAME_RUN.get(layout.name, layout.name)
        return
    with pytest.raises(CheckpointError, match=rf"^a.pth: .* layouts {', '.join(twins)}, which .*; ask$") as refusal:
        choose_layout(state, "a.pth", is_for_weights=False, advice="ask")
    if "read them differently" not in str(refusal.value):
        assert choose_layout(state, "a.pth", is_for_weights=True, advice="") in twins


@pytest.mark.parametrize("name", ["lidar_bonnetal_squeezesegv2", "lidar_bonnetal_squeezesegv2_crf"])
def test_a_folder_is_of_the_layout_whose_parts_it_has(name: str, tmp_path: Path) -> None:
    layout = read_layout(name)
    state = published_state(layout)
    for file, prefix in layout.parts.items():
        part = {key.removeprefix(prefix): value for key, value in state.items() if key.startswith(prefix)}
        torch.save({key: torch.zeros(value.shape) for key, value in part.items()}, tmp_path / file)
    read = read_source(tmp_path).state
    assert read.keys() == state.keys()
    assert choose_layout(read, "folder", is_for_weights=False, advice="") == name
    (tmp_path / "segmentation_decoder").unlink()
    with pytest.raises(CheckpointError, match="segmentation_decoder: there is no such file"):
        read_source(tmp_path)
    with pytest.raises(CheckpointError, match="holds a network in parts; convert it: sightline weights"):
        open_source(str(tmp_path))


def test_a_variant_that_twins_do_not_read_is_named() -> None:
    state = published_state(read_layout("crowddet_retinanet"))
    name = published_name("backbone.stem.conv.weight", "crowddet_retinanet")
    with pytest.raises(CheckpointError, match=r"^grey\.pth: the shapes of its tensors do not allow 'reverse_colours'"):
        choose_layout(state | {name: state[name][:, :1]}, "grey.pth", is_for_weights=True, advice="")
