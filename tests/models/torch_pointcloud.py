"""Outputs of torch-pointcloud's networks for weights by rule, which `python -m tests.models.torch_pointcloud` writes.

That needs torch-pointcloud and torch-geometric, which nothing else here needs; tests read the file. The compiled
searches of torch-geometric, which no package index has, are written out here by their definitions.
"""

from __future__ import annotations

import hashlib
import importlib.metadata
import json
import re
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

FIGURES = Path(__file__).with_name("torch_pointcloud.json")
NETWORKS = {
    "torch_pointcloud_point_bert_cls": "point-bert-base.modelnet40.xumin-yu",
    "torch_pointcloud_point_bert_pretrained": "point-bert-base.pretrain.xumin-yu",
    "torch_pointcloud_point_mae_cls": "point-mae-base.modelnet40.yatian-pang",
    "torch_pointcloud_dgcnn_cls": "dgcnn.modelnet40-1024.an-tao",
    "torch_pointcloud_pointnet2_ssg_cls": "pointnet2-ssg.modelnet40.xu-yan",
    "torch_pointcloud_pointnet2_msg_cls": "pointnet2-msg.modelnet40.xu-yan",
    "torch_pointcloud_pointnet2_ssg_scenes": "pointnet2.s3dis-area5.xu-yan",
    "torch_pointcloud_dgcnn_scenes": "dgcnn.s3dis-area1.an-tao",
    "torch_pointcloud_dgcnn_parts": "dgcnn.shapenetpart.an-tao",
}
ZERO = {"torch_pointcloud_dgcnn_scenes": "head.lins.2.bias", "torch_pointcloud_dgcnn_parts": "head.lins.3.bias"}
"""Biases of last layers that the authors' networks do not have."""
STEP = 211
"""Step from one point to the next of which outputs are kept."""
NUM_CLOUDS, NUM_POINTS = 2, 1024
CATEGORIES = (3, 11)


