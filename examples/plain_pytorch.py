"""A loop of one's own in plain PyTorch on a data set of a config: python examples/plain_pytorch.py"""

import torch
from torch import nn

import sightline

CONFIG = "configs/classify/synthetic_shapes_pointnet.yaml"


def main(*, epochs: int = 3, train_size: int = 480) -> float:
    """Train two layers and a maximum over the points; return the accuracy on the test split."""
    torch.manual_seed(0)
    overrides = [f"data.train_size={train_size}", "data.test_size=96"]
    train = sightline.load_data(CONFIG, "train", overrides=overrides)
    test = sightline.load_data(CONFIG, "test", overrides=overrides)
    embed = nn.Sequential(nn.Linear(train.facts["in_channels"], 64), nn.ReLU(), nn.Linear(64, 128))
    head = nn.Linear(128, train.facts["num_classes"])
    optimizer = torch.optim.Adam([*embed.parameters(), *head.parameters()], lr=3e-3)
    loader = train.loader(batch_size=16)
    for _ in range(epochs):
        for batch in loader:
            loss = nn.functional.cross_entropy(head(embed(batch["points"]).amax(dim=1)), batch["label"])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    with torch.no_grad():
        batch = test[:]
        predicted = head(embed(batch["points"]).amax(dim=1)).argmax(dim=1)
    return (predicted == batch["label"]).float().mean().item()


if __name__ == "__main__":
    print(f"accuracy {main():.3f}")
