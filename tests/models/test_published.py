"""Published layouts and files of weights."""

from __future__ import annotations

import os
import pickle
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from sightline.contract.errors import CheckpointError
from sightline.published.files import read_published
from sightline.published.translation import convert_state_dict

# --- names of published weights: doubled names, foreign names, wrapped names -----------------------------------------


def doubled() -> dict[str, Tensor]:
    weight = torch.arange(3.0)
    return {"bn1.weight": weight, "conv1.1.weight": weight.clone()}


def test_two_names_for_one_tensor_become_one() -> None:
    assert list(convert_state_dict(doubled(), "antao97_dgcnn_cls")) == ["edges.0.edge.norm.weight"]


def test_queries_and_keys_of_pct_become_one_or_are_refused() -> None:
    weight = torch.arange(4.0).view(2, 2, 1)
    state = {"pt_last.sa1.q_conv.weight": weight, "pt_last.sa1.k_conv.weight": weight.clone()}
    translated = convert_state_dict(state, "strawberry_pct_cls")
    assert {name: value.shape for name, value in translated.items()} == {"attend.layers.0.query.weight": (2, 2)}
    state["pt_last.sa1.k_conv.weight"][0] += 1e-6
    with pytest.raises(CheckpointError, match=r"'pt_last.sa1.q_conv.weight' and 'pt_last.sa1.k_conv.weight' are one"):
        convert_state_dict(state, "strawberry_pct_cls")


def test_foreign_names_are_refused() -> None:
    with pytest.raises(CheckpointError, match=r"1 of 3 names do not belong to the layout .*: conv9.weight"):
        convert_state_dict(doubled() | {"conv9.weight": torch.zeros(1)}, "antao97_dgcnn_cls")


def test_unknown_layout_is_refused_with_the_nearest() -> None:
    with pytest.raises(CheckpointError, match=r"did you mean 'antao97_dgcnn_cls'"):
        convert_state_dict({}, "antao97_dgcn_cls")


def test_wrapper_of_data_parallel_goes() -> None:
    wrapped = {f"module.{key}": value for key, value in doubled().items()}
    assert list(convert_state_dict(wrapped, "wangyueft_dgcnn_cls")) == ["edges.0.edge.norm.weight"]


def test_convolutions_become_matrices_and_nothing_given_changes() -> None:
    state = {"conv1.0.weight": torch.arange(12.0).view(2, 6, 1, 1)}
    translated = convert_state_dict(state, "antao97_dgcnn_cls")["edges.0.edge.linear.weight"]
    assert torch.equal(translated, torch.arange(12.0).view(2, 6))
    assert state["conv1.0.weight"].shape == (2, 6, 1, 1)


def test_what_nothing_uses_is_passed_over_and_nothing_else() -> None:
    """The batch norms bn7 to bn10 of pre-training; a name beyond them is refused."""
    unused = {f"bn{number}.weight": torch.ones(4) for number in range(7, 11)}
    kept = {"bn6.weight": torch.ones(4), "conv6.1.weight": torch.ones(4)}
    assert list(convert_state_dict(kept | unused, "crosspoint_seg")) == ["points.levels.embed.norm.weight"]
    with pytest.raises(
        CheckpointError, match=r"1 of 3 names do not belong to the layout 'crosspoint_seg': bn11.weight"
    ):
        convert_state_dict(kept | unused | {"bn11.weight": torch.ones(4)}, "crosspoint_seg")


def test_a_name_that_two_norms_were_given_is_that_of_the_second() -> None:
    """antao97's transform assigns `bn3` twice: of 1,024 channels inside conv3, then of 512 after linear1."""
    state = {"transform_net.bn3.weight": torch.ones(512), "transform_net.conv3.1.weight": torch.ones(1024)}
    shapes = {name: value.shape for name, value in convert_state_dict(state, "antao97_dgcnn_parts").items()}
    assert shapes == {"alignment.head.0.norm.weight": (512,), "alignment.embed.norm.weight": (1024,)}


# --- files of weights of third parties --------------------------------------------------------------------------------


STATE = {"conv1.weight": torch.arange(4.0), "bn1.bias": torch.ones(2)}


