"""Published weights of Point-BERT and V2V-PoseNet as runs, and published weights that do not fit."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import sightline
from sightline.api import load_run
from sightline.areas.clouds.models.point_bert import PointBERT
from sightline.contract.errors import CheckpointError, ConfigError, UserError
from sightline.runs import checkpoint
from sightline.workbench.weights.conversion import convert_published_weights
from tests.command import Outcome, run_here, succeed
from tests.engine.published_weights import convert_state, saved, small_state
from tests.golden_parity import assert_near_largest, load_golden, stored_part
from tests.published_layouts import LAYOUTS

# --- files of Point-BERT ----------------------------------------------------------------------------------------------


FINE_TUNED, PRETRAINED = "lulutang0608_point_bert_cls", "lulutang0608_point_bert_pretrained"
SHAPES = ("data.train_size=48", "data.test_size=12", "data.num_points=48")
"""A set of 12 classes that needs no files."""
SMALL = ("model.num_groups=6", "model.group_size=4", "log.tensorboard=false", "transforms.evaluate=[]")


def narrow_model(num_classes: int = 12) -> PointBERT:
    """As deep as the published one, and 24 wide."""
    torch.manual_seed(5)
    model = PointBERT(
        num_classes=num_classes, in_channels=3, width=24, num_groups=6, group_size=4, min_squared_norm=1e-3
    )
    for norm in model.modules():
        if isinstance(norm, nn.BatchNorm1d):
            assert norm.running_mean is not None
            nn.init.normal_(norm.running_mean, std=0.1)
    return model.eval()


def named_as_published(model: nn.Module, *, with_head: bool) -> dict[str, Tensor]:
    """The state under the names of the fine-tuned file, convolutions with their last axis."""
    theirs = {ours: name for name, ours in LAYOUTS[FINE_TUNED].items()}
    state: dict[str, Tensor] = {}
    for ours, value in model.state_dict().items():
        module, _, leaf = ours.rpartition(".")
        name = theirs.get(ours) or f"{theirs[module]}.{leaf}"
        is_kernel = name.startswith("encoder.") and value.ndim == 2
        if with_head or not name.startswith("cls_head_finetune"):
            state[name] = value[..., None] if is_kernel else value
    return state


def pretrained_state(model: nn.Module, *, with_head: bool = False) -> dict[str, Tensor]:
    """What pre-training holds: the trained transformer and its slow copy, vocabulary, queue, heads of its own."""
    trunk = named_as_published(model, with_head=with_head)
    own = {"mask_token": torch.zeros(1, 1, 24), "lm_head.weight": torch.ones(8, 24), "cls_head.0.bias": torch.ones(3)}
    return {
        **{f"transformer_q.{name}": value for name, value in {**own, **trunk}.items()},
        **{f"transformer_k.{name}": value + 1 for name, value in {**own, **trunk}.items()},
        "dvae.codebook": torch.ones(8, 4),
        "dvae.encoder.first_conv.0.weight": torch.ones(4, 3, 1),
        "queue": torch.ones(24, 16),
        "queue_ptr": torch.zeros(1, dtype=torch.int64),
    }


def saved_by_trainer(path: Path, state: Mapping[str, Tensor], *, wrapped: bool = True) -> Path:
    """A checkpoint as its trainer writes one, on several GPUs or on one."""
    named = {f"module.{name}": value for name, value in state.items()} if wrapped else dict(state)
    optimizer = {"state": {0: {"step": 3, "exp_avg": torch.ones(2)}}, "param_groups": [{"lr": 5e-4, "params": [0]}]}
    about = {"optimizer": optimizer, "epoch": 299, "metrics": {"acc": 92.3}, "best_metrics": {"acc": 92.7}}
    torch.save({"base_model": named, **about}, path)
    return path


def converted(tmp_path: Path, state: Mapping[str, Tensor], layout: str = PRETRAINED, **options: Any) -> Any:
    options = {"data_name": "synthetic_shapes", "overrides": (*SHAPES, *SMALL)} | options
    return convert_published_weights(
        saved_by_trainer(tmp_path / "a.pth", state), layout=layout, target=tmp_path / "run", **options
    )


# --- pre-trained -----------------------------------------------------------------------------------------------------


def test_a_pretrained_file_becomes_an_extractor_with_a_fresh_head(tmp_path: Path) -> None:
    source = narrow_model()
    done = converted(tmp_path, pretrained_state(source))
    slow_copy = len(named_as_published(source, with_head=False)) + 3
    assert done.lineage["unused"] == {
        "transformer_k.*": slow_copy,
        "dvae.*": 2,
        "queue*": 2,
        "transformer_q.cls_head.*": 1,
        "transformer_q.mask_token": 1,
        "transformer_q.lm_head.*": 1,
    }
    assert done.lineage["fresh"] == ["head"]
    assert done.lineage["from_shapes"] == {"in_channels": 3, "width": 24, "depth": 12}
    assert any("has no head: that of the 12 classes of 'synthetic_shapes' is made from seed 0" in x for x in done.notes)

    run = sightline.load_run(tmp_path / "run")
    points = torch.randn(3, 40, 3)
    with torch.no_grad():
        assert torch.equal(run.model.encode(points=points), source.encode(points=points))
        assert run.model(points=points)["logits"].shape == (3, 12)
    given = {name for name in source.state_dict() if not name.startswith("head.")}
    assert all(torch.equal(run.model.state_dict()[name], source.state_dict()[name]) for name in given)


def test_the_fresh_head_is_that_of_the_seed(tmp_path: Path) -> None:
    """Whatever the global generators held, which stay as they were."""
    heads = []
    for number, seed in enumerate((0, 0, 1)):
        folder = tmp_path / str(number)
        folder.mkdir()
        torch.manual_seed(number)
        state = pretrained_state(narrow_model())
        torch.manual_seed(number)
        before = torch.get_rng_state()
        converted(folder, state, overrides=(*SHAPES, *SMALL, f"seed={seed}"))
        assert torch.equal(torch.get_rng_state(), before)
        heads.append(checkpoint.load(folder / "run").model["head.3.weight"])
    assert torch.equal(heads[0], heads[1])
    assert not torch.equal(heads[0], heads[2])


def test_a_head_in_a_pretrained_file_is_taken(tmp_path: Path) -> None:
    source = narrow_model()
    done = converted(tmp_path, pretrained_state(source, with_head=True))
    assert done.lineage["fresh"] == []
    assert done.lineage["from_shapes"]["num_classes"] == 12
    assert torch.equal(checkpoint.load(tmp_path / "run").model["head.3.bias"], source.head[3].bias)


def test_the_command_tells_what_is_fresh_and_the_run_is_trained_and_evaluated(tmp_path: Path) -> None:
    file, run, tuned = (
        saved_by_trainer(tmp_path / "a.pth", pretrained_state(narrow_model())),
        tmp_path / "run",
        tmp_path / "tuned",
    )
    words = ("--layout", PRETRAINED, "--data", "synthetic_shapes", "--to", run)
    done = succeed("weights", "convert", file, *words, *SHAPES, *SMALL, "train.epochs=1")
    assert "the file has no head" in done.err
    assert "transformer_k.* 1" in done.out
    frozen = "optimizer.frozen=[{modules: embed}, {modules: trunk}]"
    succeed("train", run, frozen, "optimizer.lr=0.01", "--no-check", "--device", "cpu", "--out", tuned)
    before, after = (checkpoint.load(path).model for path in (run, tuned))
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    assert changed == {"head.0.weight", "head.0.bias", "head.3.weight", "head.3.bias"}
    told = succeed("evaluate", run, "--device", "cpu", "--json", tmp_path / "e.json")
    assert "head: untrained, the file has none" in told.err
    assert json.loads((tmp_path / "e.json").read_text())["lineage"]["fresh"] == ["head"]


# --- fine-tuned ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("wrapped", [True, False])
def test_a_fine_tuned_file_is_the_whole_model(tmp_path: Path, wrapped: bool) -> None:
    source = narrow_model()
    file = saved_by_trainer(tmp_path / "a.pth", named_as_published(source, with_head=True), wrapped=wrapped)
    options: dict[str, Any] = {"data_name": "synthetic_shapes", "overrides": (*SHAPES, *SMALL)}
    done = convert_published_weights(file, layout=FINE_TUNED, target=tmp_path / "run", **options)
    assert (done.lineage["fresh"], done.lineage["unused"]) == ([], {})
    assert done.lineage["left_out"] == ["optimizer", "epoch", "metrics", "best_metrics"]
    points = torch.randn(3, 40, 3)
    with torch.no_grad():
        found = sightline.load_run(tmp_path / "run").model(points=points)["logits"]
        assert torch.equal(found, source(points=points)["logits"])


def test_the_recipe_takes_the_farthest_of_all_points_as_the_authors_do(tmp_path: Path) -> None:
    file = saved_by_trainer(tmp_path / "a.pth", named_as_published(narrow_model(40), with_head=True))
    done = convert_published_weights(
        file, layout=FINE_TUNED, target=tmp_path / "run", overrides=(f"data.root={tmp_path / 'none'}",)
    )
    run = sightline.load_run(tmp_path / "run")
    assert [transform.name for transform in run.transforms] == ["farthest_points"]
    assert run.config.data.arguments.get("num_points") is None
    assert not any("the first" in note for note in done.notes)
    assert run.config.model.arguments["min_squared_norm"] == 1e-3
    assert run.model.embed.num_groups == 64


# --- refused ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("renamed", "new", "told"),
    [
        ("transformer_q.norm.weight", "transformer_q.last_norm.weight", "do not belong .*: transformer_q.last_norm"),
        ("queue", "buffer", "do not belong .*: buffer"),
        ("transformer_q.cls_pos", None, "lacks 1 of the 160 tensors .*: transformer_q.cls_pos; get a whole file"),
    ],
)
def test_a_renamed_or_missing_name_is_told(tmp_path: Path, renamed: str, new: str | None, told: str) -> None:
    state = pretrained_state(narrow_model())
    value = state.pop(renamed)
    if new is not None:
        state[new] = value
    with pytest.raises(CheckpointError, match=told) as caught:
        converted(tmp_path, state)
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "run").exists()


def test_half_a_head_is_refused(tmp_path: Path) -> None:
    """Only the whole head may be missing."""
    state = pretrained_state(narrow_model(), with_head=True)
    del state["transformer_q.cls_head_finetune.3.weight"]
    with pytest.raises(CheckpointError, match=r"lacks 1 of the 164 .*: transformer_q\.cls_head_finetune\.3\.weight"):
        converted(tmp_path, state)


def test_a_fine_tuned_file_without_its_head_is_refused(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"lacks 4 of the 164 tensors .*: cls_head_finetune\.0\.weight"):
        converted(tmp_path, named_as_published(narrow_model(), with_head=False), FINE_TUNED)


def test_the_other_layout_is_suggested(tmp_path: Path) -> None:
    whole, early = named_as_published(narrow_model(), with_head=True), pretrained_state(narrow_model())
    with pytest.raises(CheckpointError, match=rf"its names are those of --layout {FINE_TUNED}"):
        converted(tmp_path, whole, PRETRAINED)
    with pytest.raises(CheckpointError, match=rf"its names are those of --layout {PRETRAINED}"):
        converted(tmp_path, early, FINE_TUNED)


# --- files of V2V-PoseNet ---------------------------------------------------------------------------------------------


LAYOUT = "dragonbook_v2v"


def convert(state: dict[str, Tensor], folder: Path, *words: object) -> Outcome:
    """A run of the state as the port saves it, beside an optimiser and an epoch; on synthetic hands, in float64."""
    file = folder / "weights.pth"
    torch.save({"model_state_dict": state, "optimizer_state_dict": {}, "epoch": 3}, file)
    named = () if "--layout" in words else ("--layout", LAYOUT)
    target = ("--to", folder / "run", "train.precision=float64")
    return run_here("weights", "convert", file, *named, "--data", "synthetic_hands", *target, *words)


def answer(run: Path, volume: Tensor) -> Tensor:
    model = load_run(run).model.double().eval()
    with torch.no_grad():
        return model(volume=volume)["likelihood"]


@pytest.mark.shared
@pytest.mark.parametrize("axes", ["xyz", "zyx"])
def test_the_port_s_outputs_come_back(shared: Path, tmp_path: Path, axes: str) -> None:
    golden = load_golden(shared, "v2v_s16_j21", area="pose")
    state = golden.state()
    if axes == "zyx":
        state = {name: value.transpose(-1, -3) if value.ndim == 5 else value for name, value in state.items()}
    outcome = convert(state, tmp_path, "--layout", LAYOUT if axes == "xyz" else f"{LAYOUT}_zyx")
    assert outcome.code == 0, outcome.err
    found, label = answer(tmp_path / "run", golden.tensor("in.x")), "eval.out.heat"
    assert_near_largest(stored_part(golden, label, found), golden.tensor(label), 1e-9, label)


# --- published weights that do not fit are refused by name, and nothing is written -----------------------------------


OURS = "wangyueft_pointnet"


@pytest.mark.parametrize(
    ("layout", "change", "message"),
    [
        (OURS, {"linear2.bias": None}, f"lacks 1 of the 38 tensors of the layout '{OURS}': linear2.bias; get a whole"),
        (OURS, {"conv9.weight": torch.ones(1)}, f"1 of 39 names do not belong to the layout '{OURS}': conv9.weight"),
        (
            OURS,
            {"bn6.weight": torch.ones(7)},
            f"1 tensors have another shape than this model of the layout '{OURS}': bn6.weight [7], needed",
        ),
        (
            OURS,
            {"conv1.weight": torch.ones(64)},
            f"1 tensors have another number of axes than in the layout '{OURS}': conv1.weight [64]",
        ),
        (OURS, {"conv1.bias": torch.ones(64)}, f"1 tensors are none of this model of the layout '{OURS}': conv1.bias"),
        (OURS, {"bn6.weight": torch.full((512,), torch.nan)}, "1 tensors hold NaN or infinity: bn6.weight"),
        ("wangyueft_dgcnn_cls", {}, f"its names are those of --layout {OURS}"),
        ("wangyueft_pointnt", {}, f"--layout wangyueft_pointnt: no such layout is known; did you mean '{OURS}'?"),
    ],
)
def test_weights_that_do_not_fit_are_named_and_nothing_is_written(
    tmp_path: Path, layout: str, change: dict[str, Tensor | None], message: str
) -> None:
    state = {key: value for key, value in {**small_state(), **change}.items() if value is not None}
    with pytest.raises(CheckpointError) as caught:
        convert_state(tmp_path, state, layout, overrides=(f"data.root={tmp_path / 'none'}",))
    assert message in str(caught.value)
    assert str(caught.value).count("\n") == 0
    assert [path.name for path in tmp_path.iterdir()] == ["a.pth"]


SHAPES_OF_12 = {"data_name": "synthetic_shapes"}


@pytest.mark.parametrize(
    ("facts", "options", "message"),
    [
        ({"num_classes": 15}, {}, "have num_classes = 15, the data set 'modelnet40' has 40; name the data set"),
        ({"in_channels": 6, "num_classes": 12}, SHAPES_OF_12, "in_channels = 6, the data set 'synthetic_shapes' has 3"),
        ({}, {"overrides": ("model.embedding=16",)}, "model.embedding: is 16, the weights have 8; remove it"),
    ],
)
def test_a_config_that_contradicts_the_weights_is_refused(
    tmp_path: Path, facts: dict[str, int], options: dict[str, Any], message: str
) -> None:
    with pytest.raises(ConfigError) as caught:
        convert_state(tmp_path, small_state(**facts), "wangyueft_pointnet", **options)
    assert message in str(caught.value)
    assert not (tmp_path / "run").exists()


def test_the_current_folder_is_no_target(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = saved(tmp_path / "a.pth", small_state())
    (tmp_path / "empty").mkdir()
    monkeypatch.chdir(tmp_path / "empty")
    with pytest.raises(UserError, match=r"--to \.: is the folder that you are in, .* name a new one"):
        convert_published_weights(file, layout="wangyueft_pointnet", target=Path("."))


def test_a_target_that_holds_something_is_left_alone(tmp_path: Path) -> None:
    file, target = saved(tmp_path / "a.pth", small_state()), tmp_path / "run"
    target.mkdir()
    (target / "mine.txt").write_text("mine")
    with pytest.raises(UserError, match=r"--to .*run: is not empty"):
        convert_published_weights(file, layout="wangyueft_pointnet", target=target)
    assert [path.name for path in target.iterdir()] == ["mine.txt"]
    with pytest.raises(UserError, match=r"a\.pth: is a file"):
        convert_published_weights(file, layout="wangyueft_pointnet", target=file)
