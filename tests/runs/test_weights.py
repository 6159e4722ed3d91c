"""Weights by name: what matches, what is refused and how it is said, and a model that changes wholly or not at all."""

from __future__ import annotations

import copy
import re
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import parametrizations

from sightline.contract.errors import CheckpointError
from sightline.runs.optimizer_state import optimizer_tensors
from sightline.runs.weights import load_weights, plain_name, plain_state
from tests.cases import run_each


class Net(nn.Module):
    """Two linear layers, a batch normalisation (four vectors and a count) and a head."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder = nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 5), nn.BatchNorm1d(5))
        self.head = nn.Linear(5, 2)


NUM_TENSORS = 2 + 2 + 5 + 2
NUM_ELEMENTS = (12 + 4) + (20 + 5) + (4 * 5 + 1) + (10 + 2)


class Tied(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(3, 3, bias=False)
        self.second = nn.Linear(3, 3, bias=False)
        self.second.weight = self.first.weight


def weights_of(model: nn.Module) -> dict[str, Tensor]:
    """A state dict with other values than the model's."""
    return {name: (tensor + 1).clone() for name, tensor in model.state_dict().items()}


def refused(model: nn.Module, weights: dict[str, Tensor], **options: object) -> str:
    """The message, after the model has been found untouched."""
    before = copy.deepcopy(model.state_dict())
    with pytest.raises(CheckpointError) as caught:
        load_weights(model, weights, **options)  # type: ignore[arg-type]
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    assert "\n" not in str(caught.value)
    return str(caught.value)


def assert_loaded(model: nn.Module, weights: dict[str, Tensor], *, prefix: str = "") -> None:
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, weights[name]) == name.startswith(prefix), name


@pytest.mark.parametrize("prefix", ["", "module.", "_orig_mod.", "module._orig_mod.", "_orig_mod.module.module."])
def test_wrappers_are_no_part_of_a_name(prefix: str) -> None:
    model = Net()
    weights = weights_of(model)
    report = load_weights(model, {prefix + name: tensor for name, tensor in weights.items()})
    assert_loaded(model, weights)
    assert (report.matched, report.total) == (NUM_TENSORS, NUM_TENSORS)
    assert (report.matched_elements, report.total_elements) == (NUM_ELEMENTS, NUM_ELEMENTS)
    assert str(report) == f"{NUM_TENSORS} of {NUM_TENSORS} tensors, {NUM_ELEMENTS} of {NUM_ELEMENTS} elements matched"


def test_a_wrapped_model_takes_plain_names() -> None:
    model = nn.Module()
    model.module = Net()
    plain = weights_of(Net())
    load_weights(model, plain)
    assert_loaded(model.module, plain)


def test_a_compiled_part_is_found_within_a_name() -> None:
    assert plain_name("encoder._orig_mod.0.weight") == "encoder.0.weight"
    assert plain_name("encoder.module.weight") == "encoder.module.weight"
    assert plain_name("module") == "module"


@pytest.mark.parametrize(
    ("normalise", "names"),
    [
        (parametrizations.weight_norm, ["weight.original0", "weight.original1"]),
        (parametrizations.spectral_norm, ["weight", "weight._u", "weight._v"]),
        (parametrizations.orthogonal, ["weight", "weight.base"]),
    ],
)
def test_every_tensor_of_a_parametrised_weight_has_a_name_of_its_own(normalise, names: list[str]) -> None:
    """Weight norm has two parameters, magnitude and direction: a checkpoint that lacks one cannot be loaded."""
    model, other = normalise(nn.Linear(3, 2)), normalise(nn.Linear(3, 2))
    assert sorted(plain_state(model)) == sorted(["bias", *names])
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    model(torch.ones(4, 3)).sum().backward()
    optimizer.step()
    assert len(optimizer_tensors(model, optimizer)) == len(list(model.parameters()))
    load_weights(other, plain_state(model))
    assert all(torch.equal(tensor, model.state_dict()[name]) for name, tensor in other.state_dict().items())


def test_a_state_that_would_lose_a_tensor_is_refused() -> None:
    model = nn.Module()
    model.head, model.module = nn.Linear(2, 2), nn.ModuleDict({"head": nn.Linear(2, 2)})
    with pytest.raises(CheckpointError, match=r"^head\.(weight|bias): the model contains it twice"):
        plain_state(model)


def test_an_extra_state_is_no_tensor() -> None:
    class Counted(Net):
        def get_extra_state(self) -> dict[str, int]:
            return {"calls": 3}

        def set_extra_state(self, state: dict[str, int]) -> None: ...

    assert plain_state(Counted()).keys() == Net().state_dict().keys()
    load_weights(Counted(), plain_state(Counted()))


