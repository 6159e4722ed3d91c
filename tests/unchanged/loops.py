"""Loops as programs have them: each trains models on the batches of a loader, of any form, and returns what is left."""

from __future__ import annotations

import copy
import io
import itertools
import pickle
import warnings
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils import clip_grad_norm_, parametrizations, prune
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn, update_bn
from torch.utils.checkpoint import checkpoint
from torch.utils.data import DataLoader, Dataset
from torch.utils.flop_counter import FlopCounterMode

from tests.unchanged.forms import NUM_CLASSES, WIDTH, BatchForm

NUM_EPOCHS, NUM_SAMPLES, BATCH_SIZE = 2, 40, 8


class Augmented(Dataset[Any]):
    """Rows with noise from torch's and NumPy's numbers, and a count of reads: reading changes all three."""

    def __init__(self, seed: int) -> None:
        generator = torch.Generator().manual_seed(seed)
        self.rows = torch.randn(NUM_SAMPLES, WIDTH, generator=generator)
        self.label = self.rows[:, :NUM_CLASSES].argmax(dim=1)
        self.num_reads = 0

    def __len__(self) -> int:
        return NUM_SAMPLES

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        self.num_reads += 1
        return self.rows[index] + 0.01 * torch.randn(WIDTH) + 1e-4 * self.num_reads, self.label[index]


class Program:
    """What a loop trains with: a form's model, loaders, and the context in which it trains; `watched` opens it."""

    def __init__(self, form: BatchForm, open_context: Callable[..., AbstractContextManager[Any]]) -> None:
        self.form, self._open = form, open_context
        self.generator = torch.Generator().manual_seed(5)
        self.loader = self.make_loader(Augmented(1), generator=self.generator, shuffle=True)
        self.evaluation = self.make_loader(Augmented(2))
        self.left: list[Any] = [self.generator, self.loader.dataset, self.evaluation.dataset]

    def make_loader(self, data: Dataset[Any], **options: Any) -> DataLoader[Any]:
        return DataLoader(data, BATCH_SIZE, collate_fn=self.form.collate, **options)

    def watched(self, model: Any, optimizer: Any, **named: Any) -> AbstractContextManager[Any]:
        self.left += [model, optimizer]
        return self._open(self, model, optimizer, named)

    def make(self, kind: Any = torch.optim.SGD, **options: Any) -> tuple[nn.Module, Any]:
        model = self.form.model()
        return model, kind(model.parameters(), lr=options.pop("lr", 0.05), **options)

    def batches(self) -> Iterator[Any]:
        for _ in range(NUM_EPOCHS):
            yield from self.loader

    def step(self, model: Callable[..., Any], optimizer: Any, batch: Any) -> Tensor:
        optimizer.zero_grad()
        loss = self.form.compute(model, batch)
        loss.backward()
        optimizer.step()
        return loss.detach()

    def tried(self, run: Callable[[], Any]) -> None:
        """Keep how a part ends that does not take every form: a result, or an error."""
        try:
            self.left.append(run())
        except Exception as error:  # noqa: BLE001 - it is the same in every mode
            self.left.append(f"{type(error).__name__}: {str(error).partition(chr(10))[0][:80]}")


Loop = Callable[[Program], None]
LOOPS: dict[str, Loop] = {}


def loop(run: Loop) -> Loop:
    LOOPS[run.__name__] = run
    return run


@loop
def plain(program: Program) -> None:
    model, optimizer = program.make(momentum=0.9)
    with program.watched(model, optimizer):
        for batch in program.batches():
            program.step(model, optimizer, batch)


@loop
def adam_with_a_schedule(program: Program) -> None:
    model, optimizer = program.make(torch.optim.AdamW, lr=3e-3, amsgrad=True)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 1e-2, total_steps=NUM_EPOCHS * len(program.loader))
    with program.watched(model, optimizer, scheduler=schedule):
        for batch in program.batches():
            program.step(model, optimizer, batch)
            schedule.step()
    program.left.append(schedule.state_dict())


