"""Correct loops with tensors and models of unusual kinds: each makes its models, its optimisers and a training."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils import parametrizations, spectral_norm
from torch.nn.utils.rnn import pack_padded_sequence, pack_sequence

from tests.runtime.blind_losses import Call, CallOfTwo

NUM_UPDATES = 24


class LoopProgram(NamedTuple):
    """Models, optimisers (None: those that the loop makes) and the training of a program."""

    models: Sequence[nn.Module]
    optimizers: Sequence[torch.optim.Optimizer] | None
    train: Callable[[], None]


LOOPS: dict[str, Callable[[], LoopProgram]] = {}


def loop(make: Callable[[], LoopProgram]) -> Callable[[], LoopProgram]:
    LOOPS[make.__name__] = make
    return make


def network(inputs: int = 8, outputs: int = 4) -> nn.Module:
    return nn.Sequential(nn.Linear(inputs, 16), nn.ReLU(), nn.Linear(16, outputs))


def rows() -> tuple[Tensor, Tensor]:
    inputs = torch.randn(32, 8)
    return inputs, inputs[:, :4].argmax(1)


def train_with(
    model: nn.Module, draw: Callable[[], tuple[Any, Any]], loss: Any = F.cross_entropy, *, kind: Any = torch.optim.Adam
) -> LoopProgram:
    """A program of one model: `draw()` gives its arguments (a tuple, or one) and the target."""
    optimizer = kind(model.parameters(), lr=1e-3)

    def train() -> None:
        for _ in range(NUM_UPDATES):
            inputs, target = draw()
            optimizer.zero_grad()
            outputs = model(*inputs) if type(inputs) is tuple else model(inputs)
            loss(outputs, target).backward()
            optimizer.step()

    return LoopProgram([model], [optimizer], train)


# --- tensors without a number in memory for each place ----------------------------------------------------------------


def adjacency(layout: torch.layout, size: int = 30) -> Tensor:
    dense = (torch.rand(size, size) < 0.2).float() + torch.eye(size)
    return (dense / dense.sum(1, keepdim=True)).to_sparse(layout=layout)


class Graph(nn.Module):
    """A graph network of a sparse adjacency, which comes first or last."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(8, 16), nn.Linear(16, 4)

    def forward(self, one: Tensor, other: Tensor) -> Tensor:
        nodes, edges = (one, other) if one.layout is torch.strided else (other, one)
        return torch.sparse.mm(edges, self.last(torch.sparse.mm(edges, self.first(nodes)).relu()))


def graph(layout: torch.layout, *, is_first: bool) -> LoopProgram:
    edges = adjacency(layout)

    def draw() -> tuple[Any, Any]:
        nodes = torch.randn(30, 8)
        return ((edges, nodes) if is_first else (nodes, edges)), nodes[:, :4].argmax(1)

    return train_with(Graph(), draw)


LOOPS["a_sparse_adjacency_after_the_nodes"] = lambda: graph(torch.sparse_coo, is_first=False)
LOOPS["a_compressed_adjacency_before_the_nodes"] = lambda: graph(torch.sparse_csr, is_first=True)


class SparseWords(nn.Module):
    """Counts of words, which are sparse, times a table; the outputs are sparse, too."""

    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Parameter(torch.randn(50, 4) * 0.1)

    def forward(self, counts: Tensor) -> Tensor:
        return torch.sparse.mm(counts, self.table).to_sparse()


@loop
def sparse_inputs_and_outputs() -> LoopProgram:
    def draw() -> tuple[Any, Any]:
        return (torch.rand(32, 50) < 0.1).float().to_sparse(), torch.randint(0, 4, (32,))

    return train_with(SparseWords(), draw, lambda outputs, target: F.cross_entropy(outputs.to_dense(), target))


@loop
def a_table_of_places_beside_sparse_inputs() -> LoopProgram:
    """The dense input is the same in each update."""
    table = torch.randn(50, 4)
    run = lambda counts, table, words: torch.sparse.mm(counts, words.weight + table)  # noqa: E731
    draw = lambda: (((torch.rand(32, 50) < 0.1).float().to_sparse(), table), torch.randint(0, 4, (32,)))  # noqa: E731
    return train_with(CallOfTwo(run, nn.Embedding(50, 4)), draw)


