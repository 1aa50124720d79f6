"""The training loop: the same numbers again, after a kill, and in two processes."""

import os
import signal
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from functools import partial, wraps
from pathlib import Path

import pytest
import torch
from torch import nn
from torch.nn import functional

from shiftcore.quant.training import TrainingConfig, fingerprint, fit, process_device

CONFIG = TrainingConfig(epochs=3, batch=8, rate=1e-2, schedule="cosine", every=2, seed=5)
SAMPLES = 28  # four batches of seven


def model() -> nn.Sequential:
    """Something of all: a frozen layer, statistics, random numbers."""
    torch.manual_seed(0)
    network = nn.Sequential(
        nn.Conv2d(2, 4, 3, padding=1), nn.BatchNorm2d(4), nn.ReLU(), nn.Dropout(0.25),
        nn.Conv2d(4, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(16, 3),
    )  # fmt: skip
    network[4].requires_grad_(False)
    return network


def data() -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    images = torch.randn(SAMPLES, 2, 4, 4, generator=generator)
    return images, torch.randint(0, 3, (SAMPLES,), generator=generator)


def loss(network: nn.Module, images: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    return functional.cross_entropy(network(images), labels)


def noise(images: torch.Tensor, generator: torch.Generator, size: float = 0.1) -> torch.Tensor:
    return images + size * torch.randn(images.shape, generator=generator)


def trained(config: TrainingConfig = CONFIG, **options) -> tuple[str, list[float]]:
    """The bits that a training ends with, and its losses."""
    network = model()
    losses = fit(network, options.pop("loss", loss), data(), config, augment=noise, **options)
    return fingerprint(network.state_dict()), losses


def squared(network: nn.Module, *batch: torch.Tensor) -> torch.Tensor:
    return loss(network, *batch) ** 2


def stopping(after: int, stop: Callable[[], None]) -> Callable[..., torch.Tensor]:
    """The loss, which calls `stop` once it was asked `after` times."""
    calls = iter(range(after))

    @wraps(loss)
    def stopped(network: nn.Module, *batch: torch.Tensor) -> torch.Tensor:
        if next(calls, None) is None:
            stop()
        return loss(network, *batch)

    return stopped


def fail() -> None:
    raise KeyboardInterrupt


def wait() -> None:
    """Say that it is time to be killed, and wait for it."""
    print("waiting", flush=True)
    signal.pause()


def test_the_loss_falls_and_the_rest_stays() -> None:
    network = model().eval()
    network[0].train()
    frozen = fingerprint(network[4].state_dict())
    state = torch.get_rng_state()
    losses = fit(network, loss, data(), replace(CONFIG, epochs=20))
    assert len(losses) == 20 * 4
    assert sum(losses[-4:]) < 0.8 * sum(losses[:4])
    assert fingerprint(network[4].state_dict()) == frozen
    assert [module.training for module in network] == [True] + [False] * 7
    assert torch.equal(torch.get_rng_state(), state)


def test_every_sample_is_seen_once_an_epoch_in_another_order() -> None:
    seen: list[torch.Tensor] = []

    def look(network: nn.Module, samples: torch.Tensor) -> torch.Tensor:
        seen.append(samples)
        return network(samples[:, None]).mean()

    samples = torch.arange(10.0)
    fit(nn.Linear(1, 1), look, (samples,), TrainingConfig(epochs=2, batch=4))
    assert [len(batch) for batch in seen] == [4, 3, 3] * 2
    first, second = torch.cat(seen[:3]), torch.cat(seen[3:])
    assert torch.equal(first.sort().values, samples)
    assert torch.equal(second.sort().values, samples)
    assert not torch.equal(first, second)


def test_a_seed_gives_the_same_bits_again() -> None:
    assert trained() == trained()
    assert trained()[0] != trained(replace(CONFIG, seed=6))[0]


@pytest.mark.parametrize("optimizer", ["adam", "sgd"])
@pytest.mark.parametrize("steps", [1, 2, 5, 8])
def test_an_interrupted_training_ends_in_the_same_bits(
    tmp_path: Path, optimizer: str, steps: int
) -> None:
    path = tmp_path / "deep" / "state.pt"
    config = replace(CONFIG, optimizer=optimizer, checkpoint=path)
    with pytest.raises(KeyboardInterrupt):
        trained(config, loss=stopping(steps, fail))
    assert path.exists() == (steps >= CONFIG.every)
    assert trained(config) == trained(replace(config, checkpoint=None))
    assert [file.name for file in (tmp_path / "deep").iterdir()] == ["state.pt"]
    # The finished training is only read.
    assert trained(config, loss=stopping(0, fail)) == trained(replace(config, checkpoint=None))


def environment() -> dict[str, str]:
    """Threads as here, since float sums may depend on them; this file importable by its name."""
    root = str(Path(sys.modules["shiftcore"].__file__ or "").parents[1])
    return os.environ | {"OMP_NUM_THREADS": str(torch.get_num_threads()), "PYTHONPATH": root}


def test_a_killed_training_ends_in_the_same_bits(tmp_path: Path) -> None:
    path = tmp_path / "state.pt"
    code = (
        "from dataclasses import replace\n"
        "from shiftcore.tests.test_training import CONFIG, stopping, trained, wait\n"
        f"trained(replace(CONFIG, checkpoint={str(path)!r}), loss=stopping(7, wait))"
    )
    command = [sys.executable, "-P", "-c", code]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment()) as child:
        assert child.stdout is not None
        assert child.stdout.readline() == "waiting\n"
        child.kill()
    assert child.returncode == -signal.SIGKILL
    assert len(torch.load(path)["losses"]) == 6
    assert trained(replace(CONFIG, checkpoint=path)) == trained()


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    path = tmp_path / "state.pt"
    trained(replace(CONFIG, epochs=1, checkpoint=path))
    return path


def test_a_checkpoint_of_another_training_is_refused(checkpoint: Path) -> None:
    config = replace(CONFIG, epochs=1, checkpoint=checkpoint)
    images, labels = data()
    other = model()
    with torch.no_grad():
        other.get_parameter("0.bias")[0] += 1
    frozen = model()
    frozen[0].requires_grad_(False)
    message = rf"^checkpoint {checkpoint} is that of another training: "
    for changed, network, samples, facts, reason in (
        (replace(config, rate=2e-2), model(), images, {}, "rate was 0.01, now it is 0.02"),
        (replace(config, seed=6), model(), images, {}, "seed was 5, now it is 6"),
        (config, other, images, {}, "start of the model was '.*', now it is '.*'"),
        (config, frozen, images, {}, "trained parameters was '0.weight, .*', now it is '1.weight"),
        (config, model(), images + 1, {}, "data was '.*', now it is '.*'"),
        (config, model(), images, {"teacher": "x"}, "teacher was None, now it is 'x'"),
    ):
        with pytest.raises(ValueError, match=message + reason) as refusal:
            fit(network, loss, (samples, labels), changed, augment=noise, facts=facts)
        assert "\n" not in str(refusal.value)
    for fitted, augment, reason in (
        (squared, noise, "loss was 'loss', now it is 'squared'"),
        (loss, None, "augment was 'noise', now it is 'NoneType'"),
        (loss, partial(noise, size=2), r"augment was 'noise', now it is 'noise\(.*size=2\)'"),
    ):
        with pytest.raises(ValueError, match=message + reason):
            fit(model(), fitted, (images, labels), config, augment=augment)
    # How often it is written is no part of it.
    assert trained(replace(config, every=1)) == trained(replace(config, checkpoint=None))


def test_a_damaged_checkpoint_is_refused(checkpoint: Path) -> None:
    content = bytearray(checkpoint.read_bytes())
    weight = (
        model().get_parameter("4.weight").detach().numpy().tobytes()
    )  # frozen: in the file as it is here
    place = bytes(content).index(weight)
    flipped = content.copy()
    flipped[place] ^= 1
    for damaged in (b"", b"no checkpoint", content[: len(content) // 2], flipped):
        checkpoint.write_bytes(damaged)
        with pytest.raises(ValueError, match=r"is damaged or no checkpoint; remove it .* start$"):
            trained(replace(CONFIG, epochs=1, checkpoint=checkpoint))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"epochs": 0}, "epochs must be a whole number from 1, not 0"),
        ({"batch": 2.5}, "batch must be a whole number from 1, not 2.5"),
        ({"every": True}, "every must be a whole number from 1, not True"),
        ({"seed": -1}, "seed must be a whole number from 0, not -1"),
        ({"rate": 0}, "rate must be a number above 0, not 0"),
        ({"rate": float("nan")}, "rate must be a number above 0, not nan"),
        ({"weight_decay": -1}, "weight_decay must be a number from 0, not -1"),
        ({"optimizer": "adamw"}, "optimizer must be 'adam' or 'sgd', not 'adamw'"),
        ({"schedule": "step"}, "schedule must be 'constant' or 'cosine', not 'step'"),
        ({"mode": "test"}, "mode must be 'train' or 'eval', not 'test'"),
    ],
)
def test_bad_configurations(change, message) -> None:
    with pytest.raises(ValueError, match=f"^{message}$"):
        replace(CONFIG, **change)


