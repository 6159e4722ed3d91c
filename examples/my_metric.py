"""A metric in ten lines: the mean over all clouds of a number per cloud."""

from torch import Tensor

import sightline


@sightline.register.metric("true_class_probability")
class TrueClassProbability(sightline.MeanMetric):
    """The probability of a cloud's own class, 0 to 1."""

    figures = ("true_class_probability",)
    higher_is_better = True

    def values(self, *, probabilities: Tensor, label: Tensor) -> Tensor:
        return probabilities.gather(1, label[:, None])[:, 0]