@loop
def scaled_low_precision(program: Program) -> None:
    model, optimizer = program.make()
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**8, growth_interval=3)
    with program.watched(model, optimizer):
        for batch in program.batches():
            optimizer.zero_grad()
            with torch.autocast("cpu", torch.bfloat16):
                loss = program.form.compute(model, batch)
            scaler.scale(loss).backward()
            scaler.unscale_(optimizer)
            clip_grad_norm_(model.parameters(), 1.0)
            scaler.step(optimizer)
            scaler.update()
    program.left.append(scaler.state_dict())


@loop
def accumulated(program: Program) -> None:
    model, optimizer = program.make()
    with program.watched(model, optimizer):
        for number, batch in enumerate(program.batches(), start=1):
            (program.form.compute(model, batch) / 2).backward()
            if number % 2 == 0:
                optimizer.step()
                optimizer.zero_grad()


@loop
def adversarial(program: Program) -> None:
    """A generator of noise against a critic of the model's outputs, each with its optimiser."""
    model, first = program.make(torch.optim.Adam, lr=1e-3)
    critic = nn.Sequential(nn.Linear(NUM_CLASSES, 8), nn.LeakyReLU(), nn.Linear(8, 1))
    second = torch.optim.Adam(critic.parameters(), lr=1e-3)
    program.left += [critic, second]
    with program.watched({"model": model, "critic": critic}, [first, second]):
        for batch in program.batches():
            fake = model(*program.form.arguments(batch))
            second.zero_grad()
            (critic(fake.detach()).mean() - critic(torch.randn_like(fake)).mean()).backward()
            second.step()
            first.zero_grad()
            (program.form.loss(fake, program.form.target(batch)) - 0.1 * critic(fake).mean()).backward()
            first.step()


@loop
def moving_average(program: Program) -> None:
    model, optimizer = program.make()
    average = AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(0.9), use_buffers=True)
    with program.watched(model, optimizer, ema=average):
        for batch in program.batches():
            program.step(model, optimizer, batch)
            average.update_parameters(model)
        average.eval()
        with torch.no_grad():
            program.left += [program.form.compute(average, batch) for batch in program.evaluation]
    program.left.append(average)


@loop
def averaged_at_the_end(program: Program) -> None:
    model, optimizer = program.make()
    average = AveragedModel(model)
    with program.watched(model, optimizer):
        for _ in range(NUM_EPOCHS):
            for batch in program.loader:
                program.step(model, optimizer, batch)
            average.update_parameters(model)
        update_bn((program.form.arguments(batch)[0] for batch in program.loader), average)
    program.left.append(average)


@loop
def line_search(program: Program) -> None:
    model, optimizer = program.make(torch.optim.LBFGS, max_iter=3, line_search_fn="strong_wolfe")
    with program.watched(model, optimizer):
        for batch in program.batches():

            def closure(batch: Any = batch) -> Tensor:
                optimizer.zero_grad()
                loss = program.form.compute(model, batch)
                loss.backward()
                return loss

            optimizer.step(closure)


@loop
def frozen_backbone(program: Program) -> None:
    model, _ = program.make()
    model.body.requires_grad_(False)
    optimizer = torch.optim.SGD(model.head.parameters(), lr=0.05)
    with program.watched(model, optimizer):
        for batch in program.batches():
            model.train()
            model.body.eval()
            program.step(model, optimizer, batch)


@loop
def clipped_and_validated(program: Program) -> None:
    model, optimizer = program.make()
    schedule = torch.optim.lr_scheduler.ReduceLROnPlateau(optimizer, patience=0)
    with program.watched(model, optimizer, scheduler=schedule):
        for _ in range(NUM_EPOCHS):
            for batch in program.loader:
                optimizer.zero_grad()
                program.form.compute(model, batch).backward()
                clip_grad_norm_(model.parameters(), 0.5)
                optimizer.step()
            model.eval()
            with torch.inference_mode():
                losses = [program.form.compute(model, batch).item() for batch in program.evaluation]
            model.train()
            schedule.step(sum(losses))
            program.left.append(losses)