def without(name: str) -> Callable[[dict[str, Tensor]], dict[str, Tensor]]:
    return lambda weights: {key: tensor for key, tensor in weights.items() if not key.startswith(name)}


def renamed(old: str, new: str) -> Callable[[dict[str, Tensor]], dict[str, Tensor]]:
    return lambda weights: {re.sub(f"^{old}", new, name): tensor for name, tensor in weights.items()}


def with_(**tensors: object) -> Callable[[dict[str, Tensor]], dict[str, Any]]:
    return lambda weights: weights | {name.replace("_", "."): tensor for name, tensor in tensors.items()}


COUNTS = f"{NUM_TENSORS - 2} of {NUM_TENSORS} tensors, {NUM_ELEMENTS - 12} of {NUM_ELEMENTS} elements matched"


@run_each(
    "change, options, said",
    [
        (without("head"), {}, f"{COUNTS}; missing: head.bias, head.weight"),
        (with_(head_weight=torch.ones(40, 5)), {}, "head.weight ([40, 5] in the weights, [2, 5] in the model)"),
        (with_(module_head_bias=torch.zeros(2)), {}, "head.bias: the weights contain it twice"),
        (with_(head_bias=[0.0, 0.0]), {}, "head.bias: is a list in the weights"),
        (renamed("encoder", "backbone.stem"), {}, "perhaps 'backbone.stem.*' of the weights is 'encoder.*' of the"),
        (renamed("", "student."), {}, "perhaps 'student.*' of the weights is '*' of the model"),
        (renamed("head.weight", "head.wieght"), {}, "perhaps 'head.wieght' of the weights is 'head.weight' of the"),
        (dict, {"modules": "encodr"}, "no module 'encodr' with weights; did you mean 'encoder'?"),
        (without("encoder"), {"modules": "encoder"}, "0 of 9 tensors"),
        (dict, {"modules": "head", "into": "encodr"}, "into: the model has no module 'encodr' with weights; did you"),
    ],
)
def test_weights_that_do_not_fit_are_named(change: Any, options: dict[str, str], said: str) -> None:
    assert said in refused(Net(), change(weights_of(Net())), **options)


def test_tied_tensors_that_part_in_the_weights_are_refused() -> None:
    message = refused(Tied(), {"first.weight": torch.ones(3, 3), "second.weight": torch.zeros(3, 3)})
    assert message == "second.weight: is one tensor with 'first.weight' in the model, but not in the weights"


def test_only_the_first_five_of_a_kind_are_named() -> None:
    message = refused(Net(), {f"x{index}": torch.ones(7) for index in range(9)})
    assert "unexpected: x0, x1, x2, x3, x4 and 4 more" in message
    assert f"and {NUM_TENSORS - 5} more" in message
    assert f"0 of {NUM_TENSORS} tensors, 0 of {NUM_ELEMENTS} elements matched" in message
    assert "most tensors differ, as those of another network do: build on its config (base=NAME)" in message


def test_kinds_of_numbers_must_agree_but_floats_are_cast() -> None:
    model = Net()
    count = "encoder.2.num_batches_tracked"
    message = refused(model, weights_of(model) | {count: torch.tensor(1.0)})
    assert f"different: {count} (torch.float32 in the weights, torch.int64 in the model)" in message
    load_weights(model, weights_of(model) | {"head.bias": torch.tensor([0.5, 0.25], dtype=torch.float64)})
    assert torch.equal(model.head.bias, torch.tensor([0.5, 0.25]))


@pytest.mark.parametrize("pattern", ["head", "head.*", "*ead.*"])
def test_what_may_be_missing_stays_as_it_is(pattern: str) -> None:
    model = Net()
    weights = weights_of(model)
    given = {name: tensor for name, tensor in weights.items() if not name.startswith("head")}
    report = load_weights(model, given, may_be_missing=[pattern])
    assert_loaded(model, weights, prefix="encoder")
    assert report.missing == ("head.weight", "head.bias")
    assert str(report).endswith("; left as they were: head.weight, head.bias")


def test_what_may_be_missing_may_be_of_another_shape_or_without_a_place() -> None:
    model = Net()
    weights = weights_of(model)
    other = {"head.weight": torch.ones(40, 5), "head.bias": torch.ones(40), "projector.weight": torch.ones(3)}
    assert "unexpected: projector.weight" in refused(model, weights | other, may_be_missing=["head"])
    report = load_weights(model, weights | other, may_be_missing=["head", "projector"])
    assert_loaded(model, weights, prefix="encoder")
    assert report.unexpected == ("projector.weight",)
    assert report.matched == NUM_TENSORS - 2


