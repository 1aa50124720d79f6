"""A training loop: reproducible, resumable, in one process or in many."""

import atexit
import hashlib
import math
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal
from zipfile import ZipFile

import numpy as np
import torch
from rich.console import Console
from rich.progress import Progress
from torch import distributed, nn
from torch.nn.parallel import DistributedDataParallel

__all__ = [
    "Augment",
    "Loss",
    "TrainingConfig",
    "check_checkpoint",
    "fingerprint",
    "fit",
    "in_mode",
    "is_first_process",
    "process_device",
]

Loss = Callable[..., torch.Tensor]
"""``loss(model, *batch)``: the mean over the batch of what is to be made small"""
Augment = Callable[[torch.Tensor, torch.Generator], torch.Tensor]
"""changes a batch of images (N, C, H, W) at random"""
_ORDER, _AUGMENT, _MODEL = range(3)
"""what random numbers are for"""


@dataclass(frozen=True)
class TrainingConfig:
    """How a model is trained.

    Parameters
    ----------
    epochs : passes over the data
    batch : samples of a step at most, of all processes together
    rate : learning rate of the first step
    optimizer : "adam", or "sgd" with Nesterov's momentum of 0.9
    weight_decay : L2 penalty, as the optimizer defines it
    schedule : of the rate, "constant" or "cosine", which ends at 0
    mode : of the model, "train" or "eval"; in the latter batch norms keep their statistics
    seed : of order, augmentation and what is random in the model
    checkpoint : file to write, and to go on from if it exists
    every : steps from checkpoint to checkpoint; there is one at the end in any case
    """

    epochs: int = 1
    batch: int = 64
    rate: float = 1e-5
    optimizer: Literal["adam", "sgd"] = "adam"
    weight_decay: float = 0.0
    schedule: Literal["constant", "cosine"] = "constant"
    mode: Literal["train", "eval"] = "train"
    seed: int = 0
    checkpoint: Path | str | None = None
    every: int = 100

    def __post_init__(self) -> None:
        for name in ("epochs", "batch", "every"):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int) or value < 1:
                raise ValueError(f"{name} must be a whole number from 1, not {value!r}")
        if isinstance(self.seed, bool) or not isinstance(self.seed, int) or self.seed < 0:
            raise ValueError(f"seed must be a whole number from 0, not {self.seed!r}")
        for name, least in (("rate", "above"), ("weight_decay", "from")):
            value = getattr(self, name)
            number = isinstance(value, (int, float)) and not isinstance(value, bool)
            enough = number and (value > 0 if least == "above" else value >= 0)
            if not (enough and math.isfinite(value)):
                raise ValueError(f"{name} must be a number {least} 0, not {value!r}")
        for name, choice in (
            ("optimizer", ("adam", "sgd")),
            ("schedule", ("constant", "cosine")),
            ("mode", ("train", "eval")),
        ):
            if getattr(self, name) not in choice:
                allowed = " or ".join(map(repr, choice))
                raise ValueError(f"{name} must be {allowed}, not {getattr(self, name)!r}")

    def factor_at(self, progress: float) -> float:
        """Of the first rate, what is left after a part of the training, from 0 to 1."""
        return 1.0 if self.schedule == "constant" else (1 + math.cos(math.pi * progress)) / 2


def fingerprint(tensors: Mapping[str, torch.Tensor]) -> str:
    """SHA-256 of the names, types, shapes and bits of tensors."""
    digest = hashlib.sha256()
    for name, tensor in sorted(tensors.items()):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        bits = tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8)
        digest.update(bits.numpy().data)
    return digest.hexdigest()


def process_device() -> torch.device:
    """The CUDA device of this process of ``torchrun``, or the CPU where there is none."""
    if not torch.cuda.is_available():
        return torch.device("cpu")
    return torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0")))


def is_first_process() -> bool:
    """Whether this process, the first one of those that trained together, writes results."""
    joined = distributed.is_available() and distributed.is_initialized()
    return not joined or distributed.get_rank() == 0


