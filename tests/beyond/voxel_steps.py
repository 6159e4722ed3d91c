"""B4.16 to B4.20: maps of networks on sparse voxels in the loader, steps of few forms, tiles with a halo, graphs."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from sightline import ops
from sightline.config import read_config
from sightline.contract.binding import AvailableKeys
from sightline.contract.types import PREPARED
from sightline.layers.voxel_levels import VoxelMaps
from sightline.parts.models.voxel_unet import SpUNet
from sightline.parts.tasks.segment import Segment
from tests.engine.test_prepared_batches import ROOMS, count_forms
from tests.mission.rows import row
from tests.mission.trial import Edit
from tests.processes import ROOT
from tests.recipe_steps import SmallStep
from tests.waits import counted_waits, device_form


def _build(grid_m: float = 0.1) -> SpUNet:
    torch.manual_seed(0)
    sizes: dict[str, Any] = {f"{part}coder_widths": (4, 8) for part in ("en", "de")}
    blocks: dict[str, Any] = {f"{part}coder_blocks": (1, 1) for part in ("en", "de")}
    return SpUNet(num_classes=3, in_channels=3, grid_m=grid_m, stem_width=4, **sizes, **blocks).eval()


def _draw_cloud(count: int, *reach_m: float) -> dict[str, Tensor]:
    points = torch.rand(count, 3, generator=torch.Generator().manual_seed(1)) * torch.tensor(reach_m) - 3.33
    return {"points": points, "offsets": torch.tensor([0, count])}


@row(
    "B4.16",
    "train a network on sparse voxels on a GPU without a wait before the step's numbers are read",
    "`sightline train configs/segment/synthetic_rooms_spunet.yaml`",
)
def _waits(work: Path) -> None:
    step = SmallStep(ROOMS, work)
    assert all(PREPARED in batch for batch in step.micro_batches)
    with pytest.MonkeyPatch.context() as patch:
        with device_form(patch):
            step.run()
        with counted_waits(patch) as waits:
            step.run()
    assert sum(waits.values()) == 1, waits


@row(
    "B4.17",
    "teach a network on coarse voxels by one on fine voxels: each computes on the maps of its own grid",
    "`teacher: {from: RUN}`",
)
def _own_maps(work: Path) -> None:
    cloud = _draw_cloud(400, 1.0, 1.0, 1.0)
    coarse, fine = _build(0.2), _build(0.05)
    of_student: VoxelMaps = coarse.make_preparation()(**cloud)["voxel_maps"]
    assert torch.equal(coarse(**cloud, voxel_maps=of_student)["logits"], coarse(**cloud)["logits"])
    assert torch.equal(fine(**cloud, voxel_maps=of_student)["logits"], fine(**cloud)["logits"])


@row(
    "B4.18",
    "train on rooms of any sizes in steps of few forms",
    "`sightline train configs/segment/synthetic_rooms_spunet.yaml`",
)
def _forms(work: Path) -> None:
    forms = count_forms(read_config(ROOT / "configs" / f"{ROOMS}.yaml"), epoch=2, num_steps=8)
    assert sum(forms.values()) == 8
    assert len(forms) <= 2


class _Narrow(nn.Module):
    """The network, and how many points it was given at a time."""

    def __init__(self) -> None:
        super().__init__()
        self.network, self.given = _build(), list[int]()

    def forward(self, *, points: Tensor, offsets: Tensor, grid_corner: Tensor | None = None) -> Any:
        self.given.append(len(points))
        return self.network(points=points, offsets=offsets, grid_corner=grid_corner)


@row(
    "B4.19",
    "predict a site by tiles with a halo: every point once, with the numbers of the whole",
    "`sightline predict RUN site.ply 'tiles={size_m: 20, halo_m: 5}'`",
)
def _tiles(work: Path) -> None:
    cloud, model = _draw_cloud(3000, 9.0, 7.0, 1.0), _Narrow()
    predictions = []
    for tiles in (None, {"size_m": 2.3, "halo_m": 2.6}):
        keys = AvailableKeys("the set", {"points", "offsets"})
        outputs = AvailableKeys("the model", {"logits"})
        task = Segment(model=model, losses={}, batch_keys=keys, output_keys=outputs, tiles=tiles)  # type: ignore[arg-type]
        with torch.no_grad():
            predictions.append(task.predict(model, cloud)["probabilities"])
    assert model.given[0] == 3000
    assert len(model.given) == 1 + 4 * 4
    assert max(model.given[1:]) < 3000
    assert torch.equal(*predictions)


@row(
    "B4.20",
    "use coarse voxels in a graph of torch.compile, which has as many of them as there are",
    "`torch.compile(function, fullgraph=True)`",
)
def _compiled(work: Path) -> None:
    cells = torch.cartesian_prod(*[torch.arange(4)] * 3)
    offsets = torch.tensor([0, 64])

    def halve(cells: Tensor, offsets: Tensor) -> tuple[Tensor, Tensor]:
        coarse = ops.strided_map(cells, offsets, size=2, stride=2)
        return coarse.cells, coarse.map.table

    torch.compiler.reset()
    found = torch.compile(halve, fullgraph=True, backend="eager")(cells, offsets)
    assert found[0].tolist() == torch.cartesian_prod(*[torch.arange(2)] * 3).tolist()
    assert found[1].shape == (8, 8)
    assert sorted(found[1].flatten().tolist()) == list(range(64))


MUTANTS = {
    "B4.16": Edit("parts/tasks/supervised.py", "if PREPARED in batch else {}", "if False else {}"),
    "B4.17": Edit("layers/voxel_levels.py", "return maps.preparation == self", "return True"),
    "B4.18": Edit("layers/voxel_levels.py", "* 2 ** (form / 2)", "* (1 + form / 8)"),
    "B4.19": Edit(
        "parts/tasks/windows.py", '"grid_corner": points.amin(dim=0)', '"grid_corner": points[index].amin(dim=0)'
    ),
    "B4.20": Edit("ops/voxels/cells.py", "device=count.device) < count)", "device=count.device) >= 0)"),
}
