# Phone recogniser: BLSTM + CTC on variable-length filterbank-like features, time-first (T, B, F).
# Corpus is synthetic; test speakers never occur in training.  Metric: corpus phone error rate (lower = better).
import numpy as np
import torch
import torch.nn as nn
import torch.nn.functional as F
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence, pad_sequence
from torch.utils.data import DataLoader, Dataset

N_PHONES, N_MEL, BLANK = 10, 20, 0          # phones are 1..N_PHONES
rng = np.random.RandomState(1234)
torch.manual_seed(1234)

TEMPLATES = rng.randn(N_PHONES + 1, N_MEL)
TEMPLATES[0] = 0.0                          # silence


def speak(phones, spk):
    """Render a phone string as noisy frames in the voice of one speaker."""
    tilt, rate = spk
    segs = [0] * rng.randint(1, 5)
    for p in phones:
        segs += [p] * (rng.randint(3, 7) + rate) + [0] * (rng.randint(1, 3) if rng.rand() < 0.3 else 0)
    x = TEMPLATES[segs] + tilt + 0.7 * rng.randn(len(segs), N_MEL)
    x[1:] = 0.7 * x[1:] + 0.3 * x[:-1]      # a little coarticulation
    return x


class Utterances(Dataset):
    def __init__(self, speakers, per_spk):
        self.items = []
        for spk in speakers:
            for _ in range(per_spk):
                phones = rng.randint(1, N_PHONES + 1, size=rng.randint(3, 9))
                x = speak(phones, spk)
                x = (x - x.mean(0)) / (x.std(0) + 1e-5)      # per-utterance CMVN
                self.items.append((torch.tensor(x, dtype=torch.float32), torch.tensor(phones)))

    def __len__(self):
        return len(self.items)

    def __getitem__(self, i):
        return self.items[i]


def collate(utts):
    xs, ys = zip(*utts)
    xlens = torch.tensor([len(x) for x in xs])
    ylens = torch.tensor([len(y) for y in ys])
    return pad_sequence(xs), xlens, torch.cat(ys), ylens     # (T, B, F); targets concatenated


class AcousticModel(nn.Module):
    def __init__(self, hid=48, drop=0.1):
        super().__init__()
        self.inp = nn.Linear(N_MEL, hid)
        self.rnn = nn.LSTM(hid, hid, bidirectional=True)
        self.drop = nn.Dropout(drop)
        self.out = nn.Linear(2 * hid, N_PHONES + 1)

    def forward(self, x, xlens):
        x = self.drop(torch.relu(self.inp(x)))
        packed = pack_padded_sequence(x, xlens.cpu(), enforce_sorted=False)
        h, _ = pad_packed_sequence(self.rnn(packed)[0], total_length=x.size(0))
        return F.log_softmax(self.out(self.drop(h)), dim=-1)


speakers = [(0.5 * rng.randn(N_MEL), rng.randint(0, 2)) for _ in range(20)]
loader = DataLoader(Utterances(speakers[:15], 24), batch_size=16, shuffle=True, collate_fn=collate)
evaluation = DataLoader(Utterances(speakers[15:], 12), batch_size=16, collate_fn=collate)
model = AcousticModel()
ctc = nn.CTCLoss(blank=BLANK, reduction="sum")
optimizer = torch.optim.Adam(model.parameters(), lr=4e-3)


def step(batch):
    x, xlens, y, ylens = batch
    return ctc(model(x, xlens), y, xlens, ylens) / len(xlens)


def levenshtein(ref, hyp):
    d = list(range(len(hyp) + 1))
    for i, r in enumerate(ref, 1):
        prev, d[0] = d[0], i
        for j, h in enumerate(hyp, 1):
            prev, d[j] = d[j], min(d[j] + 1, d[j - 1] + 1, prev + (r != h))
    return d[-1]


@torch.no_grad()
def score(model, loader):
    model.eval()
    errs = total = 0
    for x, xlens, y, ylens in loader:
        best = model(x, xlens).argmax(-1)                    # (T, B)
        for b, ref in enumerate(y.split(ylens.tolist())):
            path = best[: xlens[b], b].unique_consecutive()
            errs += levenshtein(ref.tolist(), path[path != BLANK].tolist())
            total += len(ref)
    model.train()
    return errs / total


def main(epochs=8):
    print(f"init  PER {100 * score(model, evaluation):.1f}%")
    for ep in range(1, epochs + 1):
        model.train()
        tot = 0.0
        for batch in loader:
            optimizer.zero_grad()
            loss = step(batch)
            loss.backward()
            nn.utils.clip_grad_norm_(model.parameters(), 5.0)
            optimizer.step()
            tot += loss.item() * len(batch[1])
        print(f"ep {ep:2d}  ctc {tot / len(loader.dataset):.3f}  PER {100 * score(model, evaluation):.1f}%")


if __name__ == "__main__":
    main()
