"""Networks of drawn programs: small ones of common makes, each for one kind of input, by their names."""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

Make = Callable[[random.Random, int, int], nn.Module]
"""Makes a network from a source of choices, the channels of its input, and the channels of its output."""


class Block(nn.Module):
    """Residual block that is left out for the whole batch, or for some samples, with a probability, in training."""

    def __init__(self, width: int, drop: float, *, is_by_sample: bool) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.LayerNorm(width), nn.Linear(width, width), nn.GELU(), nn.Linear(width, width))
        self.drop, self.is_by_sample = drop, is_by_sample

    def forward(self, x: Tensor) -> Tensor:
        if not self.training or not self.drop:
            return x + self.layers(x)
        if not self.is_by_sample:
            return x if float(torch.rand(())) < self.drop else x + self.layers(x) / (1 - self.drop)
        is_kept = torch.rand(len(x), *[1] * (x.ndim - 1)) >= self.drop
        return x + self.layers(x) * is_kept / (1 - self.drop)


class NormBlock(nn.Module):
    """Residual block of convolutions with batch norms, left out for the whole batch with a probability."""

    def __init__(self, width: int, drop: float) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            *(nn.Conv2d(width, width, 3, padding=1, bias=False), nn.BatchNorm2d(width), nn.ReLU()),
            *(nn.Conv2d(width, width, 3, padding=1, bias=False), nn.BatchNorm2d(width)),
        )
        self.drop = drop

    def forward(self, x: Tensor) -> Tensor:
        if self.training and float(torch.rand(())) < self.drop:
            return x
        return F.relu(x + self.layers(x))


def make_mlp(choose: random.Random, num_inputs: int, num_outputs: int) -> nn.Module:
    layers: list[nn.Module] = []
    norm, activation = choose.choice([None, nn.BatchNorm1d, nn.LayerNorm]), choose.choice([nn.ReLU, nn.GELU, nn.Tanh])
    drop, width = choose.choice([0.0, 0.0, 0.1, 0.5]), choose.choice([16, 32, 64])
    for _ in range(choose.randint(1, 3)):
        layers += [nn.Linear(num_inputs, width), *([norm(width)] if norm else []), activation()]
        layers += [nn.Dropout(drop)] if drop else []
        num_inputs = width
    return nn.Sequential(*layers, nn.Linear(num_inputs, num_outputs))


def make_linear(choose: random.Random, num_inputs: int, num_outputs: int) -> nn.Module:
    return nn.Linear(num_inputs, num_outputs)


def make_residual(choose: random.Random, num_inputs: int, num_outputs: int) -> nn.Module:
    width, drop, is_by_sample = choose.choice([16, 32]), choose.choice([0.0, 0.2, 0.5]), choose.random() < 0.5
    blocks = [Block(width, drop, is_by_sample=is_by_sample) for _ in range(choose.randint(1, 4))]
    return nn.Sequential(nn.Linear(num_inputs, width), *blocks, nn.LayerNorm(width), nn.Linear(width, num_outputs))


def make_cnn(choose: random.Random, num_inputs: int, num_outputs: int) -> nn.Module:
    width, has_norm = choose.choice([8, 16]), choose.random() < 0.6
    layers: list[nn.Module] = []
    for _ in range(choose.randint(1, 2)):
        norm = choose.choice([nn.BatchNorm2d(width), nn.GroupNorm(4, width)]) if has_norm else nn.Identity()
        layers += [nn.Conv2d(num_inputs, width, 3, padding=1, bias=not has_norm), norm, nn.ReLU()]
        layers += [nn.MaxPool2d(2)] if choose.random() < 0.5 else []
        num_inputs = width
    if choose.random() < 0.3:
        layers.append(nn.Dropout2d(0.1))
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(4 * width, num_outputs))


def make_resnet(choose: random.Random, num_inputs: int, num_outputs: int) -> nn.Module:
    width, drop = choose.choice([8, 16]), choose.choice([0.0, 0.2, 0.5])
    stem = nn.Conv2d(num_inputs, width, 3, padding=1), nn.BatchNorm2d(width), nn.ReLU()
    blocks = [NormBlock(width, drop) for _ in range(choose.randint(1, 2))]
    return nn.Sequential(*stem, *blocks, nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(4 * width, num_outputs))


def make_map(choose: random.Random, num_inputs: int, num_outputs: int) -> nn.Module:
    width = choose.choice([8, 16])
    norm = choose.choice([nn.BatchNorm2d(width), nn.GroupNorm(4, width), nn.Identity()])
    layers = [nn.Conv2d(num_inputs, width, 3, padding=1), norm, nn.ReLU()]
    layers += [nn.Conv2d(width, width, 3, padding=1), nn.ReLU()] if choose.random() < 0.5 else []
    return nn.Sequential(*layers, nn.Conv2d(width, num_outputs, 1))