@loop
def a_sparse_weight() -> LoopProgram:
    class Mixed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight, self.layer = nn.Parameter(torch.randn(8, 8).relu().to_sparse()), nn.Linear(8, 4)

        def forward(self, inputs: Tensor) -> Tensor:
            return self.layer(torch.sparse.mm(self.weight, inputs.T).T)

    return train_with(Mixed(), rows, kind=torch.optim.SGD)


class Parts(nn.Module):
    """A model of samples with a number of rows each, which are a nested tensor."""

    def __init__(self, *, returns_nested: bool = False) -> None:
        super().__init__()
        self.layers, self.returns_nested = network(), returns_nested

    def forward(self, parts: Tensor) -> Tensor:
        outputs = self.layers(parts)
        return outputs if self.returns_nested else torch.stack([part.mean(0) for part in outputs.unbind()])


def nested(layout: torch.layout, *, returns_nested: bool) -> LoopProgram:
    def draw() -> tuple[Any, Any]:
        parts = [torch.randn(3 + index % 5, 8) for index in range(12)]
        return torch.nested.nested_tensor(parts, layout=layout), torch.randint(0, 4, (12,))

    def loss(outputs: Tensor, target: Tensor) -> Tensor:
        return outputs.values().square().mean() if returns_nested else F.cross_entropy(outputs, target)

    return train_with(Parts(returns_nested=returns_nested), draw, loss)


LOOPS["nested_inputs"] = lambda: nested(torch.strided, returns_nested=False)
LOOPS["jagged_inputs_and_outputs"] = lambda: nested(torch.jagged, returns_nested=True)


@loop
def gradients_of_each_sample() -> LoopProgram:
    """By torch.func alone: no backward pass of a loss."""
    model = network()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05)

    def loss(parameters: Any, inputs: Tensor, target: Tensor) -> Tensor:
        outputs = torch.func.functional_call(model, parameters, (inputs[None],))
        return F.cross_entropy(outputs, target[None])

    def train() -> None:
        for _ in range(NUM_UPDATES):
            values = {name: parameter.detach() for name, parameter in model.named_parameters()}
            gradients = torch.func.vmap(torch.func.grad(loss), (None, 0, 0))(values, *rows())
            for name, parameter in model.named_parameters():
                parameter.grad = gradients[name].mean(0)
            optimizer.step()

    return LoopProgram([model], [optimizer], train)


@loop
def a_penalty_on_the_jacobian() -> LoopProgram:
    model = network(8, 1)
    optimizer = torch.optim.Adam(model.parameters())

    def train() -> None:
        for _ in range(NUM_UPDATES):
            inputs = torch.randn(32, 8)
            optimizer.zero_grad()
            slopes = torch.func.vmap(torch.func.jacrev(lambda row: model(row[None])[0]))(inputs)
            outputs, change = torch.func.jvp(model, (inputs,), (torch.ones_like(inputs),))
            (F.mse_loss(outputs[:, 0], inputs[:, 0]) + slopes.square().mean() + change.square().mean()).backward()
            optimizer.step()

    return LoopProgram([model], [optimizer], train)


def dequantised() -> nn.Module:
    return Call(lambda inputs, layers: layers(inputs.dequantize()), network())


@loop
def quantised_inputs() -> LoopProgram:
    def draw() -> tuple[Any, Any]:
        inputs, target = rows()
        return torch.quantize_per_tensor(inputs, 0.1, 10, torch.quint8), target

    return train_with(dequantised(), draw)


# --- first inputs with one axis, or none ------------------------------------------------------------------------------


@loop
def words_one_a_sample() -> LoopProgram:
    model = nn.Sequential(nn.Embedding(50, 8), nn.Linear(8, 4))
    return train_with(model, lambda: (words := torch.randint(0, 50, (32,)), words % 4))


@loop
def lengths_before_frames() -> LoopProgram:
    def run(lengths: Tensor, frames: Tensor, body: nn.Module, head: nn.Module) -> Tensor:
        packed = pack_padded_sequence(frames, lengths, batch_first=True, enforce_sorted=False)
        return head(body(packed)[1][-1])

    model = CallOfTwo(run, nn.GRU(6, 16, batch_first=True), nn.Linear(16, 4))
    return train_with(model, lambda: ((torch.randint(2, 9, (16,)), torch.randn(16, 9, 6)), torch.randint(0, 4, (16,))))


