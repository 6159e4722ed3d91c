"""Networks that the suite leaves out: numbers of their authors' code, compiled training, and layers."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from sightline.areas.pose.v2v import V2V
from sightline.config import read_config
from sightline.engine.distributed import World
from sightline.published.translation import convert_state_dict
from tests.compare import test_planted
from tests.contract.run_toys import run as run_toy
from tests.contract.toys import TOYS
from tests.doctor.oracles.test_examine import MODELS, assert_nothing_wrong
from tests.engine import test_range_image_conversion as range_images
from tests.engine.test_prepared_batches import ROOMS, count_forms
from tests.engine.test_range_image_conversion import _components  # noqa: F401  the data set that these runs name
from tests.golden_parity import assert_near_largest, load_golden
from tests.models.small_models import OURS
from tests.models.test_cloud_parity import GOLDEN, LARGEST, assert_agrees
from tests.models.test_v2v import LAYOUT
from tests.processes import ROOT

# --- the largest networks against their authors' code -----------------------------------------------------------------


@pytest.mark.shared
def test_the_dense_point_transformer_agrees_with_the_reference(shared: Path) -> None:
    assert_agrees(load_golden(shared, LARGEST), GOLDEN[LARGEST], fused=True)


@pytest.mark.shared
def test_the_outputs_of_the_largest_range_image_network_come_back(shared: Path, tmp_path: Path) -> None:
    range_images.assert_outputs_come_back(shared, tmp_path, range_images.LARGEST)


# --- V2V on a volume of 88 voxels a side ------------------------------------------------------------------------------


@pytest.mark.shared
def test_the_published_volume_agrees_with_the_port(shared: Path) -> None:
    """All 88 voxels a side, in evaluation mode."""
    golden = load_golden(shared, "v2v_s88_j21", area="pose")
    model = V2V(num_joints=21).double().eval()
    model.load_state_dict(convert_state_dict(golden.state(), LAYOUT))
    volume = torch.zeros(1, 1, 88, 88, 88, dtype=torch.float64)
    volume[(0, 0, *golden.tensor("in.occupied").long().T)] = 1.0
    front: list[Tensor] = []
    model.front.register_forward_hook(lambda module, given, value: front.append(value))
    with torch.no_grad():
        maps = model(volume=volume)["likelihood"][0]
    flat = maps.flatten(1)
    found = {
        "heat_strided": maps[:, 1::4, 1::4, 1::4],
        "joint_mean": flat.mean(1),
        "joint_std": flat.std(1, correction=0),
        "joint_max": flat.amax(1),
        "joint_min": flat.amin(1),
        "joint_sumsq": flat.square().sum(1),
        "corner_4": maps[:, :4, :4, :4],
    }
    for name, value in found.items():
        assert_near_largest(value, golden.tensor(f"eval.out.{name}"), 1e-9, name)
    places = np.stack(np.unravel_index(flat.argmax(1).numpy(), maps.shape[1:]), axis=1)
    assert np.array_equal(places, golden.arrays["eval.out.joint_argmax"])
    assert_near_largest(front[0][0, :, 2::8, 2::8, 2::8], golden.tensor("eval.mid.front_strided"), 1e-9, "front")


# --- A model that torch compiles trains to the numbers of one that it does not ---


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of torch's compiler about itself
@pytest.mark.skipif(shutil.which("gcc") is None, reason="torch.compile needs a C compiler")
def test_compiling_changes_no_result_beyond_rounding() -> None:
    """In float64 the compiler may reorder a few hundred terms: far below 1e-9 after eight steps."""
    plain = run_toy(TOYS["classify"], World(), 1)
    compiled = run_toy(TOYS["classify"], World(), 1, is_compiled=True)
    totals = [[step["total"] for step in run["trace"]] for run in (compiled, plain)]
    assert totals[0] == pytest.approx(totals[1], rel=1e-9)


# --- models that the suite leaves out ---------------------------------------------------------------------------------


@pytest.mark.parametrize("name", sorted(set(OURS) - set(MODELS)))
def test_nothing_of_the_other_models_is_wrong(name: str) -> None:
    assert_nothing_wrong(name)


@pytest.mark.parametrize("name", sorted(set(OURS) - set(test_planted.MODELS)))
def test_the_other_models_equal_themselves(name: str) -> None:
    test_planted.assert_equals_itself(name)


# --- steps on sparse voxels -------------------------------------------------------------------------------------------


def test_nine_of_ten_steps_on_rooms_have_one_of_four_forms() -> None:
    """The third epoch of the recipe: what augmentations and the shuffle make of its rooms."""
    forms = count_forms(read_config(ROOT / "configs" / f"{ROOMS}.yaml"), epoch=2)
    assert sum(count for _, count in forms.most_common(4)) >= 0.9 * sum(forms.values())
