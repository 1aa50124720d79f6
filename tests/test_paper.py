"""What the papers print, recomputed: figures are those of the texts, typed by hand."""

import pytest
from click.testing import CliRunner

from shiftcore.benchmarks import paper
from shiftcore.benchmarks.paper import network, reproduced
from shiftcore.quant.accounting import CONVENTIONS, KernelShape

V1, NO_CDS, FP32, FP16, CODES = CONVENTIONS.values()


def percent(kernels, convention, bits: int, block: int = 128) -> str:
    return f"{100 * convention.ratio(kernels, bits, block):.2f}"


@pytest.mark.parametrize(
    ("bits", "convention", "expected"),
    [
        (2, FP16, ["22.92", "7.03", "6.77", "6.64", "6.64", "6.88"]),
        (3, FP16, ["26.04", "10.16", "9.90", "9.77", "9.77", "10.00"]),
        (4, FP32, ["45.83", "14.06", "13.54", "13.28", "13.28", "13.75"]),
        (2, V1, ["73.47", "9.50", "8.45", "7.87", "7.90", "8.85"]),
    ],
)
def test_table_4(bits, convention, expected):
    layers = paper.alexnet_layers().values()
    assert [percent(kernels, convention, bits) for kernels in layers] == expected


def test_table_4_counts_megabits():
    weights = [sum(k.weights for k in kernels) for kernels in paper.alexnet_layers().values()]
    assert weights == [23_232, 307_200, 663_552, 884_736, 589_824, 2_468_544]
    assert f"{32 * weights[-1] / 1e6:.1f}" == "79.0"


def test_the_worked_examples():
    small = KernelShape("", 128, 128, taps=9)
    by = [percent([small], c, 2, 64) for c in (V1, NO_CDS, FP32, FP16)]
    assert by == ["9.55", "9.38", "7.81", "7.03"]
    assert f"{paper.printed_formula_7(small, 2, 64):.2f}" == "3.35"
    wide = KernelShape("", 256, 256, taps=9)
    by = [percent([wide], c, 6) for c in (V1, NO_CDS, FP32, FP16)]
    assert by == ["20.40", "20.31", "19.53", "19.14"]
    by = [percent([wide], c, 3) for c in (V1, NO_CDS, FP32, FP16)]
    assert by == ["11.02", "10.94", "10.16", "9.77"]
    assert percent([KernelShape("", 256, 256)], V1, 6) == "21.09"  # 1x1


@pytest.mark.parametrize(
    ("name", "weights", "parameters", "macs", "products"),
    [
        ("ResNet34", 21_267_648, 21_797_672, "3663.2", "73.0"),
        ("ResNet50", 23_454_912, 25_557_032, "4087.1", "74.8"),
        ("MobileNetV2", 2_189_760, 3_504_872, "299.5", "29.2"),
    ],
)
def test_table_3_counts(name, weights, parameters, macs, products):
    found = network(name)
    assert sum(kernel.weights for kernel in found.convolutions) == weights
    assert found.parameters == parameters
    assert f"{found.macs / 1e6:.1f}" == macs
    assert f"{found.float_multiplies(128) / 1e6:.1f}" == products


@pytest.mark.parametrize(
    ("name", "bits", "expected"),
    [
        ("ResNet34", 3, ["7.98", "8.32", "8.66", "9.42"]),
        ("ResNet50", 3, ["8.80", "9.17", "9.55", "10.51"]),
        ("MobileNetV2", 4, ["1.09", "1.27", "1.44", "1.92"]),
        ("MobileNetV2", 3, ["0.82", "0.99", "1.17", "1.65"]),
    ],
)
def test_table_3_sizes(name, bits, expected):
    kernels = network(name).convolutions
    sizes = [sum(c.bits(k, bits, 128) for k in kernels) / 8e6 for c in (CODES, FP16, FP32, V1)]
    assert [f"{size:.2f}" for size in sizes] == expected


def test_table_1_in_bytes():
    kernels = network("ResNet50").convolutions
    expected = {
        (4, 128): ("14.3", "13.3", "12.9"), (4, 32): ("19.0", "15.6", "14.1"),
        (4, 8): ("37.7", "25.0", "18.8"), (3, 128): ("11.2", "10.2", "9.8"),
        (3, 32): ("15.9", "12.5", "10.9"), (3, 8): ("34.6", "21.9", "15.6"),
        (2, 128): ("8.1", "7.1", "6.7"), (2, 32): ("12.8", "9.4", "7.8"),
        (2, 8): ("31.5", "18.8", "12.5"),
    }  # fmt: skip
    for (bits, block), figures in expected.items():
        by = [f"{100 * c.ratio(kernels, bits, block):.1f}" for c in (V1, FP32, FP16)]
        assert tuple(by) == figures


def test_how_a_figure_was_made_is_found():
    values = {"a": 7.034, "b": 7.96, "c": 8.04}
    assert reproduced("7.03", values) == "a"
    assert reproduced("8.0", values) == "b; c"
    assert reproduced("7.9", values) == "b, cut off"
    assert reproduced("9", values) == "none (nearest: c, 8.04)"


def test_every_table_has_full_rows():
    for name, make in paper.TABLES.items():
        table = make()
        assert table.rows, name
        assert {len(row) for row in table.rows} == {len(table.headings)}, name


def test_printing():
    run = CliRunner().invoke(paper.main, [])
    assert run.exit_code == 0, run.output
    (line,) = (line for line in run.stdout.splitlines() if "conv1, b = 4" in line)
    assert line.split()[4:8] == ["49", "79.72", "45.83", "29.17"]
    assert run.stdout.count("B = 128") > 5
