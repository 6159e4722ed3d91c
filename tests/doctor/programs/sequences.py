"""Programs on sequences: unequal lengths, padding, transcripts, texts of tokens, state that is carried on."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence, pad_sequence
from torch.utils.data import DataLoader, Dataset

from tests.doctor.programs.program import PlainForm, Program, program, rate, recast


class Trends(Dataset[Any]):
    """Noisy series of 6 to 20 steps that rise, fall, swing or stay."""

    def __init__(self, count: int, seed: int) -> None:
        g = torch.Generator().manual_seed(seed)
        self.rows = []
        for _ in range(count):
            kind, length = int(torch.randint(4, (1,), generator=g)), int(torch.randint(6, 21, (1,), generator=g))
            time = torch.linspace(0, 1, length)
            shape = [time, 1 - time, (torch.arange(length) % 2).float(), torch.full((length,), 0.5)][kind]
            series = shape[:, None] * torch.tensor([1.5, -1.0, 0.5]) + 0.3 * torch.randn(length, 3, generator=g)
            self.rows.append((series, kind))

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        return self.rows[index]


def pad_trends(rows: list[Any]) -> tuple[Tensor, Tensor, Tensor]:
    series, kinds = zip(*rows, strict=True)
    lengths = torch.tensor([len(sequence) for sequence in series])
    return pad_sequence(list(series), batch_first=True), lengths, torch.tensor(kinds)


class Recurrent(nn.Module):
    """Last state of an LSTM over series of stated lengths."""

    def __init__(self) -> None:
        super().__init__()
        self.lstm, self.head = nn.LSTM(3, 32, batch_first=True), nn.Linear(32, 4)

    def forward(self, series: Tensor, lengths: Tensor) -> Tensor:
        packed = pack_padded_sequence(series, lengths.cpu(), batch_first=True, enforce_sorted=False)
        _, (state, _) = self.lstm(packed)
        return self.head(state[-1])


@program("batch: three values", "model: several arguments", "step: gradients are clipped")
def series_of_stated_lengths() -> Program:
    loader = DataLoader(Trends(640, 0), batch_size=32, shuffle=True, collate_fn=pad_trends)
    test_loader = DataLoader(Trends(160, 1), batch_size=40, collate_fn=pad_trends)
    model = Recurrent()
    optimizer = torch.optim.Adam(model.parameters(), lr=5e-3)
    criterion = nn.CrossEntropyLoss()

    def step(batch: Any) -> Tensor:
        series, lengths, kinds = batch
        return criterion(model(series, lengths), kinds)

    def update(batch: Any) -> None:
        optimizer.zero_grad()
        step(batch).backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()

    return Program(
        model=model,
        optimizer=optimizer,
        loader=loader,
        step=step,
        loss=criterion,
        update=update,
        evaluation=test_loader,
        score=lambda: rate(model, test_loader, lambda batch: model(batch[0], batch[1]).argmax(1) == batch[2]),
        bar=0.6,
        epochs=6,
        plain_form=lambda: PlainForm(model, criterion, recast(loader, lambda batch: (batch[:2], batch[2]))),
    )


class Messages(Dataset[Any]):
    """Messages of 4 to 14 words; which of two groups of words occurs more often."""

    def __init__(self, count: int, seed: int) -> None:
        g = torch.Generator().manual_seed(seed)
        self.rows = []
        for index in range(count):
            length = int(torch.randint(4, 15, (1,), generator=g))
            label = int(torch.randint(2, (1,), generator=g))
            chance = torch.full((29,), 1.0)
            chance[8 * label : 8 * label + 8] = 3.0
            self.rows.append(
                {"tokens": torch.multinomial(chance, length, True, generator=g) + 1, "label": label, "id": index}
            )

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> dict[str, Any]:
        return self.rows[index]


def pad_messages(rows: list[dict[str, Any]]) -> dict[str, Any]:
    tokens = pad_sequence([row["tokens"] for row in rows], batch_first=True)
    return {
        "tokens": tokens,
        "padding": tokens == 0,
        "label": torch.tensor([row["label"] for row in rows]),
        "id": [f"message {row['id']}" for row in rows],
    }


class Attentive(nn.Module):
    """A transformer layer, and the mean over words that are no padding."""

    def __init__(self, words: int = 30, width: int = 24) -> None:
        super().__init__()
        self.embed = nn.Embedding(words, width, padding_idx=0)
        self.position = nn.Parameter(0.02 * torch.randn(1, 16, width))
        layer = nn.TransformerEncoderLayer(width, 4, 48, dropout=0.1, batch_first=True)
        self.encoder = nn.TransformerEncoder(layer, 1, enable_nested_tensor=False)
        self.head = nn.Linear(width, 2)

    def forward(self, tokens: Tensor, padding: Tensor) -> Tensor:
        states = self.encoder(self.embed(tokens) + self.position[:, : tokens.shape[1]], src_key_padding_mask=padding)
        weight = (~padding).float()[..., None]
        return self.head((states * weight).sum(1) / weight.sum(1))


@program("batch: a mapping", "batch: a mapping with text", "model: named arguments")
def messages_with_padding() -> Program:
    loader = DataLoader(Messages(800, 0), batch_size=32, shuffle=True, collate_fn=pad_messages)
    test_loader = DataLoader(Messages(160, 1), batch_size=40, collate_fn=pad_messages)
    model = Attentive()
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)

    def step(batch: Any) -> Tensor:
        logits = model(tokens=batch["tokens"], padding=batch["padding"])
        return F.cross_entropy(logits, batch["label"])

    def compare(batch: Any) -> Tensor:
        return model(tokens=batch["tokens"], padding=batch["padding"]).argmax(1) == batch["label"]

    return Program(
        model=model,
        optimizer=optimizer,
        loader=loader,
        step=step,
        evaluation=test_loader,
        score=lambda: rate(model, test_loader, compare),
        bar=0.75,
        epochs=5,
        plain_form=lambda: PlainForm(
            model,
            F.cross_entropy,
            recast(loader, lambda batch: ({name: batch[name] for name in ("tokens", "padding")}, batch["label"])),
        ),
    )


class Speech(Dataset[Any]):
    """Frames of two to four symbols, each two to four frames long with a frame of silence between."""

    def __init__(self, count: int, seed: int) -> None:
        g = torch.Generator().manual_seed(seed)
        self.rows = []
        voices = torch.randn(4, 6, generator=torch.Generator().manual_seed(3)) * 1.5
        for _ in range(count):
            symbols = torch.randint(1, 5, (int(torch.randint(2, 5, (1,), generator=g)),), generator=g)
            frames = []
            for symbol in symbols:
                frames += [voices[symbol - 1]] * int(torch.randint(2, 5, (1,), generator=g)) + [torch.zeros(6)]
            sound = torch.stack(frames)
            self.rows.append((sound + 0.2 * torch.randn(sound.shape, generator=g), symbols))

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        return self.rows[index]


def pad_speech(rows: list[Any]) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    sounds, symbols = zip(*rows, strict=True)
    lengths = (torch.tensor([len(sequence) for sequence in part]) for part in (sounds, symbols))
    return pad_sequence(list(sounds), batch_first=True), pad_sequence(list(symbols), batch_first=True), *lengths


class Transcriber(nn.Module):
    """Log chances of symbols at each frame, time first, as the loss of transcripts wants them."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.head = nn.Conv1d(6, 32, 3, padding=1), nn.Linear(32, 5)

    def forward(self, sounds: Tensor) -> Tensor:
        return self.head(self.conv(sounds.transpose(1, 2)).relu().transpose(1, 2)).log_softmax(2).transpose(0, 1)


