"""SemanticPOSS: 2,988 scans of a Pandora on a campus with many people, six sequences with point labels."""

from __future__ import annotations

from pathlib import Path

from sightline.areas.scans.sets.labelled_scans import ScanSpec
from sightline.areas.scans.sets.sequences import SequenceNumbers, SequenceScans
from sightline.contract import registry
from sightline.contract.arguments import FractionBelowOne
from sightline.store.files.sensors import SensorBlock


@registry.data.add("semantic_poss")
class SemanticPoss(SequenceScans):
    """Scans of SemanticPOSS in the sensor's frame: all sequences but `test_sequences` to train on.

    `label_map` is `poss` (13 classes and class 0, which is ignored) or the user's file in the format of
    semantic-kitti-api; `sensor` overrides values of the Pandora. The last `validation_share` of each training sequence
    chooses the checkpoint. Source: Pan et al. 2020.
    """

    spec = ScanSpec(
        name="semantic_poss",
        label_maps={"poss": Path(__file__).with_name("semantic_poss.yaml")},
        sensor={"preset": "pandora"},
    )

    def __init__(
        self,
        *,
        split: str,
        root: str | None = None,
        test_sequences: SequenceNumbers = (3,),
        label_map: str = "poss",
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