@loop
def packed_sequences() -> LoopProgram:
    def draw() -> tuple[Any, Any]:
        packed = pack_sequence([torch.randn(3 + index % 5, 6) for index in range(16)], enforce_sorted=False)
        return packed, packed.data[:, :4]

    return train_with(nn.LSTM(6, 4), draw, lambda outputs, target: F.mse_loss(outputs[0].data, target))


@loop
def one_number_before_the_rows() -> LoopProgram:
    def draw() -> tuple[Any, Any]:
        inputs, target = rows()
        return (torch.rand(()) + 1, inputs), target

    return train_with(CallOfTwo(lambda scale, inputs, layers: layers(inputs) * scale, network()), draw)


# --- models that torch runs itself, and threads -----------------------------------------------------------------------


LOOPS["a_scripted_model"] = lambda: train_with(torch.jit.script(network()), rows)
LOOPS["a_traced_model"] = lambda: train_with(torch.jit.trace(network(), torch.randn(2, 8)), rows)
LOOPS["a_scripted_part"] = lambda: train_with(nn.Sequential(nn.Linear(8, 8), torch.jit.script(network())), rows)
LOOPS["a_compiled_part"] = lambda: train_with(
    nn.Sequential(nn.Linear(8, 8), torch.compile(network(), backend="eager")), rows
)


@loop
def a_compiled_step() -> LoopProgram:
    model = network()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05)

    @torch.compile(backend="eager")
    def step(inputs: Tensor, target: Tensor) -> None:
        optimizer.zero_grad()
        F.cross_entropy(model(inputs), target).backward()
        optimizer.step()

    def train() -> None:
        for _ in range(NUM_UPDATES):
            step(*rows())

    return LoopProgram([model], [optimizer], train)


@loop
def another_thread_trains() -> LoopProgram:
    program = train_with(network(), rows)

    def train() -> None:
        thread = threading.Thread(target=program.train)
        thread.start()
        thread.join()

    return program._replace(train=train)


@loop
def another_thread_evaluates_meanwhile() -> LoopProgram:
    program, is_over = train_with(network(), rows), threading.Event()

    def evaluate() -> None:
        with torch.no_grad():
            while not is_over.is_set():
                program.models[0](torch.ones(4, 8))

    def train() -> None:
        thread = threading.Thread(target=evaluate)
        thread.start()
        program.train()
        is_over.set()
        thread.join()

    return program._replace(train=train)


@loop
def two_threads_in_turn_train_one_model() -> LoopProgram:
    program, turn = train_with(network(), rows), threading.Lock()

    def train_in_turn() -> None:
        with turn:
            program.train()

    def train() -> None:
        threads = [threading.Thread(target=train_in_turn) for _ in range(2)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()

    return program._replace(train=train)


# --- weights that are computed ----------------------------------------------------------------------------------------


@loop
def weights_of_a_norm() -> LoopProgram:
    """A spectral norm takes a step of its power iteration whenever its weight is read in training."""
    model = nn.Sequential(
        nn.Linear(8, 16), nn.BatchNorm1d(16), nn.ReLU(), nn.Linear(16, 16), nn.ReLU(), nn.Linear(16, 4)
    )
    parametrizations.spectral_norm(model[0])
    parametrizations.weight_norm(model[3])
    spectral_norm(model[5])
    return train_with(model, rows)


# --- optimisers -------------------------------------------------------------------------------------------------------


@loop
def steps_of_many_updates() -> LoopProgram:
    """L-BFGS on a whole set, which it fits in a few steps."""
    model, (inputs, target) = network(), rows()
    optimizer = torch.optim.LBFGS(model.parameters(), lr=0.5, max_iter=10)

    def compute() -> Tensor:
        optimizer.zero_grad()
        loss = F.cross_entropy(model(inputs), target)
        loss.backward()
        return loss

    def train() -> None:
        for _ in range(8):
            optimizer.step(compute)

    return LoopProgram([model], [optimizer], train)
