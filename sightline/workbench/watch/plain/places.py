"""Places of outputs: where a loss looks for them, which of them a model cannot see, and which rows are pairs."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from sightline.contract.pytree import tree_leaves, tree_map
from sightline.workbench.check.checks.data.images import mismatched_views
from sightline.workbench.check.runtime_rules import report
from sightline.workbench.watch.loop import Found
from sightline.workbench.watch.plain.loss import Pass

logger = logging.getLogger(__name__)

_MIN_SAMPLES, _MIN_PLACES = 8, 16
_ALIKE, _UNLIKE, _MIN_T = 0.25, 0.4, 6.0
"""Least mean correlation in another order, its share up to which that in the own order is none, and Student's t."""
_WEAK_T, _SURE_T, _LEAST_ALIKE, _MAX_PASSES = 3.0, 7.0, 0.05, 4
"""Student's t that asks for more batches, t and correlation that are sure with these, and how many there are."""
_MIN_SHARE = 0.2
_MIN_GRAPHS, _MIN_IMAGES = 4, 4
_SAME = 1e-5


def judge_places(
    passed: Pass, loss: Callable[[Any, Any], Tensor], rerun: Callable[[int], Pass | None]
) -> Iterator[Found]:
    """Yield what is out of place in a batch that has been run; `rerun(i)` runs batch i, None if there is none."""
    judges = (
        partial(_judge_order, rerun),
        _judge_hidden,
        _judge_edges,
        partial(_judge_owners, rerun),
        partial(_judge_equal_views, loss),
        partial(_judge_views, loss),
    )
    for judge in judges:
        try:
            yield from judge(passed)
        except Exception:
            logger.debug("a relation of places does not apply to this batch", exc_info=True)


def _list_outputs(passed: Pass) -> Iterator[tuple[Tensor, Tensor]]:
    """Iterate over the outputs that the loss moves, with their gradients."""
    outputs = [tensor for _, tensor in tree_leaves(passed.outputs) if tensor.requires_grad and tensor.ndim > 1]
    gradients = torch.autograd.grad(passed.value, outputs, retain_graph=True, allow_unused=True)
    for output, gradient in zip(outputs, gradients, strict=True):
        if gradient is not None:
            yield output, gradient


class ComparedOrders(NamedTuple):
    """Correlation, for each sample, of where images and where the gradients at an output are unlike others.

    `orders` has it by what is exchanged in the gradients; that of the order of the output has no name.
    """

    image: Tensor
    output: Tensor
    sides: tuple[int, int]
    orders: dict[str, Tensor]

    def judge(self) -> tuple[str, float]:
        """Return the best other order, and Student's t of how much better it is; 0 if the own one is as good."""
        own = self.orders[""]
        name = max((n for n in self.orders if n), key=lambda each: float(self.orders[each].mean()))
        gain = self.orders[name] - own
        t = float(gain.mean() / gain.std().clamp(min=1e-9)) * math.sqrt(len(gain))
        return name, t if float(own.mean()) <= _UNLIKE * float(self.orders[name].mean()) else 0.0


