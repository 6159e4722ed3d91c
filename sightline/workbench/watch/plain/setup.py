"""Training setup of plain objects: a module, a loss function and batches, as rules of the doctor read a run."""

from __future__ import annotations

import copy
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from sightline.config import RunConfig
from sightline.config.run_config import Evaluate, Train
from sightline.contract.binding import AvailableKeys
from sightline.contract.errors import UserError, join_some
from sightline.contract.loss import Loss
from sightline.contract.members import ModelMembers
from sightline.contract.pytree import tree_leaves, tree_map
from sightline.contract.types import ComponentConfig, DataInfo, Field, SampleKey
from sightline.doctor.batches import call_model, describe, get_signature
from sightline.engine.batch_stream import BatchSampler, BatchStream
from sightline.engine.build import Data, DataSubset, TrainingSetup
from sightline.engine.evaluate import Evaluator
from sightline.engine.learnt_losses import LearntLosses, combine_modules
from sightline.engine.optimizers import FrozenModules
from sightline.engine.train import TrainState
from sightline.instrument import copy_module
from sightline.parts.tasks.supervised import Supervised
from sightline.store.loading.batch_reader import BatchReader
from sightline.workbench.check.core.sample_statistics import class_axis
from sightline.workbench.fit.attempt import build_optimizer

PREFIX = "your_model"
"""Name of the user's module inside of its adapter; findings are printed without it."""
_FACTS: Mapping[str, Any] = {}
_RATE = 1e-3
_MAX_NAMES = 3
_CLOUDS = frozenset("point pt pc pcd cloud point_cloud pointcloud".split())
"""Names of sets of points, without the s of a plural."""


class PlainModel(nn.Module):
    """Module of the user's, called with `inputs` of a batch: a tensor, or the arguments in a tuple or mapping."""

    def __init__(self, model: nn.Module, output: str) -> None:
        super().__init__()
        self.your_model = model
        self.output = output
        self.output_keys = frozenset({output})
        self.reads_order = ModelMembers.reads_order.get(model)

    def forward(self, *, inputs: Any) -> dict[str, Any]:
        """Return the output of the module under its name."""
        return {self.output: call_model(self.your_model, inputs)}

    def find_cloud(self, inputs: Mapping[str, Any]) -> str | None:
        """Return the path of the input (B, N, C) that is a set of points by its name; None without one.

        None, too, if it has neighbours, or other integers for each point, or edges: points of a graph have numbers.
        """
        names = [*get_signature(self.your_model.forward).parameters]
        value = inputs["inputs"]
        if isinstance(value, list | tuple):
            named = {f"inputs.{index}": name for index, name in enumerate(names[: len(value)])}
        else:
            is_mapping = isinstance(value, Mapping)
            named = (
                {f"inputs.{key}": str(key) for key in value} if is_mapping else {"inputs": names[0] if names else ""}
            )
        tensors = dict(tree_leaves(inputs))
        for path, name in named.items():
            points = tensors.get(path)
            if points is None or points.ndim != 3 or name.lower().rstrip("s") not in _CLOUDS:
                continue
            others = [t for p, t in tensors.items() if p != path]
            beside = [t for t in others if t.shape[:2] == points.shape[:2]]
            is_alone = all(tensor.is_floating_point() for tensor in (points, *beside))
            is_alone = is_alone and not _has_edges(points.shape[1], [*others, *self.your_model.buffers()])
            return path if is_alone and 3 <= points.shape[2] < points.shape[1] else None
        return None


def _has_edges(num_points: int, tensors: Iterable[Tensor]) -> bool:
    """Return True if one of the tensors is a matrix of all pairs of points, or pairs of their indices, (2, E)."""
    for tensor in tensors:
        is_matrix = tensor.shape[-2:] == (num_points, num_points)
        is_list = tensor.ndim > 1 and 2 in tensor.shape[-2:] and tensor.dtype in (torch.int32, torch.int64)
        if is_matrix or (is_list and tensor.numel() and 0 <= int(tensor.min()) <= int(tensor.max()) < num_points):
            return True
    return False


class PlainLoss(Loss):
    """Loss function of the user's: its mean over a batch, times the number of samples."""

    def __init__(self, loss: Callable[[Any, Any], Tensor]) -> None:
        super().__init__()
        self.your_loss = loss

    def count(self, *, sample_index: Tensor) -> Tensor:
        """Count the samples."""
        return torch.as_tensor(len(sample_index))

    def evaluate(self, output: Any, target: Any) -> Tensor:
        """Compute the sum of the loss; its weights are in the format of the outputs."""
        loss, first = self.your_loss, next((t for _, t in tree_leaves(output) if t.is_floating_point()), None)
        if isinstance(loss, nn.Module) and first is not None:
            buffers = [b for b in loss.buffers() if b.is_floating_point() and b.dtype != first.dtype]
            loss = copy.deepcopy(loss).to(first.dtype) if buffers else loss
        value = loss(output, target)
        if not isinstance(value, Tensor) or value.numel() != 1:
            raise UserError(f"check: the loss is a tensor of one number; found {describe(value)}")
        return value.reshape(()) * _count_rows(target, output)