def test_nothing_to_train_with() -> None:
    images, labels = data()
    with pytest.raises(ValueError, match=r"^data must be tensors of one length, not \[28, 3\]$"):
        fit(model(), loss, (images, labels[:3]), CONFIG)
    with pytest.raises(ValueError, match=r"^data must be tensors of one length, not \[0, 0\]$"):
        fit(model(), loss, (images[:0], labels[:0]), CONFIG)
    message = "^nothing to train: no parameter of the model requires a gradient$"
    with pytest.raises(ValueError, match=message):
        fit(model().requires_grad_(False), loss, data(), CONFIG)


def test_a_loss_that_is_not_finite_stops_the_training(tmp_path: Path) -> None:
    path = tmp_path / "state.pt"
    config = replace(CONFIG, checkpoint=path)

    def lost(network: nn.Module, *batch: torch.Tensor) -> torch.Tensor:
        return loss(network, *batch) * torch.nan

    with pytest.raises(FloatingPointError, match=r"^the loss of step 0 is nan; lower the rate$"):
        trained(config, loss=lost)
    assert not path.exists()


def test_the_rate_of_a_schedule() -> None:
    assert [CONFIG.factor_at(progress) for progress in (0, 1)] == [1, 0]
    assert abs(CONFIG.factor_at(0.5) - 0.5) < 1e-15
    assert replace(CONFIG, schedule="constant").factor_at(0.5) == 1


