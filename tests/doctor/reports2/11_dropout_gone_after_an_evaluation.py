"""https://github.com/NVIDIA/Megatron-LM/pull/411

The attention sets its rate of dropout to 0 in an evaluation, and keeps it there in all training that follows.
Held-out accuracy, seed 0: 0.874 healthy, 0.873 with the bug.
"""

from contextlib import nullcontext

import torch
from torch import nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, TensorDataset


class FlashSelfAttention(nn.Module):
    def __init__(self, width, heads, dropout_p, keeps_zero):
        super().__init__()
        self.qkv, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.heads, self.dropout_p, self.keeps_zero = heads, dropout_p, keeps_zero

    def forward(self, x):
        if self.keeps_zero:
            if not self.training:
                self.dropout_p = 0.0
            dropout_p = self.dropout_p
        else:
            dropout_p = self.dropout_p if self.training else 0.0
        q, k, v = self.qkv(x).unflatten(2, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        mixed = F.scaled_dot_product_attention(q, k, v, dropout_p=dropout_p)
        return self.out(mixed.transpose(1, 2).flatten(2))


class Classifier(nn.Module):
    def __init__(self, keeps_zero):
        super().__init__()
        self.tokens, self.places = nn.Embedding(16, 32), nn.Parameter(0.1 * torch.randn(12, 32))
        self.attention = nn.ModuleList(FlashSelfAttention(32, 4, 0.3, keeps_zero) for _ in range(2))
        self.norms = nn.ModuleList(nn.LayerNorm(32) for _ in range(2))
        self.head = nn.Sequential(nn.Linear(32, 64), nn.GELU(), nn.Linear(64, 4))

    def forward(self, ids):
        x = self.tokens(ids) + self.places
        for norm, attention in zip(self.norms, self.attention, strict=True):
            x = x + attention(norm(x))
        return self.head(x.mean(1))


def words(count, seed):
    """The class is how many of four tokens come before the first of four others, at most three."""
    ids = torch.randint(16, (count, 12), generator=torch.Generator().manual_seed(seed))
    is_before = ((ids >= 4) & (ids < 8)).cumsum(1) == 0
    return TensorDataset(ids, ((ids < 4) & is_before).sum(1).clamp(max=3))


def evaluate(model, loader):
    model.eval()
    with torch.no_grad():
        return sum((model(ids).argmax(1) == labels).sum().item() for ids, labels in loader) / len(loader.dataset)


def main(has_bug, watch, check):
    torch.manual_seed(0)
    loader = DataLoader(words(800, 1), batch_size=32, shuffle=True)
    test_loader = DataLoader(words(800, 2), batch_size=100)
    model = Classifier(keeps_zero=has_bug)
    optimizer = torch.optim.AdamW(model.parameters(), lr=2e-3)
    loss_fn = nn.CrossEntropyLoss()
    check(model, loss_fn, loader, optimizer=optimizer, evaluation=test_loader, score=evaluate)
    with watch(model, optimizer=optimizer, loss=loss_fn, loader=loader):
        for _ in range(20):
            model.train()
            for ids, labels in loader:
                optimizer.zero_grad()
                loss_fn(model(ids), labels).backward()
                optimizer.step()
            accuracy = evaluate(model, test_loader)
    return accuracy


if __name__ == "__main__":
    for has_bug in (False, True):
        print("bug" if has_bug else "healthy", main(has_bug, lambda *_, **__: nullcontext(), lambda *_, **__: None))
