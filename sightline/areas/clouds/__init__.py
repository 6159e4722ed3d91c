"""Point clouds: objects with a class or part labels, their networks, and renderings of them."""

from __future__ import annotations

from collections.abc import Mapping

PARTS: Mapping[str, Mapping[str, str]] = {
    "data": {
        "sets.cloud_folder": "cloud_folder",
        "sets.modelnet": "modelnet10 modelnet40",
        "sets.psb19": "psb19",
        "sets.scanobjectnn": "scanobjectnn",
        "sets.shapenet_part": "shapenet_part",
        "sets.synthetic_shapes": "synthetic_shapes",
    },
    "models": {
        "models.dgcnn": "dgcnn dgcnn_parts dgcnn_scenes",
        "models.pct": "pct pct_naive pct_parts pct_simple",
        "models.point_bert": "point_bert point_bert_parts",
        "models.point_transformer_dense": "point_transformer_dense",
        "models.pointnet": "pointnet pointnet_parts pointnet_plain pointnet_scenes",
        "models.pointnet2": "pointnet2 pointnet2_msg pointnet2_parts pointnet2_scenes",
    },
    "point_encoders": {
        "models.dgcnn": "dgcnn dgcnn_parts",
        "models.pct": "pct",
        "models.point_bert": "point_bert",
        "models.point_transformer_dense": "point_transformer_dense",
        "models.pointnet": "pointnet",
        "models.pointnet2": "pointnet2",
    },
    "public": {"sets.file_clouds": "CloudSpec FileClouds", "sets.labelled_clouds": "LabelledClouds count_labels"},
    "rules": {"rules": "augmentation-mismatch label-outside-parts padded-points scattered-labels"},
    "tools": {"rendering": "render_views"},
}
"""Kind of part -> module of this folder -> names that it registers (`contract/catalogue.py`)."""