class LabelLoss(PlainLoss):
    """Loss of logits and class labels."""

    def forward(self, *, logits: Any, label: Any) -> Tensor:
        """Return the sum of the loss, a scalar ()."""
        return self.evaluate(logits, label)


class TargetLoss(PlainLoss):
    """Loss of an output and a target."""

    def forward(self, *, output: Any, target: Any) -> Tensor:
        """Return the sum of the loss, a scalar ()."""
        return self.evaluate(output, target)


class PlainData:
    """Samples of a few batches, kept in memory: `inputs`, and the target under its name."""

    def __init__(self, batches: Sequence[tuple[Any, Any]], target: str) -> None:
        self._target = target
        self._batches = batches
        self._sizes = [_count_rows(*batch) for batch in batches]
        fields = {"inputs": _make_field(batches[0][0]), target: _make_field(batches[0][1])}
        self.info = DataInfo(facts=_FACTS, fields=fields, split_sizes={"train": len(self)})

    def __len__(self) -> int:
        return sum(self._sizes)

    def __getitem__(self, key: SampleKey) -> dict[str, Any]:
        row = key.index
        for (inputs, target), size in zip(self._batches, self._sizes, strict=True):
            if row < size:
                return {"inputs": _take_row(inputs, row), self._target: _take_row(target, row)}
            row -= size
        raise IndexError(key.index)


def _take_row(tree: Any, row: int) -> Any:
    return tree_map(tree, lambda _, tensor: tensor[row] if tensor.ndim else tensor)


def make_setup(
    model: nn.Module,
    loss: Callable[[Any, Any], Tensor] | None,
    pairs: Sequence[tuple[Any, Any]],
    *,
    optimizer: torch.optim.Optimizer | Sequence[torch.optim.Optimizer] | None,
    trained_elsewhere: Collection[int] = (),
) -> TrainingSetup:
    """Make the setup of a run that trains a module: the first batches are its data, split and transforms are none.

    Each of `pairs` is `(inputs, target)`. Parameters with an identity in `trained_elsewhere` need no gradient.
    """
    pairs = [pair for pair in pairs if _shapes(pair) == _shapes(pairs[0])]
    device = next((parameter.device for parameter in model.parameters()), torch.device("cpu"))
    pairs = [tree_map(pair, lambda _, tensor: tensor.to(device)) for pair in pairs]
    optimizers = list_optimizers(optimizer)
    is_label = _has_labels(model, pairs[0])
    names = ("logits", "label") if is_label else ("output", "target")
    data = PlainData(pairs, names[1])
    adapter = PlainModel(model, names[0])
    kind = LabelLoss if is_label else TargetLoss
    losses: dict[str, Loss] = {} if loss is None else {"loss": kind(loss)}
    config = _make_config(model, losses, next(iter(optimizers), None), batch_size=_count_rows(*pairs[0]))
    reader = BatchReader(data, ())
    subset = DataSubset(data, np.arange(len(data)), reader, "train")
    task = Supervised(
        model=adapter,
        losses=losses,
        batch_keys=AvailableKeys("the batch", reader.keys),
        output_keys=AvailableKeys("the model", adapter.output_keys),
    )
    plan = BatchSampler(indices=subset.indices, batch_size=config.train.batch_size, seed=0)
    learnt = LearntLosses(losses)
    job = TrainState(
        model=adapter,
        task=task,
        optimizer=_copy_optimizer(optimizers)
        if optimizers
        else build_optimizer("adam", combine_modules(adapter, learnt), _RATE),
        schedule=lambda step: 1.0,
        stream=BatchStream(plan, reader),
        num_steps=plan.steps_per_epoch,
        loss_weights={name: 1.0 for name in losses},
        losses=learnt,
        frozen=tuple(
            FrozenModules(modules=f"{PREFIX}.{name}")  # type: ignore[typeddict-item]
            for name in _list_frozen(model, trained_elsewhere)
        ),
        device=device,
    )
    evaluator = Evaluator(task, (), reader, subset.indices, config.train.batch_size, tuple(losses))
    return TrainingSetup(config, Data(subset, subset, subset, _FACTS), job, evaluator, evaluator)


