"""https://github.com/huggingface/transformers/pull/3532

New tokens were added and the table of embeddings was resized after its parameters had gone to the optimizer.
The optimizer keeps the old table, so the table in use is never updated while the rest is fine-tuned.
Held-out accuracy of the next token, seed 0: 1.000 healthy, 0.099 with the bug.
"""

from contextlib import nullcontext

import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

OLD, NEW = 20, 12  # tokens before and added


class LanguageModel(nn.Module):
    """A small GRU whose output layer shares the table of embeddings."""

    def __init__(self, vocabulary, width=48):
        super().__init__()
        self.embedding = nn.Embedding(vocabulary, width)
        nn.init.normal_(self.embedding.weight, std=0.1)
        self.rnn = nn.GRU(width, width, batch_first=True)

    def resize_token_embeddings(self, vocabulary):
        old = self.embedding
        self.embedding = nn.Embedding(vocabulary, old.embedding_dim)
        nn.init.normal_(self.embedding.weight, std=0.02)
        self.embedding.weight.data[: old.num_embeddings] = old.weight.data

    def forward(self, tokens):
        return F.linear(self.rnn(self.embedding(tokens))[0], self.embedding.weight)


def counting(count, seed, first, vocabulary):
    """Sequences that go up by one or two in a vocabulary, as the first two tokens show."""
    generator = torch.Generator().manual_seed(seed)
    start = torch.randint(vocabulary, (count, 1), generator=generator)
    step = torch.randint(1, 3, (count, 1), generator=generator)
    tokens = first + (start + step * torch.arange(9)) % vocabulary
    return TensorDataset(tokens[:, :-1], tokens[:, 1:])


def loss_fn(logits, labels):
    return F.cross_entropy(logits.flatten(0, 1), labels.flatten())


def train(model, optimizer, loader, epochs):
    for _ in range(epochs):
        for tokens, labels in loader:
            loss = loss_fn(model(tokens), labels)
            optimizer.zero_grad()
            loss.backward()
            nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()


def main(has_bug, watch, check):
    torch.manual_seed(0)
    model = LanguageModel(OLD)
    pretraining = DataLoader(counting(1500, 1, 0, OLD), batch_size=50, shuffle=True)
    train(model, torch.optim.Adam(model.parameters(), lr=3e-3), pretraining, 5)
    loader = DataLoader(counting(800, 2, OLD, NEW), batch_size=20, shuffle=True)
    if has_bug:
        optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
        model.resize_token_embeddings(OLD + NEW)
    else:
        model.resize_token_embeddings(OLD + NEW)
        optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
    check(model, loss_fn, loader, optimizer=optimizer)
    with watch(model, optimizer=optimizer, loss=loss_fn, loader=loader):
        train(model, optimizer, loader, 12)
    tokens, labels = counting(400, 3, OLD, NEW).tensors
    with torch.no_grad():
        return (model(tokens).argmax(2) == labels)[:, 1:].float().mean().item()


if __name__ == "__main__":
    torch.set_num_threads(1)
    for has_bug in (False, True):
        score = main(has_bug, lambda *_, **__: nullcontext(), lambda *_, **__: None)
        print("bug" if has_bug else "healthy", round(score, 3))