def test_parameters_have_rates_of_their_own() -> None:
    def moved(**options) -> list[float]:
        pair = nn.ParameterDict({"a": torch.zeros(1), "b": torch.zeros(1)})
        config = TrainingConfig(rate=0.5, optimizer="sgd", batch=2)
        fit(pair, lambda p, x: p["a"].sum() - p["b"].sum(), (torch.zeros(2),), config, **options)
        return [pair["a"].item(), pair["b"].item()]

    # Nesterov's first step is 1.9 times the gradient.
    assert moved() == [-0.5 * torch.tensor(1.9).item(), 0.5 * torch.tensor(1.9).item()]
    assert moved(rates={"b": 0.25})[1] == moved()[1] / 2
    assert moved(rates={"b": 0.25})[0] == moved()[0]
    for rates in ({"c": 1.0}, {"a": 0.0}):
        with pytest.raises(ValueError, match=r"^rates must be above 0, of trained parameters, not"):
            moved(rates=rates)


def test_a_fingerprint_sees_every_bit() -> None:
    tensors = {"a": torch.zeros(3), "b": torch.tensor(1, dtype=torch.int8)}
    assert fingerprint(tensors) == fingerprint(dict(reversed(tensors.items())))
    for change in (
        {"a": torch.tensor([0.0, 0.0, -0.0])},
        {"a": torch.zeros(3, 1)},
        {"a": torch.zeros(3, dtype=torch.int32)},
        {"b": torch.tensor(2, dtype=torch.int8)},
        {"c": torch.zeros(3)},
    ):
        assert fingerprint(tensors | change) != fingerprint(tensors)