def fit(
    model: nn.Module,
    loss: Loss,
    data: Sequence[torch.Tensor],
    config: TrainingConfig,
    *,
    augment: Augment | None = None,
    rates: Mapping[str, float] | None = None,
    facts: Mapping[str, str | float] | None = None,
) -> list[float]:
    """Train in place, on the model's device, the parameters that require a gradient.

    Every epoch visits each sample once, in an order that follows from the seed and the epoch, in
    batches as equal as possible. What is random in a step follows from the seed and the step; a
    training that goes on from a checkpoint therefore ends, on a CPU, in the same bits as one that
    was never interrupted.

    Under ``torchrun`` each process takes its part of every batch, and the gradients are averaged
    (gloo on a CPU, NCCL on CUDA): up to the order of float additions the result is that of one
    process. Augmented is the whole batch, so that neither depends on the number of processes. The
    first process writes checkpoints and shows progress on standard error.

    Parameters
    ----------
    model : module on one device
    loss : given the model and a batch of every tensor of `data`
    data : tensors of one length, of which the first holds what is augmented
    config : see :class:`TrainingConfig`
    augment : changes the first tensor of a batch
    rates : first learning rates of some parameters by name, where not ``config.rate``
    facts : what else must agree when a checkpoint is read, by name. `loss` and `augment` are told
        by their names and the arguments of a ``functools.partial``

    Returns the loss of every step, those before a resumption included.

    Raises
    ------
    ValueError
        if there is nothing to train or too little data, or if the checkpoint is damaged or that of
        another training
    FloatingPointError
        if a loss is not finite
    """
    trained = {name: p for name, p in model.named_parameters() if p.requires_grad}
    if not trained:
        raise ValueError("nothing to train: no parameter of the model requires a gradient")
    if not data or not len(data[0]) or any(len(tensor) != len(data[0]) for tensor in data):
        raise ValueError(f"data must be tensors of one length, not {[len(t) for t in data]}")
    rates = dict(rates or {})
    for name, rate in rates.items():
        if name not in trained or not (math.isfinite(rate) and rate > 0):
            raise ValueError(f"rates must be above 0, of trained parameters, not {name}: {rate!r}")
    device = next(iter(trained.values())).device
    rank, processes = _join(device)
    with ExitStack() as stack:
        stack.enter_context(in_mode(model, config.mode))
        on_cuda = device.type == "cuda"
        stack.enter_context(torch.random.fork_rng([device] if on_cuda else []))
        console = Console(stderr=True)
        hidden = rank > 0 or not console.is_terminal
        bar = stack.enter_context(Progress(console=console, transient=True, disable=hidden))
        return _Training(
            model, loss, data, config, augment, rank, processes, device, trained, rates,
            _facts(model, trained, data, config)
            | {"rates": str(rates), "processes": processes}
            | {"loss": _title(loss), "augment": _title(augment)}
            | dict(facts or {}),
        ).run(bar)  # fmt: skip


def _facts(
    model: nn.Module,
    trained: Mapping[str, torch.Tensor],
    data: Sequence[torch.Tensor],
    config: TrainingConfig,
) -> dict[str, Any]:
    """What tells one training from another."""
    values = asdict(config)
    for name in ("checkpoint", "every"):
        del values[name]
    return values | {
        "trained parameters": ", ".join(trained),
        "start of the model": fingerprint(model.state_dict()),
        "data": fingerprint({str(number): tensor for number, tensor in enumerate(data)}),
    }


def _title(function: Callable[..., Any] | None) -> str:
    """What tells one function from another, in this process and in later ones."""
    if isinstance(function, partial):
        options = "".join(
            f", {name}={value!r}" for name, value in sorted(function.keywords.items())
        )
        return f"{_title(function.func)}({', '.join(map(repr, function.args))}{options})"
    if function is None or not hasattr(function, "__qualname__"):
        function = type(function)
    return function.__qualname__


def _generator(*key: int) -> torch.Generator:
    return torch.Generator().manual_seed(_seed(*key))


def _seed(*key: int) -> int:
    return int(np.random.SeedSequence(key).generate_state(1, np.uint64)[0])


@contextmanager
def in_mode(model: nn.Module, mode: str) -> Iterator[None]:
    """The model in that mode; afterwards every module is in its own again."""
    before = {module: module.training for module in model.modules()}
    model.train(mode == "train")
    try:
        yield
    finally:
        for module, training in before.items():
            module.training = training


def _join(device: torch.device) -> tuple[int, int]:
    """Rank and number of the processes, which are joined once if ``torchrun`` started them."""
    if not distributed.is_available():
        return 0, 1
    if not distributed.is_initialized():
        if int(os.environ.get("WORLD_SIZE", "1")) == 1:
            return 0, 1
        on_cuda = device.type == "cuda"
        if on_cuda:
            torch.cuda.set_device(device)
        distributed.init_process_group("nccl" if on_cuda else "gloo")
        atexit.register(distributed.destroy_process_group)
    return distributed.get_rank(), distributed.get_world_size()


