"""The loss of my_project, worked by hand."""

import torch


def test_the_loss_of_one_prior_by_hand(parts):
    """A box that is its anchor has the deltas 0; the prior of the background does not count."""
    priors = torch.tensor([[0.0, 0.0, 8.0, 8.0], [8.0, 8.0, 16.0, 16.0]])
    codes = torch.tensor([[[0.5, 0.0, -0.25, 0.0], [9.0, 9.0, 9.0, 9.0]]])
    target = torch.tensor([[1, 0]])
    loss = parts.MyLoss()
    assert loss(codes=codes, priors=priors, target=target, matched_boxes=priors[None]).item() == 0.75
    assert loss.count(target=target) == 1
