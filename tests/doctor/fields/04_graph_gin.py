"""Which random process made this graph? (Erdos-Renyi / preferential attachment / small world)
All three have about 2n edges, so the answer lies in the structure.  GIN, no graph library."""
from collections import namedtuple

import numpy as np
import torch
from torch import nn
from torch.utils.data import DataLoader

Graph = namedtuple("Graph", "num_nodes edge_index y")
GraphBatch = namedtuple("GraphBatch", "x edge_index graph_of_node num_graphs y")
N_CLASSES = 3


def sample_graph(kind, rng):
    n = int(rng.integers(14, 31))
    edges = set()
    add = lambda a, b: edges.add((min(a, b), max(a, b))) if a != b else None
    if kind == 0:
        while len(edges) < 2 * n - 3:
            add(*map(int, rng.integers(0, n, 2)))
    elif kind == 1:
        stubs = [0, 1, 1, 2, 2, 0]
        edges |= {(0, 1), (1, 2), (0, 2)}
        for v in range(3, n):
            chosen = set()
            while len(chosen) < 2:
                chosen.add(stubs[rng.integers(len(stubs))])     # proportional to degree
            for u in chosen:
                add(v, u)
                stubs += [v, u]
    else:
        for v in range(n):
            for hop in (1, 2):
                add(v, int(rng.integers(0, n)) if rng.random() < 0.25 else (v + hop) % n)   # some rewired
    one_way = np.array(sorted(edges)).T
    perm = rng.permutation(n)                                   # node order must tell nothing
    ei = perm[np.concatenate([one_way, one_way[::-1]], axis=1)]  # undirected: both directions
    return Graph(n, torch.from_numpy(ei), kind)


def collate(graphs):
    """Disjoint union of the graphs: node indices are shifted, x is a constant feature."""
    sizes = torch.tensor([g.num_nodes for g in graphs])
    offset = torch.cumsum(sizes, 0) - sizes
    return GraphBatch(x=torch.ones(int(sizes.sum()), 1),
                      edge_index=torch.cat([g.edge_index + o for g, o in zip(graphs, offset)], dim=1),
                      graph_of_node=torch.repeat_interleave(torch.arange(len(graphs)), sizes),
                      num_graphs=len(graphs), y=torch.tensor([g.y for g in graphs]))


class GINLayer(nn.Module):
    def __init__(self, d_in, d_out):
        super().__init__()
        self.eps = nn.Parameter(torch.zeros(()))
        self.mlp = nn.Sequential(nn.Linear(d_in, d_out), nn.BatchNorm1d(d_out), nn.ReLU(),
                                 nn.Linear(d_out, d_out), nn.ReLU())

    def forward(self, x, edge_index):
        source, target = edge_index
        agg = torch.zeros_like(x).index_add(0, target, x[source])
        return self.mlp((1 + self.eps) * x + agg)


class GIN(nn.Module):
    def __init__(self, hidden=32, depth=3):
        super().__init__()
        self.layers = nn.ModuleList(GINLayer(1 if i == 0 else hidden, hidden) for i in range(depth))
        self.readout = nn.Sequential(nn.Dropout(0.2), nn.Linear(2 * hidden * depth, N_CLASSES))

    def forward(self, g):
        x, pooled = g.x, []
        count = torch.bincount(g.graph_of_node, minlength=g.num_graphs).unsqueeze(1)
        for layer in self.layers:
            x = layer(x, g.edge_index)
            mean = lambda v: v.new_zeros(g.num_graphs, v.shape[1]).index_add(0, g.graph_of_node, v) / count
            pooled += [mean(x), mean(x.square())]
        return self.readout(torch.cat(pooled, dim=1))


gen = np.random.default_rng(99)
torch.manual_seed(99)
graphs = [sample_graph(i % N_CLASSES, gen) for i in range(900)]
order = gen.permutation(len(graphs))
loader = DataLoader([graphs[i] for i in order[:660]], batch_size=32, shuffle=True, drop_last=True, collate_fn=collate)
evaluation = DataLoader([graphs[i] for i in order[660:]], batch_size=100, collate_fn=collate)
model = GIN()
optimizer = torch.optim.Adam(model.parameters(), lr=2e-3, weight_decay=1e-5)


def step(batch):
    return nn.functional.cross_entropy(model(batch), batch.y)


@torch.no_grad()
def score(net, data):
    net.eval()
    confusion = torch.zeros(N_CLASSES, N_CLASSES)
    for g in data:
        cells = g.y * N_CLASSES + net(g).argmax(1)
        confusion += torch.bincount(cells, minlength=N_CLASSES ** 2).view(N_CLASSES, N_CLASSES)
    tp = confusion.diagonal()
    f1 = 2 * tp / (confusion.sum(0) + confusion.sum(1)).clamp(min=1)
    return {"acc": (tp.sum() / confusion.sum()).item(), "macro_f1": f1.mean().item()}


def main(epochs=8):
    print("epoch  0:", score(model, evaluation))
    for epoch in range(1, epochs + 1):
        model.train()
        for batch in loader:
            loss = step(batch)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        print(f"epoch {epoch:2d}: loss(last batch)={loss.item():.3f}", score(model, evaluation))


if __name__ == "__main__":
    main()
