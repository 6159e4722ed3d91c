"""Published weights that do not fit are refused by name, and nothing is written."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from sightline.errors import CheckpointError, ConfigError, UserError
from sightline.published.conversion import convert_published_weights
from tests.engine.published_weights import saved, small_state
from tests.golden_parity import load_golden


@pytest.mark.parametrize(
    ("layout", "change", "message"),
    [
        (
            "wangyueft_pointnet",
            {"linear2.bias": None},
            "lacks 1 of the 38 tensors of the layout 'wangyueft_pointnet': linear2.bias; get a whole",
        ),
        (
            "wangyueft_pointnet",
            {"conv9.weight": torch.ones(1)},
            "1 of 39 names do not belong to the layout 'wangyueft_pointnet': conv9.weight",
        ),
        (
            "wangyueft_pointnet",
            {"bn6.weight": torch.ones(7)},
            "1 tensors have another shape than this model of the layout 'wangyueft_pointnet': bn6.weight [7], needed",
        ),
        (
            "wangyueft_pointnet",
            {"conv1.weight": torch.ones(64)},
            "1 tensors have another number of axes than in the layout 'wangyueft_pointnet': conv1.weight [64]",
        ),
        (
            "wangyueft_pointnet",
            {"bn6.weight": torch.full((512,), torch.nan)},
            "1 tensors hold NaN or infinity: bn6.weight",
        ),
        ("yanx27_pointnet_cls", {}, "its names are those of --layout wangyueft_pointnet"),
        ("wangyueft_dgcnn_cls", {}, "its names are those of --layout wangyueft_pointnet"),
        (
            "wangyueft_pointnt",
            {},
            "--layout wangyueft_pointnt: no such layout is known; did you mean 'wangyueft_pointnet'?",
        ),
    ],
)
def test_weights_that_do_not_fit_are_named_and_nothing_is_written(
    tmp_path: Path, layout: str, change: dict[str, Tensor | None], message: str
) -> None:
    state = {key: value for key, value in {**small_state(), **change}.items() if value is not None}
    file = saved(tmp_path / "a.pth", state)
    with pytest.raises(CheckpointError) as caught:
        convert_published_weights(
            file, layout=layout, target=tmp_path / "run", overrides=(f"data.root={tmp_path / 'none'}",)
        )
    assert message in str(caught.value)
    assert str(caught.value).count("\n") == 0
    assert [path.name for path in tmp_path.iterdir()] == ["a.pth"]


def test_at_most_five_missing_names_are_listed_and_the_count(tmp_path: Path) -> None:
    file = saved(tmp_path / "a.pth", {key: value for key, value in small_state().items() if "bn" not in key})
    with pytest.raises(CheckpointError, match=r"lacks 30 of the 38 .*: bn1\.weight(, bn\d\.\w+){4}, \.\.\.; get"):
        convert_published_weights(file, layout="wangyueft_pointnet", target=tmp_path / "run")


@pytest.mark.shared
@pytest.mark.parametrize(
    ("golden", "layout", "key"),
    [
        ("dgcnn_cls_antao", "antao97_dgcnn_cls", "bn1.weight"),
        ("dgcnn_partseg_antao", "antao97_dgcnn_parts", "transform_net.conv1.1.bias"),
        ("dgcnn_semseg_antao", "antao97_dgcnn_scenes", "bn6.running_mean"),
        ("pct_cls", "strawberry_pct_cls", "pt_last.sa1.q_conv.weight"),
        ("pct_partseg_jittor", "menghaoguo_pct_parts", "sa4.k_conv.conv.weight"),
    ],
)
def test_two_names_of_one_tensor_must_agree(shared: Path, tmp_path: Path, golden: str, layout: str, key: str) -> None:
    state = load_golden(shared, golden).state()
    state[key] = state[key] + 1e-6
    with pytest.raises(CheckpointError, match=r"are one tensor in the layout .* but hold different values"):
        convert_published_weights(saved(tmp_path / "a.pth", state), layout=layout, target=tmp_path / "run")
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("facts", "options", "message"),
    [
        (
            {"num_classes": 15},
            {},
            "its weights have num_classes = 15, the data set 'modelnet40' has 40; name the data set",
        ),
        (
            {"in_channels": 6, "num_classes": 12},
            {"data_name": "synthetic_shapes"},
            "in_channels = 6, the data set 'synthetic_shapes' has 3",
        ),
        ({}, {"overrides": ("model.embedding=16",)}, "model.embedding: is 16, the weights have 8; remove it"),
        (
            {},
            {"overrides": ("model.name=dgcnn",)},
            "the config's model is 'dgcnn', the layout 'wangyueft_pointnet' is of 'pointnet_plain'",
        ),
        ({}, {"overrides": ("modle.dropout=0.1",)}, "unknown key 'modle'"),
        ({}, {"data_name": "modlnet40"}, "no data set is called 'modlnet40'; did you mean 'modelnet40'?"),
    ],
)
def test_a_config_that_contradicts_the_weights_is_refused(
    tmp_path: Path, facts: dict[str, int], options: dict[str, Any], message: str
) -> None:
    file = saved(tmp_path / "a.pth", small_state(**facts))
    with pytest.raises(ConfigError) as caught:
        convert_published_weights(file, layout="wangyueft_pointnet", target=tmp_path / "run", **options)
    assert message in str(caught.value)
    assert str(tmp_path / "run") not in [str(path) for path in tmp_path.iterdir()]


def test_a_target_that_holds_something_is_left_alone(tmp_path: Path) -> None:
    file, target = saved(tmp_path / "a.pth", small_state()), tmp_path / "run"
    target.mkdir()
    (target / "mine.txt").write_text("mine")
    with pytest.raises(UserError, match=r"--to .*run: is not empty"):
        convert_published_weights(file, layout="wangyueft_pointnet", target=target)
    assert [path.name for path in target.iterdir()] == ["mine.txt"]
    with pytest.raises(UserError, match=r"a\.pth: is a file"):
        convert_published_weights(file, layout="wangyueft_pointnet", target=file)