def _judge_order(rerun: Callable[[int], Pass | None], passed: Pass) -> Iterator[Found]:
    """Outputs and targets of images are in one order: where an image is unlike others, so is the loss's gradient.

    Both are compared in the order of the outputs, and with the gradient mirrored or with exchanged axes; which pixels
    an output depends on shows that the outputs are in the order of the image. `rerun` runs further batches, if the
    first is not sure.
    """
    for place, found in enumerate(_compare_orders(passed)):
        name, t = found.judge()
        if t >= _WEAK_T and (t < _MIN_T or float(found.orders[name].mean()) < _ALIKE):
            others = [more for i in range(1, _MAX_PASSES) if (again := rerun(i)) for more in _compare_orders(again)]
            others = others[place :: max(1, len(list(_compare_orders(passed))))]
            orders = {
                n: torch.cat([values, *(each.orders[n] for each in others)]) for n, values in found.orders.items()
            }
            found = found._replace(orders=orders)
            name, t = found.judge()
        own, other = (float(found.orders[each].mean()) for each in ("", name))
        is_sure = t >= _MIN_T if other >= _ALIKE else t >= _SURE_T and other >= _LEAST_ALIKE
        if is_sure and _reads_own_places(_to_maps(found.output, found.sides), found.image):
            yield report(
                "exchanged-axes",
                "the loss looks for what is in an image at another place of the outputs "
                f"{tuple(found.output.shape)}: {name}",
                causes=("data.layout", "data.pairing", "data.augment_target_mismatch"),
                measured="where images are unlike one another, and where the gradients at the outputs are: correlation "
                f"{own:.2f}, and {other:.2f} {name}; {len(found.orders[name])} samples",
                expected="the largest correlation in the order of the outputs",
                action="look at meshgrid (indexing='ij' for rows first), at x and y of places, and at flips of targets",
            )
            return


def _compare_orders(passed: Pass) -> Iterator[ComparedOrders]:
    """Compare images with the gradients at the outputs that are maps of them."""
    images = [t for _, t in tree_leaves(passed.begun) if t.ndim == 4 and t.requires_grad]
    if len(images) != 1 or len(images[0]) < _MIN_SAMPLES:
        return
    for output, gradient in _list_outputs(passed):
        sides = _find_sides(output, images[0])
        if sides is None or math.prod(sides) < _MIN_PLACES:
            continue
        shrunk = nn.functional.adaptive_avg_pool2d(images[0].detach(), sides)
        content, pulls = _contrast(shrunk.movedim(1, -1)), _contrast(_to_maps(gradient, sides))
        orders = {name: _correlate(content, turn(pulls)) for name, turn in _list_orders(sides).items()}
        yield ComparedOrders(images[0], output, sides, orders)


def _reads_own_places(maps: Tensor, image: Tensor) -> bool:
    """Return True if the outputs (B, h, w, K) at three corners depend on the pixels nearest to their own corner."""
    corners = [(0.0, 0.0), (0.0, 1.0), (1.0, 0.0), (1.0, 1.0)]
    for corner in corners[:3]:
        row, column = (int(part * (size - 1)) for part, size in zip(corner, maps.shape[1:3], strict=True))
        (gradient,) = torch.autograd.grad(maps[:, row, column].sum(), image, retain_graph=True)
        weights = gradient.abs().sum(dim=(0, 1))
        weights = weights / weights.sum()
        centre = [
            float((weights.sum(dim=1 - axis) * torch.linspace(0, 1, size, device=weights.device)).sum())
            for axis, size in enumerate(weights.shape)
        ]
        if min(corners, key=lambda each: math.dist(each, centre)) != corner:
            return False
    return True


