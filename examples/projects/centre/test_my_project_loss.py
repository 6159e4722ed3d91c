"""The loss of my_project, worked by hand."""

from pathlib import Path

import sightline

HERE = Path(__file__).parent


def test_the_loss_of_the_true_offset_is_zero(parts):
    """The offset of the joint, by the placement of the crop itself; a tenth more on each axis costs three tenths."""
    data = sightline.load_data(HERE / "my_project.yaml", "test", plugins=[HERE / "my_project.py"])
    batch = data[:2]
    placement = sightline.CropPlacement.from_rows(batch["crop_placement"])
    joint = batch["joints"][:, 0].double()
    expected = (joint - placement.reference_mm) / (placement.side_mm[:, None] / 2)
    fields = {name: batch[name] for name in ("joints", "visible", "crop_placement")}
    loss = parts.MyLoss(centre_joint=0)
    assert abs(loss(offset=expected.float(), **fields)) < 1e-4
    assert abs(loss(offset=expected.float() + 0.1, **fields) - 0.6) < 1e-4
    assert loss.count(visible=batch["visible"]) == 2
