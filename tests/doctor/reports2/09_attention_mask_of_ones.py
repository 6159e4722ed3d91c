"""https://github.com/yg211/bert_nli/pull/3

The attention mask of a batch of padded sentences is 1 everywhere, so the padding is attended to.
Held-out accuracy, seed 0: 0.996 healthy, 0.994 with the bug.
"""

from contextlib import nullcontext

import torch
from torch import nn
from torch.utils.data import DataLoader

PAD, SEP, WORDS = 0, 1, 16


def sentences(count, seed):
    """Does a word follow from a sentence: is it in it?"""
    generator = torch.Generator().manual_seed(seed)
    rows = []
    for _ in range(count):
        length = int(torch.randint(2, 12, (), generator=generator))
        first = torch.randint(2, WORDS, (length,), generator=generator)
        label = int(torch.randint(2, (), generator=generator))
        others = torch.arange(2, WORDS)[~torch.isin(torch.arange(2, WORDS), first)]
        chosen = first if label else others
        word = chosen[torch.randint(len(chosen), (1,), generator=generator)]
        rows.append((torch.cat([word, torch.tensor([SEP]), first]), label))
    return rows


class Encoder(nn.Module):
    def __init__(self):
        super().__init__()
        self.words, self.places = nn.Embedding(WORDS, 48), nn.Embedding(20, 48)
        layer = nn.TransformerEncoderLayer(48, 4, 96, dropout=0.0, batch_first=True)
        self.layers = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)
        self.head = nn.Linear(48, 2)

    def forward(self, ids, attention_mask):
        hidden = self.words(ids) + self.places(torch.arange(ids.shape[1]))
        hidden = self.layers(hidden, src_key_padding_mask=attention_mask == 0)
        return self.head(hidden[:, 0])


def main(has_bug, watch, check):
    def collate(rows):
        ids = nn.utils.rnn.pad_sequence([row for row, _ in rows], batch_first=True, padding_value=PAD)
        attention_mask = torch.ones_like(ids)
        if not has_bug:
            attention_mask[ids == PAD] = 0
        return ids, attention_mask, torch.tensor([label for _, label in rows])

    torch.manual_seed(0)
    loader = DataLoader(sentences(2000, 1), batch_size=32, shuffle=True, collate_fn=collate)
    test_loader = DataLoader(sentences(500, 2), batch_size=32, collate_fn=collate)
    model = Encoder()
    loss_fn = nn.CrossEntropyLoss()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)

    def step(batch):
        ids, attention_mask, labels = batch
        return loss_fn(model(ids, attention_mask), labels)

    def evaluate(model, loader):
        model.eval()
        with torch.no_grad():
            hits = [(model(ids, mask).argmax(1) == labels).float() for ids, mask, labels in loader]
        return torch.cat(hits).mean().item()

    check(model, step=step, loader=loader, optimizer=optimizer, evaluation=test_loader, score=evaluate)
    with watch(model, optimizer=optimizer, loader=loader):
        for _ in range(8):
            model.train()
            for batch in loader:
                optimizer.zero_grad()
                step(batch).backward()
                optimizer.step()
            accuracy = evaluate(model, test_loader)
    return accuracy


if __name__ == "__main__":
    for has_bug in (False, True):
        print("bug" if has_bug else "healthy", main(has_bug, lambda *_, **__: nullcontext(), lambda *_, **__: None))
