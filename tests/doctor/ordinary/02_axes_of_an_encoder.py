"""A transformer over tokens of shape (batch, time, width) is built without `batch_first=True`.

Each token then attends to the tokens at its place in the other samples of the batch.
"""

from contextlib import nullcontext

import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.data import DataLoader, TensorDataset


class Tagger(nn.Module):
    def __init__(self, has_bug, vocabulary=12, width=32, length=10):
        super().__init__()
        self.words = nn.Embedding(vocabulary, width)
        self.places = nn.Parameter(0.1 * torch.randn(length, width))
        layer = nn.TransformerEncoderLayer(width, 4, 64, dropout=0.0, batch_first=not has_bug)
        self.encoder = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)
        self.head = nn.Linear(width, 2)

    def forward(self, tokens):
        return self.head(self.encoder(self.words(tokens) + self.places).mean(1))


def sequences(count, seed):
    """The class is whether the first token comes again."""
    generator = torch.Generator().manual_seed(seed)
    tokens = torch.randint(12, (count, 10), generator=generator)
    labels = (tokens[:, 1:] == tokens[:, :1]).any(1).long()
    return TensorDataset(tokens, labels)


def main(has_bug, watch, check):
    torch.manual_seed(0)
    model = Tagger(has_bug)
    optimizer = torch.optim.Adam(model.parameters(), lr=2e-3)
    loader = DataLoader(sequences(3000, 1), batch_size=50, shuffle=True)
    check(model, F.cross_entropy, loader, optimizer=optimizer)
    with watch(model, optimizer=optimizer):
        for _ in range(15):
            for tokens, labels in loader:
                loss = F.cross_entropy(model(tokens), labels)
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
    model.eval()
    tokens, labels = sequences(500, 2).tensors
    with torch.no_grad():
        return (model(tokens).argmax(1) == labels).float().mean().item()


if __name__ == "__main__":
    torch.set_num_threads(1)
    for has_bug in (False, True):
        score = main(has_bug, lambda *_, **__: nullcontext(), lambda *_, **__: None)
        print("bug" if has_bug else "healthy", round(score, 3))
