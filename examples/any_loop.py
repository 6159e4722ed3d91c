"""A training script of plain PyTorch, as many repositories have one. It runs, and it has three bugs."""

import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.data import DataLoader, TensorDataset


def make_images(count, seed):
    """Draw images (count, 1, 28, 28) of bars and crosses in noise, and their classes 0 to 3."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.randint(4, (count,), generator=generator)
    images = torch.randn(count, 1, 28, 28, generator=generator)
    for image, label in zip(images, labels, strict=True):
        row, column = torch.randint(6, 22, (2,), generator=generator).tolist()
        if label != 1:
            image[0, row, column - 5 : column + 5] += 2
        if label != 0:
            image[0, row - 5 : row + 5, column] += 2
        if label == 3:
            image[0, row - 5 : row + 5, column - 1] += 2
    return TensorDataset(images, labels)


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv1 = nn.Conv2d(1, 16, 3, padding=1)
        self.norm = nn.BatchNorm2d(16)
        self.conv2 = nn.Conv2d(16, 32, 3, padding=1)
        self.dropout = nn.Dropout(0.2)
        self.fc = nn.Linear(32, 4)

    def forward(self, x):
        x = F.max_pool2d(F.relu(self.norm(self.conv1(x))), 2)
        x = F.relu(self.conv2(x)).amax(dim=(2, 3))
        return F.softmax(self.fc(self.dropout(x)), dim=1)


def test(model, loader):
    model.eval()
    with torch.no_grad():
        right = sum((model(x).argmax(dim=1) == y).sum().item() for x, y in loader)
    return right / len(loader.dataset)


def build():
    torch.manual_seed(0)
    model = Net()
    return model, torch.optim.SGD(model.parameters(), lr=0.02, momentum=0.9)


def train(model, optimizer, epochs=3):
    train_loader = DataLoader(make_images(1024, seed=1), batch_size=32, shuffle=True)
    test_loader = DataLoader(make_images(512, seed=2), batch_size=128)
    criterion = nn.CrossEntropyLoss()
    model.train()
    for epoch in range(epochs):
        for x, y in train_loader:
            loss = criterion(model(x), y)
            loss.backward()
            optimizer.step()
        print(f"epoch {epoch}: loss {loss.item():.3f}, accuracy {test(model, test_loader):.3f}")


if __name__ == "__main__":
    train(*build())
