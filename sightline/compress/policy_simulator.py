"""A trained model whose weights become what policies make of them, and the size of each policy's file to the byte."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor, nn

from sightline.compress.policy import FP32, Policy, WeightFormat, policy_to_dict
from sightline.layers.quantisation.halves import halvable, round_to_half
from sightline.layers.quantisation.parametrised import HalfPrecision, quantiser_for
from sightline.runs.packed import (
    CompressionRatios,
    PackedTensorSpec,
    compression_ratios,
    float_bytes,
    packed_size,
    tensor_spec,
    unique_tensors,
)

__all__ = ["BudgetOn", "PolicySimulator", "Sizes"]

BudgetOn = Literal["file", "codebook", "weights"]
"""What a budget counts: the bytes of the file, codes with codebooks, or codes alone, as HAQ does."""


class Sizes(NamedTuple):
    """The file of a policy in bytes, and its three ratios against float32."""

    file_bytes: int
    ratios: CompressionRatios


class PolicySimulator:
    """A float model, in evaluation mode, whose named weights are swapped for quantised ones and back.

    Biases, norms and small weights that are not named are rounded to half precision with them, as a file holds them.

    Every policy starts from the float weights. `meta` is what the packed file holds beside the tensors.
    """

    def __init__(self, model: nn.Module, names: tuple[str, ...], meta: Mapping[str, Any]) -> None:
        self.model = model.eval()
        self.names = names
        self._meta = meta
        self._parameters = {name: parameter for name, parameter in model.named_parameters() if name in set(names)}
        self._floats = {name: parameter.detach().clone() for name, parameter in self._parameters.items()}
        self._state = model.state_dict()
        self._now: dict[str, WeightFormat] = dict.fromkeys(names, FP32)
        self._made: dict[tuple[str, WeightFormat], tuple[nn.Module, Tensor] | None] = {}
        self._entries: dict[tuple[str, WeightFormat], PackedTensorSpec] = {}
        held, self._tied = unique_tensors(self._state)
        self._holders = {name: self._tied.get(name, name) for name in names}
        self._rests = {name: self._state[name].clone() for name in halvable(model, but=names)}
        self._halves = {name: value.clone() for name, value in self._rests.items()}
        halved = {self._tied.get(name, name) for name in round_to_half(self._halves, self._halves)}
        quantised = set(self._holders.values())
        self._plain = [
            tensor_spec(name, tensor, HalfPrecision() if name in halved else None)
            for name, tensor in held.items()
            if name not in quantised
        ]

    @torch.no_grad()
    def apply(self, policy: Policy) -> nn.Module:
        """The model with the weights of a policy, and the rest in half precision; layers that it does not name stay."""
        for name in self.names:
            choice = policy.get(name, FP32)
            if self._now[name] != choice:
                made, value = self._quantised(name, choice), self._floats[name]
                self._parameters[name].copy_(value if made is None else made[0](made[1]))
                self._now[name] = choice
        self._put(self._halves)
        return self.model

    def restore(self) -> nn.Module:
        """The model with its float weights."""
        self.apply({})
        self._put(self._rests)
        return self.model

    def _put(self, values: Mapping[str, Tensor]) -> None:
        for name, value in values.items():
            self._state[name].copy_(value)

    def bytes_of(self, policy: Policy, on: BudgetOn = "file") -> int:
        """The bytes that a budget counts."""
        entries = {name: self._entry(name, policy.get(name, FP32)) for name in self.names}
        if on == "file":
            return packed_size([*self._plain, *entries.values()], self._meta, tied=self._tied)
        bits = sum(policy.get(name, FP32).bits * entry.count for name, entry in entries.items())
        if on == "weights":
            return math.ceil(bits / 8)
        return sum(entry.code_bytes + entry.book_bytes for entry in entries.values())

    def base_bytes(self, on: BudgetOn = "file") -> int:
        """The bytes of the same numbers in float32: of the state, or of the named weights alone."""
        if on == "file":
            return float_bytes(self._state)
        return sum(4 * value.numel() for value in self._floats.values())

    def sizes(self, policy: Policy) -> Sizes:
        """The file's bytes, and the ratios of codes, of codes with codebooks, and of the file."""
        entries = {name: self._entry(name, policy.get(name, FP32)) for name in self.names}
        layers = [(entry.count, policy.get(name, FP32).bits, entry.book_bytes) for name, entry in entries.items()]
        file_bytes = self.bytes_of(policy)
        return Sizes(file_bytes, compression_ratios(layers, file_bytes=file_bytes, state=self._state))

    def squared_error(self, name: str, choice: WeightFormat) -> float:
        """The squared distance of a weight from what a choice makes of it."""
        made = self._quantised(name, choice)
        if made is None:
            return 0.0
        with torch.no_grad():
            return (made[0](made[1]).double() - self._floats[name].double()).square().sum().item()

    def _quantised(self, name: str, choice: WeightFormat) -> tuple[nn.Module, Tensor] | None:
        key = name, choice
        if key not in self._made:
            weight = nn.Parameter(self._floats[name])
            made = quantiser_for(name, weight, policy_to_dict({name: choice})[name], mean_gradient=True)
            self._made[key] = None if made is None else (made[0], weight.detach() if made[1] is None else made[1])
        return self._made[key]

    def _entry(self, name: str, choice: WeightFormat) -> PackedTensorSpec:
        key = name, choice
        if key not in self._entries:
            made, weight = self._quantised(name, choice), self._floats[name]
            holder = self._holders[name]
            with torch.no_grad():
                pair = () if made is None else made
                self._entries[key] = tensor_spec(holder, weight if made is None else made[0](made[1]), *pair)
        return self._entries[key]
