"""The table of networks in docs/topics/deploy.md is what exporting each of them gives."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import torch

from sightline.contract.catalogue import find_modules
from sightline.contract.errors import RunError, UserError
from sightline.contract.task import Task
from sightline.workbench.export.checking import check_file
from sightline.workbench.export.formats import load_written, write_onnx
from sightline.workbench.export.graph import GraphNetwork
from sightline.workbench.export.recorded_graph import record_graph
from tests.marks import long_but
from tests.models.small_models import make_inputs, small_model

pytestmark = pytest.mark.usefixtures("torchlib_once")
PAGE = Path(__file__).resolve().parents[2] / "docs/topics/deploy.md"
SHIPPED = sorted({*find_modules("models")} - {"transformers_detector"})
"""All but those of a library, whose checks of values ONNX has no operator for."""
DAILY = ("scale_net", "v2v_small")


class Encoding:
    """Task of contrastive networks."""

    compares_rows = True


class Plain(Task):
    """Task without a decoding."""


def read_table() -> dict[str, str]:
    return dict(re.findall(r"^\| `(\w+)` \| (.*) \|$", PAGE.read_text(), flags=re.MULTILINE))


def export(name: str) -> str:
    """The cell of the table: the free sizes, `one sample` without any, `no` where ONNX cannot hold it."""
    model = small_model(name).float()
    batch = {key: v.float() if v.is_floating_point() else v for key, v in make_inputs(model, 6).items()}
    task: Any = Encoding if name in ("crosspoint", "intrapoint") else Plain
    network = GraphNetwork(model, task, batch).eval()
    inputs = network.arrange(batch)
    with torch.no_grad():
        outputs = tuple(network(*inputs[0]))
    try:
        recorded = record_graph(network, inputs[0])
        content = write_onnx(recorded, outputs, suppression=None)
    except (RunError, UserError):
        return "no"
    free = {axis for axes in recorded.free_axes for axis in axes.values()}
    check = check_file(load_written(content, outputs), network, inputs, is_batch_free="batch" in free, source="")
    assert check.is_equal, check.describe()
    return ", ".join(sorted(free)) or "one sample"


def test_the_table_has_every_network() -> None:
    assert sorted(read_table()) == SHIPPED


@pytest.mark.parametrize("name", long_but(DAILY, SHIPPED))
def test_networks_are_as_the_table_states(name: str) -> None:
    assert export(name) == read_table()[name]