class Evil:
    """An object whose unpickling makes a file."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self.mark),)


def saved(path: Path, value: object, *, legacy: bool = False) -> Path:
    torch.save(value, path, _use_new_zipfile_serialization=not legacy)
    return path


@pytest.mark.parametrize("legacy", [False, True])
@pytest.mark.parametrize(
    ("wrap", "containers", "others"),
    [
        (lambda state: state, (), ()),
        (lambda state: {"state_dict": state}, ("state_dict",), ()),
        (lambda state: {"epoch": 3, "model": state}, ("model",), ("epoch",)),
        (lambda state: {"model": "dgcnn", "model_state_dict": state}, ("model_state_dict",), ("model",)),
        (lambda state: {"base_model": {"model": state}}, ("base_model", "model"), ()),
        (lambda state: {f"module.{key}": value for key, value in state.items()}, ("module.",), ()),
        (
            lambda state: {"net": {f"module.{key}": value for key, value in state.items()}},
            ("net", "module."),
            (),
        ),
    ],
)
def test_containers_are_taken_off_and_told(
    tmp_path: Path, wrap: Any, containers: tuple[str, ...], others: tuple[str, ...], legacy: bool
) -> None:
    found = read_published(saved(tmp_path / "a.pth", wrap(STATE), legacy=legacy))
    assert (found.containers, found.other_entries) == (containers, others)
    assert list(found.state) == list(STATE)
    assert all(torch.equal(found.state[key], value) for key, value in STATE.items())


def test_accuracies_stored_as_numpy_scalars_are_no_hindrance(tmp_path: Path) -> None:
    """As yanx27/Pointnet_Pointnet2_pytorch writes them beside the weights."""
    beside = {"class_acc": np.float64(0.9), "instance_acc": np.float32(0.9), "epoch": np.int64(3)}
    found = read_published(saved(tmp_path / "a.pth", {**beside, "model_state_dict": STATE}))
    assert list(found.state) == list(STATE)


@pytest.mark.parametrize("legacy", [False, True])
def test_an_object_in_the_file_is_refused_and_never_made(tmp_path: Path, legacy: bool) -> None:
    mark = tmp_path / "mark"
    path = saved(tmp_path / "evil.pth", {"state_dict": STATE, "extra": Evil(mark)}, legacy=legacy)
    with pytest.raises(CheckpointError, match=r"evil\.pth: holds an object of posix\.mkdir, .* it was not run"):
        read_published(path)
    assert not mark.exists()


def test_a_plain_pickle_is_refused_and_never_run(tmp_path: Path) -> None:
    mark, path = tmp_path / "mark", tmp_path / "a.pth"
    path.write_bytes(pickle.dumps({"state_dict": Evil(mark)}))
    with pytest.raises(CheckpointError, match=r"a\.pth: was not written by torch\.save"):
        read_published(path)
    assert not mark.exists()


@pytest.mark.parametrize("value", [torch.nn.Linear(2, 2), {"state_dict": STATE, "array": np.ones(3)}])
def test_whole_models_and_arrays_are_refused_by_their_type(tmp_path: Path, value: object) -> None:
    with pytest.raises(CheckpointError, match=r"holds an object of (torch\.nn\.modules|numpy)\."):
        read_published(saved(tmp_path / "a.pth", value))


def test_a_compressed_archive_is_not_unpacked(tmp_path: Path) -> None:
    whole, packed = saved(tmp_path / "a.pth", {"weight": torch.zeros(10**5)}), tmp_path / "b.pth"
    with zipfile.ZipFile(whole) as source, zipfile.ZipFile(packed, "w", zipfile.ZIP_DEFLATED) as target:
        for name in source.namelist():
            target.writestr(name, source.read(name))
    with pytest.raises(CheckpointError, match=r"b\.pth: would unpack to 40\d,\d{3} bytes of \d,\d{3}; torch\.save"):
        read_published(packed)


def test_a_file_cut_short_anywhere_is_said_to_be_damaged(tmp_path: Path) -> None:
    """Of the format before archives, which ends within names, too."""
    path = saved(tmp_path / "a.pth", {"state_dict": STATE}, legacy=True)
    data = path.read_bytes()
    for end in range(len(data) - 1):
        path.write_bytes(data[:end])
        with pytest.raises(CheckpointError, match=r"a\.pth: .*; get the file again$"):
            read_published(path)


@pytest.mark.parametrize("legacy", [False, True])
@pytest.mark.parametrize("share", [0.0, 0.01, 0.1, 0.5, 0.9, 0.999])
def test_a_file_cut_short_is_refused_in_one_line(tmp_path: Path, share: float, legacy: bool) -> None:
    path = saved(tmp_path / "a.pth", {"state_dict": STATE}, legacy=legacy)
    data = path.read_bytes()
    path.write_bytes(data[: int(share * len(data))])
    with pytest.raises(CheckpointError, match=r"a\.pth: .*; get the file again$") as caught:
        read_published(path)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("value", "told"),
    [
        ({}, "holds nothing; one set of weights is needed"),
        (STATE | {"a": torch.eye(3).to_sparse()}, "1 tensors are sparse, quantised, expanded or on no device: a; save"),
        (STATE | {"a": torch.zeros(1).expand(64, 10**5, 10**5)}, "1 tensors are sparse, quantised, expanded"),
        (STATE | {"a": torch.ones(2, device="meta")}, "1 tensors are sparse, quantised, expanded or on no device: a"),
        ([STATE], "holds a list, a mapping of names to tensors is needed"),
        ({"model": STATE, "net": STATE}, "holds model and net; one set of weights is needed"),
        ({"teacher": STATE, "student": STATE}, "holds teacher, student; one set of weights is needed"),
        ({"state_dict": {**STATE, "epoch": 3}}, "holds conv1.weight, bn1.bias, epoch; one set of weights"),
    ],
)
def test_what_holds_no_weights_or_two_sets_says_what_it_holds(tmp_path: Path, value: object, told: str) -> None:
    with pytest.raises(CheckpointError) as caught:
        read_published(saved(tmp_path / "a.pth", value))
    assert told in str(caught.value)


def test_what_is_no_file_of_weights_is_named(tmp_path: Path) -> None:
    (tmp_path / "a.pth").write_text("version https://git-lfs.github.com/spec/v1\n")
    for name, told in [
        ("a.pth", "cannot be read|not written by torch"),
        (".", "is a folder"),
        ("b", "there is no such file"),
    ]:
        with pytest.raises(CheckpointError, match=told):
            read_published(tmp_path / name)


def test_a_file_that_contains_itself_is_refused(tmp_path: Path) -> None:
    """Before, containers were taken off for ever."""
    alone: dict[str, Any] = {}
    alone["model"] = alone
    first: dict[str, Any] = {"epoch": 1}
    first["net"] = {"state_dict": first}
    deep: dict[str, Any] = dict(STATE)
    for _ in range(11):
        deep = {"model": deep}
    for number, value in enumerate((alone, first, deep)):
        for legacy in (False, True):
            path = saved(tmp_path / f"{number}{legacy}.pth", value, legacy=legacy)
            with pytest.raises(CheckpointError, match=r"holds itself, or mappings more than 10 deep \((model|net) > "):
                read_published(path)
    assert len(read_published(saved(tmp_path / "ten.pth", deep["model"])).containers) == 10
