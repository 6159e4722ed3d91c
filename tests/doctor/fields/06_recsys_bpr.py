# Implicit-feedback matrix factorisation, BPR with several sampled negatives per click.
# Protocol: leave one click per user out, rank the full catalogue, hide the clicks seen in training.
import numpy as np
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

SEED = 31
N_USERS, N_ITEMS, DIM, N_NEG, TOPK = 400, 250, 24, 4, 10


def make_clicks():
    """Users and items have latent tastes; popular items are clicked more. Returns one item array per user."""
    g = np.random.RandomState(SEED)
    taste = g.dirichlet(np.full(6, 0.25), N_USERS)
    genre = g.dirichlet(np.full(6, 0.15), N_ITEMS)
    popularity = g.gumbel(size=N_ITEMS) * 0.35
    logits = 7.0 * taste @ genre.T + popularity
    clicks = []
    for u in range(N_USERS):
        k = g.randint(12, 30)
        clicks.append(np.argsort(-(logits[u] + g.gumbel(size=N_ITEMS)))[:k])   # sample w/o replacement
        g.shuffle(clicks[-1])
    return clicks


CLICKS = make_clicks()
TRAIN_ITEMS = [c[1:] for c in CLICKS]
TEST_ITEM = torch.tensor([c[0] for c in CLICKS])
SEEN = torch.zeros(N_USERS, N_ITEMS, dtype=torch.bool)
for _u, _items in enumerate(TRAIN_ITEMS):
    SEEN[_u, torch.as_tensor(_items)] = True


def with_negatives(rows):
    """[user, pos, neg_1 .. neg_K]: negatives are uniform over items the user has no TRAINING click on."""
    pairs = torch.stack(rows)
    allowed = (~SEEN[pairs[:, 0]]).float()
    return torch.cat([pairs, torch.multinomial(allowed, N_NEG, replacement=True)], dim=1)


class BPRMF(nn.Module):
    def __init__(self):
        super().__init__()
        self.user = nn.Embedding(N_USERS, DIM, sparse=True)
        self.item = nn.Embedding(N_ITEMS, DIM, sparse=True)
        self.item_bias = nn.Embedding(N_ITEMS, 1, sparse=True)
        nn.init.normal_(self.user.weight, std=0.1)
        nn.init.normal_(self.item.weight, std=0.1)
        nn.init.zeros_(self.item_bias.weight)

    def forward(self, users, items):
        """users (B,), items (B, M) -> affinity (B, M)"""
        return torch.einsum("bd,bmd->bm", self.user(users), self.item(items)) + self.item_bias(items).squeeze(-1)

    def full_ranking(self, users):
        return self.user(users) @ self.item.weight.T + self.item_bias.weight.T

    def penalty(self, users, items):
        return (self.user(users).square().sum() + self.item(items).square().sum()) / len(users)


torch.manual_seed(SEED)
train_pairs = torch.tensor([(u, i) for u, items in enumerate(TRAIN_ITEMS) for i in items])
loader = DataLoader(train_pairs, batch_size=256, shuffle=True, collate_fn=with_negatives)
evaluation = DataLoader(TensorDataset(torch.arange(N_USERS), TEST_ITEM), batch_size=128)
model = BPRMF()
optimizer = torch.optim.SparseAdam(list(model.parameters()), lr=0.01)


def step(batch):
    users, items = batch[:, 0], batch[:, 1:]
    s = model(users, items)
    margin = s[:, :1] - s[:, 1:]
    return nn.functional.softplus(-margin).mean() + 2e-3 * model.penalty(users, items)


@torch.no_grad()
def score(model, loader):
    model.eval()
    hits = ndcg = auc = n = 0.0
    for users, truth in loader:
        s = model.full_ranking(users).masked_fill(SEEN[users], -float("inf"))
        own = s.gather(1, truth[:, None])
        rank = (s > own).sum(1)                     # 0 = on top
        in_top = (rank < TOPK).float()
        hits += in_top.sum().item()
        ndcg += (in_top / torch.log2(rank + 2.0)).sum().item()
        candidates = (~SEEN[users]).sum(1) - 1
        auc += (1 - rank / candidates).sum().item()
        n += len(users)
    model.train()
    return {f"hr@{TOPK}": hits / n, f"ndcg@{TOPK}": ndcg / n, "auc": auc / n}


def main(epochs=8):
    fmt = lambda d: "  ".join(f"{k} {v:.4f}" for k, v in d.items())
    print("[  0]", fmt(score(model, evaluation)))
    for e in range(1, epochs + 1):
        running = 0.0
        for batch in loader:
            optimizer.zero_grad()
            loss = step(batch)
            loss.backward()
            optimizer.step()
            running += loss.item() * len(batch)
        print(f"[{e:3d}] bpr {running / len(loader.dataset):.4f} ", fmt(score(model, evaluation)))


if __name__ == "__main__":
    main()