@loop
def resumed(program: Program) -> None:
    """Weights, optimiser and random numbers go to a file and back in the middle, and the best copy at the end."""
    model, optimizer = program.make(torch.optim.Adam, lr=1e-3)
    with program.watched(model, optimizer):
        best: Any = None
        for _ in range(NUM_EPOCHS):
            for batch in program.loader:
                program.step(model, optimizer, batch)
            file = io.BytesIO()
            torch.save({"model": model.state_dict(), "optimizer": optimizer.state_dict()}, file)
            file.seek(0)
            state = torch.load(file, weights_only=True)
            model.load_state_dict(state["model"])
            optimizer.load_state_dict(state["optimizer"])
            best = best or copy.deepcopy(model.state_dict())
        model.load_state_dict(best)


@loop
def saved_whole(program: Program) -> None:
    """The model and its optimiser are copied and pickled in each epoch; the copies run on."""
    model, optimizer = program.make(torch.optim.Adam, lr=1e-3)
    with program.watched(model, optimizer):
        for _ in range(NUM_EPOCHS):
            for batch in program.loader:
                program.step(model, optimizer, batch)
            file = io.BytesIO()
            torch.save(model, file)
            program.left += [b"sightline" in pickle.dumps(model), b"sightline" in file.getvalue()]
            for other in (copy.deepcopy(model), copy.copy(model), pickle.loads(pickle.dumps(model))):
                program.left.append(program.form.compute(other, batch).detach())
            pickle.dumps(optimizer)
    program.tried(lambda: torch.jit.script(copy.deepcopy(model.body)).code)


def _trace_all(program: Program, model: nn.Module, arguments: tuple[Any, ...]) -> None:
    trace, script = torch.jit.trace, torch.jit.script
    program.tried(lambda: len(list(trace(model, arguments, check_trace=False).graph.nodes())))
    program.tried(lambda: trace(copy.deepcopy(model).eval(), arguments)(*arguments).detach())
    program.tried(lambda: script(model)(*arguments).detach())
    program.tried(lambda: torch.jit.freeze(script(copy.deepcopy(model).eval()))(*arguments).detach())
    program.tried(lambda: torch.fx.symbolic_trace(model).code)
    program.tried(lambda: len(torch.export.export(model, arguments).graph.nodes))


@loop
def traced(program: Program) -> None:
    model, optimizer = program.make()
    with program.watched(model, optimizer), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for _ in range(NUM_EPOCHS):
            for batch in program.loader:
                program.step(model, optimizer, batch)
            _trace_all(program, model, program.form.arguments(batch))


@loop
def compiled(program: Program) -> None:
    model, optimizer = program.make()
    fast = torch.compile(model, backend="eager")
    with program.watched(model, optimizer):
        for batch in program.batches():
            program.step(fast, optimizer, batch)


@loop
def checkpointed_activations(program: Program) -> None:
    model, optimizer = program.make()

    def run(*inputs: Any) -> Tensor:
        return checkpoint(model, *inputs, use_reentrant=False)

    with program.watched(model, optimizer):
        for batch in program.batches():
            program.step(run, optimizer, batch)


@loop
def hooks_of_gradients(program: Program) -> None:
    """Hooks of the user's on tensors, modules and parameters, of which one ends in the middle."""
    model, optimizer = program.make()
    seen: list[float] = []
    model.head.weight.register_hook(lambda gradient: gradient * 0.5)
    model.body.register_full_backward_hook(lambda *_: seen.append(1.0))
    handle = model.register_forward_hook(lambda *arguments: seen.append(float(arguments[-1].mean())))
    with program.watched(model, optimizer):
        for number, batch in enumerate(program.batches()):
            program.step(model, optimizer, batch)
            if number == 3:
                handle.remove()
                model.register_forward_pre_hook(lambda *_: seen.append(2.0))
    program.left.append(seen)


