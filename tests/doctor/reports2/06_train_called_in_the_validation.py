"""https://github.com/pliang279/MultiBench/issues/26

The validation calls model.eval(), and a few lines later model.train() before its batches.
Accuracy that is reported, seed 0: 0.980 healthy, 0.836 with the bug.
"""

from contextlib import nullcontext

import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset


def modalities(count, seed):
    """A number in 0 .. 9 is the sum of what is seen and what is heard."""
    generator = torch.Generator().manual_seed(seed)
    seen, heard = (torch.randint(5, (count,), generator=generator) for _ in range(2))
    codes = torch.randn(2, 5, 20, generator=torch.Generator().manual_seed(0))
    parts = (
        codes[m][value] + 0.9 * torch.randn(count, 20, generator=generator) for m, value in enumerate((seen, heard))
    )
    return TensorDataset(*parts, (seen + heard)[:, None])


def encoder():
    return nn.Sequential(nn.Linear(20, 64), nn.BatchNorm1d(64), nn.ReLU(), nn.Dropout(0.4))


class MMDL(nn.Module):
    def __init__(self, encoders, head):
        super().__init__()
        self.encoders, self.head = nn.ModuleList(encoders), head

    def forward(self, inputs):
        return self.head(torch.cat([encoder(x) for encoder, x in zip(self.encoders, inputs, strict=True)], 1))


def main(has_bug, watch, check):
    torch.manual_seed(0)
    train_loader = DataLoader(modalities(1500, 1), batch_size=40, shuffle=True)
    valid_loader = DataLoader(modalities(500, 2), batch_size=40)
    head = nn.Sequential(nn.Linear(128, 64), nn.ReLU(), nn.Dropout(0.4), nn.Linear(64, 9))
    model = MMDL([encoder(), encoder()], head)
    objective = nn.CrossEntropyLoss()
    op = torch.optim.RMSprop([p for p in model.parameters() if p.requires_grad], lr=1e-3)

    def step(batch):
        *inputs, label = batch
        return objective(model([x.float() for x in inputs]), label.squeeze(1))

    def validate(model, loader):
        model.eval()
        correct = 0
        with torch.no_grad():
            if has_bug:
                model.train()
            for *inputs, label in loader:
                correct += (model([x.float() for x in inputs]).argmax(1) == label[:, 0]).sum().item()
        return correct / len(loader.dataset)

    check(model, step=step, loader=train_loader, optimizer=op, evaluation=valid_loader, score=validate)
    with watch(model, optimizer=op, loader=train_loader):
        for _ in range(12):
            model.train()
            for batch in train_loader:
                op.zero_grad()
                step(batch).backward()
                nn.utils.clip_grad_norm_(model.parameters(), 8)
                op.step()
            accuracy = validate(model, valid_loader)
    return accuracy


if __name__ == "__main__":
    for has_bug in (False, True):
        print("bug" if has_bug else "healthy", main(has_bug, lambda *_, **__: nullcontext(), lambda *_, **__: None))
