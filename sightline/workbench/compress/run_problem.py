"""Search problem of a trained run: its layers, file size, and policy loss on calibration samples.

Curvature of a model's own loss, for searches by the Hessian.

Hessian-vector products and Hutchinson's estimate of the Hessian trace of each tensor.

Weights that do not affect the loss, which need no bits.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import math
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from sightline.config import RunConfig
from sightline.config.run_config import to_plain
from sightline.contract.errors import UserError
from sightline.contract.types import Batch, LinearRamp
from sightline.engine.batch_stream import evaluation_keys
from sightline.engine.build import Data, DataSubset, build_part
from sightline.engine.device import Precision, to_device
from sightline.engine.run_loading import OpenRun
from sightline.engine.step import Step, compute_batch_losses, single_batch_step, weighted_sum
from sightline.parts.quantisation.activations import calibrate_activations
from sightline.parts.quantisation.linear import list_weights
from sightline.runs.trained_weights import evaluated_sha256, is_packed, resolve_weights
from sightline.workbench.compress.policy import (
    FP32,
    Activation,
    LayerCost,
    Policy,
    Protect,
    WeightFormat,
    bit_operations,
    layer_costs,
    protected_choices,
)
from sightline.workbench.compress.policy_simulator import BudgetOn, PolicySimulator
from sightline.workbench.compress.search.base import Curvature, Problem
from sightline.workbench.describe.trace import Trace, trace


def hessian_product(loss: Tensor, parameters: Sequence[Tensor], vectors: Sequence[Tensor]) -> list[Tensor]:
    """Compute the product of the Hessian of `loss` by `parameters` with `vectors` of the same shapes.

    The product of a parameter on which the loss depends linearly, or not at all, is 0.
    """
    gradients = torch.autograd.grad(loss, parameters, create_graph=True, materialize_grads=True)
    curved = [(g, v) for g, v in zip(gradients, vectors, strict=True) if g.requires_grad]
    if not curved:
        return [torch.zeros_like(parameter) for parameter in parameters]
    products = torch.autograd.grad([g for g, _ in curved], parameters, [v for _, v in curved], materialize_grads=True)
    return list(products)


def hessian_traces(
    loss_of: Callable[[], Tensor], parameters: Mapping[str, Tensor], *, seed: int, draws: int, tolerance: float = 1e-3
) -> dict[str, float]:
    """Estimate the Hessian trace of each tensor's block by Hutchinson: the mean of v . Hv over random signs v.

    Ends after `draws`, or once the mean of every tensor changes by less than `tolerance` of the largest. `loss_of`
    computes the same loss each time, with functions that can be differentiated twice: layers with `fused: false`, batch
    norm in evaluation mode. Source: Yao et al. 2020 (PyHessian); Dong et al. 2020 (HAWQ-V2), section 3.
    """
    generator = torch.Generator().manual_seed(seed)
    tensors, sums, means = list(parameters.values()), torch.zeros(len(parameters), dtype=torch.float64), None
    for draw in range(1, draws + 1):
        signs = [
            (torch.randint(0, 2, tensor.shape, generator=generator) * 2 - 1).to(tensor.device, tensor.dtype)
            for tensor in tensors
        ]
        products = hessian_product(loss_of(), tensors, signs)
        sums += torch.stack([(v * p).sum().double().cpu() for v, p in zip(signs, products, strict=True)])
        previous, means = means, sums / draw
        if previous is not None and (means - previous).abs().max() < tolerance * means.abs().max():
            break
    assert means is not None, "at least one draw"
    return dict(zip(parameters, means.tolist(), strict=True))


_REMEDY = "build the model with `fused: false`, or take another search"


def build_curvature(simulated: PolicySimulator, step: Step, weights: Mapping[str, float]) -> Curvature:
    """Build the curvature of the weighted losses of a prepared step, at the float weights.

    The model is in evaluation mode, so that batch norms are constant; its quantisable weights require gradients from
    now on. Memory grows with the samples of the step, whose graph is kept twice.
    Raises UserError for a model whose loss cannot be differentiated twice, as with fused functions, and for curvature
    that is not finite.
    """
    parameters = {name: item for name, item in simulated.model.named_parameters() if name in set(simulated.names)}

    def compute_loss() -> Tensor:
        model = simulated.restore().eval()
        for parameter in parameters.values():
            parameter.requires_grad_()
        with torch.enable_grad(), sdpa_kernel(SDPBackend.MATH):  # the fast forms of attention have one gradient
            sums = [step.loss_means(step.loss_sums(model, index)) for index in range(len(step.micro_batches))]
            return torch.stack([weighted_sum(item, weights) for item in sums]).sum()

    loss = compute_loss()
    if once_differentiable := sorted(_find_once_differentiable(loss)):
        raise UserError(
            f"second gradients: {', '.join(once_differentiable)} can be differentiated only once; {_REMEDY}"
        )
    try:
        products = hessian_product(loss, list(parameters.values()), [torch.ones_like(p) for p in parameters.values()])
    except RuntimeError as error:
        if "not implemented" not in str(error):
            raise
        raise UserError(f"second gradients: {error}; {_REMEDY}") from None
    for name, product in zip(parameters, products, strict=True):
        if not torch.isfinite(product).all():
            raise UserError(f"{name}: the curvature of the loss is not finite there; take another search")
    return Curvature(compute_loss, parameters, simulated.squared_error)


def _find_once_differentiable(loss: Tensor) -> set[str]:
    """Find the autograd functions of a loss that are declared once differentiable, by name.

    Torch raises an error only if the gradient that reaches them depends on weights; else their share of the curvature
    is lost silently, for example under a loss that is linear in their output.
    """
    names, visited, pending = set(), set(), [loss.grad_fn]
    while pending:
        node = pending.pop()
        if node is None or node in visited:
            continue
        visited.add(node)
        function: Any = getattr(node, "_forward_cls", None)
        backward = getattr(function, "backward", None)
        if getattr(getattr(backward, "__code__", None), "co_filename", "") == torch.autograd.function.__file__:
            names.add(function.__name__.lstrip("_"))
        pending += [next_node for next_node, _ in node.next_functions]
    return names


def unused_weights(
    simulated: PolicySimulator, step: Step, weights: Mapping[str, float], loss_of: Callable[[], float]
) -> tuple[str, ...]:
    """Find the named weights that can be zeroed without changing one bit of the model's loss, `loss_of()`.

    Only weights without a gradient of the weighted losses of a prepared step are tried. Empty if all weights are
    unused: then the loss does not depend on the network. The model is restored.
    """
    names = _find_without_gradient(simulated, step, weights)
    if not names:
        return ()
    parameters, expected = dict(simulated.model.named_parameters()), loss_of()

    def is_unused(tried: Sequence[str]) -> bool:
        originals = {name: parameters[name].detach().clone() for name in tried}
        try:
            with torch.no_grad():
                for name in tried:
                    parameters[name].zero_()
            return loss_of() == expected
        finally:
            with torch.no_grad():
                for name, value in originals.items():
                    parameters[name].copy_(value)

    unused = names if is_unused(names) else tuple(name for name in names if is_unused([name]))
    return () if len(unused) == len(simulated.names) else unused


def _find_without_gradient(simulated: PolicySimulator, step: Step, weights: Mapping[str, float]) -> tuple[str, ...]:
    parameters = dict(simulated.model.named_parameters())
    required_grad = {name: parameters[name].requires_grad for name in simulated.names}
    try:
        for name in required_grad:
            parameters[name].requires_grad_()
        with torch.enable_grad():
            means = [
                step.loss_means(step.loss_sums(simulated.model, index)) for index in range(len(step.micro_batches))
            ]
            loss = torch.stack([weighted_sum(step_means, weights) for step_means in means]).sum()
        if not loss.requires_grad:
            return tuple(required_grad)
        gradients = torch.autograd.grad(loss, [parameters[name] for name in required_grad], allow_unused=True)
    finally:
        for name, was_required in required_grad.items():
            parameters[name].requires_grad_(was_required)
    pairs = zip(required_grad, gradients, strict=True)
    return tuple(name for name, gradient in pairs if gradient is None or not gradient.any())


NUM_TRACED = 3
NUM_CURVED = 32
"""Number of samples in the graph of second gradients."""


@dataclass(frozen=True)
class CompressionOptions:
    """Compression target and options; exactly one of `ratio` (of float32) and `num_bytes`, counted by `budget_on`."""

    ratio: float | None = None
    num_bytes: int | None = None
    budget_on: BudgetOn = "file"
    bits: tuple[int, ...] = (1, 2, 3, 4, 5, 6, 7, 8)
    kind: Literal["codebook", "linear"] = "codebook"
    per_channel: bool = False
    protect: Protect = field(default_factory=lambda: Protect())
    calibration: int = 256
    seed: int = 0
    activations: int | None = None


class RunProblem:
    """Search problem of a run, with the loss of policies on calibration samples.

    The loss is the weighted sum of the run's own losses over samples that no reported figure uses. The run's model has
    its float weights before and after each call.
    """

    def __init__(self, run: OpenRun, asked: CompressionOptions) -> None:
        """Raise ConfigError for an infeasible budget, before data are opened."""
        config = run.config
        self.asked = asked
        self._run = run
        self.simulated = make_simulator(run)
        self.names = self.simulated.names
        problem = untraced_problem(self.simulated, asked)
        self.part = calibration_part(config, run.data, asked.calibration, seed=asked.seed)
        self.weights = {
            component.name: component.weight.end if isinstance(component.weight, LinearRamp) else component.weight
            for component in config.losses
        }
        evaluator = run.evaluator(self.part)
        self._evaluator = dataclasses.replace(evaluator, metrics=(), votes=1, voting_reader=None)
        self.layers = layer_costs(run.model, self._trace_model(), self.names)
        self._inputs = self._calibrate_inputs(problem)
        step = single_batch_step(
            run.task, run.model, self._read_batch(NUM_TRACED), run.world.device, self._evaluator.precision
        )
        unused = unused_weights(self.simulated, step, self.weights, self._loss)
        self.unused = tuple(name for name in unused if name not in problem.protected)
        self.problem = dataclasses.replace(
            problem,
            layers=self.layers,
            curvature=self._build_curvature,
            unused=frozenset(self.unused),
            subject=self.subject,
        )

    @property
    def base_bytes(self) -> int:
        return self.simulated.base_bytes(self.asked.budget_on)

    @property
    def subject(self) -> str:
        """Identity of the losses in the record of a search: weights, model and samples."""
        ids = np.ascontiguousarray(self.part.indices, dtype=np.int64)
        weights = evaluated_sha256(resolve_weights(self._run.checkpoint_path))[:16]
        indices_digest = hashlib.sha256(ids.tobytes()).hexdigest()[:8]
        return (
            f"weights {weights}, model {json_digest(to_plain(self._run.config.model))}, "
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

    def _calibrate_inputs(self, problem: Problem) -> dict[str, Activation]:
        """Measure the input range of each quantised layer on the calibration samples; empty unless requested.

        Raises UserError for layers that the model does not call, as in fused layers.
        """
        bits, model = self.asked.activations, self._run.model
        if bits is None:
            return {}
        kinds = {weight.name: weight.kind for weight in list_weights(model)}
        names = [n for n in self.names if problem.protected.get(n) != FP32 and kinds[n] != "embedding"]
        entries = calibrate_activations(model, lambda: self._evaluator(model, self._run.world), names, bits=bits)
        return {name: Activation(**entry) for name, entry in entries.items()}

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


def json_digest(*values: Any) -> str:
    """Compute a short digest of plain values."""
    return hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()[:8]


def untraced_problem(simulated: PolicySimulator, asked: CompressionOptions) -> Problem:
    """Build the problem with layer sizes but no costs, which suffices to check the budget.

    Raises ConfigError for an infeasible budget, and for faults of the options.
    """
    parameters = dict(simulated.model.named_parameters())
    base_bytes = simulated.base_bytes(asked.budget_on)
    budget = asked.num_bytes if asked.ratio is None else math.floor(asked.ratio * base_bytes)
    assert budget is not None, "a ratio or bytes are asked for"
    problem = Problem(
        layers=tuple(LayerCost(name, parameters[name].numel(), 1, 1) for name in simulated.names),
        choices=tuple(WeightFormat(asked.kind, bits, asked.per_channel) for bits in sorted(set(asked.bits))),
        bytes_of=lambda policy: simulated.count_bytes(policy, asked.budget_on),
        budget_bytes=budget,
        protected=protected_choices(asked.protect, simulated.names, kind=asked.kind),
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
