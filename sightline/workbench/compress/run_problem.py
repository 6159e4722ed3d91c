"""Search problem of a trained run: its layers, file size, and policy loss on calibration samples."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import math
from collections.abc import Collection
from typing import Any

import numpy as np
import torch

from sightline.compression.inputs import calibrate_activations
from sightline.compression.policy import FP32, Activation, Policy, WeightFormat
from sightline.compression.weights import list_weights
from sightline.config import RunConfig
from sightline.config.plain_values import to_plain
from sightline.contract.errors import UserError
from sightline.contract.types import Batch, LinearRamp
from sightline.engine.batches.sampler import evaluation_keys
from sightline.engine.device.numerics import Precision
from sightline.engine.device.transfer import to_device
from sightline.engine.run_data import Data, DataSubset, build_part
from sightline.engine.run_loading import OpenRun
from sightline.engine.step import compute_batch_losses, single_batch_step
from sightline.runs.trained_weights import evaluated_sha256, is_packed, resolve_weights
from sightline.workbench.compress.curvature import Curvature, build_curvature
from sightline.workbench.compress.layer_costs import LayerCost, bit_operations, layer_costs
from sightline.workbench.compress.problem import SearchProblem
from sightline.workbench.compress.simulator import PolicySimulator
from sightline.workbench.compress.target import CompressionTarget
from sightline.workbench.compress.unused_weights import unused_weights
from sightline.workbench.describe.trace import Trace, trace

NUM_TRACED = 3
NUM_CURVED = 32
"""Number of samples in the graph of second gradients."""


class RunProblem:
    """Search problem of a run, with the loss of policies on calibration samples.

    The loss is the weighted sum of the run's own losses over samples that no reported figure uses. The run's model has
    its float weights before and after each call.
    """

    def __init__(self, run: OpenRun, target: CompressionTarget) -> None:
        """Raise ConfigError for an infeasible budget, before data are opened."""
        config = run.config
        self.target = target
        self._run = run
        self.simulated = make_simulator(run)
        self.names = self.simulated.names
        problem = untraced_problem(self.simulated, target)
        self.part = calibration_part(config, run.data, target.calibration, seed=target.seed)
        self.weights = {
            component.name: component.weight.end if isinstance(component.weight, LinearRamp) else component.weight
            for component in config.losses
        }
        evaluator = run.evaluator(self.part)
        self._evaluator = dataclasses.replace(evaluator, metrics=(), votes=1, voting_reader=None, tiles=None)
        self.layers = layer_costs(run.model, self._trace_model(), self.names)
        self._inputs = self._calibrate_inputs(problem)
        step = single_batch_step(
            run.task, run.model, self._read_batch(NUM_TRACED), run.world.device, self._evaluator.precision
        )
        unused = unused_weights(self.simulated, step, self.weights, self._loss)
        self.unused = tuple(name for name in unused if name not in problem.protected)
        self.search_problem = dataclasses.replace(
            problem,
            layers=self.layers,
            curvature=self._build_curvature,
            unused=frozenset(self.unused),
            subject=self.subject,
        )

    @property
    def base_bytes(self) -> int:
        """The bytes of the float model, counted as the budget counts them."""
        return self.simulated.base_bytes(self.target.on)

    @property
    def subject(self) -> str:
        """Identity of the losses in the record of a search: weights, model and samples."""
        ids = np.ascontiguousarray(self.part.indices, dtype=np.int64)
        indices_digest = hashlib.sha256(ids.tobytes()).hexdigest()[:8]
        return (
            f"weights {weights_sha256(self._run)[:16]}, model {json_digest(to_plain(self._run.config.model))}, "
            f"{len(ids)} samples of {self.part.split} ({indices_digest}), the rest in half precision"
        )

    def loss(self, policy: Policy) -> float:
        """Compute the loss of a policy on the calibration samples, from the float weights each time."""
        self.simulated.apply(policy)
        try:
            return self._loss()
        finally:
            self.simulated.restore()

    def _loss(self) -> float:
        """Compute the loss of the model with its current weights."""
        losses = self._evaluator(self._run.model, self._run.world).losses
        return math.fsum(weight * losses[name] for name, weight in self.weights.items())

    def with_quantised_inputs(self, policy: Policy) -> Policy:
        """Add the quantisation of layer inputs to a policy, if the options request it."""
        return {name: choice._replace(activation=self._inputs.get(name)) for name, choice in policy.items()}

    def _calibrate_inputs(self, problem: SearchProblem) -> dict[str, Activation]:
        """Measure the input range of each quantised layer on the calibration samples; empty unless requested.

        Raises UserError for layers that the model does not call, as in fused layers.
        """
        bits, model = self.target.activations, self._run.model
        if bits is None:
            return {}
        kinds = {weight.name: weight.kind for weight in list_weights(model)}
        names = [n for n in self.names if problem.protected.get(n) != FP32 and kinds[n] != "embedding"]
        return calibrate_activations(model, lambda: self._evaluator(model, self._run.world), names, bits=bits)

    def costs(self, policy: Policy) -> dict[str, float]:
        """Compute multiply-accumulates per sample, and these times the bits of weights and inputs."""
        return {
            "macs": sum(layer.macs for layer in self.layers),
            "bit_operations": bit_operations(self.layers, policy),
            "float_bit_operations": bit_operations(self.layers, dict.fromkeys(self.names, FP32)),
        }

    def _build_curvature(self) -> Curvature:
        batch = self._read_batch(NUM_CURVED)
        run, precision = self._run, self._evaluator.precision
        return build_curvature(
            self.simulated, single_batch_step(run.task, run.model, batch, run.world.device, precision), self.weights
        )

    def _read_batch(self, count: int) -> Batch:
        run, indices = self._run, self.part.indices[:count]
        (keys,) = evaluation_keys(indices, count, epoch=0, seed=run.config.seed)
        batch: Batch = to_device(
            self._evaluator.reader(keys), run.world.device, float_dtype=self._evaluator.precision.parameter_dtype
        )
        return batch

    def _trace_model(self) -> Trace:
        run, evaluator, batch = self._run, self._evaluator, self._read_batch(NUM_TRACED)

        def forward(model: Any) -> None:
            compute_batch_losses(run.task, model.eval(), batch, run.world.device, evaluator.precision)

        return trace(run.model, forward, num_samples=min(NUM_TRACED, len(self.part.indices)))


def weights_sha256(run: OpenRun) -> str:
    """Return the SHA-256 of the weights that a run evaluates."""
    return evaluated_sha256(resolve_weights(run.checkpoint_path))


def json_digest(*values: Any) -> str:
    """Compute a short digest of plain values."""
    return hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()[:8]


def untraced_problem(simulated: PolicySimulator, target: CompressionTarget) -> SearchProblem:
    """Build the problem with layer sizes but no costs, which suffices to check the budget.

    Raises ConfigError for an infeasible budget, and for faults of the options.
    """
    parameters = dict(simulated.model.named_parameters())
    base_bytes = simulated.base_bytes(target.on)
    budget = target.num_bytes if target.ratio is None else math.floor(target.ratio * base_bytes)
    assert budget is not None, "a ratio or bytes are asked for"
    problem = SearchProblem(
        layers=tuple(LayerCost(name, parameters[name].numel(), 1, 1) for name in simulated.names),
        choices=tuple(WeightFormat(target.kind, bits, target.per_channel) for bits in sorted(set(target.bits))),
        bytes_of=lambda policy: simulated.count_bytes(policy, target.on),
        budget_bytes=budget,
        protected=target.protected_choices(simulated.names),
    )
    problem.assert_feasible(base_bytes=base_bytes)
    return problem


def make_simulator(run: OpenRun, policy: Collection[str] = ()) -> PolicySimulator:
    """Build the simulator of a float run for its quantisable weights, and for other parameters that `policy` names.

    Raises UserError for a run that is not float32, is quantised already, or has weights that are not finite.
    """
    config = run.config
    if Precision(config.train.precision).parameter_dtype != torch.float32:
        raise UserError(f"{run.path}: train.precision is {config.train.precision}; compress takes weights in float32")
    if config.compress is not None or is_packed(run.path) or run.checkpoint_path.suffix == ".slq":
        raise UserError(
            f"{run.path}: is quantised already; give the run that it started from, or no budget, to pack a fine-tuning"
        )
    for name, value in run.model.state_dict().items():
        if not torch.isfinite(value).all():
            raise UserError(
                f"{run.checkpoint_path}: '{name}' is not finite; the training diverged, take an earlier checkpoint"
            )
    names = tuple(
        weight.name for weight in list_weights(run.model) if weight.skip_reason is None or weight.name in policy
    )
    if not names:
        raise UserError(f"{run.path}: model '{config.model.name}' has no weights of two axes to quantise")
    return PolicySimulator(run.model, names, packed_metadata(run))


def calibration_part(config: RunConfig, data: Data, count: int, *, seed: int) -> DataSubset:
    """Select calibration samples of the selection split, or of training if figures are reported on that split.

    They are drawn by `seed` and read with the transforms of evaluation.
    """
    part = data.selection
    if part.split == "test" or part is data.test:
        part = dataclasses.replace(build_part(config, "train"), indices=data.train.indices)
    generator = np.random.Generator(np.random.PCG64(seed))
    indices = generator.choice(part.indices, size=min(count, len(part.indices)), replace=False)
    return dataclasses.replace(part, indices=np.sort(indices))


def packed_metadata(run: OpenRun) -> dict[str, Any]:
    """Return the metadata of a packed file: model, facts of its data, and transforms of evaluation."""
    config = run.config
    return {
        "model": to_plain(config.model),
        "facts": to_plain(dict(run.facts)),
        "evaluate": to_plain(config.transforms.evaluate),
    }