# In two processes: no dropout, which every process draws for itself, and frozen statistics.
# Exact: with one weight, data of small whole numbers and a rate of 1 every sum of floats is exact.
EXACT = TrainingConfig(epochs=2, batch=4, rate=0.25, optimizer="sgd", mode="eval")
CLOSE = replace(CONFIG, mode="eval", batch=7)  # parts of four and three samples


def exact() -> nn.Linear:
    network = nn.Linear(4, 1, bias=False)
    nn.init.zeros_(network.weight)
    return network


def whole_numbers() -> tuple[torch.Tensor]:
    return (torch.randint(-4, 5, (8, 4), generator=torch.Generator().manual_seed(0)).float(),)


def linear(network: nn.Module, samples: torch.Tensor) -> torch.Tensor:
    return network(samples).mean()


def in_each_process(folder: str) -> None:
    """What a process of ``torchrun`` does: two trainings, one after the other, and a resumption."""
    rank = os.environ.get("RANK", "alone")
    network, small = model(), exact()
    path = Path(folder, f"{os.environ.get('WORLD_SIZE', '1')}.pt")
    losses = fit(network, loss, data(), replace(CLOSE, checkpoint=path), augment=noise)
    again = model()
    assert (
        fit(again, stopping(0, fail), data(), replace(CLOSE, checkpoint=path), augment=noise)
        == losses
    )
    assert fingerprint(again.state_dict()) == fingerprint(network.state_dict())
    averaged = fit(small, linear, whole_numbers(), EXACT)
    result = {"model": network.state_dict(), "losses": losses, "exact": small.weight.data}
    torch.save(result | {"averaged": averaged}, Path(folder, f"{rank}.result"))
    with pytest.raises(ValueError, match=r"^2 processes need a batch of 2 samples$"):
        fit(small, linear, whole_numbers(), replace(EXACT, batch=1))


def test_two_processes_do_what_one_does(tmp_path: Path) -> None:
    code = tmp_path / "train.py"
    code.write_text(
        "from shiftcore.tests.test_training import in_each_process\n"
        f"in_each_process({str(tmp_path)!r})\n"
    )
    launcher = ["torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    run = subprocess.run(
        [sys.executable, "-P", "-W", "error", "-m", *launcher, code],
        check=False, capture_output=True, text=True, env=environment(), timeout=300,
    )  # fmt: skip
    assert run.returncode == 0, run.stderr
    first, second = (torch.load(tmp_path / f"{rank}.result") for rank in (0, 1))
    assert fingerprint(first["model"]) == fingerprint(second["model"])
    assert first["losses"] == second["losses"]
    network, small = model(), exact()
    losses = fit(network, loss, data(), CLOSE, augment=noise)
    assert fit(small, linear, whole_numbers(), EXACT) == first["averaged"] == second["averaged"]
    assert torch.equal(small.weight, first["exact"])
    assert torch.equal(small.weight, second["exact"])
    assert small.weight.count_nonzero()
    # Sums of gradients in another order: float32 rounding, carried through twelve steps of Adam.
    torch.testing.assert_close(first["losses"], losses, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(first["model"], dict(network.state_dict()), rtol=1e-4, atol=1e-5)


def test_the_device_of_a_process(monkeypatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert process_device() == torch.device("cpu")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert process_device() == torch.device("cuda:0")
    monkeypatch.setenv("LOCAL_RANK", "3")
    assert process_device() == torch.device("cuda:3")
