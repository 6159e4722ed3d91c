"""SimCLR on vibration snippets.  Labels are never used in training; the held-out snippets come from
machines (classes) which training has not met.  Measure: recall@1 by cosine, leave-one-out."""
import torch
import torch.nn as nn
import torch.nn.functional as F
from torch.utils.data import DataLoader, Dataset, Subset, TensorDataset

T = 64
TEMPERATURE = 0.2
g = torch.Generator().manual_seed(404)


def nuisances(x, gen=None):
    """What the sensor adds: gain, circular delay, slow trend, white noise.  x: (T,)"""
    r = lambda *s: torch.rand(*s, generator=gen)
    n = lambda *s: torch.randn(*s, generator=gen)
    t = torch.linspace(-1, 1, T)
    x = x.roll(int(r(()) * T)) * (0.5 + r(()))
    trend = 1.5 * n(()) * t + 1.5 * n(()) * (t ** 2 - 1 / 3) + 1.0 * n(())
    return x + trend + 0.25 * n(T)


def machines(n_machines, per_machine):
    """Each machine has its own set of overtones; snippets of it differ by the sensor's nuisances."""
    t = torch.arange(T) * (2 * torch.pi / T)
    xs, ys = [], []
    for m in range(n_machines):
        amp = torch.zeros(12)
        amp[torch.randperm(12, generator=g)[:4]] = 0.5 + torch.rand(4, generator=g)
        phase = 2 * torch.pi * torch.rand(12, 1, generator=g)
        clean = (amp[:, None] * torch.sin(torch.arange(3, 15)[:, None] * t + phase)).sum(0)
        for _ in range(per_machine):
            xs.append(nuisances(clean, g))
            ys.append(m)
    return torch.stack(xs), torch.tensor(ys)


class TwoViews(Dataset):
    """Two independent augmentations of the same snippet, no label."""

    def __init__(self, base):
        self.base = base

    def __len__(self):
        return len(self.base)

    def __getitem__(self, i):
        x, _ = self.base[i]
        return nuisances(x), nuisances(x)


class Encoder(nn.Module):
    def __init__(self, width=128, out=32):
        super().__init__()
        self.backbone = nn.Sequential(nn.Linear(T, width), nn.BatchNorm1d(width), nn.ReLU(),
                                      nn.Linear(width, width), nn.BatchNorm1d(width), nn.ReLU(),
                                      nn.Linear(width, width))
        self.projector = nn.Sequential(nn.BatchNorm1d(width), nn.ReLU(), nn.Linear(width, out))

    def forward(self, x):
        return F.normalize(self.projector(self.backbone(x)), dim=1)

    def embed(self, x):                      # what is kept after training
        return F.normalize(self.backbone(x), dim=1)


def nt_xent(za, zb):
    z = torch.cat([za, zb])
    n = len(za)
    sim = z @ z.t() / TEMPERATURE
    sim.fill_diagonal_(-float("inf"))        # no sample is its own negative
    partner = torch.cat([torch.arange(n) + n, torch.arange(n)])
    return F.cross_entropy(sim, partner)


torch.manual_seed(404)
everything = TensorDataset(*machines(60, 40))
is_new = everything.tensors[1] >= 48
known, unmet = (Subset(everything, mask.nonzero().flatten().tolist()) for mask in (~is_new, is_new))
loader = DataLoader(TwoViews(known), batch_size=128, shuffle=True, drop_last=True)
evaluation = DataLoader(unmet, batch_size=128)
model = Encoder()
optimizer = torch.optim.AdamW(model.parameters(), lr=2e-3, weight_decay=1e-4)


def step(batch):
    a, b = batch
    za, zb = model(torch.cat([a, b])).chunk(2)
    return nt_xent(za, zb)


def score(model, loader):
    training, _ = model.training, model.eval()
    with torch.no_grad():
        parts = [(model.embed(x), y) for x, y in loader]
    model.train(training)
    emb, lab = (torch.cat(p) for p in zip(*parts))        # all held-out snippets at once
    sim = emb @ emb.t()
    sim.fill_diagonal_(-2.0)                              # a query may not find itself
    return (lab[sim.argmax(1)] == lab).float().mean().item()


def main(epochs=15):
    print(f"recall@1 before: {score(model, evaluation):.3f}")
    for epoch in range(epochs):
        model.train()
        for batch in loader:
            loss = step(batch)
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()
        print(f"epoch {epoch + 1}: nt-xent {loss.item():.3f}  recall@1 {score(model, evaluation):.3f}")


if __name__ == "__main__":
    main()
