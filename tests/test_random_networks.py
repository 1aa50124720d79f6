"""Random networks: the graph, the float path, and the bits."""

from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from shiftcore.compiler.network import compile_network
from shiftcore.estimate.accelerator import predict
from shiftcore.frontend.archive import read
from shiftcore.golden.compare import different_tensors
from shiftcore.golden.network import QuantizedNetwork
from shiftcore.host.driver import Accelerator
from shiftcore.quant.calibrate import float_tensors
from shiftcore.quant.convert import QuantConfig, quantize
from shiftcore.quant.hardware import HardwareNetwork
from shiftcore.quant.lower import lower
from shiftcore.sim.accelerate import memory_bytes
from shiftcore.sim.system import SimulatedSystem
from shiftcore.tests.networks import CONFIG
from shiftcore.tests.zoo.random_network import RandomNetwork

SEEDS = range(40)


def draw(random: np.random.Generator) -> tuple[RandomNetwork, NDArray[np.float32]]:
    """A network, and three images for it."""
    channels, height, width = (int(random.integers(*ends)) for ends in ((1, 5), (6, 11), (6, 11)))
    model = RandomNetwork(random, channels, (height, width), int(random.integers(3, 14))).eval()
    return model, random.normal(size=(3, channels, height, width)).astype(np.float32)


@pytest.mark.parametrize("seed", SEEDS)
def test_a_random_network(seed: int, tmp_path: Path) -> None:
    random = np.random.default_rng(seed)
    model, images = draw(random)
    with torch.inference_mode():
        expected = model(torch.from_numpy(images))
    dynamic = ({0: torch.export.Dim("batch")},) if seed % 2 else None
    example = torch.from_numpy(images[: 2 if dynamic else seed // 2 % 2 + 1])
    graph = read(torch.export.export(model, (example,), dynamic_shapes=dynamic))

    layers = lower(graph)
    (tensors,) = float_tensors(layers, images)
    # Folding reorders float32 operations; this compares structure, not rounding.
    torch.testing.assert_close(tensors[layers[-1].name].flatten(1), expected, rtol=1e-3, atol=1e-3)

    bits, block = int(random.integers(3, 9)), int(random.choice([3, 4, 8, 16]))
    network = quantize(graph, images, QuantConfig(bits, int(random.integers(3, 9)), block))
    network.save(tmp_path / "net.safetensors")
    golden = QuantizedNetwork.load(tmp_path / "net.safetensors").compute(images)
    for compiled in (True, False):
        mode = HardwareNetwork(network, compiled=compiled)
        assert not different_tensors(mode.compute(images), golden)


@pytest.mark.parametrize("seed", SEEDS)
def test_every_counter_of_a_random_network_is_that_of_the_rtl(seed: int) -> None:
    random = np.random.default_rng(seed)
    model, images = draw(random)
    network = quantize(model, images, QuantConfig(block=CONFIG.rows, method="l2"))
    program = compile_network(network, CONFIG)
    latency, gap = int(random.integers(0, 200)), int(random.choice([0, 0, 1, 2, 5]))
    with SimulatedSystem(CONFIG, memory_bytes(program, 3), latency=latency, gap=gap) as system:
        driver = Accelerator(system)
        driver.load(program)
        driver.run(program.encode_input(network.encode_input(images)))
        found = driver.counters()
    assert found == predict(program, latency=latency, gap=gap, images=3).counters()
