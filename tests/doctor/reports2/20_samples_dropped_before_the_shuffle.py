"""https://github.com/NVlabs/VILA/pull/123

The sampler drops the samples that fill no batch before it shuffles: the same ones are left out of every epoch.
Held-out accuracy, seed 0: 0.945 healthy, 0.934 with the bug.
"""

from contextlib import nullcontext

import torch
from torch import nn
from torch.utils.data import DataLoader, Dataset, Sampler


class Captions(Dataset):
    """A patch vector and the four tokens that describe it."""

    def __init__(self, count, seed):
        generator = torch.Generator().manual_seed(seed)
        self.tokens = torch.randint(12, (count, 4), generator=generator)
        codes = torch.randn(4, 12, 32, generator=torch.Generator().manual_seed(0))
        self.images = sum(codes[place][self.tokens[:, place]] for place in range(4))
        self.images = self.images + 0.7 * torch.randn(count, 32, generator=generator)

    def __len__(self):
        return len(self.tokens)

    def __getitem__(self, index):
        return {"image": self.images[index], "labels": self.tokens[index]}


class LengthSampler(Sampler):
    def __init__(self, count, batch_size, drops_first):
        self.count, self.batch_size, self.drops_first, self.epoch = count, batch_size, drops_first, 0

    def __len__(self):
        return self.count // self.batch_size * self.batch_size

    def __iter__(self):
        generator = torch.Generator().manual_seed(self.epoch)
        self.epoch += 1
        if self.drops_first:
            return iter(torch.randperm(len(self), generator=generator).tolist())
        return iter(torch.randperm(self.count, generator=generator).tolist()[: len(self)])


class Captioner(nn.Module):
    def __init__(self):
        super().__init__()
        self.body = nn.Sequential(nn.Linear(32, 128), nn.ReLU(), nn.Linear(128, 48))

    def forward(self, image):
        return self.body(image).view(-1, 4, 12)


def main(has_bug, watch, check):
    torch.manual_seed(0)
    train_set = Captions(900, 1)
    loader = DataLoader(train_set, batch_size=200, sampler=LengthSampler(900, 200, drops_first=has_bug))
    model = Captioner()
    optimizer = torch.optim.AdamW(model.parameters(), lr=2e-3)

    def step(batch):
        return nn.functional.cross_entropy(model(batch["image"]).transpose(1, 2), batch["labels"])

    check(model, step=step, loader=loader, optimizer=optimizer)
    with watch(model, optimizer=optimizer, loader=loader):
        for _ in range(60):
            for batch in loader:
                optimizer.zero_grad()
                step(batch).backward()
                optimizer.step()
    test_set = Captions(1000, 2)
    with torch.no_grad():
        return (model(test_set.images).argmax(2) == test_set.tokens).float().mean().item()


if __name__ == "__main__":
    for has_bug in (False, True):
        print("bug" if has_bug else "healthy", main(has_bug, lambda *_, **__: nullcontext(), lambda *_, **__: None))
