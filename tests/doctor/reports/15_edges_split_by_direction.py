"""https://github.com/THUDM/CogDL/issues/18

For link prediction, an undirected graph lists every edge twice, and the split into training and test took them as two.
Most test edges are then training edges turned round, and the reported score is far above the true one.
Reported area under the curve, seed 0: 0.705 healthy (the true one), 0.871 with the bug.
"""

from contextlib import nullcontext

import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

NODES, GROUPS = 300, 6


def interactions():
    """Return all edges of an undirected graph of communities, each in both directions."""
    generator = torch.Generator().manual_seed(1)
    group = torch.arange(NODES) % GROUPS
    share = torch.where(group[:, None] == group, 0.25, 0.01)
    upper = (torch.rand(NODES, NODES, generator=generator) < share).triu(1)
    edges = upper.nonzero()
    return torch.cat([edges, edges.flip(1)]), upper | upper.T


class GraphEncoder(nn.Module):
    """Score pairs by the embeddings of both nodes, averaged over their neighbours in training."""

    def __init__(self, train_edges, width=32):
        super().__init__()
        self.embedding = nn.Embedding(NODES, width)
        nn.init.normal_(self.embedding.weight, std=0.3)
        adjacency = torch.eye(NODES)
        adjacency[train_edges[:, 0], train_edges[:, 1]] = 1
        self.register_buffer("adjacency", adjacency / adjacency.sum(1, keepdim=True))
        self.linear = nn.Linear(width, width)

    def forward(self, pairs):
        nodes = self.embedding.weight + self.linear(self.adjacency @ self.embedding.weight)
        return (nodes[pairs[:, 0]] * nodes[pairs[:, 1]]).sum(1)


def main(has_bug, watch, check):
    torch.manual_seed(0)
    edges, linked = interactions()
    if not has_bug:
        edges = edges[edges[:, 0] < edges[:, 1]]
    edges = edges[torch.randperm(len(edges))]
    num_test = len(edges) // 5
    test_edges, train_edges = edges[:num_test], edges[num_test:]
    if not has_bug:
        train_edges = torch.cat([train_edges, train_edges.flip(1)])

    def with_negatives(positives):
        pairs = torch.randint(NODES, (4 * len(positives), 2))
        pairs = pairs[(pairs[:, 0] != pairs[:, 1]) & ~linked[pairs[:, 0], pairs[:, 1]]][: len(positives)]
        return TensorDataset(torch.cat([positives, pairs]), torch.arange(2 * len(positives)).lt(len(positives)).float())

    train_loader = DataLoader(with_negatives(train_edges), batch_size=256, shuffle=True)
    test_loader = DataLoader(with_negatives(test_edges), batch_size=512)
    model = GraphEncoder(train_edges)
    loss_fn = nn.BCEWithLogitsLoss()
    optimizer = torch.optim.Adam(model.parameters(), lr=5e-3, weight_decay=3e-4)
    check(model, loss_fn, train_loader, optimizer=optimizer, evaluation=test_loader)
    with watch(model, optimizer=optimizer, loss=loss_fn, loader=train_loader, evaluation=test_loader):
        for _ in range(30):
            model.train()
            for pairs, labels in train_loader:
                loss = loss_fn(model(pairs), labels)
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
        model.eval()
        with torch.no_grad():
            scores = torch.cat([model(pairs) for pairs, _ in test_loader])
    positives, negatives = scores[:num_test], scores[num_test:]
    return (positives[:, None] > negatives).float().mean().item()


if __name__ == "__main__":
    torch.set_num_threads(1)
    for has_bug in (False, True):
        score = main(has_bug, lambda *_, **__: nullcontext(), lambda *_, **__: None)
        print("bug" if has_bug else "healthy", round(score, 3))
