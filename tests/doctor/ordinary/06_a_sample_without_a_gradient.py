"""A variational autoencoder draws its code by `.sample()` in place of `.rsample()`.

No gradient of the reconstruction reaches the encoder, which only the divergence trains.
"""

from contextlib import nullcontext

import torch
from torch import nn
from torch.distributions import Normal, kl_divergence
from torch.utils.data import DataLoader, TensorDataset


class VAE(nn.Module):
    def __init__(self, has_bug, width=20, code=3):
        super().__init__()
        self.has_bug = has_bug
        self.encoder = nn.Sequential(nn.Linear(width, 64), nn.ReLU(), nn.Linear(64, 2 * code))
        self.decoder = nn.Sequential(nn.Linear(code, 64), nn.ReLU(), nn.Linear(64, width))

    def forward(self, x):
        mean, log_scale = self.encoder(x).chunk(2, dim=1)
        posterior = Normal(mean, log_scale.exp())
        code = posterior.sample() if self.has_bug else posterior.rsample()
        return self.decoder(code), posterior


def curves(count, seed):
    """Rows of 20 numbers on a surface of two dimensions."""
    generator = torch.Generator().manual_seed(seed)
    places = 2 * torch.randn(count, 2, generator=generator)
    mixing = torch.randn(2, 20, generator=torch.Generator().manual_seed(9))
    return TensorDataset(torch.tanh(places @ mixing) + 0.05 * torch.randn(count, 20, generator=generator))


def negative_bound(outputs, x):
    reconstruction, posterior = outputs
    divergence = kl_divergence(posterior, Normal(0.0, 1.0)).sum(1)
    return (10 * (reconstruction - x).square().sum(1) + divergence).mean()


def main(has_bug, watch, check):
    torch.manual_seed(0)
    model = VAE(has_bug)
    optimizer = torch.optim.Adam(model.parameters(), lr=2e-3)
    loader = DataLoader(curves(2000, 1), batch_size=50, shuffle=True)
    check(model, loader=loader, step=lambda batch: negative_bound(model(batch[0]), batch[0]), optimizer=optimizer)
    with watch(model, optimizer=optimizer):
        for _ in range(12):
            for (x,) in loader:
                loss = negative_bound(model(x), x)
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
    (x,) = curves(500, 2).tensors
    with torch.no_grad():
        return (model(x)[0] - x).square().mean().item()


if __name__ == "__main__":
    torch.set_num_threads(1)
    for has_bug in (False, True):
        score = main(has_bug, lambda *_, **__: nullcontext(), lambda *_, **__: None)
        print("bug" if has_bug else "healthy", round(score, 3))