@program("batch: four values", "loss: several arguments")
def transcripts() -> Program:
    loader = DataLoader(Speech(640, 0), batch_size=16, shuffle=True, collate_fn=pad_speech)
    test_loader = DataLoader(Speech(100, 1), batch_size=25, collate_fn=pad_speech)
    model = Transcriber()
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
    criterion = nn.CTCLoss(blank=0, zero_infinity=True)

    def step(batch: Any) -> Tensor:
        sounds, symbols, frames, counts = batch
        return criterion(model(sounds), symbols, frames, counts)

    def compare(batch: Any) -> Tensor:
        sounds, symbols, frames, counts = batch
        best = model(sounds).argmax(2).T
        is_right = []
        for row in range(len(best)):
            decoded = torch.unique_consecutive(best[row, : frames[row]])
            is_right.append(decoded[decoded > 0].tolist() == symbols[row, : counts[row]].tolist())
        return torch.tensor(is_right)

    return Program(
        model=model,
        optimizer=optimizer,
        loader=loader,
        step=step,
        loss=criterion,
        evaluation=test_loader,
        score=lambda: rate(model, test_loader, compare),
        bar=0.5,
        epochs=5,
        plain_form=lambda: PlainForm(
            model,
            lambda outputs, target: criterion(outputs, *target),
            recast(loader, lambda batch: (batch[0], batch[1:])),
        ),
    )


