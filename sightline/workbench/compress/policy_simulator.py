"""Simulation of policies on a trained model: quantised weights, and the exact size of each policy's file.

Re-estimation of batch norm statistics for changed weights.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Mapping
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from sightline.engine.batch_stream import evaluation_keys, read_batches
from sightline.engine.device import Precision, to_device
from sightline.engine.run_loading import OpenRun
from sightline.engine.step import compute_batch_losses
from sightline.instrument.random_state import preserve_random_state
from sightline.parts.quantisation.linear import halvable, round_to_half
from sightline.parts.quantisation.parametrised import HalfPrecision, quantiser_for
from sightline.runs.packed import (
    CompressionRatios,
    PackedTensorSpec,
    compression_ratios,
    float_bytes,
    packed_size,
    tensor_spec,
    unique_tensors,
)
from sightline.workbench.compress.policy import FP32, Policy, WeightFormat, policy_to_dict

BudgetOn = Literal["file", "codebook", "weights"]
"""Bytes that a budget counts: the file, codes with codebooks, or codes alone, as in HAQ."""


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
        self._quantised_cache: dict[tuple[str, WeightFormat], tuple[nn.Module, Tensor] | None] = {}
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
                quantised, value = self._quantise(name, choice), self._floats[name]
                self._parameters[name].copy_(value if quantised is None else quantised[0](quantised[1]))
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

    def squared_error(self, name: str, choice: WeightFormat) -> float:
        """Compute the squared distance between a weight and its quantised form."""
        quantised = self._quantise(name, choice)
        if quantised is None:
            return 0.0
        with torch.no_grad():
            return (quantised[0](quantised[1]).double() - self._floats[name].double()).square().sum().item()

    def _quantise(self, name: str, choice: WeightFormat) -> tuple[nn.Module, Tensor] | None:
        key = name, choice
        if key not in self._quantised_cache:
            weight = nn.Parameter(self._floats[name])
            quantised = quantiser_for(name, weight, policy_to_dict({name: choice})[name], mean_gradient=True)
            self._quantised_cache[key] = (
                None if quantised is None else (quantised[0], weight.detach() if quantised[1] is None else quantised[1])
            )
        return self._quantised_cache[key]

    def _get_entry(self, name: str, choice: WeightFormat) -> PackedTensorSpec:
        key = name, choice
        if key not in self._entries:
            quantised, weight = self._quantise(name, choice), self._floats[name]
            holder = self._holders[name]
            with torch.no_grad():
                pair = () if quantised is None else quantised
                self._entries[key] = tensor_spec(
                    holder, weight if quantised is None else quantised[0](quantised[1]), *pair
                )
        return self._entries[key]


def reestimate_batch_norm(model: nn.Module, run: OpenRun, *, num_batches: int) -> int:
    """Re-estimate running statistics as means over random training batches; return the number of batches.

    All batches are complete, unless the split is smaller than one. Forward passes in training mode, without gradients.
    Source: Yu and Huang 2019 (slimmable networks), section 3.
    """
    norms = [module for module in model.modules() if isinstance(module, _BatchNorm) and module.track_running_stats]
    if not norms or num_batches == 0:
        return 0
    config, part = run.config, run.data.train
    size = config.train.num_samples
    indices = np.random.Generator(np.random.PCG64(config.seed)).permutation(part.indices)  # sets are sorted by class
    num_complete = min(num_batches, max(1, len(indices) // size))
    keys = evaluation_keys(indices[: num_complete * size], size, epoch=0, seed=config.seed)
    precision = Precision(config.train.precision)
    momenta = [module.momentum for module in norms]
    batches = read_batches(part.reader, iter(keys), 0)
    model.train()
    try:
        with torch.no_grad(), preserve_random_state(), contextlib.closing(batches):
            for number, batch in enumerate(batches, start=1):
                for module in norms:
                    module.momentum = 1 / number  # the mean of all so far
                compute_batch_losses(run.task, model, to_device(batch, run.world.device), run.world.device, precision)
    finally:
        for module, momentum in zip(norms, momenta, strict=True):
            module.momentum = momentum
        model.eval()
    return len(keys)