def _list_frozen(model: nn.Module, others: Collection[int]) -> list[str]:
    """List the outermost modules of which no parameter requires a gradient, or all have other losses, by identity.

    Single parameters of `others` are listed, too.
    """
    frozen: list[str] = []
    for name, module in model.named_modules():
        parameters = list(module.parameters())
        if name and parameters and not any(p.requires_grad and id(p) not in others for p in parameters):
            frozen += [] if any(f"{name}.".startswith(f"{outer}.") for outer in frozen) else [name]
    frozen += [
        name
        for name, parameter in model.named_parameters()
        if id(parameter) in others and not any(name.startswith(f"{outer}.") for outer in frozen)
    ]
    return frozen


def _copy_optimizer(optimizers: Sequence[torch.optim.Optimizer]) -> torch.optim.Optimizer:
    """Copy an optimiser of the same parameters, without its state; its groups have the base rates of a run.

    Of several, the first is copied, with the groups of all. One that needs a closure is replaced by SGD, and one that
    is not torch's own, or has no learning rate, by Adam: others may hold what a copy would change.
    """
    first = optimizers[0]
    groups = [group for optimizer in optimizers for group in optimizer.param_groups]
    rates = [group.get("initial_lr", group.get("lr")) for group in groups]  # of a warm-up, that at its end
    is_known = type(first).__module__.startswith("torch.optim") and None not in rates
    if isinstance(first, torch.optim.LBFGS) or not is_known:
        kind = torch.optim.SGD if isinstance(first, torch.optim.LBFGS) else torch.optim.Adam
        held = [
            {"params": group["params"], "lr": _RATE if rate is None else rate}
            for group, rate in zip(groups, rates, strict=True)
        ]
        return _copy_optimizer([kind(held, lr=_RATE)])
    copied = copy.copy(first)
    copied.state = type(copied.state)(copied.state.default_factory)
    copied.param_groups = [
        {"weight_decay": 0.0, **group, "base_lr": rate} for group, rate in zip(groups, rates, strict=True)
    ]
    return copied


def list_optimizers(optimizer: Any) -> list[torch.optim.Optimizer]:
    """List the optimisers that are given: none, one, or a list."""
    return [] if optimizer is None else list(optimizer) if isinstance(optimizer, list | tuple) else [optimizer]


def list_scripted(model: nn.Module) -> list[str]:
    """Say in one sentence which parts of a model torch.jit runs, whose layers no check sees; nothing without any."""
    scripted = [name for name, module in model.named_modules() if isinstance(module, torch.jit.ScriptModule)]
    if not scripted:
        return []
    outermost = [n for n in scripted if not any(n != outer and f"{n}.".startswith(f"{outer}.") for outer in scripted)]
    what = "the model" if "" in scripted else join_some([f"'{name}'" for name in outermost], most=_MAX_NAMES)
    return [f"layers of {what}: torch.jit runs them without hooks; check the model before it is scripted or traced"]


def _make_field(tree: Any) -> Field:
    """Make the field of a tensor as it is; of a tree of tensors, one that promises nothing."""
    if not isinstance(tree, Tensor):
        return Field("", "any")
    return Field(" ".join(map(str, tree.shape[1:])), str(tree.dtype).removeprefix("torch."))


def _make_config(
    model: nn.Module, losses: Mapping[str, Loss], optimizer: torch.optim.Optimizer | None, *, batch_size: int
) -> RunConfig:
    """Make the config that states as much as is known; no file exists, so that it has no lines."""
    name = type(model).__name__
    return RunConfig(
        name=name,
        data=ComponentConfig("your data"),
        model=ComponentConfig(name),
        losses=tuple(ComponentConfig(loss) for loss in losses),
        metrics=(),
        optimizer=ComponentConfig("adam" if optimizer is None else type(optimizer).__name__.lower()),
        train=Train(epochs=1, batch_size=batch_size),
        evaluate=Evaluate("loss", mode="min", batch_size=batch_size),
    )


def _has_labels(model: nn.Module, pair: tuple[Any, Any]) -> bool:
    """Return True if the target holds class labels, and the output of the module a score for each class."""
    inputs, label = pair
    if not isinstance(label, Tensor) or label.dtype != torch.int64:
        return False
    copied = copy_module(model)
    with torch.no_grad():
        output = call_model(copied, inputs)
    return isinstance(output, Tensor) and class_axis(output, label) is not None


def _shapes(pair: tuple[Any, Any]) -> list[tuple[str, torch.Size]]:
    return [(path, tensor.shape) for path, tensor in tree_leaves(pair)]


def _count_rows(*trees: Any) -> int:
    """Return the number of samples: the length of the first tensor. Raises UserError if there is none."""
    for tree in trees:
        for _, tensor in tree_leaves(tree):
            if tensor.ndim:
                return len(tensor)
    raise UserError("check: a batch has no tensor with a row for each sample")
