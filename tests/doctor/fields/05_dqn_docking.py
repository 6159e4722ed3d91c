"""Double DQN with replay: steer a point mass with inertia to a dock."""
import copy
from typing import NamedTuple

import numpy as np
import torch
import torch.nn as nn
import torch.nn.functional as F
from torch.utils.data import BatchSampler, DataLoader, Dataset, RandomSampler, TensorDataset

GAMMA, TAU, HORIZON, N_ENVS, BATCH = 0.96, 0.02, 50, 16, 64
PUSH = np.array([[0, 0], [1, 0], [-1, 0], [0, 1], [0, -1]], dtype=np.float32)
Transition = NamedTuple("Transition", [(k, torch.Tensor) for k in ("obs", "action", "reward", "next_obs", "terminated")])


class Docking:
    """Vectorised. An episode terminates at the dock only; HORIZON merely cuts it short (truncation)."""

    def __init__(self, places):                                 # (n, 4): start xy, dock xy
        self.pos, self.dock = places[:, :2].copy(), places[:, 2:].copy()
        self.vel, self.t = np.zeros_like(self.pos), np.zeros(len(places), dtype=int)

    def restart(self, which, places):
        self.pos[which], self.dock[which], self.vel[which], self.t[which] = places[:, :2], places[:, 2:], 0, 0

    def observe(self):
        return np.concatenate([self.pos, self.vel * 5, self.dock - self.pos], axis=1).astype(np.float32)

    def advance(self, action):
        self.vel = 0.8 * self.vel + 0.05 * PUSH[action]
        self.pos = (self.pos + self.vel).clip(-1, 1)
        self.t += 1
        dist = np.linalg.norm(self.dock - self.pos, axis=1)
        return self.observe(), np.where(dist < 0.12, 1.0, -0.1 * dist), dist < 0.12, self.t >= HORIZON


class ReplayMemory(Dataset):
    def __init__(self, capacity=20000, obs_dim=6):
        self.capacity, self.size, self.head = capacity, 0, 0
        self.data = Transition(torch.zeros(capacity, obs_dim), torch.zeros(capacity, dtype=torch.long),
                               torch.zeros(capacity), torch.zeros(capacity, obs_dim), torch.zeros(capacity))

    __len__ = lambda self: self.size
    def __getitem__(self, idx):                                 # idx is a list: a whole batch at once
        return Transition(*(column[idx] for column in self.data))

    def push(self, *columns):
        where = (self.head + torch.arange(len(columns[0]))) % self.capacity
        for store, new in zip(self.data, columns):
            store[where] = torch.as_tensor(new).to(store.dtype)
        self.head, self.size = (self.head + len(where)) % self.capacity, min(self.size + len(where), self.capacity)


rng = np.random.default_rng(5)
torch.manual_seed(5)
places = lambda gen, n: gen.uniform(-0.9, 0.9, (n, 4)).astype(np.float32)
env, memory = Docking(places(rng, N_ENVS)), ReplayMemory()
model = nn.Sequential(nn.Linear(6, 64), nn.ReLU(), nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, len(PUSH)))
target = copy.deepcopy(model).requires_grad_(False)
optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)


@torch.no_grad()
def greedy(net, obs):
    return net(torch.from_numpy(obs)).argmax(-1).numpy()


def collect(n_steps, eps):
    for _ in range(n_steps):
        obs = env.observe()
        action = np.where(rng.random(N_ENVS) < eps, rng.integers(0, len(PUSH), N_ENVS), greedy(model, obs))
        nxt, reward, terminated, truncated = env.advance(action)
        memory.push(obs, action, reward, nxt, terminated)       # nxt is taken before any restart
        env.restart(over := terminated | truncated, places(rng, over.sum()))


collect(100, eps=1.0)                                           # warm-up by chance only, nothing is learnt
draws = RandomSampler(memory, replacement=True, num_samples=BATCH * 250)
loader = DataLoader(memory, batch_size=None, sampler=BatchSampler(draws, BATCH, drop_last=False))
evaluation = DataLoader(TensorDataset(torch.from_numpy(places(np.random.default_rng(777), 200))), batch_size=100)


def step(batch):
    q = model(batch.obs).gather(1, batch.action[:, None]).squeeze(1)
    with torch.no_grad():
        best = model(batch.next_obs).argmax(1, keepdim=True)
        y = batch.reward + GAMMA * (1 - batch.terminated) * target(batch.next_obs).gather(1, best).squeeze(1)
    return F.smooth_l1_loss(q, y)


def score(model, loader):
    """Greedy episodes from held-out start/dock pairs: mean return, share that docked."""
    model.eval()
    results = []
    for (where,) in loader:
        sim, total, alive = Docking(where.numpy()), np.zeros(len(where)), np.ones(len(where), bool)
        for _ in range(HORIZON):
            _, r, terminated, _ = sim.advance(greedy(model, sim.observe()))
            total += r * alive
            alive &= ~terminated
        results.append(np.stack([total, ~alive], axis=1))
    return dict(zip(("return", "docked"), np.concatenate(results).mean(0).tolist()))


def main(epochs=8):
    print("start", score(model, evaluation))
    for epoch in range(epochs):
        model.train()
        collect(100, eps=max(0.1, 1.0 - 0.2 * epoch))
        for batch in loader:
            optimizer.zero_grad()
            step(batch).backward()
            optimizer.step()
            for slow, fast in zip(target.parameters(), model.parameters()):
                slow.lerp_(fast.detach(), TAU)
        print(f"epoch {epoch + 1} replay {len(memory)}", score(model, evaluation))


if __name__ == "__main__":
    main()
