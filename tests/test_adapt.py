"""Adaptation on real digits: what improves, and what stays to the bit."""

import copy
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional

from shiftcore.examples.digits import data, model
from shiftcore.examples.digits.train import accuracy
from shiftcore.quant.adapt import (
    DistillationConfig,
    distill,
    distillation_loss,
    frozen_state,
    replace_classifier,
    transfer,
    tune_shifters,
)
from shiftcore.quant.dsconv import DSConvConfig, quantize_, shifters
from shiftcore.quant.training import TrainingConfig, fingerprint
from shiftcore.tests.test_training import environment

TRAINING, HELD_OUT = data.load()
CONFIG = TrainingConfig(epochs=2, batch=32, rate=1e-3, schedule="cosine")
DISTILLATION = DistillationConfig(epochs=2, batch=32, rate=1e-3, schedule="cosine")


def coded(weight_bits: int, block: int = 32) -> model.DigitsNet:
    """The trained network with DSConv convolutions; the classifier stays float."""
    network = model.load()
    config = DSConvConfig(weight_bits, block)
    quantize_(network, config, lambda module, _: isinstance(module, nn.Conv2d))
    return network


def drift(network: model.DigitsNet) -> None:
    """Let a statistic move with every image, in evaluation mode too."""

    def move(module: nn.Module, _: tuple[torch.Tensor, ...]) -> None:
        module.running_mean += 1e-3

    network.bn1.register_forward_pre_hook(move)


def held_out_loss(network: nn.Module) -> float:
    with torch.no_grad():
        images, labels = map(torch.from_numpy, HELD_OUT)
        return float(functional.cross_entropy(network(images), labels))


def held_out_divergence(student: nn.Module) -> float:
    """KL to the float network on the held-out images."""
    with torch.no_grad():
        images = torch.from_numpy(HELD_OUT.x)
        return float(distillation_loss(student(images), model.load()(images)))


@pytest.mark.parametrize("weight_bits", [2, 3])
def test_shifters_alone_recover_accuracy(weight_bits: int) -> None:
    network = coded(weight_bits)
    before, loss, top1 = frozen_state(network), held_out_loss(network), accuracy(network, HELD_OUT)
    state = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    losses = tune_shifters(network, TRAINING.x, TRAINING.y, CONFIG)
    assert sum(losses[-20:]) < sum(losses[:20])
    assert held_out_loss(network) < loss
    # At 3 bits three of 360 digits are wrong before; how many more are right is luck.
    assert accuracy(network, HELD_OUT) > top1 + (4 if weight_bits == 2 else 0)
    moved = {name for name, _ in shifters(network)}
    for name, tensor in network.state_dict().items():
        assert torch.equal(tensor, state[name]) == (name not in moved), name
    # Codes, statistics, batch norm and the classifier among them.
    assert {"conv1.codes", "bn1.running_mean", "bn1.num_batches_tracked"} <= set(before)
    assert frozen_state(network) == before
    assert all(p.requires_grad for p in network.parameters())


def tuned(folder: str) -> None:
    """What a process of ``torchrun`` does, or one alone."""
    network = coded(2)
    before = frozen_state(network.requires_grad_(False))
    moved = [name for name, _ in shifters(network)]
    losses = tune_shifters(network, TRAINING.x[:96], TRAINING.y[:96], CONFIG)
    after, state = frozen_state(network), network.state_dict()
    found = {
        "losses": losses,
        "unchanged": {name: after[name] for name in before if after[name] == before[name]},
        "hashes": after,
        "shifters": {name: state[name] for name in moved},
    }
    torch.save(found, Path(folder, f"{os.environ.get('RANK', 'alone')}.result"))


def test_shifters_in_two_processes(tmp_path: Path) -> None:
    """Codes stay, and both processes end in the same bits; one alone adds gradients up in another
    order and ends close to them."""
    code = tmp_path / "tune.py"
    code.write_text(f"from shiftcore.tests.test_adapt import tuned\ntuned({str(tmp_path)!r})\n")
    launcher = ["torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    run = subprocess.run(
        [sys.executable, "-P", "-m", *launcher, code],
        check=False, capture_output=True, text=True, env=environment(), timeout=300,
    )  # fmt: skip
    assert run.returncode == 0, run.stderr
    tuned(str(tmp_path))
    first, second, alone = (torch.load(tmp_path / f"{rank}.result") for rank in (0, 1, "alone"))
    assert first["hashes"] == second["hashes"]
    assert first["losses"] == second["losses"]
    assert set(first["hashes"]) - set(first["unchanged"]) == set(first["shifters"])
    assert sum(name.endswith(".codes") for name in first["unchanged"]) == 7
    assert first["unchanged"] == alone["unchanged"]
    torch.testing.assert_close(first["losses"], alone["losses"], rtol=1e-3, atol=1e-5)
    torch.testing.assert_close(first["shifters"], alone["shifters"], rtol=1e-3, atol=1e-4)


