"""Image classifier: any image encoder and one linear map. Source: He et al. 2016, table 1, the last row."""

from __future__ import annotations

from typing import TypedDict

from torch import Tensor, nn

from sightline.contract import registry
from sightline.contract.arguments import ImageEncoder
from sightline.contract.model import Model


class ImageClassifierOutput(TypedDict):
    """`logits` (B, num_classes), before any softmax."""

    logits: Tensor


@registry.models.add("image_classifier")
class ImageClassifier(Model):
    """Image classifier: an image encoder, `images`, and a linear head, as in published weights of image networks.

    Its encoder can initialise that of another model: `init: {from: RUN, modules: images}` for `crosspoint`.
    Source: He et al. 2016, table 1; Dosovitskiy et al. 2021, section 3.1 (the head of fine-tuning).
    """

    def __init__(self, *, images: ImageEncoder, num_classes: int) -> None:
        super().__init__()
        self.images = images
        self.head = nn.Linear(images.feature_width, num_classes)

    def forward(self, *, image: Tensor) -> ImageClassifierOutput:
        """Predict from `image` (B, 3, H, W), normalised."""
        return {"logits": self.head(self.images.encode(image=image))}