def write_text(length: int, seed: int, words: int = 12) -> Tensor:
    """Write a text in which two words follow most words."""
    g = torch.Generator().manual_seed(seed)
    follows = torch.stack([torch.randperm(words, generator=torch.Generator().manual_seed(i))[:2] for i in range(words)])
    text = [0]
    for choice in torch.randint(2, (length - 1,), generator=g).tolist():
        text.append(int(follows[text[-1], choice]))
    return torch.tensor(text)


class Windows(Dataset[Tensor]):
    """Windows of a text."""

    def __init__(self, text: Tensor, length: int) -> None:
        self.rows = text[: len(text) // length * length].view(-1, length)

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> Tensor:
        return self.rows[index]


class Causal(nn.Module):
    """Transformer in which a word sees those before it."""

    def __init__(self, words: int = 12, width: int = 32) -> None:
        super().__init__()
        self.embed, self.position = nn.Embedding(words, width), nn.Embedding(32, width)
        self.layer = nn.TransformerEncoderLayer(width, 4, 64, dropout=0.0, batch_first=True, norm_first=True)
        self.norm, self.head = nn.LayerNorm(width), nn.Linear(width, words, bias=False)

    def forward(self, tokens: Tensor) -> Tensor:
        length = tokens.shape[1]
        mask = torch.ones(length, length, dtype=torch.bool, device=tokens.device).triu(1)
        hidden = self.embed(tokens) + self.position(torch.arange(length, device=tokens.device))
        return self.head(self.norm(self.layer(hidden, src_mask=mask, is_causal=True)))


@program("batch: a tensor", "loss: the inputs are the target", "step: a schedule")
def words_that_follow() -> Program:
    loader = DataLoader(Windows(write_text(12_000, 0), 17), batch_size=16, shuffle=True, drop_last=True)
    test_loader = DataLoader(Windows(write_text(1_700, 1), 17), batch_size=50)
    model = Causal()
    optimizer = torch.optim.AdamW(model.parameters(), lr=5e-3, betas=(0.9, 0.95))
    scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: min(1.0, (step + 1) / 10))

    def step(tokens: Tensor) -> Tensor:
        logits = model(tokens[:, :-1])
        return F.cross_entropy(logits.reshape(-1, logits.shape[-1]), tokens[:, 1:].reshape(-1))

    def update(tokens: Tensor) -> None:
        optimizer.zero_grad()
        step(tokens).backward()
        optimizer.step()
        scheduler.step()

    def share_of_followers(tokens: Tensor) -> Tensor:
        return -F.cross_entropy(model(tokens[:, :-1]).transpose(1, 2), tokens[:, 1:])[None]

    return Program(
        model=model,
        optimizer=optimizer,
        loader=loader,
        step=step,
        update=update,
        evaluation=test_loader,
        score=lambda: rate(model, test_loader, share_of_followers),
        bar=-1.2,  # the best is -0.69, that of equal chances -2.48
        epochs=3,
        plain_form=lambda: PlainForm(
            model,
            lambda logits, target: F.cross_entropy(logits.transpose(1, 2), target),
            recast(loader, lambda tokens: (tokens[:, :-1], tokens[:, 1:])),
        ),
    )


@dataclass
class MaskedOutput:
    """Result of a model that is given labels."""

    logits: Tensor
    loss: Tensor | None = None


class MaskedModel(nn.Module):
    """Words of a text from those around them, with the loss inside."""

    def __init__(self, words: int = 14, width: int = 32) -> None:
        super().__init__()
        self.embed, self.position = nn.Embedding(words, width), nn.Embedding(16, width)
        layer = nn.TransformerEncoderLayer(width, 4, 64, dropout=0.0, batch_first=True, norm_first=True)
        self.encoder = nn.TransformerEncoder(layer, 1, enable_nested_tensor=False)
        self.head = nn.Linear(width, words)

    def forward(self, input_ids: Tensor, attention_mask: Tensor, labels: Tensor | None = None) -> MaskedOutput:
        hidden = self.embed(input_ids) + self.position(torch.arange(input_ids.shape[1]))
        logits = self.head(self.encoder(hidden, src_key_padding_mask=attention_mask == 0))
        if labels is None:
            return MaskedOutput(logits)
        return MaskedOutput(logits, F.cross_entropy(logits.transpose(1, 2), labels, ignore_index=-100))