class Pooled(nn.Module):
    """Means over the true places of padded sequences, behind a recurrent network, an attention, or words alone."""

    def __init__(
        self, kind: str, num_inputs: int, num_outputs: int, width: int, *, is_words: bool, drop: float
    ) -> None:
        super().__init__()
        self.first = nn.Embedding(num_inputs, width, padding_idx=0) if is_words else nn.Linear(num_inputs, width)
        self.kind = kind
        if kind == "gru":
            self.body: nn.Module = nn.GRU(width, width, batch_first=True)
        elif kind == "attention":
            layer = nn.TransformerEncoderLayer(width, 2, 2 * width, drop, batch_first=True)
            self.body = nn.TransformerEncoder(layer, 1, enable_nested_tensor=False)
            self.places = nn.Parameter(0.02 * torch.randn(64, width))
        self.last = nn.Linear(width, num_outputs)

    def forward(self, steps: Tensor, lengths: Tensor) -> Tensor:
        x = self.first(steps)
        is_true = torch.arange(x.shape[1], device=x.device) < lengths[:, None]
        if self.kind == "gru":
            x = self.body(x)[0]
        elif self.kind == "attention":
            x = self.body(x + self.places[: x.shape[1]], src_key_padding_mask=~is_true)
        weights = is_true[..., None].to(x)
        return self.last((x * weights).sum(1) / weights.sum(1))


def make_pooled(*, is_words: bool) -> Make:
    def make(choose: random.Random, num_inputs: int, num_outputs: int) -> nn.Module:
        kind, drop = choose.choice(["gru", "attention", "words"]), choose.choice([0.0, 0.1])
        return Pooled(kind, num_inputs, num_outputs, choose.choice([16, 32]), is_words=is_words, drop=drop)

    return make


class Causal(nn.Module):
    """Language model of tokens (B, T): scores (B, T, V) of the next one, by a GRU or a masked attention."""

    def __init__(self, num_tokens: int, width: int, *, is_recurrent: bool) -> None:
        super().__init__()
        self.words, self.is_recurrent = nn.Embedding(num_tokens, width), is_recurrent
        if not is_recurrent:
            self.places = nn.Parameter(0.02 * torch.randn(64, width))
        self.body: nn.Module = (
            nn.GRU(width, width, batch_first=True)
            if is_recurrent
            else nn.TransformerEncoderLayer(width, 2, 2 * width, 0.0, batch_first=True, norm_first=True)
        )
        self.last = nn.Linear(width, num_tokens)

    def forward(self, tokens: Tensor) -> Tensor:
        x = self.words(tokens)
        if self.is_recurrent:
            return self.last(self.body(x)[0])
        mask = nn.Transformer.generate_square_subsequent_mask(x.shape[1], device=x.device)
        return self.last(self.body(x + self.places[: x.shape[1]], src_mask=mask, is_causal=True))


def make_causal(choose: random.Random, num_inputs: int, num_outputs: int) -> nn.Module:
    return Causal(num_outputs, choose.choice([16, 32]), is_recurrent=choose.random() < 0.5)


class Graphs(nn.Module):
    """Convolutions over nodes (..., N, C) with normalised edges (..., N, N): scores of nodes, or of whole graphs."""

    def __init__(self, num_inputs: int, num_outputs: int, width: int, *, is_pooled: bool) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(num_inputs, width), nn.Linear(width, width)
        self.last, self.is_pooled = nn.Linear(width, num_outputs), is_pooled

    def forward(self, nodes: Tensor, edges: Tensor) -> Tensor:
        edges = edges + torch.eye(edges.shape[-1], device=edges.device)
        edges = edges / edges.sum(-1, keepdim=True)
        x = F.relu(self.second(edges @ F.relu(self.first(edges @ nodes))))
        return self.last(x.mean(-2) if self.is_pooled else x)


def make_graphs(*, is_pooled: bool) -> Make:
    def make(choose: random.Random, num_inputs: int, num_outputs: int) -> nn.Module:
        return Graphs(num_inputs, num_outputs, choose.choice([16, 32]), is_pooled=is_pooled)

    return make


