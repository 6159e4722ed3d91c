"""Faults of runs whose weights are quantised (CMP): codebooks, policies, gradients, outputs and teachers."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from torch import Tensor, nn

from sightline.compression import codebooks, parametrised
from sightline.compression.codebooks import Clusters, Codebook
from sightline.compression.grids import UniformQuantiser
from sightline.compression.half_precision import HalfPrecision
from sightline.compression.packed_file import tensor_specs, write_packed
from sightline.compression.parametrised import quantised_weights
from sightline.compression.policy import trained_policy
from sightline.compression.quantiser import straight_through
from sightline.compression.ratios import float_bytes
from sightline.config import read_config
from sightline.contract import registry
from sightline.doctor.finding import Finding
from sightline.doctor.rules import find_by
from sightline.engine import build as building
from sightline.engine.build import TrainingSetup
from sightline.engine.distributed import World
from sightline.parts.tasks.distillation import DistillationTask
from sightline.parts.tasks.supervised import Supervised
from sightline.workbench.compress.rules import size_promise
from tests.planted.planting import BENCHES, Plant, Planter, edit, join, wrap

# --- codebooks --------------------------------------------------------------------------------------------------------


def _list_books(built: TrainingSetup) -> list[tuple[Codebook, Tensor]]:
    pairs = quantised_weights(built.job.model).values()
    return [(quantiser, centres.data) for quantiser, centres in pairs if isinstance(quantiser, Codebook)]


def _edit_centre(value: float | Callable[[Tensor], Tensor]) -> Plant:
    """Make a plant that replaces the middle centre of the first codebook of a tensor."""

    def change(built: TrainingSetup) -> None:
        centres = next(centres for _, centres in _list_books(built) if centres.ndim == 1)
        centres[len(centres) // 2] = value(centres) if callable(value) else value

    return edit(change)


def _edit_codes(change: Callable[[Tensor], Tensor]) -> Plant:
    def edit_first(built: TrainingSetup) -> None:
        for quantiser, _ in _list_books(built)[:1]:
            quantiser.labels.copy_(change(quantiser.labels))

    return edit(edit_first)


def _cluster(method: Callable[[Tensor, int], tuple[Tensor, Tensor]]) -> Plant:
    """Make a plant of a clustering of one's own: flat weights and a number to centres and codes."""

    def make(own: Any, weight: Tensor, *, bits: int, name: str, per_channel: bool = False) -> Clusters:
        centres, labels = method(weight.detach().flatten(), 2**bits)
        centres = centres.half().float()
        shape = (len(weight), len(centres)) if per_channel else (len(centres),)
        return Clusters(centres.expand(shape).clone(), labels.to(torch.uint8).view(weight.shape), is_float32=False)

    return wrap(parametrised, "cluster_weight", make)


def _find_nearest(values: Tensor, centres: Tensor) -> Tensor:
    return (values[:, None] - centres).abs().argmin(dim=1)


def _space_evenly(values: Tensor, number: int) -> tuple[Tensor, Tensor]:
    """Space the centres evenly over the range of skewed weights: most of them are of none."""
    skewed = values**5
    centres = torch.linspace(float(skewed.min()), float(skewed.max()), number)
    return centres, _find_nearest(skewed, centres)


def _iterate_without_reseeding(values: Tensor, number: int) -> tuple[Tensor, Tensor]:
    """Run Lloyd's algorithm; the mean of a cluster without members is 0/0."""
    centres = torch.randn(number) * 3 * values.std()
    for _ in range(3):
        labels = _find_nearest(values, centres)
        sums = torch.zeros(number).index_add(0, labels, values)
        centres = sums / torch.bincount(labels, minlength=number)
    return centres, labels


def _draw_with_replacement(values: Tensor, number: int) -> tuple[Tensor, Tensor]:
    centres = values[torch.randint(0, len(values), (number,))].sort().values
    centres[1] = centres[0]
    return centres, torch.arange(len(values)) % number


# --- what is applied --------------------------------------------------------------------------------------------------


def _apply(change: Callable[..., Any]) -> Plant:
    """Make a plant that applies the policy otherwise: `change` gets `apply_policy`, the model and the policy."""
    return wrap(parametrised, "apply_policy", change)


def _quantise(owner: type[nn.Module], forward: Callable[..., Tensor]) -> Plant:
    return wrap(owner, "forward", lambda own, quantiser, weight: forward(quantiser, weight))