def test_a_pattern_that_nothing_needs_is_refused() -> None:
    weights = weights_of(Net())
    assert "'head' names nothing that is missing; nothing is missing" in refused(
        Net(), weights, may_be_missing=["head"]
    )
    del weights["head.bias"]
    message = refused(Net(), weights, may_be_missing=["head.bias", "hea"])
    assert "'hea' names nothing that is missing; missing are head.bias" in message


def test_modules_takes_one_part_only() -> None:
    model = Net()
    weights = weights_of(model)
    foreign = {"projector.weight": torch.ones(3), "encoders.x": torch.ones(1), "head.weight": torch.ones(9, 9)}
    report = load_weights(model, weights | foreign, modules="encoder")
    assert_loaded(model, weights, prefix="encoder")
    assert (report.matched, report.total, report.unexpected) == (9, 9, ())


class Pretrained(nn.Module):
    """An encoder under another name than in Net, and a head that serves the pre-training alone."""

    def __init__(self) -> None:
        super().__init__()
        self.points = nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 5), nn.BatchNorm1d(5))
        self.points_head = nn.Linear(5, 7)


class Derived(nn.Sequential):
    """Has the encoder's own names at its top, as classifiers have that derive from their encoder, and a head."""

    def __init__(self) -> None:
        super().__init__(nn.Linear(3, 4), nn.Linear(4, 5), nn.BatchNorm1d(5))
        self.head = nn.Linear(5, 2)


def test_a_sub_module_goes_into_the_whole_model() -> None:
    """The model has no module 'points', so it is the whole of it that must match, but for the head."""
    model, weights = Derived(), weights_of(Pretrained())
    report = load_weights(model, weights, modules="points", may_be_missing=["head"])
    assert (report.matched, report.total) == (9, 11)
    assert (report.matched_elements, report.total_elements) == (NUM_ELEMENTS - 12, NUM_ELEMENTS)
    assert report.missing == ("head.weight", "head.bias")
    for name in set(model.state_dict()) - {"head.weight", "head.bias"}:
        assert torch.equal(model.state_dict()[name], weights[f"points.{name}"]), name
    message = refused(Derived(), weights, modules="points")
    assert "another network" not in message
    assert message.startswith(f"9 of 11 tensors, {NUM_ELEMENTS - 12} of {NUM_ELEMENTS} elements matched; missing: head")


def test_a_sub_module_goes_into_a_sub_module_of_another_name() -> None:
    model, weights = Net(), weights_of(Pretrained())
    report = load_weights(model, weights, modules="points", into="encoder")
    assert (report.matched, report.total, report.missing, report.unexpected) == (9, 9, (), ())
    assert torch.equal(model.encoder[0].weight, weights["points.0.weight"])
    refused(Net(), weights, modules="points")  # into the whole model nothing of it fits


def test_a_whole_model_goes_into_a_sub_module() -> None:
    """What has no place there is named as it would be there."""
    model, weights = Pretrained(), weights_of(Derived())
    assert "unexpected: points.head.bias, points.head.weight" in refused(Pretrained(), weights, into="points")
    report = load_weights(model, weights, into="points", may_be_missing=["points.head"])
    assert (report.matched, report.total) == (9, 9)
    assert torch.equal(model.points[2].running_var, weights["2.running_var"])


def test_the_same_name_comes_before_the_whole_model() -> None:
    """A model that has the module takes it there, whatever else it has at its top."""
    model, weights = Pretrained(), weights_of(Pretrained())
    report = load_weights(model, weights, modules="points")
    assert report.total == 9
    assert not torch.equal(model.points_head.weight, weights["points_head.weight"])


def test_many_missing_tensors_are_counted_by_module() -> None:
    model = Net()
    weights = {name: tensor for name, tensor in weights_of(model).items() if name == "encoder.0.weight"}
    report = load_weights(model, weights, may_be_missing=["encoder", "head"])
    assert str(report).endswith("; left as they were: 10 tensors (encoder 8, head 2)")
    assert report.to_dict()["missing"][0] == "encoder.0.bias"


def test_a_tied_tensor_may_be_given_under_either_name() -> None:
    for name in ("first.weight", "second.weight"):
        model = Tied()
        report = load_weights(model, {name: torch.full((3, 3), 7.0)})
        assert (report.matched, report.missing) == (2, ())
        assert model.first.weight is model.second.weight
        assert (model.first.weight == 7).all()
