"""Random networks: the graph, the float path, and the bits."""

from pathlib import Path

import numpy as np
import pytest
import torch

from shiftcore.frontend.archive import read
from shiftcore.golden.compare import different_tensors
from shiftcore.golden.network import QuantizedNetwork
from shiftcore.quant.calibrate import float_tensors
from shiftcore.quant.convert import QuantConfig, quantize
from shiftcore.quant.hardware import HardwareNetwork
from shiftcore.quant.lower import lower
from shiftcore.tests.zoo.random_network import RandomNetwork


@pytest.mark.parametrize("seed", range(40))
def test_a_random_network(seed: int, tmp_path: Path) -> None:
    random = np.random.default_rng(seed)
    channels, height, width = (int(random.integers(*ends)) for ends in ((1, 5), (6, 11), (6, 11)))
    model = RandomNetwork(random, channels, (height, width), int(random.integers(3, 14))).eval()
    images = random.normal(size=(3, channels, height, width)).astype(np.float32)
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