def _quantise_in_training(owner: type[nn.Module]) -> Plant:
    return wrap(owner, "forward", lambda own, quantiser, w: own(quantiser, w) if quantiser.training else w)


def _differ_in_evaluation(own: Any, book: Codebook, centres: Tensor) -> Tensor:
    weight: Tensor = own(book, centres)
    noise = 1e-3 * torch.linspace(-1, 1, weight.numel()).view(weight.shape)
    return weight if book.training else weight + noise


def _shift_bits(change: int) -> Plant:
    """Make a plant of grids with other bits than the policy."""
    return join(
        wrap(parametrised, "weight_grid", lambda own, weight, *, bits, **more: own(weight, bits=bits + change, **more)),
        wrap(
            UniformQuantiser, "__init__", lambda own, quantiser, grid, *, bits: own(quantiser, grid, bits=bits + change)
        ),
    )


def _divide_by_members(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None]:
    (places,), (gradient,) = ctx.saved_tensors, gradients
    sums = gradient.new_zeros(ctx.shape.numel()).index_add(0, places, gradient)
    return (sums / torch.bincount(places, minlength=len(sums))).view(ctx.shape), None, None


def _detach_codebook(own: Any, book: Codebook, centres: Tensor) -> Tensor:
    stored = book.as_stored(centres).detach().flatten()
    return stored[book._flat_codes()].view(book.labels.shape)


def _per_channel(own: Any, model: nn.Module, policy: Any, **more: Any) -> None:
    changed = {n: c if c.kind == "fp16" else c._replace(per_channel=True) for n, c in policy.items()}
    own(model, changed, **more)


def _predict_by_floats(planter: Planter) -> None:
    """Let the float model, kept from before it was quantised, predict."""
    kept: list[nn.Module] = []

    def apply(own: Any, model: nn.Module, *given: Any, **more: Any) -> None:
        kept.append(copy.deepcopy(model).eval())
        own(model, *given, **more)

    planter.wrap(parametrised, "apply_policy", apply)
    planter.wrap(Supervised, "predict", lambda own, task, model, batch: own(task, kept[-1], batch))


def _let_step_grow(quantiser: UniformQuantiser, weight: Tensor) -> Tensor:
    quantiser.step.mul_(1.01)
    return straight_through(weight, quantiser.grid(weight.detach()))


def _stay_in_training(own: Any, norm: nn.Module, mode: bool = True) -> nn.Module:
    return nn.Module.train(norm)


def _take_centres_out(built: TrainingSetup) -> None:
    own = {id(value) for _, value in quantised_weights(built.job.model).values()}
    for group in built.job.optimizer.param_groups:
        group["params"] = [parameter for parameter in group["params"] if id(parameter) not in own]


def _freeze_centres(built: TrainingSetup) -> None:
    for _, centres in quantised_weights(built.job.model).values():
        centres.requires_grad_(False)


def _zero_centres(built: TrainingSetup) -> None:
    for _, centres in _list_books(built)[:1]:
        centres.mul_(0.0)


def _keep_float_optimizer(built: TrainingSetup) -> None:
    recipe = registry.optimizers.build(built.config.optimizer, facts=built.data.facts)
    built.job.optimizer.param_groups[:] = recipe.build(_make_floats(built).requires_grad_(True)).param_groups


def _zero_layers(built: TrainingSetup) -> None:
    for _, original in list(quantised_weights(built.job.model).values())[:2]:
        original.data.zero_()


# --- teachers ---------------------------------------------------------------------------------------------------------


def teach(built: TrainingSetup, teacher: nn.Module) -> None:
    """Give the run's task a teacher, as it is: a task would put it to rest."""
    parent: Any = built.job.task
    built.job.task = DistillationTask(parent, teacher=nn.Identity(), teacher_task=parent)
    built.job.task.teacher = teacher


def _make_floats(built: TrainingSetup) -> nn.Module:
    return registry.models.build(built.config.model, facts=built.data.facts).eval().requires_grad_(False)


def _teach(make: Callable[[TrainingSetup], nn.Module]) -> Plant:
    return edit(lambda built: teach(built, make(built)))


def _share_tensors(built: TrainingSetup) -> nn.Module:
    teacher, own = _make_floats(built), dict(built.job.model.named_parameters())
    for name, parameter in teacher.named_parameters():
        if name in own:
            parameter.data = own[name].data
    return teacher