class Views(nn.Module):
    """Embeddings of length 1 of two views, by one network or by two."""

    def __init__(self, num_inputs: int, *, is_shared: bool) -> None:
        super().__init__()
        self.first = nn.Sequential(nn.Linear(num_inputs, 32), nn.ReLU(), nn.Linear(32, 16))
        self.second = (
            self.first if is_shared else nn.Sequential(nn.Linear(num_inputs, 32), nn.ReLU(), nn.Linear(32, 16))
        )

    def forward(self, one: Tensor, other: Tensor) -> tuple[Tensor, Tensor]:
        return F.normalize(self.first(one), dim=1), F.normalize(self.second(other), dim=1)


def make_views(choose: random.Random, num_inputs: int, num_outputs: int) -> nn.Module:
    return Views(num_inputs, is_shared=choose.random() < 0.5)


def make_bottleneck(choose: random.Random, num_inputs: int, num_outputs: int) -> nn.Module:
    """Autoencoder, with a narrow middle."""
    width = choose.choice([4, 8])
    body = nn.Linear(num_inputs, 32), nn.ReLU(), nn.Linear(32, width), nn.Linear(width, 32), nn.ReLU()
    return nn.Sequential(*body, nn.Linear(32, num_outputs))


class TwoHeads(nn.Module):
    """Maps of classes (B, C, H, W) of a network, and boxes (B, K, 4), in a unit, of its last features."""

    def __init__(self, body: nn.Sequential, num_boxes: int, unit: float) -> None:
        super().__init__()
        self.body, self.maps, self.num_boxes, self.unit = body[:-1], body[-1], num_boxes, unit
        width = self.maps.in_channels
        self.boxes = nn.Sequential(nn.AdaptiveAvgPool2d(4), nn.Flatten(), nn.Linear(16 * width, 4 * num_boxes))

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        x = self.body(x)
        return self.maps(x), self.unit * self.boxes(x).unflatten(1, (self.num_boxes, 4))


class Masked(nn.Module):
    """Rows of patches (B, N, P) given back where some are `hidden` (B, N); without these it draws and returns them."""

    def __init__(self, num_patches: int, num_inputs: int, width: int, share: float, *, body: str) -> None:
        super().__init__()
        self.first, self.share = nn.Linear(num_inputs, width), share
        self.places = nn.Parameter(0.02 * torch.randn(num_patches, width))
        self.is_mixed = body == "mixing"
        self.body = (
            nn.Sequential(nn.Linear(num_patches, 32), nn.GELU(), nn.Linear(32, num_patches))
            if self.is_mixed
            else nn.TransformerEncoderLayer(width, 2, 2 * width, 0.0, batch_first=True, norm_first=True)
        )
        self.last = nn.Linear(width, num_inputs)

    def forward(self, x: Tensor, hidden: Tensor | None = None) -> Any:
        drawn = torch.rand(x.shape[:2], device=x.device) < self.share if hidden is None else hidden
        x = self.first(x * (1 - drawn.float())[..., None]) + self.places
        x = x + self.body(x.mT).mT if self.is_mixed else self.body(x)
        return self.last(x) if hidden is not None else (self.last(x), drawn)


_ENDS: Mapping[str, Callable[[Tensor], Tensor]] = {
    "": lambda x: x,
    "relu": F.relu,
    "clamp": lambda x: x.clamp(min=0),
    "maximum": lambda x: torch.maximum(x, torch.zeros_like(x)),
    "softplus": F.softplus,
}


class Ended(nn.Module):
    """Network whose (first) output ends in a function by name, as of numbers that are never below 0."""

    def __init__(self, body: nn.Module, end: str) -> None:
        super().__init__()
        self.body, self.end = body, end

    def forward(self, *inputs: Tensor) -> Any:
        outputs = self.body(*inputs)
        if isinstance(outputs, tuple):
            return _ENDS[self.end](outputs[0]), *outputs[1:]
        return _ENDS[self.end](outputs)


def end_in(body: nn.Module, end: str, mean: Tensor | None) -> nn.Module:
    """End a network in a function; with a `mean` the last layer begins there."""
    if mean is not None:
        *_, last = (module for module in body.modules() if isinstance(module, nn.Linear | nn.Conv2d))
        assert last.bias is not None
        last.bias.data.copy_(mean)
    return Ended(body, end)


NETWORKS: Mapping[str, tuple[Make, ...]] = {
    "table": (make_mlp, make_mlp, make_residual, make_linear),
    "image": (make_cnn, make_cnn, make_resnet),
    "map": (make_map,),
    "words": (make_pooled(is_words=True),),
    "series": (make_pooled(is_words=False),),
    "tokens": (make_causal,),
    "graph": (make_graphs(is_pooled=True),),
    "nodes": (make_graphs(is_pooled=False),),
    "views": (make_views,),
    "itself": (make_bottleneck,),
}
"""Networks by the kind of their input."""
