"""The benchmarks: limits that are missed are said, and every tool is really asked."""

import json
from dataclasses import replace
from pathlib import Path

import click
import pytest
from click.testing import CliRunner

from shiftcore.benchmarks import (
    accumulators,
    accuracy,
    adaptation,
    area,
    bitstream,
    block_sizes,
    mixed,
    models,
    netlists,
    networks,
    reconstruction,
    simulation,
    speed,
    utilization,
    verilog,
)
from shiftcore.examples.digits import data, model
from shiftcore.hw.verilog import TOP
from shiftcore.quant.convert import QuantConfig, quantize
from shiftcore.quant.hardware import evaluate
from shiftcore.quant.search import Point, Search
from shiftcore.tests.networks import CONFIG

RESULT = {"lut": 800, "ff": 900, "dsp": 1, "bram": 2, "lut_per_mac": 40.0, "fmax_mhz": 140.0}
DESIGN = area.Design(
    "unit",
    lambda: pytest.fail("nothing is synthesized"),
    most=(("lut", 800), ("dsp", 1), ("lut_per_mac", 40)),
    least_mhz=140,
)


def test_a_result_at_the_limits_keeps_them():
    assert area.missed(DESIGN, RESULT) == []


@pytest.mark.parametrize(
    ("changes", "limits"),
    [
        ({"lut": 801}, ["lut ≤ 800"]),
        ({"lut_per_mac": 40.1}, ["lut_per_mac ≤ 40"]),
        ({"fmax_mhz": 139.9}, ["fmax_mhz ≥ 140"]),
        ({"dsp": 2, "lut": 900, "fmax_mhz": 1.0}, ["lut ≤ 800", "dsp ≤ 1", "fmax_mhz ≥ 140"]),
        ({"ff": 10**6, "bram": 10**6}, []),
    ],
)
def test_missed_limits_are_named(changes, limits):
    assert area.missed(DESIGN, RESULT | changes) == limits


def test_no_clock_is_no_missed_clock():
    assert area.missed(DESIGN, RESULT | {"fmax_mhz": None}) == []
    assert area.missed(replace(DESIGN, most=(), least_mhz=None), RESULT | {"fmax_mhz": 1.0}) == []


def test_a_missed_limit_fails_the_area_table(monkeypatch):
    monkeypatch.setattr(area, "designs", lambda: [DESIGN, replace(DESIGN, name="other", most=())])
    found = {"name": "unit", "fmax_mhz_by_seed": None, **RESULT, "lut": 801}
    monkeypatch.setattr(area, "measure", lambda design, pnr: found)
    run = CliRunner().invoke(area.main, ["--json"])
    assert run.exit_code == 1
    assert json.loads(run.stdout)["missed"] == ["unit: lut ≤ 800"]
    run = CliRunner().invoke(area.main, [])
    assert run.exit_code == 1
    assert [line.split()[-1] for line in run.stdout.splitlines() if "801" in line] == [
        "800",
        "kept",
    ]


def test_every_tool_takes_a_small_engine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """One synthesis, that of tests/test_cli.py: others take a minute each."""
    monkeypatch.setattr(verilog, "CHECKED", ("ecp5",))
    hardware = tmp_path / "one.toml"
    hardware.write_text("rows = 1\ncols = 1\n")
    run = CliRunner().invoke(verilog.main, ["--hw", str(hardware), "--json"])
    assert run.exit_code == 0, run.output
    tools = json.loads(run.stdout)["tools"]
    assert [tool["tool"].split()[0] for tool in tools] == [
        "verilator", "iverilog", "slang", "read_verilog;", "synth_ecp5"
    ]  # fmt: skip
    assert all(tool["error"] is None and tool["warnings"] == 0 for tool in tools)
    assert all(tool["resources"]["lut"] > 100 for tool in tools[4:])


