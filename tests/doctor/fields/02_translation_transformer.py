"""Toy translation, encoder-decoder Transformer. Adjectives precede nouns in the source language and follow
them in the target; some nouns become two words. Reported: perplexity per token, exact match (greedy)."""
import math
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader

PAD, BOS, EOS = 0, 1, 2
NOUNS, ADJECTIVES = range(3, 15), range(15, 23)
SRC_VOCAB, TGT_VOCAB, MAX_LEN = 23, 27, 24


@dataclass
class Batch:
    src: Tensor      # (B, S)
    tgt_in: Tensor   # (B, T)  <bos> w1 ... wn
    tgt_out: Tensor  # (B, T)  w1 ... wn <eos>


def make_corpus(n: int, seed: int = 7) -> list[tuple[list[int], list[int]]]:
    rng = np.random.default_rng(seed)
    lexicon = dict(zip([*NOUNS, *ADJECTIVES], (3 + rng.permutation(20)).tolist()))
    particle = dict(zip(list(NOUNS)[:4], range(23, 27)))      # nouns with a second word
    pairs: dict[tuple[int, ...], list[int]] = {}              # keyed by source: no sentence twice
    while len(pairs) < n:
        src, tgt = [], []
        for _ in range(rng.integers(2, 5)):
            noun = int(rng.choice(NOUNS))
            adj = [int(rng.choice(ADJECTIVES))] if rng.random() < 0.5 else []
            src += adj + [noun]
            tgt += [lexicon[noun]] + ([particle[noun]] if noun in particle else []) + [lexicon[a] for a in adj]
        pairs[tuple(src)] = tgt
    return [(list(s), t) for s, t in pairs.items()]


def collate(pairs) -> Batch:
    pad = lambda seqs: nn.utils.rnn.pad_sequence([torch.tensor(s) for s in seqs], True, PAD)
    src, tgt = zip(*pairs)
    return Batch(pad([s + [EOS] for s in src]), pad([[BOS] + t for t in tgt]), pad([t + [EOS] for t in tgt]))


class Seq2Seq(nn.Module):
    def __init__(self, d: int = 64, heads: int = 4, layers: int = 2, dropout: float = 0.1) -> None:
        super().__init__()
        self.src_emb = nn.Embedding(SRC_VOCAB, d, padding_idx=PAD)
        self.tgt_emb = nn.Embedding(TGT_VOCAB, d, padding_idx=PAD)
        angle = torch.arange(MAX_LEN)[:, None] * torch.exp(torch.arange(0, d, 2) * (-math.log(1e4) / d))
        self.register_buffer("pos", torch.stack([angle.sin(), angle.cos()], -1).flatten(1))
        self.drop = nn.Dropout(dropout)
        kw = dict(d_model=d, nhead=heads, dim_feedforward=2 * d, dropout=dropout, batch_first=True, norm_first=True)
        self.encoder = nn.TransformerEncoder(nn.TransformerEncoderLayer(**kw), layers, nn.LayerNorm(d), False)
        self.decoder = nn.TransformerDecoder(nn.TransformerDecoderLayer(**kw), layers, nn.LayerNorm(d))
        self.head = nn.Linear(d, TGT_VOCAB)

    def embed(self, emb: nn.Embedding, ids: Tensor) -> Tensor:
        return self.drop(emb(ids) + self.pos[: ids.size(1)])

    def encode(self, src: Tensor) -> Tensor:
        return self.encoder(self.embed(self.src_emb, src), src_key_padding_mask=src == PAD)

    def decode(self, memory: Tensor, src: Tensor, tgt_in: Tensor) -> Tensor:
        causal = torch.ones(tgt_in.size(1), tgt_in.size(1), dtype=torch.bool, device=src.device).triu(1)
        return self.head(self.decoder(self.embed(self.tgt_emb, tgt_in), memory, tgt_mask=causal,
                                      tgt_key_padding_mask=tgt_in == PAD, memory_key_padding_mask=src == PAD))

    def forward(self, src: Tensor, tgt_in: Tensor) -> Tensor:
        return self.decode(self.encode(src), src, tgt_in)


torch.manual_seed(7)
corpus = make_corpus(1900)
loader = DataLoader(corpus[:1700], batch_size=34, shuffle=True, collate_fn=collate)
evaluation = DataLoader(corpus[1700:], batch_size=64, collate_fn=collate)
model = Seq2Seq()
optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3, betas=(0.9, 0.98), weight_decay=0.01)
scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda i: min((i + 1) / 60, (60 / (i + 1)) ** 0.5))
criterion = nn.CrossEntropyLoss(ignore_index=PAD, label_smoothing=0.05)


def step(batch: Batch) -> Tensor:
    return criterion(model(batch.src, batch.tgt_in).flatten(0, 1), batch.tgt_out.flatten())


@torch.inference_mode()
def score(model: nn.Module, loader: DataLoader) -> dict[str, float]:
    model.eval()
    nll = tokens = exact = n = 0
    for b in loader:
        logits = model(b.src, b.tgt_in).flatten(0, 1)
        nll += nn.functional.cross_entropy(logits, b.tgt_out.flatten(), ignore_index=PAD, reduction="sum").item()
        memory, hyp = model.encode(b.src), torch.full((len(b.src), 1), BOS)
        while hyp.size(1) < MAX_LEN and not (hyp == EOS).any(1).all():     # greedy, blind to the reference
            nxt = model.decode(memory, b.src, hyp)[:, -1, PAD + 1:].argmax(-1) + PAD + 1
            nxt[(hyp == EOS).any(1)] = PAD
            hyp = torch.cat([hyp, nxt[:, None]], 1)
        for h, r in zip(hyp[:, 1:].tolist(), b.tgt_out.tolist()):
            exact += [w for w in h if w != PAD] == [w for w in r if w != PAD]
        tokens, n = tokens + int((b.tgt_out != PAD).sum()), n + len(b.src)
    model.train()
    return {"ppl": math.exp(nll / tokens), "exact_match": exact / n}


def main(epochs: int = 5) -> None:
    print("epoch 0", score(model, evaluation))
    model.train()
    for epoch in range(1, epochs + 1):
        for batch in loader:
            step(batch).backward()
            nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            scheduler.step()
            optimizer.zero_grad(set_to_none=True)
        print(f"epoch {epoch}", score(model, evaluation))


if __name__ == "__main__":
    main()