def mask_words(rows: list[Tensor]) -> dict[str, Tensor]:
    """Collate windows: one word in five is masked (13), the rest is not a target; tails are padding (12)."""
    tokens = torch.stack(rows)
    lengths = torch.randint(9, 13, (len(rows),))
    attention = (torch.arange(tokens.shape[1]) < lengths[:, None]).long()
    is_masked = (torch.rand(tokens.shape) < 0.2) & (attention == 1)
    is_masked[:, 1] = True
    inputs = tokens.masked_fill(is_masked, 13).masked_fill(attention == 0, 12)
    return {"input_ids": inputs, "attention_mask": attention, "labels": tokens.masked_fill(~is_masked, -100)}


@program(
    *("batch: a mapping", "model: an object of outputs", "model: returns its loss", "model: named arguments"),
    *("loss: labels that are ignored", "step: noise or partners are drawn"),
)
def masked_words() -> Program:
    loader = DataLoader(Windows(write_text(12_000, 0), 12), batch_size=32, shuffle=True, collate_fn=mask_words)
    test_loader = DataLoader(Windows(write_text(2_400, 1), 12), batch_size=50, collate_fn=mask_words)
    model = MaskedModel()
    optimizer = torch.optim.AdamW(model.parameters(), lr=4e-3)

    def step(batch: Any) -> Tensor:
        return model(**batch).loss

    def compare(batch: Any) -> Tensor:
        is_masked = batch["labels"] >= 0
        return (model(**batch).logits.argmax(2) == batch["labels"])[is_masked]

    return Program(
        model=model,
        optimizer=optimizer,
        loader=loader,
        step=step,
        evaluation=test_loader,
        score=lambda: rate(model, test_loader, compare),
        bar=0.3,
        epochs=5,
    )