@pytest.mark.parametrize(
    "check", [verilog.verilator, verilog.icarus, verilog.slang, verilog.yosys_check]
)
def test_a_refusal_is_one_line(tmp_path: Path, check):
    file = tmp_path / "bad.v"
    file.write_text(f"module {TOP}(input a, output b);\n  assign b = nothing(a);\nendmodule\n")
    verdict = check(file)
    assert verdict.result.startswith("failed: ")
    assert "\n" not in verdict.result


def test_warnings_are_seen(tmp_path: Path):
    file = tmp_path / "narrow.v"
    file.write_text(f"module {TOP}(input [3:0] a, output [1:0] b);\n  assign b = a;\nendmodule\n")
    # Verilator ends with an error where it has warned.
    assert verilog.verilator(file).error is not None
    file.write_text(
        f"module {TOP}(input a, c, output b);\n  assign b = ~a;\n  assign b = a & c;\nendmodule\n"
    )
    assert "conflicting drivers" in str(verilog.yosys_check(file).error)


def test_a_tool_that_is_missing_fails(tmp_path: Path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    assert verilog.icarus(tmp_path / "x.v").error == "iverilog is not installed"


def test_a_refusal_fails_the_verilog_table(monkeypatch, tmp_path: Path):
    hardware = tmp_path / "one.toml"
    hardware.write_text("rows = 1\ncols = 1\n")
    monkeypatch.setattr(verilog, "CHECKED", ())
    monkeypatch.setattr(verilog, "verilator", lambda file: verilog.Verdict("v", warnings=2))
    monkeypatch.setattr(verilog, "icarus", lambda file: verilog.Verdict("i", "syntax error"))
    run = CliRunner().invoke(verilog.main, ["--hw", str(hardware)])
    assert run.exit_code == 1
    assert "2 warnings" in run.stdout
    assert "failed: syntax error" in run.stdout


@pytest.mark.parametrize(("text", "failed"), [("assert True", 0), ("assert 0", 1), ("skip()", 0)])
def test_netlists_that_fail_or_do_not_run(monkeypatch, tmp_path: Path, text: str, failed: int):
    test = tmp_path / "test_it.py"
    test.write_text(f"""
from pytest import skip
def test_it(record_testsuite_property):
    record_testsuite_property("cells", 7)
    import os
    assert os.environ["SHIFTCORE_NETLIST"] == "ice40"
    {text}
""")
    monkeypatch.setitem(netlists.COMPONENTS, "PE", str(test))
    run = CliRunner().invoke(
        netlists.main, ["--component", "PE", "--family", "ice40", "--json"], catch_exceptions=False
    )
    (row,) = json.loads(run.stdout)
    assert (row["tests"], row["failed"]) == (text != "skip()", failed)
    assert row["cells"] == 7
    assert run.exit_code == (text != "assert True")


def test_a_bad_configuration_is_one_line(tmp_path: Path):
    with pytest.raises(click.ClickException, match=r"^\S+no\.toml: cannot be read"):
        verilog.write(tmp_path / "no.toml", tmp_path / "x.v")


def test_the_networks_table_of_the_digits(monkeypatch):
    monkeypatch.delenv(models.DATA, raising=False)
    monkeypatch.setattr(networks, "hardware", lambda network: CONFIG)
    run = CliRunner().invoke(networks.main, ["--images", "2", "--json"])
    assert run.exit_code == 0, run.output
    assert "SHIFTCORE_DATA is not set: only digits, without resnet8, resnet20" in run.stderr
    (row,) = json.loads(run.stdout)
    assert (row["images"], row["rtl_images"], row["same_class"]) == (360, 2, 2)
    assert (row["mismatches"], row["hardware_mode"]) == (0, None)
    assert row["cycles"] == [row["predicted"]] * 2
    assert row["float_top1"] > 99
    assert row["top1"] > 98


NETWORKS_ROW = {
    "network": "digits", "images": 360, "float_top1": 99.7, "top1": 99.4, "rtl_images": 2,
    "rtl_top1": 100.0, "same_class": 2, "cycles": [70, 70], "predicted": 70, "compared": 9,
    "mismatches": 0, "hardware_mode": None,
}  # fmt: skip
UTILIZATION_ROW = {
    "network": "digits", "macs": 600, "predicted": 70, "cycles": 70, "utilization": 0.5,
    "stall_tile": 1, "stall_ticket": 2, "stall_empty": 3, "stall_hazard": 4, "compared": 9,
    "counters_exact": True, "mismatches": 0, "difference": None,
}  # fmt: skip


@pytest.mark.parametrize(
    ("benchmark", "row", "change"),
    [
        (networks, NETWORKS_ROW, {"mismatches": 1}),
        (networks, NETWORKS_ROW, {"same_class": 1}),
        (networks, NETWORKS_ROW, {"cycles": [70, 71]}),
        (networks, NETWORKS_ROW, {"hardware_mode": "conv1"}),
        (utilization, UTILIZATION_ROW, {"mismatches": 1}),
        (utilization, UTILIZATION_ROW, {"counters_exact": False}),
        (utilization, UTILIZATION_ROW, {"difference": "conv1"}),
    ],
)
def test_a_difference_fails_the_tables_of_networks(monkeypatch, benchmark, row, change):
    for found, code in ((row, 0), (row | change, 1)):
        monkeypatch.setattr(benchmark, "measure", lambda *_, found=found, **__: found)
        run = CliRunner().invoke(benchmark.main, ["digits"])
        assert run.exit_code == code, run.output
        (line,) = (line for line in run.stdout.splitlines() if "digits" in line)
        assert len(line.split()) > 11


@pytest.mark.parametrize(("name", "least"), utilization.LEAST.items())
def test_low_utilization_fails(name, least):
    row = UTILIZATION_ROW | {"network": name}
    assert not utilization.failed(row | {"utilization": least})
    assert utilization.failed(row | {"utilization": least - 1e-6})


def test_utilization_without_simulation():
    run = CliRunner().invoke(utilization.main, ["digits", "--golden", "--json"])
    assert run.exit_code == 0, run.output
    (row,) = json.loads(run.stdout)
    assert row["difference"] is None
    assert "cycles" not in row
    lost = sum(row[cause] for cause in utilization.CAUSES)
    assert 0.9 * row["predicted"] < row["pixels"] + lost < row["predicted"]


def test_networks_that_cannot_be_loaded(monkeypatch):
    monkeypatch.delenv(models.DATA, raising=False)
    with pytest.raises(click.ClickException, match=r"^resnet20 needs SHIFTCORE_DATA, a folder"):
        models.load("resnet20")
    message = r"^there is no network 'resnet34'; known are digits, resnet8, .*, shufflenetv2$"
    with pytest.raises(click.ClickException, match=message):
        models.load("resnet34")


def test_simulation_speeds_are_compared(monkeypatch):
    monkeypatch.setattr(simulation, "hardware", lambda network: CONFIG)
    monkeypatch.setattr(simulation, "CYCLES", 20_000)
    for least, status in ((0.01, 0), (100.0, 1)):
        monkeypatch.setattr(simulation, "LEAST", least)
        run = CliRunner().invoke(simulation.main, ["--json", "--repetitions", "1"])
        assert run.exit_code == status, run.output
        found = json.loads(run.stdout)
        assert found["ratio"] == found["accelerator_cycles_per_s"] / found["array_cycles_per_s"]
        assert found["cycles_per_image"] > 10_000
    assert run.stderr.endswith(f"the ratio must be at least 100.0, not {found['ratio']:.2f}\n")


def speed_row(what: str, of_float: float, least: float | None) -> dict:
    return {"what": what, "batch": 1, "images_per_s": 1.0, "of_float": of_float, "least": least}


@pytest.mark.parametrize(
    ("compiled", "in_torch", "seconds", "status"),
    [(0.25, 0.1, 9.9, 0), (0.249, 0.1, 9.9, 1), (0.25, 0.099, 9.9, 1), (0.25, 0.1, 10.0, 1)],
)
def test_a_missed_speed_fails(monkeypatch, compiled, in_torch, seconds, status):
    rows = [
        speed_row("float", 1.0, None),
        speed_row("compiled", compiled, speed.COMPILED),
        speed_row("torch", in_torch, speed.TORCH),
    ]
    last = {"what": "conversion", "seconds": seconds, "below_s": speed.SECONDS}
    monkeypatch.setattr(speed, "inference", lambda images, repetitions: rows)
    monkeypatch.setattr(speed, "conversion", lambda: last)
    run = CliRunner().invoke(speed.main, ["--json"])
    assert (run.exit_code, json.loads(run.stdout)) == (status, [*rows, last])
    assert CliRunner().invoke(speed.main, []).exit_code == status


def test_uniform_networks_that_are_not_beaten_fail():
    sizes_and_losses = [(True, 2, 0.5), (True, 3, 0.2), (True, 4, 0.1), (True, 8, 0.01)]

    def rows(*mixed_ones):
        each = [*sizes_and_losses, *((False, *other) for other in mixed_ones)]
        return [{"uniform": u, "bytes": size, "loss": loss} for u, size, loss in each]

    found = rows((3, 0.1), (4, 0.11))
    mixed.judge(found)
    assert [row.get("beaten") for row in found] == [None, True, True, None, None, None]
    assert not any(map(mixed.failed, found))
    found = rows((4, 0.1))
    mixed.judge(found)
    assert [mixed.failed(row) for row in found] == [False, True, False, False, False]


def test_the_front_of_the_digits():
    options = "--network", "digits", "--points", 2, "--json"
    run = CliRunner().invoke(mixed.main, [str(option) for option in options])
    assert run.exit_code == 0, run.output
    rows = json.loads(run.stdout)
    beaten = [row.get("beaten") for row in rows if row["uniform"]]
    assert beaten == [None, *(True for _ in mixed.BITS[1:-1]), None]
    assert all(row["top1"] > 95 for row in rows)
    assert [row["bytes"] for row in rows] == sorted(row["bytes"] for row in rows)
    assert all(mixed.cells(row) for row in rows)


def test_a_uniform_network_that_is_not_beaten_fails(monkeypatch):
    images = data.load()[0].x[:16]
    configs = [QuantConfig(bits, 8, method="l2") for bits in (2, 3, 4)]
    uniform = tuple(
        Point(
            config, quantize(model.load(), images, config), size, loss=0.1, divergence=0, cycles=1
        )
        for size, config in enumerate(configs)
    )
    monkeypatch.setattr(mixed, "search", lambda *_, **__: Search(uniform, uniform[0]))
    run = CliRunner().invoke(mixed.main, ["--network", "digits", "--images", "2"])
    assert run.exit_code == 1
    lines = [line.split() for line in run.stdout.splitlines() if "uniform" in line]
    assert [line[-1] == "no" for line in lines] == [False, True, False]


def test_the_table_of_block_sizes(monkeypatch):
    monkeypatch.setattr(block_sizes, "CHANNELS", 40)
    run = CliRunner().invoke(block_sizes.main, ["--images", "1", "--repetitions", "1", "--json"])
    assert run.exit_code == 0, run.output
    rows = json.loads(run.stdout)
    assert [row["block"] for row in rows] == [8, 16, 32, 64, 128]
    assert [row["macs"] for row in rows] == [40 * 40 * 9] * 5
    assert [row["products"] for row in rows] == [40 * 9 * n for n in (5, 3, 2, 1, 1)]
    for change in ({"macs": 40 * 40 * 9 - 1}, {"products": 40 * 9 * 5 + 1}):
        found = [rows[0] | change]
        monkeypatch.setattr(block_sizes, "measure", lambda *_, found=found: found)
        assert CliRunner().invoke(block_sizes.main, []).exit_code == 1
    assert all(row["conversion_per_activation"] > 0 for row in rows)
    # One activation meets 9 taps of 40 filters.
    assert all(row["conversion_per_activation"] > 359 * row["conversion"] for row in rows)


TUNED_ROW = {
    "weight_bits": 2, "block": 8, "images": 300, "test_images": 100, "float_top1": 91.5,
    "before": 50.0, "after": 50.1, "frozen": 116, "changed": 0, "images_per_s": 100.0,
}  # fmt: skip
TRANSFERRED_ROW = {
    "weight_bits": 3, "block": 128, "images": 300, "epochs": 1, "test_images": 360,
    "classifier": 80.0, "both": 85.0, "frozen": 116, "changed": 0,
}  # fmt: skip


@pytest.mark.parametrize(
    ("command", "function", "row", "change"),
    [
        ("shifters", "tuned", TUNED_ROW, {"after": 50.0}),
        ("shifters", "tuned", TUNED_ROW, {"changed": 1}),
        ("transfer", "transferred", TRANSFERRED_ROW, {"both": 84.9}),
        ("transfer", "transferred", TRANSFERRED_ROW, {"changed": 1}),
    ],
)
def test_adaptation_without_gain_fails(
    data_folder: Path, monkeypatch, command, function, row, change
):
    monkeypatch.setattr(adaptation, "float_top1", lambda *_: row["float_top1"])
    for found, code in ((row, 0), (row | change, 1)):
        monkeypatch.setattr(adaptation, function, lambda *_, found=found: found)
        options = ["--images", "256", "--test-images", "1"] if command == "shifters" else []
        run = CliRunner().invoke(adaptation.main, [command, "--bits", "2", *options])
        assert run.exit_code == code, run.output


def test_the_shifters_as_table_1(capsys):
    rows = [
        TUNED_ROW | {"weight_bits": bits, "block": block, "before": bits + block / 10, "after": 90}
        for bits, block in ((2, 8), (3, 8), (3, 128))
    ]
    adaptation.table_1(rows)
    lines = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert ["3", "15.80", "3.80", "90.00", "90.00"] in lines
    assert ["2", "2.80", "90.00"] in lines  # nothing at 128


def test_shifters_of_few_bits_gain_on_few_images(data_folder: Path):
    options = ["--bits", "2", "--block", "32", "--images", "512", "--test-images", "100"]
    run = CliRunner().invoke(adaptation.main, ["shifters", *options, "--rate", "2e-3", "--json"])
    assert run.exit_code == 0, run.output
    (row,) = json.loads(run.stdout)
    assert (row["images"], row["test_images"], row["changed"]) == (512, 100, 0)
    assert row["after"] > row["before"] + 5


def test_transfer_gains_by_the_shifters(data_folder: Path):
    options = ["--bits", "3", "--block", "64", "--images", "512", "--epochs", "1", "--rate", "1e-3"]
    run = CliRunner().invoke(
        adaptation.main, ["transfer", *options, "--test-images", "100", "--json"]
    )
    assert run.exit_code == 0, run.output
    (row,) = json.loads(run.stdout)
    assert (row["images"], row["test_images"], row["changed"]) == (512, 100, 0)
    assert row["both"] > row["classifier"] + 5


def test_the_reconstruction_table(monkeypatch):
    monkeypatch.delenv(models.DATA, raising=False)
    cells = {cell: reconstruction.PUBLISHED[cell] for cell in ((8, 2), (8, 4))}
    monkeypatch.setattr(reconstruction, "PUBLISHED", cells)
    run = CliRunner().invoke(reconstruction.main, ["--weights", "65536", "--json"])
    assert run.exit_code == 0, run.output
    assert run.stderr == "SHIFTCORE_DATA is not set: no comparison of KL with L2\n"
    tables = json.loads(run.stdout)
    assert (len(tables["gaussian"]), tables["kl"]) == (2, [])
    for row in tables["gaussian"]:
        assert row["joint + bias"] < row["joint"] < row["R"] < row["O"] < row["P"]
        assert row["joint"] <= row["best clip"] < row["R"]
    for options in ([], ["--json"]):
        # R is not what is published.
        monkeypatch.setitem(cells, (8, 2), (0.191, 0.143, 0.079, 0.059, 0.068))
        run = CliRunner().invoke(reconstruction.main, ["--weights", "65536", *options])
        assert run.exit_code == 1
    monkeypatch.setitem(cells, (8, 2), (0.191, 0.143, 0.072, 0.059, 0.068))
    monkeypatch.setattr(reconstruction, "above", lambda row: row["block"] == 8)
    assert CliRunner().invoke(reconstruction.main, ["--weights", "65536"]).exit_code == 1


RECONSTRUCTION_ROW = {
    "block": 8, "bits": 2, "weights": 100_000, "deviation": 1e-4, "R": 0.072, "best clip": 0.068,
    "R + bias": 0.059, "joint": 0.068, "joint + bias": 0.059,
}  # fmt: skip


@pytest.mark.parametrize(
    ("change", "fails"),
    [
        ({}, False),
        ({"joint": 0.0680001}, True),
        ({"best clip": 0.0679999}, True),
        ({"R": 0.0679999}, True),
        ({"R + bias": 0.0589999}, True),
        ({"joint + bias": 0.0590001}, True),
    ],
)
def test_each_search_is_compared_with_what_it_replaces(change: dict, fails: bool):
    assert reconstruction.above(RECONSTRUCTION_ROW | change) == fails


@pytest.mark.parametrize(
    ("found", "fails"), [(0.07291, False), (0.07293, True), (0.07109, False), (0.07107, True)]
)
def test_the_published_recipe_is_reproduced(found: float, fails: bool):
    # Half a digit, 0.0005, and 3 * sqrt(2) standard errors of 0.0001.
    assert reconstruction.not_reproduced(RECONSTRUCTION_ROW | {"R": found}) == fails


def test_the_divergence_table_fails_at_a_slope(data_folder, monkeypatch):
    monkeypatch.setattr(reconstruction, "PUBLISHED", {})
    rows = list(reconstruction.agreement(data_folder, 4, 64))
    assert len(rows) == 19
    monkeypatch.setattr(reconstruction, "agreement", lambda *_: [rows[0] | {"slope": 1e-8}])
    assert CliRunner().invoke(reconstruction.main, []).exit_code == 1


ACCURACY_ROW = {
    "network": "resnet20", "bits": "4/4", "block": 16, "method": "compensated", "distilled": None,
    "images": 10_000, "float_top1": 91.6, "top1": 91.0, "least": None, "before": None,
}  # fmt: skip


@pytest.mark.parametrize(
    ("least", "limit", "top1", "failed"),
    [
        (None, None, 0.0, False),
        (-0.6, 91.6 - 0.6, 91.0, False),
        (-0.6, 91.6 - 0.6, 90.99, True),
        (89.5, 89.5, 89.5, False),
        (89.5, 89.5, 89.49, True),
    ],
)
def test_limits_of_accuracy(monkeypatch, least, limit, top1, failed):
    row = ACCURACY_ROW | {"least": least, "top1": top1}
    assert accuracy.limit(row) == limit
    assert accuracy.failed(row) is failed
    case = accuracy.Case("resnet20", QuantConfig())
    monkeypatch.setattr(accuracy, "CASES", {"calibrated": (case, case)})
    rows = [ACCURACY_ROW, row]
    monkeypatch.setattr(accuracy, "measure", lambda *_: rows.pop())
    run = CliRunner().invoke(accuracy.main, ["calibrated"])
    assert run.exit_code == failed, run.output
    assert rows == []
    assert run.stdout.count("resnet20") == 2


def test_float_rounding_misses_no_limit_of_accuracy():
    # One image of 10,000 is 0.01 points; float_top1 + least may lie above by an ulp or two.
    exact = ACCURACY_ROW | {"float_top1": 91.81, "least": -0.6, "top1": 91.21}
    least = accuracy.limit(exact)
    assert least is not None
    assert least > exact["top1"]
    assert not accuracy.failed(exact)
    assert accuracy.failed(exact | {"top1": 91.20})
    assert not accuracy.failed(exact | {"before": 91.21})
    assert accuracy.failed(exact | {"before": 91.22})


def test_accuracy_quantizes_once_for_every_configuration(monkeypatch):
    made = []
    accuracy.quantized.cache_clear()
    monkeypatch.setattr(accuracy, "images_of", lambda *_: (None, None))
    monkeypatch.setattr(accuracy, "_model", lambda network: network)
    monkeypatch.setattr(accuracy, "quantize", lambda *each: made.append(each[2]) or len(made))
    configs = [
        QuantConfig(3),
        QuantConfig(3, scale="fp16"),
        QuantConfig(3, overrides={"conv1": {"weight_bits": 8}}),
        QuantConfig(3, overrides={"conv1": {"weight_bits": 4}}),
    ]
    found = [accuracy.quantized("resnet20", config) for config in (*configs, *configs)]
    assert found == [1, 2, 3, 4] * 2
    assert made == configs
    accuracy.quantized.cache_clear()


def test_the_table_of_accumulators(monkeypatch):
    training, held_out = data.load()
    network = quantize(model.load(), training.x[:64], QuantConfig(method="l2"))
    images = {"train-20k": training, "test": held_out}
    monkeypatch.setattr(accumulators, "quantized", lambda *_: network)
    monkeypatch.setattr(
        accumulators,
        "images_of",
        lambda name, count, split: (images[split].x[:count], images[split].y[:count]),
    )
    run = CliRunner().invoke(accumulators.main, ["resnet8", "--images", "120", "--json"])
    assert run.exit_code == 0, run.output
    plain, *rows = json.loads(run.stdout)
    assert plain["top1"] == evaluate(network, held_out.x[:120], held_out.y[:120]).top1
    assert [row["accumulator"] for row in rows] == [f"fixed{n}" for n in accumulators.WIDTHS]
    assert all(row["saturated_sums"] == 0 for row in rows)
    shares = [row["differing"] for row in rows]
    assert shares == sorted(shares, reverse=True)
    assert shares[0] > 10 * shares[2]
    assert shares[-1] < 1e-5
    assert [row["exponents"][0] - rows[0]["exponents"][0] for row in rows] == [
        20 - width for width in accumulators.WIDTHS
    ]


@pytest.mark.parametrize(
    ("changes", "fails"),
    [
        ({"right": 899}, False),
        ({"right": 898}, True),
        ({"right": 902}, True),
        ({"right": 902, "accumulator": "fixed20"}, False),
        ({"saturated_sums": 1}, True),
        ({"saturated_sums": 1, "accumulator": "fixed20"}, True),
    ],
)
def test_limits_of_accumulators(monkeypatch, changes, fails):
    row = {
        "network": "resnet8", "accumulator": "fixed32", "images": 1000, "exponents": [-20, -18],
        "right": 900, "right_float32": 900, "top1": 90.0, "difference": 0.0,
        "saturated_sums": 0, "differing": 1e-6,
    }  # fmt: skip
    assert accumulators.failed(row | changes) == fails
    monkeypatch.setattr(accumulators, "measure", lambda *_: [row | changes])
    assert CliRunner().invoke(accumulators.main, ["resnet8"]).exit_code == fails


@pytest.mark.parametrize(
    ("mismatches", "problem", "failed"),
    [(0, None, False), (1, None, True), (0, "ulx3s-85f: the design reaches 20.0 MHz", True)],
)
def test_a_wrong_reply_or_a_missed_clock_fails_the_image(monkeypatch, mismatches, problem, failed):
    row = {
        "board": "ulx3s-85f", "images": 20, "mismatches": mismatches, "top1": 95.0, "divisor": 25,
        "run_cycles": 16_000, "ms_per_image": 11.0, "problem": problem,
    }  # fmt: skip
    made = {"bytes": 1000, "fmax_mhz": 40.0, "clock_mhz": 25.0}
    made |= dict.fromkeys(("lut", "ff", "dsp", "bram"), 10)
    monkeypatch.setattr(bitstream, "measure", lambda *_: row | (made if problem is None else {}))
    run = CliRunner().invoke(bitstream.main, [])
    assert run.exit_code == failed, run.output
    assert ("refused" if problem else "40.0") in run.stdout
    assert (
        json.loads(CliRunner().invoke(bitstream.main, ["--json"]).stdout)[0]["problem"] == problem
    )