@loop
def updates_in_backward(program: Program) -> None:
    model = program.form.model()
    optimizers = {parameter: torch.optim.SGD([parameter], lr=0.05) for parameter in model.parameters()}

    def update(parameter: Any) -> None:
        optimizers[parameter].step()
        optimizers[parameter].zero_grad()

    for parameter in model.parameters():
        parameter.register_post_accumulate_grad_hook(update)
    with program.watched(model, [*optimizers.values()]):
        for batch in program.batches():
            program.form.compute(model, batch).backward()


@loop
def updates_by_hand(program: Program) -> None:
    model, optimizer = program.make()
    with program.watched(model, optimizer):
        for batch in program.batches():
            loss = program.form.compute(model, batch)
            gradients = torch.autograd.grad(loss, list(model.parameters()))
            with torch.no_grad():
                for parameter, gradient in zip(model.parameters(), gradients, strict=True):
                    parameter -= 0.05 * gradient + 1e-3 * torch.randn_like(parameter)


@loop
def two_passes_a_step(program: Program) -> None:
    """Sharpness-aware: gradients at weights that were moved, and back."""
    model, optimizer = program.make()
    with program.watched(model, optimizer):
        for batch in program.batches():
            optimizer.zero_grad()
            program.form.compute(model, batch).backward()
            moves = [0.05 * p.grad / (p.grad.norm() + 1e-9) for p in model.parameters()]
            with torch.no_grad():
                torch._foreach_add_(list(model.parameters()), moves)
            optimizer.zero_grad()
            program.form.compute(model, batch).backward()
            with torch.no_grad():
                torch._foreach_sub_(list(model.parameters()), moves)
            optimizer.step()


@loop
def functional(program: Program) -> None:
    """Passes by `functional_call`, and gradients of gradients."""
    model, optimizer = program.make()
    with program.watched(model, optimizer):
        for batch in program.batches():
            state = {**dict(model.named_parameters()), **dict(model.named_buffers())}
            program.step(
                lambda *inputs, state=state: torch.func.functional_call(model, state, inputs), optimizer, batch
            )
        loss = program.form.compute(model, batch)
        first = torch.autograd.grad(loss, list(model.parameters()), create_graph=True)
        sum(gradient.square().sum() for gradient in first).backward()
        optimizer.step()


@loop
def parametrised_and_pruned(program: Program) -> None:
    model, _ = program.make()
    parametrizations.weight_norm(model.head)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
    with program.watched(model, optimizer):
        for number, batch in enumerate(program.batches()):
            program.step(model, optimizer, batch)
            if number == 4:
                prune.l1_unstructured(model.body[0], "weight", 0.3)
        prune.remove(model.body[0], "weight")


@loop
def a_part_is_exchanged(program: Program) -> None:
    model, optimizer = program.make()
    with program.watched(model, optimizer):
        for _ in range(NUM_EPOCHS):
            for batch in program.loader:
                program.step(model, optimizer, batch)
            model.head = nn.Linear(12, NUM_CLASSES)
            optimizer.add_param_group({"params": list(model.head.parameters())})


@loop
def quantised_in_training(program: Program) -> None:
    from torch.ao import quantization

    model, optimizer = program.make()
    with program.watched(model, optimizer), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model.head.qconfig = quantization.get_default_qat_qconfig("fbgemm")
        quantization.prepare_qat(model.train(), inplace=True)
        for batch in program.batches():
            program.step(model, optimizer, batch)


@loop
def broken_off(program: Program) -> None:
    """Errors inside of passes that the loop outlives, epochs that end early, and two readings at once."""
    model, optimizer = program.make()
    with program.watched(model, optimizer):
        for number, (batch, _) in enumerate(zip(program.loader, program.loader, strict=True)):
            program.step(model, optimizer, batch)
            program.tried(lambda: model(object()))
            program.tried(lambda: torch.zeros(2, requires_grad=True).backward())
            if number == 3:
                break
        for batch in itertools.islice(program.loader, 2):
            program.step(model, optimizer, batch)


@loop
def counted_operations(program: Program) -> None:
    model, optimizer = program.make()
    with program.watched(model, optimizer):
        for batch in program.batches():
            with FlopCounterMode(display=False) as counter:
                program.step(model, optimizer, batch)
            program.left.append(counter.get_total_flops())
