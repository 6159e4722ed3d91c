"""https://github.com/bainjamain/pytorch-examples/issues/2

A notebook with batch norm and dropout never switches the network to evaluation mode.
Accuracy that is reported, seed 0: 0.920 healthy, 0.796 with the bug.
"""

from contextlib import nullcontext

import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset


def digits(count, seed):
    """Ten glyphs of 7 x 7, shifted and noisy."""
    generator = torch.Generator().manual_seed(seed)
    glyphs = (torch.rand(10, 7, 7, generator=torch.Generator().manual_seed(0)) > 0.6).float()
    labels = torch.randint(10, (count,), generator=generator)
    images = 0.4 * torch.randn(count, 1, 12, 12, generator=generator)
    for image, label, place in zip(
        images, labels, torch.randint(3, (count, 2), generator=generator).tolist(), strict=True
    ):
        image[0, place[0] : place[0] + 7, place[1] : place[1] + 7] += glyphs[label]
    return TensorDataset(images, labels)


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(1, 16, 3, padding=1), nn.BatchNorm2d(16)
        self.conv2, self.bn2 = nn.Conv2d(16, 32, 3, padding=1), nn.BatchNorm2d(32)
        self.drop = nn.Dropout(0.5)
        self.fc1, self.fc2 = nn.Linear(32 * 9, 64), nn.Linear(64, 10)

    def forward(self, x):
        x = nn.functional.max_pool2d(self.bn1(self.conv1(x)).relu(), 2)
        x = nn.functional.max_pool2d(self.bn2(self.conv2(x)).relu(), 2)
        return self.fc2(self.drop(self.fc1(x.flatten(1)).relu()))


def main(has_bug, watch, check):
    torch.manual_seed(0)
    train_loader = DataLoader(digits(1500, 1), batch_size=64, shuffle=True)
    test_loader = DataLoader(digits(500, 2), batch_size=10)
    net = Net()
    criterion = nn.CrossEntropyLoss()
    optimizer = torch.optim.SGD(net.parameters(), lr=0.02, momentum=0.9)

    def test(net, loader):
        if not has_bug:
            net.eval()
        correct = 0
        with torch.no_grad():
            for images, labels in loader:
                correct += (net(images).argmax(1) == labels).sum().item()
        return correct / len(loader.dataset)

    check(net, criterion, train_loader, optimizer=optimizer, evaluation=test_loader, score=test)
    with watch(net, optimizer=optimizer, loss=criterion, loader=train_loader):
        for _ in range(6):
            if not has_bug:
                net.train()
            for images, labels in train_loader:
                optimizer.zero_grad()
                criterion(net(images), labels).backward()
                optimizer.step()
            accuracy = test(net, test_loader)
    return accuracy


if __name__ == "__main__":
    for has_bug in (False, True):
        print("bug" if has_bug else "healthy", main(has_bug, lambda *_, **__: nullcontext(), lambda *_, **__: None))
