"""https://github.com/ClementPinard/SfmLearner-Pytorch/issues/5

With a scheduler the loop calls scheduler.step() in place of optimizer.step(): the weights never change.
Held-out accuracy, seed 0: 1.0 healthy, 0.203 with the bug.
"""

import warnings
from contextlib import nullcontext

import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset


def views(count, seed):
    """Two pictures of a random texture whose left and right halves are shifted by unlike disparities."""
    generator = torch.Generator().manual_seed(seed)
    texture = torch.randn(count, 1, 16, 40, generator=generator)
    disparity = torch.randint(5, (count, 2), generator=generator)
    target = texture[..., 8:24]
    columns = torch.arange(16).expand(count, 16) + 8 + disparity.repeat_interleave(8, 1)
    return TensorDataset(target, texture.gather(3, columns[:, None, None].expand(count, 1, 16, 16)), disparity)


class DispNet(nn.Module):
    def __init__(self):
        super().__init__()
        self.layers = nn.Sequential(
            nn.Conv2d(10, 32, 3, padding=1), nn.ReLU(), nn.Conv2d(32, 32, 3, padding=1), nn.ReLU(),
            nn.AdaptiveAvgPool2d((1, 2)), nn.Conv2d(32, 5, 1),
        )  # fmt: skip

    def forward(self, target, reference):
        shifted = [target.roll(shift, 3) * reference for shift in range(-4, 5)]
        return self.layers(torch.cat([*shifted, target], 1))[:, :, 0]


def validate(disp_net, loader):
    disp_net.eval()
    with torch.no_grad():
        hits = [(disp_net(tgt, ref).argmax(1) == truth).float() for tgt, ref, truth in loader]
    return torch.cat(hits).mean().item()


def main(has_bug, watch, check):
    warnings.simplefilter("ignore")
    torch.manual_seed(0)
    train_loader = DataLoader(views(800, 1), batch_size=32, shuffle=True)
    val_loader = DataLoader(views(200, 2), batch_size=32)
    disp_net = DispNet()
    optimizer = torch.optim.Adam(disp_net.parameters(), lr=2e-3, betas=(0.9, 0.999))
    scheduler = torch.optim.lr_scheduler.StepLR(optimizer, step_size=100, gamma=0.5)

    def step(batch):
        tgt, ref, truth = batch
        return nn.functional.cross_entropy(disp_net(tgt, ref), truth)

    check(disp_net, step=step, loader=train_loader, optimizer=optimizer, evaluation=val_loader, score=validate)
    with watch(disp_net, optimizer=optimizer, loader=train_loader):
        for _ in range(8):
            disp_net.train()
            for batch in train_loader:
                loss = step(batch)
                optimizer.zero_grad()
                loss.backward()
                if not has_bug:
                    optimizer.step()
                scheduler.step()
            accuracy = validate(disp_net, val_loader)
    return accuracy


if __name__ == "__main__":
    for has_bug in (False, True):
        print("bug" if has_bug else "healthy", main(has_bug, lambda *_, **__: nullcontext(), lambda *_, **__: None))