class Translator(nn.Module):
    """Encoder and decoder with attention; returns the loss and the logits."""

    def __init__(self, words: int = 9, width: int = 32) -> None:
        super().__init__()
        self.embed = nn.Embedding(words, width)
        self.encoder = nn.GRU(width, width // 2, batch_first=True, bidirectional=True)
        self.decoder = nn.GRU(width, width, batch_first=True)
        self.attention = nn.MultiheadAttention(width, 4, batch_first=True)
        self.position = nn.Parameter(0.1 * torch.randn(1, 8, width))
        self.head = nn.Linear(2 * width, words)

    def forward(self, source: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
        memory = self.encoder(self.embed(source))[0] + self.position[:, : source.shape[1]]
        states = self.decoder(self.embed(target[:, :-1]))[0] + self.position[:, : target.shape[1] - 1]
        context = self.attention(states, memory, memory, need_weights=False)[0]
        logits = self.head(torch.cat([states, context], 2))
        return F.cross_entropy(logits.transpose(1, 2), target[:, 1:]), logits


@program("batch: a pair", "model: returns its loss", "model: several outputs", "model: several arguments")
def translations() -> Program:
    rows = []
    g = torch.Generator().manual_seed(0)
    code = torch.randperm(8, generator=g) + 1
    for _ in range(1100):
        source = torch.randint(8, (6,), generator=g)
        rows.append((source + 1, torch.cat([torch.zeros(1, dtype=torch.long), code[source]])))
    loader = DataLoader(rows[:1000], batch_size=32, shuffle=True)
    test_loader = DataLoader(rows[1000:], batch_size=50)
    model = Translator()
    optimizer = torch.optim.Adam(model.parameters(), lr=5e-3)

    def step(batch: Any) -> Tensor:
        source, target = batch
        loss, _ = model(source, target)
        return loss

    return Program(
        model=model,
        optimizer=optimizer,
        loader=loader,
        step=step,
        evaluation=test_loader,
        score=lambda: rate(model, test_loader, lambda batch: model(*batch)[1].argmax(2) == batch[1][:, 1:]),
        bar=0.35,
        epochs=5,
    )


class Sentences(Dataset[Any]):
    """Sentences of 3 to 9 words, and a tag of each word, by itself and the word before it."""

    def __init__(self, count: int, seed: int) -> None:
        g = torch.Generator().manual_seed(seed)
        self.rows = []
        for _ in range(count):
            words = torch.randint(20, (int(torch.randint(3, 10, (1,), generator=g)),), generator=g)
            before = torch.cat([torch.zeros(1, dtype=torch.long), words[:-1]])
            self.rows.append((words, 2 * (words < 10).long() + (before < 10).long()))

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        return self.rows[index]


class Tagger(nn.Module):
    """Tags of a list of sentences, padded."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.gru = nn.Embedding(20, 16), nn.GRU(16, 24, batch_first=True, bidirectional=True)
        self.head = nn.Linear(48, 4)

    def forward(self, sentences: list[Tensor]) -> Tensor:
        lengths = torch.tensor([len(words) for words in sentences])
        words = self.embed(pad_sequence(sentences, batch_first=True))
        packed = pack_padded_sequence(words, lengths, batch_first=True, enforce_sorted=False)
        return self.head(pad_packed_sequence(self.gru(packed)[0], batch_first=True)[0])


@program("batch: lists of tensors of any size", "loss: labels that are ignored", "batch: a pair")
def tags_of_words() -> Program:
    collate = lambda rows: tuple(map(list, zip(*rows, strict=True)))  # noqa: E731
    loader = DataLoader(Sentences(480, 0), batch_size=16, shuffle=True, collate_fn=collate)
    test_loader = DataLoader(Sentences(100, 1), batch_size=25, collate_fn=collate)
    model = Tagger()
    optimizer = torch.optim.Adam(model.parameters(), lr=6e-3)
    criterion = nn.CrossEntropyLoss(ignore_index=-100)

    def pad(tags: list[Tensor]) -> Tensor:
        return pad_sequence(tags, batch_first=True, padding_value=-100)

    def step(batch: Any) -> Tensor:
        sentences, tags = batch
        logits = model(sentences)
        return criterion(logits.flatten(0, 1), pad(tags).flatten())

    def compare(batch: Any) -> Tensor:
        target = pad(batch[1])
        return (model(batch[0]).argmax(2) == target)[target >= 0]

    return Program(
        model=model,
        optimizer=optimizer,
        loader=loader,
        step=step,
        evaluation=test_loader,
        score=lambda: rate(model, test_loader, compare),
        bar=0.6,
        epochs=5,
    )


class Columns:
    """Loader of a text in sixteen columns, twelve words at a time, in order: the state goes on from batch to batch."""

    def __init__(self, text: Tensor, columns: int = 16, length: int = 12) -> None:
        self.rows, self.length = text[: len(text) // columns * columns].view(columns, -1), length

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        for start in range(0, self.rows.shape[1] - self.length - 1, self.length):
            part = self.rows[:, start : start + self.length + 1]
            yield part[:, :-1], part[:, 1:]


class Carried(nn.Module):
    """A GRU that is given its state, and returns it."""

    def __init__(self, words: int = 12) -> None:
        super().__init__()
        self.embed, self.gru, self.head = (
            nn.Embedding(words, 16),
            nn.GRU(16, 32, batch_first=True),
            nn.Linear(32, words),
        )

    def forward(self, words: Tensor, state: Tensor | None) -> tuple[Tensor, Tensor]:
        hidden, state = self.gru(self.embed(words), state)
        return self.head(hidden), state


@program("step: state goes on to the next", "model: several outputs", "model: several arguments", "batch: a pair")
def state_that_is_carried() -> Program:
    loader, test_loader = Columns(write_text(10_000, 0)), Columns(write_text(2_000, 1))
    model = Carried()
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
    criterion = nn.CrossEntropyLoss()
    state: list[Tensor | None] = [None]

    def step(batch: Any) -> Tensor:
        words, following = batch
        logits, after = model(words, state[0])
        state[0] = after.detach()
        return criterion(logits.flatten(0, 1), following.flatten())

    def forget() -> None:
        state[0] = None

    def compare(batch: Any) -> Tensor:
        return -F.cross_entropy(model(batch[0], None)[0].transpose(1, 2), batch[1])[None]

    return Program(
        model=model,
        optimizer=optimizer,
        loader=loader,
        step=step,
        end_epoch=forget,
        evaluation=test_loader,
        score=lambda: rate(model, test_loader, compare),
        bar=-1.2,  # the best is -0.69, that of equal chances -2.48
        epochs=2,
    )
