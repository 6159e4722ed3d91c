"""Point-BERT's tokens and blocks in NumPy, step by step in float64: slow, and written from the paper's equations.

Weights come as a state of our model; nothing of the package is called.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

import numpy as np

State = Mapping[str, np.ndarray]

_erf = np.vectorize(math.erf)


def below(state: State, prefix: str) -> dict[str, np.ndarray]:
    """The part of a state under one module."""
    return {name.removeprefix(f"{prefix}."): value for name, value in state.items() if name.startswith(f"{prefix}.")}


def groups(
    points: np.ndarray, num_groups: int, group_size: int, min_squared_norm: float | None
) -> tuple[np.ndarray, np.ndarray]:
    """Of one cloud (N, 3): indices of the centres, and of the members of each in order of distance, then index."""
    allowed = [i for i in range(len(points)) if min_squared_norm is None or points[i] @ points[i] > min_squared_norm]
    centres = [0]
    while len(centres) < num_groups:
        gaps = {i: min(float(((points[i] - points[c]) ** 2).sum()) for c in centres) for i in allowed}
        centres.append(min(gaps, key=lambda i: (-gaps[i], i)) if gaps else 0)
    members = []
    for centre in centres:
        distances = [(float(((point - points[centre]) ** 2).sum()), i) for i, point in enumerate(points)]
        members.append([i for _, i in sorted(distances)[:group_size]])
    return np.array(centres), np.array(members)


def linear(values: np.ndarray, state: State) -> np.ndarray:
    product = values @ state["weight"].T
    return product + state["bias"] if "bias" in state else product


def batch_norm(values: np.ndarray, state: State) -> np.ndarray:
    """In evaluation."""
    standard = (values - state["running_mean"]) / np.sqrt(state["running_var"] + 1e-5)
    return standard * state["weight"] + state["bias"]


def layer_norm(values: np.ndarray, state: State) -> np.ndarray:
    centred = values - values.mean(axis=-1, keepdims=True)
    return centred / np.sqrt((centred**2).mean(axis=-1, keepdims=True) + 1e-5) * state["weight"] + state["bias"]


def gelu(values: np.ndarray) -> np.ndarray:
    return values * (1 + _erf(values / math.sqrt(2))) / 2


def mini_pointnet(members: np.ndarray, state: State) -> np.ndarray:
    """One group (K, C) -> one vector."""
    entered = np.maximum(batch_norm(linear(members, below(state, "enter.linear")), below(state, "enter.norm")), 0)
    each = linear(entered, below(state, "widen"))
    largest = each.max(axis=0)
    joined = np.array([np.concatenate([largest, own]) for own in each])
    joined = np.maximum(batch_norm(linear(joined, below(state, "join.linear")), below(state, "join.norm")), 0)
    return linear(joined, below(state, "leave")).max(axis=0)


def attention(tokens: np.ndarray, state: State, num_heads: int) -> np.ndarray:
    """Head by head and token by token: (T, C) -> (T, C)."""
    count, width = tokens.shape
    size = width // num_heads
    query, key, value = np.split(linear(tokens, below(state, "qkv")), 3, axis=1)
    received = np.zeros((count, width))
    for head in range(num_heads):
        own = slice(head * size, (head + 1) * size)
        for i in range(count):
            likeness = np.array([query[i, own] @ key[j, own] for j in range(count)]) / math.sqrt(size)
            weights = np.exp(likeness - likeness.max())
            received[i, own] = sum(w * value[j, own] for j, w in enumerate(weights / weights.sum()))
    return linear(received, below(state, "project"))


def block(tokens: np.ndarray, state: State, num_heads: int) -> np.ndarray:
    tokens = tokens + attention(layer_norm(tokens, below(state, "attend_norm")), below(state, "attend"), num_heads)
    hidden = gelu(linear(layer_norm(tokens, below(state, "change_norm")), below(state, "change.0")))
    return tokens + linear(hidden, below(state, "change.2"))


def feature(
    points: np.ndarray,
    state: State,
    *,
    num_groups: int,
    group_size: int,
    depth: int,
    num_heads: int,
    least: float | None,
) -> np.ndarray:
    """The feature of one cloud (N, 3): (2 * width,)."""
    centres, members = groups(points, num_groups, group_size, least)
    relative = points[members] - points[centres][:, None]
    patches = [mini_pointnet(group, below(state, "embed.patches")) for group in relative]
    tokens = linear(np.array(patches), below(state, "embed.reduce"))
    hidden = gelu(linear(points[centres], below(state, "embed.position.0")))
    positions = linear(hidden, below(state, "embed.position.2"))
    tokens = np.vstack([state["embed.class_token"][0], tokens])
    positions = np.vstack([state["embed.class_position"][0], positions])
    for number in range(depth):
        tokens = block(tokens + positions, below(state, f"trunk.blocks.{number}"), num_heads)
    tokens = layer_norm(tokens, below(state, "trunk.norm"))
    return np.concatenate([tokens[0], tokens[1:].max(axis=0)])
