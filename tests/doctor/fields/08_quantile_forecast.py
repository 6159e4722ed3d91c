"""Probabilistic load forecasting: 72 h of history -> five quantiles for each of the next 24 h, 30 meters.

Split in time: every training target lies before CUTOFF, every evaluation target at or after it.
"""
import numpy as np
import torch
from torch import nn
from torch.utils.data import DataLoader, Dataset

N_SERIES, HOURS, CUTOFF = 30, 24 * 60, 24 * 48
HISTORY, HORIZON = 72, 24
QUANTILES = torch.tensor([0.1, 0.25, 0.5, 0.75, 0.9])


def simulate_meters(seed=8):
    rng = np.random.default_rng(seed)
    t = np.arange(HOURS)
    weekend = ((t // 24) % 7 >= 5).astype(float)
    out = []
    for _ in range(N_SERIES):
        level, amp, phase = rng.lognormal(3, 0.8), rng.uniform(0.2, 0.5), rng.uniform(0, 2 * np.pi)
        daily = 1 + amp * np.sin(2 * np.pi * t / 24 + phase) + 0.15 * np.sin(4 * np.pi * t / 24 + 2 * phase)
        drift = np.zeros(HOURS)
        for i in range(1, HOURS):
            drift[i] = 0.98 * drift[i - 1] + 0.02 * rng.normal()
        noise = rng.normal(size=HOURS) * (0.04 + 0.10 * (daily - daily.min()))     # wider at the peak
        out.append(level * np.maximum(daily * (1 - 0.25 * weekend) + drift + noise, 0.02))
    return np.stack(out).astype(np.float32)


def calendar(hours):
    day, week = 2 * np.pi * hours / 24, 2 * np.pi * hours / 168
    return np.stack([np.sin(day), np.cos(day), np.sin(week), np.cos(week)], -1).astype(np.float32)


class Windows(Dataset):
    """((history, calendar of history, calendar of horizon), future); `origins` = first forecast hour."""

    def __init__(self, values, origins):
        self.values, self.cal = torch.from_numpy(values), torch.from_numpy(calendar(np.arange(HOURS)))
        self.index = [(s, o) for s in range(len(values)) for o in origins]

    def __len__(self): return len(self.index)

    def __getitem__(self, k):
        s, o = self.index[k]
        past, future = slice(o - HISTORY, o), slice(o, o + HORIZON)
        return (self.values[s, past], self.cal[past], self.cal[future]), self.values[s, future]


class QuantileGRU(nn.Module):
    def __init__(self, hidden=40, cal_dim=4):
        super().__init__()
        self.encoder = nn.GRU(1 + cal_dim, hidden, batch_first=True)
        self.daily_lag = nn.Linear(HISTORY // 24, 1)
        self.decoder = nn.Sequential(nn.Linear(hidden + cal_dim + HISTORY // 24, 64), nn.ELU(),
                                     nn.Dropout(0.05), nn.Linear(64, len(QUANTILES)))

    def forward(self, past, past_cal, future_cal):
        scale = past.mean(1, keepdim=True).clamp(min=1e-3)            # from the history alone
        x = past / scale
        _, h = self.encoder(torch.cat([x.unsqueeze(-1), past_cal], -1))
        same_hour = x.view(len(x), -1, HORIZON).transpose(1, 2)        # the same hour of the last 3 days
        ctx = torch.cat([h[-1].unsqueeze(1).expand(-1, HORIZON, -1), future_cal, same_hour], -1)
        raw = self.decoder(ctx)
        gaps = nn.functional.softplus(raw[..., 1:] - 2)                # quantiles cannot cross
        return torch.cat([raw[..., :1] + self.daily_lag(same_hour), gaps], -1).cumsum(-1), scale


def pinball(pred, y):
    err = y.unsqueeze(-1) - pred
    return torch.maximum(QUANTILES * err, (QUANTILES - 1) * err)       # (B, H, Q)


torch.manual_seed(8)
series = simulate_meters()
loader = DataLoader(Windows(series, range(HISTORY, CUTOFF - HORIZON + 1, 13)), batch_size=64, shuffle=True)
evaluation = DataLoader(Windows(series, range(CUTOFF, HOURS - HORIZON + 1, 24)), batch_size=128)
model = QuantileGRU()
optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3, weight_decay=1e-3)


def step(batch):
    inputs, future = batch
    pred, scale = model(*inputs)
    return pinball(pred, future / scale).mean()                        # meters of all sizes weigh alike


@torch.no_grad()
def score(model, loader):
    """Weighted quantile loss in real units (as GluonTS defines it) and coverage of the 10-90 % band."""
    model.eval()
    loss, total, inside, count = 0.0, 0.0, 0, 0
    for inputs, future in loader:
        pred, scale = model(*inputs)
        pred = pred * scale.unsqueeze(-1)
        loss += 2 * pinball(pred, future).double().sum().item() / len(QUANTILES)
        total += future.abs().double().sum().item()
        inside += ((future >= pred[..., 0]) & (future <= pred[..., -1])).sum().item()
        count += future.numel()
    model.train()
    return {"mean_wQL": loss / total, "coverage80": inside / count}


def main(epochs=5):
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, epochs)
    print("untrained", score(model, evaluation))
    for epoch in range(epochs):
        model.train()
        for batch in loader:
            optimizer.zero_grad()
            loss = step(batch)
            loss.backward()
            optimizer.step()
        schedule.step()
        print(f"epoch {epoch + 1} lr {schedule.get_last_lr()[0]:.1e}", score(model, evaluation))


if __name__ == "__main__":
    main()
