"""Quantised weights as parametrisations: read by every layer, trained through, and written back bit by bit."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.torch
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from sightline.compression.codebooks import Clusters, Codebook
from sightline.compression.parametrised import bake_quantised_weights, dense_state_dict, quantised_weights
from sightline.compression.weights import list_weights, quantisable_weights
from sightline.contract.errors import UserError
from tests.compression.policies import quantise
from tests.golden_parity import load_golden, rule_made_state
from tests.models.small_models import make_inputs, small_model

Policy = dict[str, dict[str, Any]]


def mixed_policy(model: nn.Module) -> Policy:
    """Every quantisable weight, in turn of each kind."""
    choices = [
        {"kind": "codebook", "bits": 3},
        {"kind": "linear", "bits": 4},
        {"kind": "codebook", "bits": 2, "per_channel": True},
        {"kind": "fp16"},
        {"kind": "linear", "bits": 6, "per_channel": True},
    ]
    return {weight.name: choices[turn % 5] for turn, weight in enumerate(quantisable_weights(model, min_params=1))}


def call(model: nn.Module, inputs: dict[str, Tensor]) -> dict[str, Tensor]:
    torch.manual_seed(7)  # of dropout and stochastic depth
    outputs: dict[str, Tensor] = model(**inputs)
    return outputs


def total(outputs: dict[str, Tensor]) -> Tensor:
    ramps = [value.flatten() @ torch.linspace(-1, 1, value.numel(), dtype=value.dtype) for value in outputs.values()]
    return torch.stack(ramps).sum()


MODELS = ("crosspoint", "detector", "dgcnn", "dgcnn_parts", "pct_simple", "point_transformer_dense", "pointnet2")
"""One of each kind of fused layer; the whole registry takes half a minute more: put `registry.models.names()` here."""


@pytest.mark.parametrize("is_training", [False, True])
@pytest.mark.parametrize(
    "name",
    [
        *MODELS,
        *(pytest.param(name, marks=pytest.mark.long) for name in ("point_transformer", "salsanext", "v2v_small")),
    ],
)
def test_models_compute_with_the_quantised_weights(name: str, is_training: bool) -> None:
    """Fused layers read attributes: outputs have the bits of a plain model with the same numbers, gradients arrive."""
    model = small_model(name).train(is_training)
    names, plain, policy = list(model.state_dict()), copy.deepcopy(model), mixed_policy(model)
    quantise(model, policy)
    state = dense_state_dict(model)
    assert state.keys() == set(names)
    floats = dict(plain.named_parameters())
    large = [each for each in policy if len(floats[each].unique()) > 64]
    assert large
    assert not any(torch.equal(state[each], floats[each]) for each in large)
    plain.load_state_dict(state)
    inputs = make_inputs(model, 3)
    found, expected = call(model, inputs), call(plain, inputs)
    assert all(torch.equal(found[each], expected[each]) for each in expected)
    total(found).backward()
    total(expected).backward()
    for each, (quantiser, original) in quantised_weights(model).items():
        gradient = floats[each].grad
        assert gradient is not None
        if isinstance(quantiser, Codebook):
            members = quantiser.labels.flatten(1 if original.ndim == 2 else 0).long()
            sums = torch.zeros_like(original).scatter_add_(-1, members, gradient.reshape(members.shape))
            counts = torch.zeros_like(original).scatter_add_(-1, members, torch.ones_like(members, dtype=sums.dtype))
            gradient = sums / counts.clamp(min=1)
        torch.testing.assert_close(original.grad, gradient, rtol=1e-9, atol=1e-9 * float(gradient.abs().max()))
    bake_quantised_weights(model)
    assert list(model.state_dict()) == names
    assert all(torch.equal(value, state[each]) for each, value in model.state_dict().items() if each in policy)
    assert policy.keys() <= dict(model.named_parameters()).keys()


class Plugin(nn.Module):
    """Bare parameters, a shared one, one in a list, an embedding, and what is added to every sample."""

    def __init__(self) -> None:
        super().__init__()
        self.mix = nn.Parameter(torch.randn(20, 20))
        self.enter = nn.Linear(20, 20)
        self.leave = nn.Linear(20, 20, bias=False)
        self.leave.weight = self.enter.weight
        self.parts = nn.ParameterList([torch.randn(16, 20), torch.randn(3)])
        self.words = nn.Embedding(40, 20)
        self.token = nn.Parameter(torch.randn(1, 30, 20))
        self.norm = nn.LayerNorm((20, 20))

    def forward(self, x: Tensor) -> Tensor:
        return self.leave(F.relu(self.enter(x @ self.mix))) @ self.parts[0].mT


def test_which_tensors_are_quantised_and_why_others_stay() -> None:
    model = Plugin()
    rows = {weight.name: weight for weight in list_weights(model)}
    assert list(rows) == [name for name, _ in model.named_parameters()]
    assert [weight.name for weight in quantisable_weights(model)] == ["mix", "enter.weight", "parts.0", "words.weight"]
    assert (rows["enter.weight"].shared, rows["enter.weight"].size) == (("leave.weight",), 400)
    assert {name: weight.skip_reason for name, weight in rows.items() if weight.skip_reason} == {
        "token": "is added to every sample",
        "enter.bias": "bias",
        "parts.1": "has one axis",
        "norm.weight": "norm",
        "norm.bias": "norm",
    }
    sparse, renormalised = nn.Embedding(40, 20, sparse=True), nn.EmbeddingBag(40, 20, max_norm=1.0)
    assert [w.skip_reason for w in list_weights(sparse)] == ["has sparse gradients"]
    assert [w.skip_reason for w in list_weights(renormalised)] == ["is renormalised where it is read"]
    assert [w.skip_reason for w in list_weights(nn.Conv2d(3, 3, 3)) if w.name == "weight"] == [
        "fewer than 256 elements"
    ]
    assert [w.kind for w in list_weights(nn.ConvTranspose3d(8, 9, 3)) if w.name == "weight"] == [
        "transposed convolution"
    ]


@pytest.mark.parametrize("choice", [{"kind": "codebook", "bits": 2}, {"kind": "linear", "bits": 3}, {"kind": "fp16"}])
def test_bare_and_shared_parameters_are_quantised(choice: dict[str, Any]) -> None:
    model, x = Plugin(), torch.randn(5, 20)
    before = model(x)
    quantise(model, {name: choice for name in ("mix", "enter.weight", "parts.0")})
    plain = Plugin()
    plain.load_state_dict(dense_state_dict(model))
    assert torch.equal(model(x), plain(x))
    assert not torch.equal(model(x), before)
    model(x).sum().backward()
    plain(x).sum().backward()
    assert len(quantised_weights(model)) == 3
    shared = quantised_weights(model)["enter.weight"][1]
    assert model.leave.parametrizations.weight.original is shared
    if choice["kind"] == "fp16":
        torch.testing.assert_close(shared.grad, plain.enter.weight.grad)  # from both places
    bake_quantised_weights(model)
    assert model.leave.weight is model.enter.weight
    assert torch.equal(model(x), plain(x))


@pytest.mark.parametrize(
    "choice",
    [
        {"kind": "codebook", "bits": 4},
        {"kind": "codebook", "bits": 2, "per_channel": True},
        {"kind": "linear", "bits": 4, "per_channel": True},
        {"kind": "fp16"},
    ],
)
def test_copies_files_and_casts_keep_the_bits(choice: dict[str, Any]) -> None:
    model = nn.Conv2d(8, 6, 3)
    quantise(model, {"weight": choice})
    weight = model.weight.detach()
    assert torch.equal(copy.deepcopy(model).weight, weight)
    # Shapes follow from the policy alone: a model of other weights takes the state.
    other = nn.Conv2d(8, 6, 3)
    with torch.no_grad():
        other.weight.copy_(torch.arange(432).view(6, 8, 3, 3) % 3)
    quantise(other, {"weight": choice})
    other.load_state_dict(safetensors.torch.load(safetensors.torch.save(model.state_dict())))
    assert torch.equal(other.weight, weight)
    assert torch.equal(other.double().weight.float(), weight) or choice["kind"] == "linear"
    again = nn.Conv2d(8, 6, 3)
    again.load_state_dict(dense_state_dict(model))
    quantise(again, {"weight": choice})
    if choice["kind"] != "linear" or not choice.get("per_channel"):
        assert torch.equal(again.weight, weight)  # quantised twice is quantised once


def test_a_step_moves_centres_by_the_mean_or_the_sum() -> None:
    weight = torch.tensor([[1.0, 1.0, 5.0], [1.0, 5.0, 5.0]])
    for mean_gradient, expected in ((True, [-2.0, -5.0]), (False, [-6.0, -15.0])):
        layer = nn.Linear(3, 2, bias=False)
        layer.weight = nn.Parameter(weight.clone())
        quantise(layer, {"weight": {"kind": "codebook", "bits": 1}}, mean_gradient=mean_gradient)
        (layer.weight * torch.tensor([[-1.0, -2.0, -4.0], [-3.0, -5.0, -6.0]])).sum().backward()
        assert quantised_weights(layer)["weight"][1].grad.tolist() == expected


def test_codebooks_are_differentiable_twice() -> None:
    layer = nn.Linear(6, 5).double()
    quantise(layer, {"weight": {"kind": "codebook", "bits": 2}})
    centres, x = quantised_weights(layer)["weight"][1], torch.randn(4, 6, dtype=torch.float64)
    (gradient,) = torch.autograd.grad(F.linear(x, layer.weight).pow(3).sum(), centres, create_graph=True)
    (second,) = torch.autograd.grad(gradient[0], centres)
    assert second.abs().sum() > 0


def test_faults_of_a_policy_are_named_and_change_nothing() -> None:
    model = nn.Sequential(nn.Linear(20, 20), nn.Linear(20, 20))
    good = {"kind": "codebook", "bits": 2}
    for name, choice, fault in [
        ("1.wieght", good, "no parameter '1.wieght'; did you mean '1.weight'"),
        ("1.weight", {"kind": "kmeans", "bits": 2}, "kind: found the text 'kmeans', allowed is one of"),
        ("1.weight", {"kind": "codebook", "bits": 9}, "bits: found 9, allowed is a whole number from 1 to 8"),
        ("1.weight", {"kind": "linear", "bits": 1}, "bits: found 1, too few for a linear grid; give 2 to 8"),
        ("1.weight", {"kind": "codebook"}, "bits: is required and missing; give 1 to 8"),
        ("1.weight", {"kind": "fp16", "bits": 4}, "bits: is not for floating point"),
        ("1.weight", None, r"1\.weight: found null"),
        ("1.bias", {"kind": "codebook", "bits": 2, "per_channel": True}, r"shape \[20\] has no channels"),
    ]:
        with pytest.raises(UserError, match=fault):
            quantise(model, {"0.weight": good, name: choice})
        assert not quantised_weights(model)
    with torch.no_grad():
        model[1].weight[3, 4] = torch.nan
    with pytest.raises(UserError, match=r"1\.weight: 1 of 400 weights are not finite"):
        quantise(model, {"0.weight": good, "1.weight": good})
    with torch.no_grad():
        model[1].weight[3, 4] = 1e6
    with pytest.raises(UserError, match=r"1\.weight: holds numbers above 65504"):
        quantise(model, {"1.weight": {"kind": "fp16"}})
    quantise(model, {"0.weight": good})
    with pytest.raises(UserError, match="'0' is parametrised already"):
        quantise(model, {"0.weight": good})


# --- HAQ -------------------------------------------------------------------------------------------------------------


def test_assigned_weights_are_projected_to_the_means_of_their_clusters_by_hand() -> None:
    """Of the whole tensor and of each channel; a centre without a weight is no division by zero."""
    clusters = Clusters(torch.zeros(4), torch.tensor([[0, 0, 1], [1, 3, 1]], dtype=torch.uint8), True)
    given = torch.tensor([[1.0, 4.0, 2.0], [3.0, -7.0, 7.0]])
    assert Codebook(clusters, bits=2).right_inverse(given).tolist() == [2.5, 4.0, 0.0, -7.0]
    rows = Clusters(torch.zeros(2, 2), torch.tensor([[0, 0, 1], [1, 1, 1]], dtype=torch.uint8), True)
    assert Codebook(rows, bits=1).right_inverse(given).tolist() == [[2.5, 2.0], [0.0, 1.0]]


def chain_net() -> nn.Sequential:
    conv = [nn.Conv2d(3, 6, 3, padding=1), nn.BatchNorm2d(6), nn.ReLU(), nn.AdaptiveAvgPool2d(2), nn.Flatten()]
    return nn.Sequential(*conv, nn.Linear(24, 12), nn.ReLU(), nn.Linear(12, 4)).double()


@pytest.mark.shared
def test_fine_tuning_is_the_chain_of_haq(shared: Path) -> None:
    """Its steps on float weights, each followed by a projection, are steps on the centres with the mean gradient."""
    golden = load_golden(shared, "kmeans_finetune_chain", area="compress")
    model, layers = chain_net(), {0: 3, 5: 2, 7: 4}
    kinds = {"weight": "matrix", "bias": "vector", "zero": "num_batches_tracked"}
    entries = [{**e, "kind": kinds.get(e["kind"], e["kind"]), "tied_to": None} for e in golden.info["state_dict"]]
    model.load_state_dict(rule_made_state(entries))
    centres: list[nn.Parameter] = []
    for place, bits in layers.items():
        labels, start = golden.tensor(f"layer{place}/labels"), golden.tensor(f"layer{place}/centroids")
        quantiser = Codebook(Clusters(start, labels.to(torch.uint8), False), bits=bits)
        quantiser.as_stored = lambda numbers: numbers  # the reference does not round centres
        nn.utils.parametrize.register_parametrization(model[place], "weight", quantiser, unsafe=True)
        with torch.no_grad():
            model[place].parametrizations.weight.original.copy_(start)
        centres.append(model[place].parametrizations.weight.original)
    x, y = golden.tensor("batches/x"), golden.tensor("batches/y")
    before = model.eval()(x[0]).detach()
    np.testing.assert_allclose(before, golden.arrays["eval_logits_before"], rtol=1e-9, atol=1e-9)
    setting = golden.info["optimiser"]
    optimizer = torch.optim.SGD(model.parameters(), lr=setting["sgd_lr"], momentum=0.9, weight_decay=4e-5)
    losses = []
    model.train()
    for _ in range(setting["epochs"]):
        for images, labels in zip(x, y, strict=True):
            optimizer.zero_grad()
            loss = F.cross_entropy(model(images), labels)
            loss.backward()
            optimizer.step()
            with torch.no_grad():
                for numbers in centres:
                    numbers.copy_(numbers.float())  # the reference projects into single precision
            losses.append(loss.item())
        for group in optimizer.param_groups:
            group["lr"] *= setting["gamma"]
    np.testing.assert_allclose(losses, golden.arrays["losses"], rtol=1e-9)
    for name, value in dense_state_dict(model).items():
        np.testing.assert_allclose(value, golden.arrays[f"after/{name}"], rtol=1e-9, atol=1e-9)
    np.testing.assert_allclose(model.eval()(x[0]).detach(), golden.arrays["eval_logits_after"], rtol=1e-9, atol=1e-9)


def test_ten_steps_keep_everything_finite_and_outputs_apart() -> None:
    """The known failure: fewer distinct weights than centres, empty clusters, and one answer for every input."""
    model = nn.Sequential(nn.Conv1d(3, 3, 3), nn.Flatten(), nn.Linear(18, 4))
    with torch.no_grad():
        model[2].weight.copy_((torch.arange(72) % 3).view(4, 18) - 1)
    quantise(model, {"0.weight": {"kind": "codebook", "bits": 8}, "2.weight": {"kind": "codebook", "bits": 8}})
    optimizer, x = torch.optim.SGD(model.parameters(), lr=0.05), torch.randn(6, 3, 8)
    for _ in range(10):
        optimizer.zero_grad()
        F.cross_entropy(model(x), torch.arange(6) % 4).backward()
        optimizer.step()
    assert all(value.isfinite().all() for value in dense_state_dict(model).values())
    assert not torch.equal(*model(x[:2]).detach())