def _hold_teacher(built: TrainingSetup) -> nn.Module:
    teacher = _make_floats(built)
    built.job.optimizer.param_groups[0]["params"] += list(teacher.parameters())
    return teacher


def _train_last_layer(built: TrainingSetup) -> nn.Module:
    teacher = _make_floats(built)
    list(teacher.modules())[-1].train()
    return teacher


def report_bits_alone(seed: int) -> Sequence[Finding]:
    """Pack the bench's model, and report sizes that are computed from bits: without codebooks and float tensors."""
    config = read_config(BENCHES / "CMP.yaml", (f"seed={seed}", f"data.data_seed={seed}"))
    model = building.build(config, World()).job.model
    bits = {name: choice.bits for name, choice in trained_policy(config).items()}
    entries, _ = tensor_specs(model)
    layers = [(entry.count, bits[entry.name], entry.book_bytes) for entry in entries if entry.name in bits]
    state = parametrised.dense_state_dict(model)
    num_bits = sum(count * each for count, each, _ in layers)
    share = num_bits / 32 / sum(count for count, _, _ in layers)
    with TemporaryDirectory() as folder:
        file = Path(folder) / "model.slq"
        write_packed(file, model, {"name": config.name})
        reported = {"weights": share, "codebook": share, "file": num_bits / 8 / float_bytes(state)}
        promise = {"promised": num_bits // 8, "budget": None, "reported": reported}
        return find_by(size_promise, file=file, layers=layers, state=state, **promise)


COMPRESS_PLANTS: dict[str, Plant] = {
    "O61": _cluster(_space_evenly),
    "O62": _apply(lambda own, model, policy, **more: own(copy.deepcopy(model), policy, **more)),
    "O63": _shift_bits(-2),
    "K1": _cluster(_iterate_without_reseeding),
    "K2": _cluster(_draw_with_replacement),
    "K3": _edit_centre(torch.nan),
    "K4": _edit_centre(7e4),
    "K5": _edit_centre(lambda centres: centres[0]),
    "K6": _edit_codes(lambda codes: torch.where(codes == 3, 2, codes)),
    "K7": _edit_codes(lambda codes: codes.clamp(max=int(codes.max()) - 1)),
    "K8": wrap(
        parametrised, "cluster_weight", lambda own, weight, *, bits, **more: own(weight, bits=max(1, bits - 1), **more)
    ),
    "K9": _apply(lambda own, model, policy, **more: own(model, dict(list(policy.items())[1:]), **more)),
    "K10": _apply(lambda own, model, policy, **more: own(model, dict(list(policy.items())[:-1]), **more)),
    "K11": _quantise(UniformQuantiser, lambda q, w: w + 0),
    "K12": _quantise(HalfPrecision, lambda q, w: w + 0),
    "K13": _quantise_in_training(UniformQuantiser),
    "K14": wrap(Codebook, "forward", _differ_in_evaluation),
    "K15": _apply(_per_channel),
    "K16": _quantise(UniformQuantiser, lambda q, w: q.grid(w)),
    "K17": _predict_by_floats,
    "K18": _quantise(UniformQuantiser, _let_step_grow),
    "K19": wrap(nn.BatchNorm1d, "train", _stay_in_training),
    "K20": edit(_zero_layers),
    "K21": edit(_freeze_centres),
    "K22": edit(_take_centres_out),
    "K23": _teach(lambda built: built.job.model),
    "K24": _teach(_share_tensors),
    "K25": _teach(lambda built: copy.deepcopy(built.job.model).eval().requires_grad_(False)),
    "K26": _teach(lambda built: _make_floats(built).train()),
    "K27": _teach(lambda built: _make_floats(built).requires_grad_(True)),
    "K28": _teach(_hold_teacher),
    "K29": _shift_bits(2),
    "K30": _quantise_in_training(HalfPrecision),
    "K31": _quantise(HalfPrecision, lambda q, w: (torch.round(w * 2**20) / 2**20).half().float()),
    "K32": wrap(Codebook, "forward", _detach_codebook),
    "K33": wrap(codebooks._LookUp, "backward", lambda own, ctx, *gradients: _divide_by_members(ctx, *gradients)),
    "K34": edit(_zero_centres),
    "K35": edit(_keep_float_optimizer),
    "K36": _teach(_train_last_layer),
}
