"""Every layer of the CIFAR-10 ResNet-20 on the simulated 16x16 engine: needs SHIFTCORE_DATA."""

from pathlib import Path

import numpy as np

from shiftcore.estimate.cycles import engine_cycles
from shiftcore.examples.digits.demo import hardware
from shiftcore.quant.convert import quantize
from shiftcore.quant.hardware import HardwareNetwork
from shiftcore.sim.network import run_network
from shiftcore.tests.networks import cifar10, resnet20


def test_every_layer_of_real_images(data_folder: Path) -> None:
    network = quantize(resnet20(data_folder), cifar10(data_folder, 128, "train-20k")[0])
    images, _ = cifar10(data_folder, 2)
    config = hardware()
    runs = run_network(network, config, images)
    assert len(runs) == 21
    for run in runs:
        assert run.first is None
        assert run.mismatches == 0
        assert run.accumulators == len(images) * run.layer.bias.size * np.prod(run.programs[0].size)
        work = [item for program in run.programs for item in program.work]
        assert run.total_cycles == engine_cycles(work, config).total
    scores = HardwareNetwork(network).compute(images)["linear"]
    found = np.concatenate([np.asarray(t) for t in runs[-1].tensors])
    assert np.array_equal(found.view(np.uint32), np.asarray(scores).view(np.uint32))
