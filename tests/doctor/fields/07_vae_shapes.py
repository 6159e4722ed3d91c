"""Bernoulli VAE on 16x16 binary pictures (rectangles, crosses, frames).

ELBO(x) = E_q(z|x)[log p(x|z)] - KL(q(z|x) || N(0, I)).     score: nats per image on unseen pictures,
as negative ELBO and as the tighter importance-weighted bound (both: lower is better).
"""
import math

import numpy as np
import torch
import torch.nn.functional as F
from torch import distributions as D
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

Z = 10
S = 16


def draw(rng):
    img = np.zeros((S, S), dtype=np.float32)
    h, w = rng.integers(5, 10, size=2)
    r, c = rng.integers(0, S - h), rng.integers(0, S - w)
    kind = rng.integers(3)
    if kind == 0:
        img[r:r + h, c:c + w] = 1
    elif kind == 1:
        img[r + h // 2, c:c + w] = 1
        img[r:r + h, c + w // 2] = 1
    else:
        img[r:r + h, c:c + w] = 1
        img[r + 1:r + h - 1, c + 1:c + w - 1] = 0
    flip = rng.random((S, S)) < 0.01
    return np.where(flip, 1 - img, img)


def tensor_of(n, seed):
    rng = np.random.default_rng(seed)
    return torch.from_numpy(np.stack([draw(rng) for _ in range(n)])).unsqueeze(1)


class VAE(nn.Module):
    def __init__(self):
        super().__init__()
        self.encoder = nn.Sequential(
            nn.Conv2d(1, 16, 4, 2, 1), nn.SiLU(),
            nn.Conv2d(16, 32, 4, 2, 1), nn.SiLU(), nn.Flatten(),
            nn.Linear(32 * 16, 128), nn.SiLU(), nn.Linear(128, 2 * Z),
        )
        self.decoder = nn.Sequential(
            nn.Linear(Z, 128), nn.SiLU(), nn.Linear(128, 32 * 16), nn.SiLU(), nn.Unflatten(1, (32, 4, 4)),
            nn.ConvTranspose2d(32, 16, 4, 2, 1), nn.SiLU(),
            nn.ConvTranspose2d(16, 1, 4, 2, 1),
        )

    def posterior(self, x):
        mu, log_var = self.encoder(x).chunk(2, dim=1)
        return mu, log_var.clamp(-10, 10)

    def log_likelihood(self, x, z):
        logits = self.decoder(z)
        return -F.binary_cross_entropy_with_logits(logits, x, reduction="none").flatten(1).sum(1)

    def forward(self, x):
        mu, log_var = self.posterior(x)
        z = mu + torch.exp(0.5 * log_var) * torch.randn_like(mu)      # reparametrised
        kl = 0.5 * (mu.pow(2) + log_var.exp() - 1 - log_var).sum(1)
        return self.log_likelihood(x, z), kl


torch.manual_seed(0)
loader = DataLoader(TensorDataset(tensor_of(2000, seed=1)), batch_size=64, shuffle=True, drop_last=True)
evaluation = DataLoader(TensorDataset(tensor_of(300, seed=2)), batch_size=100)
model = VAE()
optimizer = torch.optim.Adam(model.parameters(), lr=2e-3)


def step(batch):
    (x,) = batch
    rec, kl = model(x)
    return (kl - rec).mean()


@torch.no_grad()
def score(model, loader, k=16):
    was = model.training
    model.eval()
    noise = torch.Generator().manual_seed(123)                        # same draws at every call
    elbo, iwae, n = 0.0, 0.0, 0
    for (x,) in loader:
        mu, log_var = model.posterior(x)
        std = torch.exp(0.5 * log_var)
        log_w = []
        for _ in range(k):
            z = mu + std * torch.randn(mu.shape, generator=noise)
            log_prior = D.Normal(0.0, 1.0).log_prob(z).sum(1)
            log_q = D.Normal(mu, std).log_prob(z).sum(1)
            log_w.append(model.log_likelihood(x, z) + log_prior - log_q)
        log_w = torch.stack(log_w)                                    # (k, B)
        elbo += log_w.mean(0).sum().item()
        iwae += (torch.logsumexp(log_w, 0) - math.log(k)).sum().item()
        n += len(x)
    model.train(was)
    return {"neg_elbo": -elbo / n, "neg_iwae": -iwae / n}


def main(epochs=8):
    print(0, score(model, evaluation))
    model.train()
    for epoch in range(1, epochs + 1):
        for batch in loader:
            loss = step(batch)
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            optimizer.step()
        print(epoch, score(model, evaluation))


if __name__ == "__main__":
    main()
