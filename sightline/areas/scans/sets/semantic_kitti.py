"""SemanticKITTI: 43,552 scans of an HDL-64E in 22 sequences, 11 of them with point labels."""

from __future__ import annotations

from pathlib import Path

from sightline.areas.scans.sets.labelled_scans import ScanSpec
from sightline.areas.scans.sets.sequences import SequenceNumbers, SequenceScans
from sightline.contract import registry
from sightline.contract.arguments import FractionBelowOne
from sightline.store.files.sensors import SensorBlock

LABEL_MAPS = {name: Path(__file__).with_name(f"semantic_kitti_{name}.yaml") for name in ("single", "multi")}
"""Published label maps: single scans (19 classes and class 0), and with classes of moving objects (25 and class 0)."""


@registry.data.add("semantic_kitti")
class SemanticKitti(SequenceScans):
    """Scans of SemanticKITTI in the sensor's frame: all labelled sequences but `test_sequences` to train on.

    `label_map` is `single`, `multi` or the user's file in the format of semantic-kitti-api; `sensor` overrides values
    of the HDL-64E. The last `validation_share` of each training sequence chooses the checkpoint.
    Source: Behley et al. 2019.
    """

    spec = ScanSpec(name="semantic_kitti", label_maps=LABEL_MAPS, sensor={"preset": "hdl64"})

    def __init__(
        self,
        *,
        split: str,
        root: str | None = None,
        test_sequences: SequenceNumbers = (8,),
        label_map: str = "single",
        sensor: SensorBlock | None = None,
        validation_share: FractionBelowOne = 0.1,
    ) -> None:
        super().__init__(
            split=split,
            root=root,
            test_sequences=test_sequences,
            label_map=label_map,
            sensor=sensor,
            validation_share=validation_share,
        )
