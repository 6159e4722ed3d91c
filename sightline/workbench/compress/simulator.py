"""Simulation of policies on a trained model: quantised weights, and the exact size of each policy's file."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from sightline.compression.half_precision import HalfPrecision, halvable, round_to_half
from sightline.compression.packed_file import packed_size
from sightline.compression.packed_tensors import PackedTensorSpec, tensor_spec, unique_tensors
from sightline.compression.parametrised import quantiser_for
from sightline.compression.policy import FP32, Policy, WeightFormat
from sightline.compression.ratios import CompressionRatios, compression_ratios, float_bytes
from sightline.workbench.compress.target import BudgetOn


class Sizes(NamedTuple):
    """Size of a policy's file in bytes, and its three ratios to float32."""

    file_bytes: int
    ratios: CompressionRatios


class PolicySimulator:
    """Float model in evaluation mode whose named weights are replaced by quantised ones, and restored.

    Biases, norms and small weights that are not named are rounded to half precision together with them, as in a packed
    file. Every policy starts from the float weights. `meta` is the metadata of the packed file.
    """

    def __init__(self, model: nn.Module, names: tuple[str, ...], meta: Mapping[str, Any]) -> None:
        self.model = model.eval()
        self.names = names
        self._meta = meta
        self._parameters = {name: parameter for name, parameter in model.named_parameters() if name in set(names)}
        self._floats = {name: parameter.detach().clone() for name, parameter in self._parameters.items()}
        self._state = model.state_dict()
        self._current: dict[str, WeightFormat] = dict.fromkeys(names, FP32)
        self._quantised_cache: dict[tuple[str, WeightFormat], tuple[nn.Module, Tensor]] = {}
        self._entries: dict[tuple[str, WeightFormat], PackedTensorSpec] = {}
        unique_state, self._tied = unique_tensors(self._state)
        self._holders = {name: self._tied.get(name, name) for name in names}
        self._float_rest = {name: self._state[name].clone() for name in halvable(model, but=names)}
        self._half_rest = {name: value.clone() for name, value in self._float_rest.items()}
        halved = {self._tied.get(name, name) for name in round_to_half(self._half_rest, self._half_rest)}
        quantised = set(self._holders.values())
        self._plain = [
            tensor_spec(name, tensor, HalfPrecision() if name in halved else None)
            for name, tensor in unique_state.items()
            if name not in quantised
        ]

    @torch.no_grad()
    def apply(self, policy: Policy) -> nn.Module:
        """Set the model to a policy's weights, and the others to half precision; unnamed layers stay in float."""
        for name in self.names:
            choice = policy.get(name, FP32)
            if self._current[name] != choice:
                self._parameters[name].copy_(self._compute(name, choice))
                self._current[name] = choice
        self._set_values(self._half_rest)
        return self.model

    def restore(self) -> nn.Module:
        """Restore the model's float weights, and return the model."""
        self.apply({})
        self._set_values(self._float_rest)
        return self.model

    def _set_values(self, values: Mapping[str, Tensor]) -> None:
        for name, value in values.items():
            self._state[name].copy_(value)

    def count_bytes(self, policy: Policy, on: BudgetOn = "file") -> int:
        """Count the bytes that a budget on `on` counts."""
        entries = {name: self._get_entry(name, policy.get(name, FP32)) for name in self.names}
        if on == "file":
            return packed_size([*self._plain, *entries.values()], self._meta, tied=self._tied)
        bits = sum(policy.get(name, FP32).bits * entry.count for name, entry in entries.items())
        if on == "weights":
            return math.ceil(bits / 8)
        return sum(entry.code_bytes + entry.book_bytes for entry in entries.values())

    def base_bytes(self, on: BudgetOn = "file") -> int:
        """Return the bytes of the same numbers in float32: of the whole state, or of the named weights only."""
        if on == "file":
            return float_bytes(self._state)
        return sum(4 * value.numel() for value in self._floats.values())

    def sizes(self, policy: Policy) -> Sizes:
        """Compute the file's bytes, and the ratios of codes, of codes with codebooks, and of the file."""
        entries = {name: self._get_entry(name, policy.get(name, FP32)) for name in self.names}
        layers = [(entry.count, policy.get(name, FP32).bits, entry.book_bytes) for name, entry in entries.items()]
        file_bytes = self.count_bytes(policy)
        return Sizes(file_bytes, compression_ratios(layers, file_bytes=file_bytes, state=self._state))

    @torch.no_grad()
    def squared_error(self, name: str, choice: WeightFormat) -> float:
        """Compute the squared distance between a weight and its quantised form."""
        return (self._compute(name, choice).double() - self._floats[name].double()).square().sum().item()

    def _quantise(self, name: str, choice: WeightFormat) -> tuple[nn.Module, Tensor]:
        key = name, choice._replace(activation=None)
        if key not in self._quantised_cache:
            self._quantised_cache[key] = quantiser_for(name, self._floats[name], choice)
        return self._quantised_cache[key]

    def _compute(self, name: str, choice: WeightFormat) -> Tensor:
        quantiser, source = self._quantise(name, choice)
        weight: Tensor = quantiser(source)
        return weight

    @torch.no_grad()
    def _get_entry(self, name: str, choice: WeightFormat) -> PackedTensorSpec:
        key = name, choice
        if key not in self._entries:
            value = self._compute(name, choice)
            self._entries[key] = tensor_spec(self._holders[name], value, *self._quantise(name, choice))
        return self._entries[key]
