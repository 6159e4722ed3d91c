"""Data on disk and in memory: file formats, labels of boxes, prepared sets, loading of batches."""

from __future__ import annotations

from collections.abc import Mapping

PARTS: Mapping[str, Mapping[str, str]] = {
    "data": {"loading.concat": "concat"},
    "public": {
        "box_fields": "BOX_FIELDS",
        "boxes.label_table": "AnnotationFaults CategoryIds LabelFormat LabelledBox LabelledImage LabelledSet",
        "boxes.labelled_images": "LabelledImages",
        "boxes.records": "BoxRecord box_facts make_sample",
        "boxes.tools.boxes": "make_box",
        "boxes.tools.folders": "LabelReport StatedImage label_reader",
        "boxes3d.box_sample": "BOX3D_FIELDS make_sample3d",
        "boxes3d.box_table": "BoxTable make_box_table",
        "files.array_files": "npz_array",
        "prepared.columns": "ColumnSpec SampleRow",
        "prepared.prepared_data": "PreparedData SetSpec",
        "prepared.prepared_set": "PreparedSet",
        "prepared.prepared_writer": "PreparationPlan Shard normalize_to_unit_sphere",
        "prepared.views": "Views",
    },
    "tools": {"boxes.convert": "convert_labels"},
}
"""Kind of part -> module of this folder -> names that it registers (`contract/catalogue.py`)."""
