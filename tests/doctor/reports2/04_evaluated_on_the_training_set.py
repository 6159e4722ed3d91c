"""https://github.com/bkong999/COVNet/issues/12

The metric of each epoch, by which the best network is kept, is evaluated on the training set instead of the validation
set.
Best accuracy that is reported and the one on the validation set, seed 0: 0.825 and 0.825 healthy, 1.0 and 0.808 with
the bug.
"""

import copy
from contextlib import nullcontext

import torch
from torch import nn
from torch.utils.data import DataLoader, Dataset, WeightedRandomSampler


class Scans(Dataset):
    """Stacks of six slices; in two classes a few slices have bright or dark spots."""

    def __init__(self, count, seed):
        generator = torch.Generator().manual_seed(seed)
        self.labels = (torch.rand(count, generator=generator) * 4).long().clamp(max=2)
        self.images = 0.5 * torch.randn(count, 6, 1, 16, 16, generator=generator)
        for image, label in zip(self.images, self.labels, strict=True):
            for index in torch.randperm(6, generator=generator)[:2]:
                row, column = torch.randint(13, (2,), generator=generator).tolist()
                image[index, 0, row : row + 3, column : column + 3] += (0.0, 0.7, -0.7)[int(label)]

    def __len__(self):
        return len(self.labels)

    def __getitem__(self, index):
        return self.images[index], self.labels[index], f"case{index}"


class COVNet(nn.Module):
    def __init__(self):
        super().__init__()
        self.features = nn.Sequential(
            nn.Conv2d(1, 16, 3, padding=1),
            nn.ReLU(),
            nn.Conv2d(16, 32, 3, padding=1),
            nn.ReLU(),
            nn.AdaptiveMaxPool2d(1),
        )
        self.classifier = nn.Linear(32, 3)

    def forward(self, images):
        features = self.features(images.flatten(0, 1)).view(*images.shape[:2], 32)
        return self.classifier(features.amax(1))


def evaluate_model(model, loader):
    model.eval()
    with torch.no_grad():
        hits = [(model(image).argmax(1) == label).float() for image, label, _ in loader]
    return torch.cat(hits).mean().item()


def main(has_bug, watch, check):
    torch.manual_seed(0)
    train_set, val_set = Scans(90, 1), Scans(120, 2)
    weights = (1 / train_set.labels.bincount())[train_set.labels]
    train_loader = DataLoader(train_set, batch_size=8, sampler=WeightedRandomSampler(weights, len(train_set)))
    val_loader = DataLoader(val_set, batch_size=8)
    model = COVNet()
    metric = nn.CrossEntropyLoss()
    optimizer = torch.optim.Adam(model.parameters(), lr=2e-3)

    def step(batch):
        return metric(model(batch[0]), batch[1])

    check(model, step=step, loader=train_loader, optimizer=optimizer, evaluation=val_loader, score=evaluate_model)
    best = 0.0
    with watch(model, optimizer=optimizer, loader=train_loader):
        for _ in range(14):
            model.train()
            for image, label, _ in train_loader:
                optimizer.zero_grad()
                metric(model(image), label).backward()
                optimizer.step()
            val_acc = evaluate_model(model, train_loader if has_bug else val_loader)
            if val_acc > best:
                best, kept = val_acc, copy.deepcopy(model.state_dict())
    model.load_state_dict(kept)
    return best, evaluate_model(model, val_loader)


if __name__ == "__main__":
    for has_bug in (False, True):
        print("bug" if has_bug else "healthy", main(has_bug, lambda *_, **__: nullcontext(), lambda *_, **__: None))
