"""https://github.com/samsledje/D-SCRIPT/issues/13

The set is doubled by exchanging the two proteins of each pair, and the labels of the exchanged pairs are flipped.
Held-out accuracy, seed 0: 0.705 healthy, 0.465 with the bug.
"""

from contextlib import nullcontext

import torch
from torch import nn
from torch.utils.data import DataLoader, Dataset


class Pairs(Dataset):
    """Proteins are rows of residues, one of which is of one of four kinds; two kinds interact with each other."""

    def __init__(self, count, seed, augment=None):
        generator = torch.Generator().manual_seed(seed)
        kinds = torch.randint(4, (2, count), generator=generator)
        kinds[1] = torch.where(torch.rand(count, generator=generator) < 0.3, kinds[0] ^ 1, kinds[1])
        codes = 2 * torch.randn(4, 8, generator=torch.Generator().manual_seed(0))
        residues = 0.7 * torch.randn(2, count, 6, 8, generator=generator)
        residues[:, :, 0] += codes[kinds]
        self.n0, self.n1 = residues
        self.y = (kinds[0] == kinds[1] ^ 1).float()
        if augment is not None:
            self.n0, self.n1 = torch.cat([self.n0, self.n1]), torch.cat([self.n1, self.n0])
            self.y = torch.cat([self.y, 1 - self.y if augment == "flipped" else self.y])

    def __len__(self):
        return len(self.y)

    def __getitem__(self, index):
        return self.n0[index], self.n1[index], self.y[index]


class Interaction(nn.Module):
    def __init__(self):
        super().__init__()
        self.embedding = nn.Sequential(nn.Linear(8, 48), nn.ReLU(), nn.Linear(48, 24))
        self.contact = nn.Sequential(nn.Conv2d(48, 24, 1), nn.ReLU(), nn.Conv2d(24, 1, 1))

    def forward(self, z0, z1):
        e0, e1 = self.embedding(z0)[:, :, None], self.embedding(z1)[:, None]
        contacts = self.contact(torch.cat([(e0 - e1).abs(), e0 * e1], 3).permute(0, 3, 1, 2))
        return torch.sigmoid(contacts.amax((1, 2, 3)))


def evaluate(model, loader):
    model.eval()
    with torch.no_grad():
        hits = [((model(z0, z1) > 0.5) == (y > 0.5)).float() for z0, z1, y in loader]
    return torch.cat(hits).mean().item()


def main(has_bug, watch, check):
    torch.manual_seed(0)
    train_loader = DataLoader(Pairs(800, 1, "flipped" if has_bug else "kept"), batch_size=25, shuffle=True)
    test_loader = DataLoader(Pairs(400, 2), batch_size=25)
    model = Interaction()
    optimizer = torch.optim.Adam(model.parameters(), lr=2e-3)

    def step(batch):
        z0, z1, y = batch
        return nn.functional.binary_cross_entropy(model(z0, z1), y)

    check(model, step=step, loader=train_loader, optimizer=optimizer, evaluation=test_loader, score=evaluate)
    with watch(model, optimizer=optimizer, loader=train_loader):
        for _ in range(10):
            model.train()
            for batch in train_loader:
                step(batch).backward()
                optimizer.step()
                optimizer.zero_grad()
            accuracy = evaluate(model, test_loader)
    return accuracy


if __name__ == "__main__":
    for has_bug in (False, True):
        print("bug" if has_bug else "healthy", main(has_bug, lambda *_, **__: nullcontext(), lambda *_, **__: None))