def test_shifters_of_nothing() -> None:
    message = "^the model has no DSConv layers, whose shifters could be trained$"
    with pytest.raises(ValueError, match=message):
        tune_shifters(model.load(), TRAINING.x, TRAINING.y, CONFIG)
    with pytest.raises(ValueError, match=message):
        transfer(model.load(), 2, TRAINING.x, TRAINING.y % 2, CONFIG)


def test_a_frozen_tensor_that_changes_is_named() -> None:
    network = coded(8)
    drift(network)
    with pytest.raises(RuntimeError, match=r"^bn1\.running_mean is frozen, and training changed"):
        tune_shifters(network, TRAINING.x[:64], TRAINING.y[:64], CONFIG)


def test_what_is_frozen_follows_the_gradients() -> None:
    network = model.load()
    buffers = {name for name, _ in network.named_buffers()}
    assert set(frozen_state(network)) == buffers
    network.linear.requires_grad_(False)
    assert set(frozen_state(network)) == buffers | {"linear.weight", "linear.bias"}
    tied = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2))
    tied[1].weight = tied[0].weight
    assert frozen_state(tied) == {}


def parts() -> tuple[tuple[np.ndarray, np.ndarray], tuple[torch.Tensor, torch.Tensor]]:
    """A task that the network was not trained for: mirrored digits, even or odd, big or small."""
    labels = [np.where(part.y < 5, part.y % 2, 2 + part.y % 2) for part in (TRAINING, HELD_OUT)]
    images = [np.ascontiguousarray(part.x[..., ::-1]) for part in (TRAINING, HELD_OUT)]
    return (images[0], labels[0]), (torch.from_numpy(images[1]), torch.from_numpy(labels[1]))


def test_transfer_with_shifters_beats_the_classifier_alone() -> None:
    training, (images, labels) = parts()
    config = replace(CONFIG, epochs=3)
    found = []
    for with_shifters in (False, True):
        network = coded(3)
        names = {"linear.weight", "linear.bias"}
        names |= {name for name, _ in shifters(network)} if with_shifters else set()
        before = {name: tensor.clone() for name, tensor in network.state_dict().items()}
        transfer(network, 4, *training, config, with_shifters=with_shifters)
        after = network.state_dict()
        changed = {
            name
            for name, tensor in after.items()
            if tensor.shape != before[name].shape or not torch.equal(tensor, before[name])
        }
        assert changed == names
        with torch.inference_mode():
            found.append(100 * float((network(images).argmax(1) == labels).float().mean()))
    assert found[1] > found[0] + 5


def test_labels_of_a_transfer() -> None:
    network = coded(3)
    before = list(network.modules())
    images, labels = torch.zeros(8, 1, 8, 8), torch.zeros(7, dtype=torch.int64)
    with pytest.raises(ValueError, match=r"^8 images need as many labels, not \(7,\)$"):
        transfer(network, 9, images, labels, TrainingConfig())
    with pytest.raises(FloatingPointError):
        transfer(network, 9, images / 0, labels.new_zeros(8), TrainingConfig())
    assert list(network.modules()) == before
    with pytest.raises(ValueError, match=r"^labels must be 0 to 9, not 0 to 10$"):
        tune_shifters(network, images, torch.tensor([*range(7), 10]), TrainingConfig())
    with pytest.raises(ValueError, match=r"^labels must be 0 to 8, not 0 to 9$"):
        transfer(coded(3), 9, TRAINING.x, TRAINING.y, CONFIG)


def test_which_classifier_is_replaced() -> None:
    network = nn.Sequential(nn.Linear(4, 3), nn.Sequential(nn.Linear(3, 2), nn.ReLU()))

    def weight(name: str) -> torch.Tensor:
        return network.get_parameter(f"{name}.weight").detach()

    assert replace_classifier(network, 5) == "1.0"
    assert weight("1.0").shape == (5, 3)
    assert network.get_submodule("1.0").training
    assert replace_classifier(network, 7, name="0") == "0"
    first = weight("0")
    assert first.shape == (7, 4)
    replace_classifier(network, 7, name="0")
    assert torch.equal(weight("0"), first)
    replace_classifier(network, 7, name="0", seed=1)
    assert not torch.equal(weight("0"), first)
    quantize_(network.eval(), DSConvConfig())
    assert replace_classifier(network, 2) == "1.0"
    assert not any(module.training for module in network.modules())
    with pytest.raises(ValueError, match=r"^'1\.1' is no linear layer; linear are 0, 1\.0$"):
        replace_classifier(network, 2, name="1.1")
    with pytest.raises(ValueError, match=r"^classes must be at least 1, not 0$"):
        replace_classifier(network, 0)
    with pytest.raises(ValueError, match=r"^the model has no linear layer to replace as its"):
        replace_classifier(nn.Sequential(nn.ReLU()), 2)