def draw_clouds(layout: str) -> Tensor:
    """Two clouds in a ball with further channels (2, N, 9), in float64; those of scenes of PointNet++ have 4,096."""
    count = 4096 if layout == "torch_pointcloud_pointnet2_ssg_scenes" else NUM_POINTS
    values = torch.randn(NUM_CLOUDS, count, 9, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    points = values[..., :3] / (1 + values[..., :3].norm(dim=2, keepdim=True))
    return torch.cat([points, values[..., 3:]], dim=2)


def make_state(shapes: Mapping[str, list[int]], layout: str) -> dict[str, Tensor]:
    """Random float64 weights whose seeds are their names; biases before norms are not zero."""
    state = {}
    for name, shape in shapes.items():
        seed = int.from_bytes(hashlib.sha256(name.encode()).digest()[:4], "big")
        values = torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
        if name == ZERO.get(layout):
            values = torch.zeros_like(values)
        elif name.endswith("num_batches_tracked"):
            values = torch.zeros((), dtype=torch.int64)
        elif name.endswith("running_var"):
            values = 0.5 + values.abs()
        elif name.endswith("weight"):
            values = values / shape[-1] ** 0.5 if len(shape) > 1 else 1 + 0.2 * values
        else:
            values = 0.2 * values
        state[name] = values
    return state


def read_figures() -> dict[str, dict[str, Any]]:
    """Read the outputs of every layout, and the shapes of its file with all blocks of a transformer."""
    figures: dict[str, dict[str, Any]] = json.loads(FIGURES.read_text())["figures"]
    for row in figures.values():
        row["shapes"] = {
            name.replace("*", str(block)): shape
            for name, shape in row["shapes"].items()
            for block in (range(12) if "*" in name else (0,))
        }
    return figures


# --- the library ------------------------------------------------------------------------------------------------------


def _knn(x: Tensor, y: Tensor, k: int, batch_x: Tensor, batch_y: Tensor, **_: Any) -> Tensor:
    distance = (y[:, None] - x[None]).square().sum(dim=2)
    distance[batch_y[:, None] != batch_x[None]] = torch.inf
    nearest = distance.sort(dim=1, stable=True).indices[:, :k]
    return torch.stack([torch.arange(len(y))[:, None].expand_as(nearest).flatten(), nearest.flatten()])


def _knn_graph(x: Tensor, k: int, batch: Tensor, loop: bool, **_: Any) -> Tensor:
    assert loop
    return _knn(x, x, k, batch, batch).flip(0)


def _fps(src: Tensor, batch: Tensor | None = None, ratio: Any = None, num_nodes: Any = None, **_: Any) -> Tensor:
    """Sample farthest points of each cloud, from its first."""
    batch = torch.zeros(len(src), dtype=torch.int64) if batch is None else batch
    chosen = []
    for cloud in batch.unique():
        index = (batch == cloud).nonzero().flatten()
        points, picked = src[index], [0]
        count = int(num_nodes if num_nodes is not None else -(-len(index) * float(ratio) // 1))
        distance = torch.full((len(index),), torch.inf, dtype=src.dtype)
        while len(picked) < count:
            distance = torch.minimum(distance, (points - points[picked[-1]]).square().sum(dim=1))
            picked.append(int(distance.argmax()))
        chosen.append(index[picked])
    return torch.cat(chosen)


def _run(model: Any, clouds: Tensor, layout: str) -> Tensor:
    """Return the logits, or the features of a network with another head than ours."""
    num_clouds, num_points = clouds.shape[:2]
    batch, flat = torch.arange(num_clouds).repeat_interleave(num_points), clouds.flatten(0, 1)
    channels, points = flat[:, 3 : 3 + model.in_channels] if model.in_channels else None, flat[:, :3]
    if layout == "torch_pointcloud_pointnet2_ssg_scenes":  # positions are features, too
        channels = flat
    elif layout == "torch_pointcloud_dgcnn_scenes":  # the place in the room comes last, and has the first graph
        channels, points = flat[:, :6], flat[:, 6:]
    inputs = [channels, points, batch]
    if layout.endswith("_parts"):
        inputs.append(torch.eye(16, dtype=clouds.dtype)[list(CATEGORIES)])
    if hasattr(model, "lm_head"):
        model.lm_head = model.cls_head = torch.nn.Identity()
        tokens = model(*inputs)
        return torch.cat([tokens["cls_feature"], tokens["logits"].max(dim=1).values], dim=1)
    if type(model).__name__ == "PointMAEClassification":
        features: Tensor = model.forward_head(model.forward_features(*inputs), pre_logits=True)
        return features
    logits: Tensor = model(*inputs)
    return logits if len(logits) == num_clouds else logits[::STEP]


def _write() -> None:
    import torch_pointcloud
    from torch_geometric.nn import pool
    from torch_pointcloud.ops import cluster

    pool.knn, pool.knn_graph = _knn, _knn_graph
    library = [module for name, module in sys.modules.items() if name.startswith("torch_pointcloud")]
    for module in library:
        if getattr(module, "fps", None) is cluster.fps:
            vars(module)["fps"] = _fps
    figures = {}
    for layout, name in NETWORKS.items():
        model = torch_pointcloud.create_model(name, pretrained=False).double().eval()
        shapes = {key: list(value.shape) for key, value in model.state_dict().items()}
        model.load_state_dict(make_state(shapes, layout))
        clouds = draw_clouds(layout)
        with torch.no_grad():
            outputs = _run(model, clouds, layout)
        rounded = [[float(f"{value:.9g}") for value in row] for row in outputs.tolist()]
        short = {re.sub(r"(\bblocks\.)\d+(\.(?:norm|attn|mlp))", r"\1*\2", key): shape for key, shape in shapes.items()}
        figures[layout] = {"network": name, "outputs": rounded, "shapes": short}
    version = importlib.metadata.version("torch-pointcloud")
    rows = ",\n".join(f"{json.dumps(layout)}: {json.dumps(row)}" for layout, row in figures.items())
    FIGURES.write_text(f'{{"torch_pointcloud": "{version}", "figures": {{\n{rows}\n}}}}\n')


if __name__ == "__main__":
    _write()
