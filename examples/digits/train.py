"""Train the network: ``python -m shiftcore.examples.digits.train -o digits.safetensors``."""

import argparse
import math
from collections.abc import Sequence

import numpy as np
import torch
from safetensors.torch import save_file
from torch.nn import functional

from .data import Digits, load
from .model import DigitsNet

__all__ = ["accuracy", "main", "train"]


def _shifted(images: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    """Every image moved by up to one pixel in each direction."""
    padded = functional.pad(images, (1, 1, 1, 1))
    y, x = torch.randint(0, 3, (2, len(images)), generator=generator)
    rows, columns = y[:, None] + torch.arange(8), x[:, None] + torch.arange(8)
    return padded[
        torch.arange(len(images))[:, None, None], 0, rows[:, :, None], columns[:, None, :]
    ][:, None]


def accuracy(network: torch.nn.Module, digits: Digits) -> float:
    """Top-1 accuracy in percent."""
    with torch.inference_mode():
        classes = network(torch.from_numpy(digits.x)).argmax(1).numpy()
    return 100 * float(np.mean(classes == digits.y))


def train(
    digits: Digits,
    epochs: int = 40,
    batch: int = 64,
    seed: int = 0,
    network: DigitsNet | None = None,
) -> DigitsNet:
    """A trained network in evaluation mode; the same on every run of one machine.

    It is `network`, trained in place, or a new one.
    """
    torch.manual_seed(seed)
    generator = torch.Generator().manual_seed(seed)
    x, y = torch.from_numpy(digits.x), torch.from_numpy(digits.y)
    network = (network or DigitsNet()).train()
    steps = epochs * math.ceil(len(x) / batch)
    optimizer = torch.optim.SGD(network.parameters(), 0.1, 0.9, weight_decay=1e-3, nesterov=True)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    for _ in range(epochs):
        for chosen in torch.randperm(len(x), generator=generator).split(batch):
            scores = network(_shifted(x[chosen], generator))
            loss = functional.cross_entropy(scores, y[chosen], label_smoothing=0.05)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
    return network.eval()


def main(arguments: Sequence[str] | None = None) -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("-o", "--output", default="digits.safetensors")
    parser.add_argument("--epochs", type=int, default=40)
    options = parser.parse_args(arguments)
    training, held_out = load()
    network = train(training, options.epochs)
    save_file(network.state_dict(), options.output)
    print(f"{accuracy(network, held_out):.2f} % of {len(held_out.y)} held-out digits")


if __name__ == "__main__":
    main()
