"""https://github.com/verl-project/verl/pull/3287

In supervised fine-tuning, the labels were shifted by one token, but the mask of the answer was cut at its other end.
The first token of the answer is therefore never learnt, and padding after the end is learnt in its place.
Held-out answers whose first two tokens are right, seed 0: 1.000 healthy, 0.020 with the bug.
"""

from contextlib import nullcontext

import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

EQUALS, END, PAD, VOCABULARY = 10, 11, 12, 13


class Transformer(nn.Module):
    def __init__(self, width=48, length=10):
        super().__init__()
        self.tokens = nn.Embedding(VOCABULARY, width)
        self.places = nn.Parameter(0.02 * torch.randn(length, width))
        layer = nn.TransformerEncoderLayer(width, 4, 96, dropout=0.0, batch_first=True, norm_first=True)
        self.blocks = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)
        self.head = nn.Linear(width, VOCABULARY)

    def forward(self, tokens):
        length = tokens.shape[1]
        causal = torch.triu(torch.ones(length, length, dtype=torch.bool), 1)
        return self.head(self.blocks(self.tokens(tokens) + self.places[:length], mask=causal))


def questions(count, seed, has_bug=False):
    """Return `a b =` answered by the larger digit, its successor, sometimes a third token, and the end."""
    generator = torch.Generator().manual_seed(seed)
    digits = torch.randint(10, (count, 2), generator=generator)
    larger = digits.max(1).values
    long = torch.rand(count, generator=generator) < 0.5
    third = torch.where(long, (larger + 2) % 10, END)
    columns = [digits[:, 0], digits[:, 1], torch.full((count,), EQUALS), larger, (larger + 1) % 10, third]
    tokens = torch.stack([*columns, torch.where(long, END, PAD), torch.full((count,), PAD)], 1)
    loss_mask = torch.zeros_like(tokens)
    loss_mask[:, 3:6] = 1
    loss_mask[:, 6] = long
    inputs, labels = tokens[:, :-1], tokens[:, 1:]
    loss_mask = loss_mask[:, :-1] if has_bug else loss_mask[:, 1:]
    return TensorDataset(inputs, labels.masked_fill(loss_mask == 0, -100))


def loss_fn(logits, labels):
    return nn.functional.cross_entropy(logits.flatten(0, 1), labels.flatten(), ignore_index=-100)


def main(has_bug, watch, check):
    torch.manual_seed(0)
    model = Transformer()
    loader = DataLoader(questions(1500, 1, has_bug), batch_size=50, shuffle=True)
    optimizer = torch.optim.AdamW(model.parameters(), lr=2e-3)
    check(model, loss_fn, loader, optimizer=optimizer)
    with watch(model, optimizer=optimizer, loss=loss_fn, loader=loader):
        for _ in range(8):
            for inputs, labels in loader:
                loss = loss_fn(model(inputs), labels)
                optimizer.zero_grad()
                loss.backward()
                nn.utils.clip_grad_norm_(model.parameters(), 1.0)
                optimizer.step()
    prompt = questions(400, 2).tensors[0][:, :3]
    written = prompt
    model.eval()
    with torch.no_grad():
        for _ in range(2):
            written = torch.cat([written, model(written)[:, -1:].argmax(2)], 1)
    larger = prompt[:, :2].max(1).values
    return ((written[:, 3] == larger) & (written[:, 4] == (larger + 1) % 10)).float().mean().item()


if __name__ == "__main__":
    torch.set_num_threads(1)
    for has_bug in (False, True):
        score = main(has_bug, lambda *_, **__: nullcontext(), lambda *_, **__: None)
        print("bug" if has_bug else "healthy", round(score, 3))