def _find_sides(output: Tensor, image: Tensor) -> tuple[int, int] | None:
    """Return the sides of maps (B, K, h, w), (B, h, w), (B, h w, K) or (B, h w) in the shape of an image."""
    height, width = image.shape[2:]
    if len(output) != len(image) or output.ndim > 4:
        return None
    if output.ndim == 4 or (output.ndim == 3 and output.shape[1] * width == output.shape[2] * height):
        return output.shape[-2], output.shape[-1]
    rows = math.isqrt(output.shape[1] * height // width)
    columns = output.shape[1] // max(1, rows)
    return (rows, columns) if rows * columns == output.shape[1] and rows * width == columns * height else None


def _to_maps(values: Tensor, sides: tuple[int, int]) -> Tensor:
    """Return (B, h, w, K) of maps (B, K, h, w) or (B, h, w), or of rows (B, h w, K) or (B, h w)."""
    return values.movedim(1, -1) if values.ndim == 4 else values.reshape(len(values), *sides, -1)


def _contrast(maps: Tensor) -> Tensor:
    """Return (B, h, w): how far each place is from the mean of the samples, less its means over samples and places."""
    sizes = (maps - maps.mean(dim=0)).abs().sum(dim=-1).double()
    return sizes - sizes.mean(dim=0) - sizes.mean(dim=(1, 2), keepdim=True) + sizes.mean()


def _correlate(first: Tensor, second: Tensor) -> Tensor:
    """Compute the correlation of each sample's maps (B, h, w)."""
    one, other = (nn.functional.normalize(maps.flatten(1), dim=1) for maps in (first, second))
    return (one * other).sum(dim=1)


def _list_orders(sides: tuple[int, int]) -> dict[str, Callable[[Tensor], Tensor]]:
    """List orders of maps by what has been exchanged; that of the maps themselves has no name."""
    return {
        "": lambda maps: maps,
        "with rows and columns exchanged": lambda maps: maps.reshape(len(maps), *sides[::-1]).transpose(1, 2),
        "upside down": lambda maps: maps.flip(1),
        "mirrored": lambda maps: maps.flip(2),
        "turned by 180 degrees": lambda maps: maps.flip(1, 2),
    }


def _judge_hidden(passed: Pass) -> Iterator[Found]:
    """A masked autoencoder is to predict what it does not see.

    A place is hidden if no output depends on the input there, and counted if its output has a gradient. An autoencoder
    hides none, and one that counts all places counts the hidden ones, too. Padding and holes, which have one number,
    have nothing to predict.
    """
    inputs = [tensor for _, tensor in tree_leaves(passed.begun) if tensor.is_floating_point() and tensor.ndim > 2]
    sizes = [t.numel() for _, t in tree_leaves(passed.target) if t.is_floating_point()]
    if len(inputs) != 1 or inputs[0].numel() not in sizes:
        return
    for output, gradient in _list_outputs(passed):
        if output.ndim < 3:
            continue
        ways = torch.randn(output.shape, generator=torch.Generator().manual_seed(0)).to(output)
        (seen,) = torch.autograd.grad((output * ways).sum(), inputs, retain_graph=True)
        fill = inputs[0].detach()[seen == 0].mode().values if bool((seen == 0).any()) else 0  # of padding, or of holes
        is_hidden = _find_places((seen == 0) & (inputs[0] != fill), output)
        is_counted = ~_find_places(gradient == 0, output)
        if is_hidden.shape != is_counted.shape:
            continue
        num_hidden, num_counted = int(is_hidden.sum()), int(is_counted.sum())
        missed, told = int((is_hidden & ~is_counted).sum()), int((~is_hidden & is_counted).sum())
        if missed > _MIN_SHARE * num_hidden and told > _MIN_SHARE * num_counted and 0 < num_hidden < is_hidden.numel():
            yield report(
                "loss-form",
                "the loss counts places that the model has seen, and not all that are hidden from it",
                causes=("loss.form", "data.ignore_handling", "model.structure"),
                measured=f"{told} of {num_counted} places that count are inputs of the model; {missed} of {num_hidden} "
                "hidden ones do not count",
                expected="a loss of what is hidden: the mask is 1 where a patch was removed",
                action="look at the sense of the mask (1 - mask), and at the order in which it is put back: "
                "argsort(ids_shuffle), not ids_shuffle",
            )
            return


def _find_places(is_zero: Tensor, output: Tensor) -> Tensor:
    """Reduce (B, N, C) to (B, N), (B, C, H, W) to (B, H, W), or to patches (B, N) for an output (B, N, P): all True."""
    if is_zero.ndim == 3:
        return is_zero.all(dim=-1)
    pixels = is_zero.all(dim=1)
    if output.ndim == 4:
        return pixels
    side = math.isqrt(output.shape[2] // is_zero.shape[1])
    height, width = (size // side for size in pixels.shape[1:])
    return pixels.reshape(len(pixels), height, side, width, side).all(dim=4).all(dim=2).flatten(1)


def _judge_edges(passed: Pass) -> Iterator[Found]:
    """Edges (2, E) of a batch of graphs join nodes of one graph, and each graph has some; (N,) says whose a node is."""
    integers = [t for _, t in tree_leaves(passed.inputs) if t.numel() and not t.is_floating_point()]
    owners = [
        t for t in integers if t.ndim == 1 and t[0] == 0 and bool(((step := t.diff()) >= 0).all() and step.max() == 1)
    ]
    for edges in (t for t in integers if t.ndim == 2 and len(t) == 2):
        for owner in (t for t in owners if _MIN_GRAPHS <= int(t[-1]) + 1 < len(t) > int(edges.max())):
            num_graphs, joined = int(owner[-1]) + 1, owner[edges]
            with_edges = len(joined.unique())
            num_between = int((joined[0] != joined[1]).sum())
            if edges.shape[1] >= num_graphs and with_edges <= num_graphs // 3:
                yield report(
                    "exchanged-axes",
                    f"the edges of {num_graphs} graphs join nodes of {with_edges} of them: their indices are not moved",
                    severity="error",
                    causes=("data.layout", "data.pairing"),
                    measured=f"{edges.shape[1]} edges of nodes up to {int(edges.max())} of {len(owner)}; {num_between} "
                    "of them between two graphs",
                    expected="edges within each graph",
                    action="add to the edges of a graph the number of nodes before it, when graphs are collated",
                )
                return


def _judge_owners(rerun: Callable[[int], Pass | None], passed: Pass) -> Iterator[Found]:
    """Rows (image, class, x, y, w, h) of the boxes of a batch say whose they are: not all are of the first image."""
    size = len(_find_first(passed.inputs))
    for table in (t for _, t in tree_leaves(passed.target) if t.ndim == 2 and t.is_floating_point()):
        if table.shape[1] != 6 or size < _MIN_IMAGES or len(table) <= size or bool(table[:, 0].any()):
            continue
        others = [t for i in range(1, _MAX_PASSES) if (again := rerun(i)) for _, t in tree_leaves(again.target)]
        if any(bool(t[:, 0].any()) for t in others if t.ndim == 2 and t.shape[1] == 6 and len(t)):
            continue
        is_class = bool((table[:, 1] == table[:, 1].round()).all()) and float(table[:, 1].min()) >= 0
        if is_class and float(table[:, 2:].min()) >= 0 and float(table[:, 2:].max()) <= 1 and bool(table[:, 4:].all()):
            yield report(
                "exchanged-axes",
                f"all boxes of a batch belong to image 0: the first column of the {len(table)} rows is 0",
                severity="error",
                causes=("data.pairing", "data.layout", "assign.box_format"),
                measured=f"{len(table)} rows (image, class, x, y, w, h) of {size} images",
                expected=f"the number of the image in the batch, 0 to {size - 1}, as first column",
                action="write it where samples are collated: for i, rows in enumerate(boxes): rows[:, 0] = i",
            )
            return


def _judge_equal_views(loss: Callable[[Any, Any], Tensor], passed: Pass) -> Iterator[Found]:
    """Two views of a sample differ: equal ones have nothing to learn from, unless there is a target."""
    inputs = [tensor for _, tensor in tree_leaves(passed.inputs) if tensor.is_floating_point() and tensor.ndim > 2]
    pairs = [(a, b) for place, a in enumerate(inputs) for b in inputs[place + 1 :] if a.shape == b.shape]
    pairs += [(tensor[:, 0], tensor[:, 1]) for tensor in inputs if tensor.shape[1] == 2 and tensor.ndim > 3]
    for first, second in pairs:
        is_equal = len(first) > 1 and torch.equal(first, second) and bool((first != first.flatten()[0]).any())
        if is_equal and not _reads_target(loss, passed):
            yield mismatched_views.with_fault(
                "both views of a sample are the same: they were drawn with the same random numbers",
                causes=("data.duplicate_randomness", "data.pairing"),
                measured=f"equal bits in all {len(first)} samples of a batch, {tuple(first.shape[1:])} each",
                expected="two views that differ",
                action="draw both views from one generator that goes on, or from two seeds",
            )
            return


def _reads_target(loss: Callable[[Any, Any], Tensor], passed: Pass) -> bool:
    """Return True if a loss changes with targets that are those of other samples."""
    outputs = tree_map(passed.outputs, lambda _, tensor: tensor.detach())
    moved = tree_map(passed.target, lambda _, tensor: tensor.roll(1, dims=0) if tensor.ndim else tensor)
    return float(loss(outputs, moved)) != float(loss(outputs, passed.target))


def _judge_views(loss: Callable[[Any, Any], Tensor], passed: Pass) -> Iterator[Found]:
    """Two views of each of B samples are rows i and B + i, or 2 i and 2 i + 1: in the batch, and in the loss.

    A loss of pairs does not change if the samples come in another order; which rows are alike shows the pairs.
    """
    rows, outputs = _find_first(passed.inputs), _find_first(passed.outputs).detach()
    size = len(rows) // 2
    if len(rows) % 2 or size < _MIN_SAMPLES or outputs.ndim != 2 or len(outputs) != len(rows):
        return
    order = torch.randperm(size, generator=torch.Generator().manual_seed(0)).to(outputs.device)
    layouts = {
        "i and B + i": (torch.stack([order, size + order]).flatten(), torch.arange(2 * size).reshape(2, -1).T),
        "2 i and 2 i + 1": (
            torch.stack([2 * order, 2 * order + 1], dim=1).flatten(),
            torch.arange(2 * size).reshape(-1, 2),
        ),
    }
    in_loss = [name for name, (rank, _) in layouts.items() if _keeps_loss(loss, outputs, passed.target, rank, order)]
    in_batch = [name for name, (_, pairs) in layouts.items() if _measure_alike(rows, pairs.to(rows.device)) > _MIN_T]
    if len(in_loss) == len(in_batch) == 1 and in_loss != in_batch:
        yield report(
            "loss-form",
            f"the loss takes rows {in_loss[0]} for the views of a sample; in the batch they are {in_batch[0]}",
            severity="error",
            causes=("loss.negatives", "data.pairing", "data.layout"),
            measured=f"{2 * size} rows: those of {in_batch[0]} are alike; the loss changes if these pairs come in "
            "another order",
            expected="one layout of views in the batch and in the loss",
            action="rows of torch.cat(views) are (2, B, D), those of torch.stack(views, dim=1).flatten(0, 1) (B, 2, D)",
        )


def _find_first(tree: Any) -> Tensor:
    return next(tensor for _, tensor in tree_leaves(tree))


def _keeps_loss(loss: Callable[[Any, Any], Tensor], outputs: Tensor, target: Any, rank: Tensor, order: Tensor) -> bool:
    """Return True if a loss stays with rows in the order of `rank`, targets in that of rows, or of samples, alone."""
    ranks = {len(rank): rank, len(order): order}
    moved = tree_map(target, lambda _, tensor: tensor[ranks[len(tensor)]] if len(tensor) in ranks else tensor)
    before, after = float(loss(outputs, target)), float(loss(outputs[rank], moved))
    return abs(after - before) <= _SAME * abs(before)


def _measure_alike(rows: Tensor, pairs: Tensor) -> float:
    """Compute Student's t of how much nearer the rows of pairs (B, 2) are than rows of other pairs."""
    flat = rows.flatten(1).double()
    first, second = flat[pairs[:, 0]], flat[pairs[:, 1]]
    gain = (first - second.roll(1, dims=0)).square().sum(dim=1) - (first - second).square().sum(dim=1)
    return float(gain.mean() / gain.std().clamp(min=1e-12)) * math.sqrt(len(gain))
