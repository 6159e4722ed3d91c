"""https://github.com/SkyworkAI/Skywork/issues/55

The evaluation of a language model takes the attention mask of its inputs for the one of its targets: of each text but
the longest, the loss of one padding token is counted, too.
Loss that is reported, seed 0: 0.696 healthy, 1.576 with the bug.
"""

from contextlib import nullcontext

import torch
from torch import nn
from torch.nn import functional as F
from torch.utils.data import DataLoader

PAD, WORDS = 0, 24


def texts(count, seed):
    """Each word has two that may follow it."""
    generator = torch.Generator().manual_seed(seed)
    follows = 1 + torch.randint(WORDS - 1, (WORDS, 2), generator=torch.Generator().manual_seed(0))
    rows = []
    for _ in range(count):
        row = [int(torch.randint(1, WORDS, (), generator=generator))]
        for choice in torch.randint(2, (int(torch.randint(4, 15, (), generator=generator)),), generator=generator):
            row.append(int(follows[row[-1], choice]))
        rows.append(torch.tensor(row))
    return rows


def collate(rows):
    ids = nn.utils.rnn.pad_sequence(rows, batch_first=True, padding_value=PAD)
    lengths = torch.tensor([len(row) for row in rows])
    return {"input_ids": ids, "attention_mask": (torch.arange(ids.shape[1]) < lengths[:, None]).long()}


class LanguageModel(nn.Module):
    def __init__(self):
        super().__init__()
        self.words, self.body = nn.Embedding(WORDS, 32), nn.GRU(32, 64, batch_first=True)
        self.head = nn.Linear(64, WORDS)

    def forward(self, input_ids):
        return self.head(self.body(self.words(input_ids))[0])


def masked_loss(logits, ids, mask):
    losses = F.cross_entropy(logits[:, :-1].transpose(1, 2), ids[:, 1:], reduction="none")
    return (losses * mask).sum() / mask.sum()


def main(has_bug, watch, check):
    torch.manual_seed(0)
    loader = DataLoader(texts(1000, 1), batch_size=20, shuffle=True, collate_fn=collate)
    eval_loader = DataLoader(texts(300, 2), batch_size=20, collate_fn=collate)
    model = LanguageModel()
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)

    def step(batch):
        return masked_loss(model(batch["input_ids"]), batch["input_ids"], batch["attention_mask"][:, 1:])

    def eval_loss(model, loader):
        model.eval()
        total = count = 0
        with torch.no_grad():
            for batch in loader:
                mask = batch["attention_mask"][:, :-1] if has_bug else batch["attention_mask"][:, 1:]
                total += masked_loss(model(batch["input_ids"]), batch["input_ids"], mask) * mask.sum()
                count += mask.sum()
        return (total / count).item()

    check(model, step=step, loader=loader, optimizer=optimizer, evaluation=eval_loader, score=eval_loss)
    with watch(model, optimizer=optimizer, loader=loader):
        for _ in range(6):
            model.train()
            for batch in loader:
                optimizer.zero_grad()
                step(batch).backward()
                optimizer.step()
            loss = eval_loss(model, eval_loader)
    return loss


if __name__ == "__main__":
    for has_bug in (False, True):
        print("bug" if has_bug else "healthy", main(has_bug, lambda *_, **__: nullcontext(), lambda *_, **__: None))