@dataclass
class _Training:
    model: nn.Module
    loss: Loss
    data: Sequence[torch.Tensor]
    config: TrainingConfig
    augment: Augment | None
    rank: int
    processes: int
    device: torch.device
    trained: Mapping[str, nn.Parameter]
    rates: Mapping[str, float]
    facts: dict[str, Any]

    def run(self, bar: Progress) -> list[float]:
        config, count = self.config, len(self.data[0])
        steps = math.ceil(count / config.batch)
        if count // steps < self.processes:
            raise ValueError(f"{self.processes} processes need a batch of {self.processes} samples")
        optimizer = self._optimizer()
        losses = self._resume(optimizer)
        model = self.model
        if self.processes > 1:
            # Batch norms in training go on from the statistics of the first process.
            training = config.mode == "train"
            model = DistributedDataParallel(self.model, forward_sync_buffers=training)
        task = bar.add_task("training", total=config.epochs * steps, completed=len(losses))
        for epoch in range(len(losses) // steps, config.epochs):
            order = torch.randperm(count, generator=_generator(config.seed, _ORDER, epoch))
            for chosen in order.tensor_split(steps)[len(losses) - epoch * steps :]:
                step = len(losses)
                factor = config.factor_at(step / (config.epochs * steps))
                for group in optimizer.param_groups:
                    group["lr"] = group["rate"] * factor
                losses.append(self._step(model, optimizer, chosen, step))
                bar.update(task, advance=1, description=f"loss {losses[-1]:.4f}")
                if len(losses) % config.every == 0:
                    self._save(optimizer, losses)
        if self.processes > 1:
            for buffer in self.model.buffers():
                distributed.broadcast(buffer, 0)
        self._save(optimizer, losses)
        return losses

    def _optimizer(self) -> torch.optim.Optimizer:
        groups: dict[float, list[nn.Parameter]] = {}
        for name, parameter in self.trained.items():
            groups.setdefault(self.rates.get(name, self.config.rate), []).append(parameter)
        given = [{"params": group, "rate": rate} for rate, group in groups.items()]
        decay = self.config.weight_decay
        if self.config.optimizer == "adam":
            return torch.optim.Adam(given, weight_decay=decay)
        return torch.optim.SGD(given, momentum=0.9, weight_decay=decay, nesterov=True)

    def _step(
        self, model: nn.Module, optimizer: torch.optim.Optimizer, chosen: torch.Tensor, step: int
    ) -> float:
        batch = [tensor[chosen] for tensor in self.data]
        if self.augment is not None:
            batch[0] = self.augment(batch[0], _generator(self.config.seed, _AUGMENT, step))
        own = [tensor.tensor_split(self.processes)[self.rank].to(self.device) for tensor in batch]
        torch.manual_seed(_seed(self.config.seed, _MODEL, step, self.rank))
        optimizer.zero_grad()
        # The mean over the processes is then the mean over the batch, whose parts may be unequal.
        value = self.loss(model, *own) * (len(own[0]) * self.processes / len(chosen))
        value.backward()
        value = value.detach() / self.processes
        if self.processes > 1:
            distributed.all_reduce(value)
        if not math.isfinite(value.item()):
            raise FloatingPointError(f"the loss of step {step} is {value.item()}; lower the rate")
        optimizer.step()
        return value.item()

    def _save(self, optimizer: torch.optim.Optimizer, losses: list[float]) -> None:
        """Write the checkpoint; who reads it meanwhile finds the one before, never a part."""
        if self.config.checkpoint is None or self.rank:
            return
        path = Path(self.config.checkpoint)
        path.parent.mkdir(parents=True, exist_ok=True)
        unfinished = path.with_name(f"{path.name}.{os.getpid()}")
        state = {
            "facts": self.facts,
            "model": self.model.state_dict(),
            "optimizer": optimizer.state_dict(),
            "losses": losses,
        }
        try:
            with unfinished.open("wb") as file:
                torch.save(state, file)
                file.flush()
                os.fsync(file.fileno())
            unfinished.replace(path)
        finally:
            unfinished.unlink(missing_ok=True)

    def _resume(self, optimizer: torch.optim.Optimizer) -> list[float]:
        """Go on from the checkpoint, if there is one: the losses so far."""
        found: list[Any] = [None]
        if self.config.checkpoint is not None and self.rank == 0:
            found = [_read(Path(self.config.checkpoint), self.facts)]
        if self.processes > 1:
            distributed.broadcast_object_list(found)
        if isinstance(found[0], str):
            raise ValueError(found[0])
        if found[0] is None:
            return []
        self.model.load_state_dict(found[0]["model"])
        optimizer.load_state_dict(found[0]["optimizer"])
        return found[0]["losses"]


def check_checkpoint(path: Path) -> None:
    """Raise ``ValueError`` if there is a file that is no checkpoint; before long work."""
    found = _content(path)
    if isinstance(found, str):
        raise ValueError(found)


def _content(path: Path) -> dict[str, Any] | str | None:
    """A checkpoint, why it cannot be read, or None where there is none."""
    if not path.exists():
        return None
    try:
        with ZipFile(path) as archive:
            damaged = archive.testzip()  # torch reads on when a checksum is wrong
        state = {} if damaged else torch.load(path, "cpu", weights_only=True)
        dict(state["facts"])
    except Exception:  # unpickling and zip readers raise errors of many kinds
        return f"checkpoint {path} is damaged or no checkpoint; remove it to train from the start"
    return state


def _read(path: Path, facts: Mapping[str, Any]) -> dict[str, Any] | str | None:
    """A checkpoint, why it is refused, or None where there is none."""
    state = _content(path)
    if not isinstance(state, dict):
        return state
    before = dict(state["facts"])
    for name in (*facts, *before):
        if before.get(name) != facts.get(name):
            return (
                f"checkpoint {path} is that of another training: {name} was {before.get(name)!r}, "
                f"now it is {facts.get(name)!r}"
            )
    return state
