"""https://github.com/mlcommons/training_policies/issues/131

The hit rate of neural collaborative filtering counted only negatives with a higher score than the positive item.
All ties are then won by the positive one, and a model that gives many items the same score looks far better than it is.
Reported hit rate at 10, seed 0: 0.225 healthy (0.1 by chance), 0.325 with the bug.
"""

from contextlib import nullcontext

import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

USERS, ITEMS = 200, 600


class NeuMF(nn.Module):
    """Predict how much a user likes an item; never below zero."""

    def __init__(self, width=12):
        super().__init__()
        self.users, self.items = nn.Embedding(USERS, width), nn.Embedding(ITEMS, width)
        self.layers = nn.Sequential(nn.Linear(3 * width, 32), nn.ReLU(), nn.Linear(32, 1), nn.ReLU())
        nn.init.constant_(self.layers[2].bias, 0.3)

    def forward(self, pairs):
        user, item = self.users(pairs[:, 0]), self.items(pairs[:, 1])
        return self.layers(torch.cat([user, item, user * item], 1))[:, 0]


def tastes():
    """Return per user 20 liked items, drawn by a hidden taste."""
    generator = torch.Generator().manual_seed(1)
    taste = torch.randn(USERS, 4, generator=generator) @ torch.randn(4, ITEMS, generator=generator)
    gumbel = -(-torch.rand(USERS, ITEMS, generator=generator).log()).log()
    return (1.5 * taste + gumbel).topk(20).indices


def main(has_bug, watch, check):
    torch.manual_seed(0)
    liked = tastes()
    unliked = torch.ones(USERS, ITEMS).scatter(1, liked, 0.0)
    held_out = liked[torch.arange(USERS), torch.randint(20, (USERS,))]
    training = liked[liked != held_out[:, None]].reshape(USERS, 19)
    users = torch.arange(USERS)[:, None]
    positive = torch.stack([users.expand(-1, 19), training], 2).flatten(0, 1)
    drawn = torch.multinomial(unliked, 76)
    negative = torch.stack([users.expand(-1, 76), drawn], 2).flatten(0, 1)
    labels = torch.cat([torch.ones(len(positive)), torch.zeros(len(negative))])
    loader = DataLoader(TensorDataset(torch.cat([positive, negative]), labels), batch_size=128, shuffle=True)
    candidates = torch.cat([held_out[:, None], torch.multinomial(unliked, 99)], 1)
    model, loss_fn = NeuMF(), nn.MSELoss()
    optimizer = torch.optim.Adam(model.parameters(), lr=2e-3)
    check(model, loss_fn, loader, optimizer=optimizer)
    with watch(model, optimizer=optimizer, loss=loss_fn, loader=loader):
        for _ in range(15):
            for pairs, wanted in loader:
                loss = loss_fn(model(pairs), wanted)
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
            with torch.no_grad():
                scores = model(torch.stack([users.expand(-1, 100), candidates], 2).flatten(0, 1)).reshape(USERS, 100)
            scores = scores.round(decimals=1)  # as they are stored and shown
            ahead = scores[:, 1:] > scores[:, :1] if has_bug else scores[:, 1:] >= scores[:, :1]
            hit_rate = (ahead.sum(1) < 10).float().mean().item()
    return hit_rate


if __name__ == "__main__":
    torch.set_num_threads(1)
    for has_bug in (False, True):
        score = main(has_bug, lambda *_, **__: nullcontext(), lambda *_, **__: None)
        print("bug" if has_bug else "healthy", round(score, 3))
