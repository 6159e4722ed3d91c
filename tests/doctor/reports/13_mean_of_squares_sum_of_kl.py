"""https://github.com/zdebruine/MMVAE/pull/19

A variational autoencoder added the mean squared error over all elements to a divergence summed over all of them.
The divergence outweighs the reconstruction by far, drops to zero in a few epochs, and the code carries nothing.
Held-out mean squared error of the reconstruction, seed 0: 0.035 healthy, 0.606 with the bug.
"""

from contextlib import nullcontext

import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.data import DataLoader, TensorDataset


class VAE(nn.Module):
    def __init__(self, features=60, latents=8):
        super().__init__()
        self.encoder = nn.Sequential(nn.Linear(features, 96), nn.ReLU(), nn.Linear(96, 2 * latents))
        self.decoder = nn.Sequential(nn.Linear(latents, 96), nn.ReLU(), nn.Linear(96, features))

    def forward(self, x):
        mu, logvar = self.encoder(x).chunk(2, 1)
        z = mu + torch.randn_like(mu) * (0.5 * logvar).exp() if self.training else mu
        return self.decoder(z), mu, logvar


def genes(count, seed):
    """Expressions of 60 genes that follow 5 hidden programmes."""
    mixing = torch.randn(5, 60, generator=torch.Generator().manual_seed(0))
    generator = torch.Generator().manual_seed(seed)
    hidden = torch.randn(count, 5, generator=generator)
    return torch.tanh(hidden @ mixing) + 0.1 * torch.randn(count, 60, generator=generator)


def main(has_bug, watch, check):
    def loss_fn(outputs, x):
        reconstruction, mu, logvar = outputs
        kl = -0.5 * torch.sum(1 + logvar - mu**2 - logvar.exp())
        if has_bug:
            return F.mse_loss(reconstruction, x) + kl
        return (F.mse_loss(reconstruction, x, reduction="sum") + 0.1 * kl) / len(x)

    torch.manual_seed(0)
    train, test = genes(3000, 1), genes(500, 2)
    loader = DataLoader(TensorDataset(train, train), batch_size=50, shuffle=True)
    model = VAE()
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
    check(model, loss_fn, loader, optimizer=optimizer)
    with watch(model, optimizer=optimizer, loss=loss_fn, loader=loader):
        for _ in range(30):
            model.train()
            for x, same in loader:
                loss = loss_fn(model(x), same)
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
            model.eval()
            with torch.no_grad():
                error = F.mse_loss(model(test)[0], test).item()
    return error


if __name__ == "__main__":
    torch.set_num_threads(1)
    for has_bug in (False, True):
        score = main(has_bug, lambda *_, **__: nullcontext(), lambda *_, **__: None)
        print("bug" if has_bug else "healthy", round(score, 3))