def test_the_loss_of_a_distillation() -> None:
    generator = torch.Generator().manual_seed(0)
    student, teacher = (torch.randn(5, 4, generator=generator).double() for _ in range(2))
    for temperature in (1.0, 3.0):
        wanted, given = ((x / temperature).softmax(1) for x in (teacher, student))
        divergence = (wanted * (wanted / given).log()).sum(1).mean() * temperature**2
        found = distillation_loss(student, teacher, temperature)
        torch.testing.assert_close(found, divergence)
    found = distillation_loss(student, teacher, kind="mse")
    torch.testing.assert_close(found, ((student - teacher) ** 2).mean())
    assert distillation_loss(teacher, teacher) == 0
    # A constant added to all logits of an image changes no probability.
    assert abs(distillation_loss(teacher + 7, teacher)) < 1e-12
    whole = teacher.round()
    assert distillation_loss(whole + 7, whole, kind="mse") == 49
    with pytest.raises(ValueError, match=r"^logits are \(5, 3\), the teacher's \(5, 4\)$"):
        distillation_loss(student[:, :3], teacher)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"temperature": 0}, "temperature must be a number above 0, not 0"),
        ({"kind": "l1"}, "kind must be 'kl' or 'mse', not 'l1'"),
        ({"rate": -1.0}, "rate must be a number above 0, not -1.0"),
    ],
)
def test_bad_distillations(change, message) -> None:
    with pytest.raises(ValueError, match=f"^{message}$"):
        replace(DISTILLATION, **change)


def test_eight_bits_have_nothing_to_learn() -> None:
    assert held_out_divergence(coded(8, 8)) < 1e-3
    losses = distill(coded(8, 8), model.load(), TRAINING.x[:64], replace(DISTILLATION, epochs=1))
    assert losses[0] < 1e-3


@pytest.mark.parametrize("weight_bits", [2, 3])
@pytest.mark.parametrize("kind", ["kl", "mse"])
def test_distillation_without_labels(weight_bits: int, kind: str) -> None:
    student, teacher = coded(weight_bits), model.load().train()
    student.linear.requires_grad_(False)
    before, taught = held_out_divergence(student), fingerprint(teacher.state_dict())
    top1, frozen = accuracy(student, HELD_OUT), frozen_state(student)
    distill(student, teacher, TRAINING.x, replace(DISTILLATION, kind=kind))
    assert held_out_divergence(student) < 0.5 * before
    assert accuracy(student, HELD_OUT) > top1 + (4 if weight_bits == 2 else 0)
    assert fingerprint(teacher.state_dict()) == taught
    assert teacher.training
    assert frozen_state(student) == frozen
    # The codes are among what is frozen; where they move is in test_student.py.
    assert sum(name.endswith(".codes") for name in frozen) == 7


def test_another_teacher_is_another_distillation(tmp_path) -> None:
    config = replace(DISTILLATION, epochs=1, checkpoint=tmp_path / "state.pt")
    teacher, images = model.load(), TRAINING.x[:64]
    losses = distill(coded(2), teacher, images, config)
    assert distill(coded(2), teacher, images, config) == losses
    other = copy.deepcopy(teacher)
    other.linear.bias.data += 1
    with pytest.raises(ValueError, match=r"is that of another training: teacher was"):
        distill(coded(2), other, images, config)
    with pytest.raises(ValueError, match=r"is that of another training: temperature was 1.0, now"):
        distill(coded(2), teacher, images, replace(config, temperature=2.0))


def test_a_teacher_is_no_student() -> None:
    network = model.load()
    with pytest.raises(ValueError, match=r"^student and teacher share a parameter that is to be"):
        distill(network, network, TRAINING.x[:8], DISTILLATION)


def test_a_teacher_that_changes_is_found() -> None:
    teacher = model.load()
    drift(teacher)
    with pytest.raises(RuntimeError, match=r"^training changed the teacher$"):
        distill(coded(8), teacher, TRAINING.x[:64], DISTILLATION)


def test_only_images_reach_a_student() -> None:
    seen = []

    class Student(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.linear = nn.Linear(64, 10)

        def forward(self, *inputs: torch.Tensor) -> torch.Tensor:
            seen.append([tuple(x.shape) for x in inputs])
            return functional.relu(self.linear(inputs[0].flatten(1)))

    distill(Student(), model.load(), TRAINING.x[:8], replace(DISTILLATION, epochs=1))
    assert seen == [[(8, 1, 8, 8)]]
