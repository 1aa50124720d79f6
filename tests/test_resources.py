"""The resource estimates: memories and multipliers as yosys maps them, terms, fit, errors."""

import json
import re
from collections.abc import Mapping
from dataclasses import asdict, replace
from importlib.resources import as_file, files
from itertools import chain, product
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from shiftcore.benchmarks import calibrate, estimated_resources
from shiftcore.estimate import resources
from shiftcore.estimate.fabric import FABRICS, Mapped, Memory, Multiplication
from shiftcore.estimate.structure import SHARED, UNITS, units
from shiftcore.golden.config import HardwareConfig
from shiftcore.golden.pipeline import PIPELINES
from shiftcore.hw.accelerator import Accelerator
from shiftcore.hw.array import SystolicArray
from shiftcore.hw.requantizer import Requantizer
from shiftcore.hw.scale_unit import ScaleUnit
from shiftcore.hw.verilog import emit
from shiftcore.toolchain.devices import FAMILIES
from shiftcore.toolchain.nextpnr import Timing
from shiftcore.toolchain.yosys import Resources, run_yosys, synthesize

CONFIG = HardwareConfig(rows=4, cols=4)
CONTROL, WIDE = {"queued control": 1, "short bursts": 0}, "shift and wide product"
MEMORIES = "DPR16X4|RAM16S|RAM32|RAM64|RAM128|RAM256|MLAB"
"""in the names of cells of LUTs that are memories"""


def memory_text(memory: Memory, name: str = "memory") -> str:
    """A memory with its ports and initial values, as Verilog."""
    top, width = memory.depth - 1, memory.width
    address = max(top.bit_length(), 1) - 1
    ports = "".join(
        f", input [{address}:0] from{k}, output reg [{width - 1}:0] read{k}"
        for k in range(memory.reads)
    )
    reads = "".join(f"read{k} <= data[from{k}];\n" for k in range(memory.reads))
    return f"""
    (* keep_hierarchy *)
    module {name}(input clk, write, input [{address}:0] to, input [{width - 1}:0] value{ports});
      (* no_rw_check *) reg [{width - 1}:0] data [0:{top}];
      integer k;
      initial for (k = 0; k <= {top}; k = k + 1) data[k] = 0;
      always @(posedge clk) begin
        if (write) data[to] <= value;
        {reads}
      end
    endmodule
    """


def each_before_luts(texts: Mapping[str, str], family: str, folder: Path) -> dict[str, Resources]:
    """What each of several modules takes, of which none is flattened, before logic becomes LUTs,
    which takes yosys longest: what is a memory or in blocks is mapped by then."""
    instances = "".join(f"(* keep *) {name} of_{name}();\n" for name in texts)
    design = "".join(texts.values()) + f"module all();\n{instances}endmodule\n"
    command = f"{FAMILIES[family].command} -top all -run :map_luts"
    run_yosys(folder, {"design": design}, [command, "tee -q -o cells.json stat -json"])
    modules = json.loads((folder / "cells.json").read_text(encoding="utf-8"))["modules"]
    return {
        name: Resources.count(modules[f"\\{name}"]["num_cells_by_type"], FAMILIES[family])
        for name in texts
    }


MEMORY_EDGES = {
    "ecp5": [
        Memory(512, 32, reads=2),
        Memory(1500, 24),  # parts begin at whole bytes
        Memory(40, 9),
    ],
    "ice40": [Memory(512, 32, reads=2), Memory(3, 8)],  # the latter is flip-flops
    "xilinx7": [Memory(3000, 40), Memory(40, 1)],  # the larger blocks cost less
    "gowin": [Memory(1025, 10)],
    "xcup": [Memory(70, 30)],
    "cyclonev": [Memory(25, 182, reads=2)],  # too little of a block is used
}


@pytest.mark.parametrize("family", FABRICS)
def test_memories_are_those_of_yosys(family: str, tmp_path: Path):
    """Those at the edges of rules, and six random ones."""
    rng = np.random.default_rng([5, *family.encode()])
    memories = MEMORY_EDGES[family] + [
        Memory(round(2 ** rng.uniform(1, 12)), int(rng.integers(1, 41)), int(rng.integers(1, 3)))
        for _ in range(6)
    ]
    texts = {f"memory{k}": memory_text(each, f"memory{k}") for k, each in enumerate(memories)}
    counted = each_before_luts(texts, family, tmp_path)
    for memory, found in zip(memories, counted.values(), strict=True):
        cells = {name: count for name, count in found.cells.items() if re.search(MEMORIES, name)}
        mapped = FABRICS[family].memory(memory)
        luts = Resources.count(cells, FAMILIES[family]).lut
        assert (found.bram, luts) == (mapped.brams, mapped.luts), memory
        assert mapped.block == (mapped.brams > 0)


@pytest.mark.parametrize(("family", "depth", "width"), [("cyclonev", 12, 32), ("ice40", 3, 8)])
def test_every_read_port_of_flip_flops_has_multiplexers(family, depth, width):
    """The second port adds about as many LUTs as the first, which has those of writing beside."""
    both = [Memory(depth, width, reads=reads) for reads in (1, 2)]
    one, two = (synthesize(memory_text(each), "memory", family).lut for each in both)
    mapped = [FABRICS[family].memory(each) for each in both]
    assert [each.flip_flops for each in mapped] == [depth * width] * 2
    assert 0.6 * one < two - one <= one
    assert [each.mux_bits for each in mapped] == [(depth - 1) * width, 2 * (depth - 1) * width]


PRODUCT_EDGES = {
    "ecp5": [(18, 8, 1), (19, 8, 1), (20, 8, 2)],
    # The product of the rest has less than 11 bits, or not.
    "ice40": [(10, 8, 1), (21, 5, 1), (22, 5, 2)],
    "xilinx7": [(17, 8, 1), (24, 23, 2)],
    # Of 24 by 14 bits the rest takes two small ones.
    "gowin": [(9, 3, 0), (22, 8, 2), (24, 14, 3), (28, 13, 2), (23, 22, 4)],
    "xcup": [(26, 8, 1)],
    "cyclonev": [(24, 19, 1), (3, 9, 0)],
}
"""Unsigned operands and the blocks of their product."""


@pytest.mark.parametrize("family", FABRICS)
def test_products_are_those_of_yosys(family: str, tmp_path: Path):
    """Those at the edges of rules, and random ones, unsigned and signed."""
    rng = np.random.default_rng([7, *family.encode()])
    pairs = [(12, 1), (40, 20), (45, 22), (45, 19), (41, 36), (45, 24), (40, 12), (23, 13)]
    pairs += [(int(a), int(b)) for a, b in rng.integers(2, 50, (6, 2))]
    products = [Multiplication(a, b, a + b, signed) for a, b in pairs for signed in (False, True)]
    for a, b, blocks in PRODUCT_EDGES[family]:
        products.append(Multiplication(a, b, a + b, signed=False))
        assert FABRICS[family].dsp_blocks(products[-1]) == blocks
    texts = {}
    for k, each in enumerate(products):
        sign = "signed" if each.signed else ""
        texts[f"product{k}"] = f"""
        (* keep_hierarchy *)
        module product{k}(
          input {sign} [{each.a - 1}:0] a, input {sign} [{each.b - 1}:0] b,
          output {sign} [{each.product - 1}:0] p
        );
          assign p = a * b;
        endmodule
        """
    counted = each_before_luts(texts, family, tmp_path)
    for each, found in zip(products, counted.values(), strict=True):
        assert found.dsp == FABRICS[family].dsp_blocks(each), each


def test_cells_of_bits_that_go_nowhere_are_dropped():
    ecp5 = FABRICS["ecp5"]
    assert ecp5.memory(Memory(127, 64)).brams == 2
    assert ecp5.memory(Memory(127, 64, used=frozenset(range(24)))).brams == 1
    assert ecp5.memory(Memory(0, 64)) == Mapped()


def test_the_blocks_of_the_example():
    """What ``shiftcore synth`` counts of accelerators with 4x4 and 16x16 PEs."""

    def blocks(config: HardwareConfig) -> tuple[int, int]:
        mapped = [unit.mapped(FABRICS["ecp5"]) for unit in units(config).values()]
        return sum(each[2] for each in mapped), sum(each[3] for each in mapped)

    assert blocks(CONFIG) == (4, 21)
    assert blocks(HardwareConfig(rows=16, cols=16, buffer_depth=14563, clamp=False)) == (16, 100)
    with as_file(files("shiftcore.examples") / "array4-hx8k.toml") as path:
        serial = HardwareConfig.load(path)
    mapped = [unit.mapped(FABRICS["ice40"]) for unit in units(serial).values()]
    assert sum(each[2] for each in mapped) == 0
    assert sum(each[3] for each in mapped) == 26


@pytest.mark.parametrize("serial", [False, True])
def test_memories_of_control_are_counted_exactly(serial: bool):
    """Of an accelerator whose queues of instructions have a cell that nothing reads, and of one
    with serial control, whose biases are as wide as its scales."""
    values: dict[str, Any] = {"rows": 1, "cols": 1, "multiplier": "dsp"}
    if serial:
        values |= {"control": "serial", "scale": "fp32", "bus_bits": 64}
    else:
        values |= {"bus_bits": 128, "queue_depth": 32}
    config = HardwareConfig(**values)
    counted = synthesize(emit(Accelerator(config), "accelerator"), "accelerator", "ice40")
    mapped = [unit.mapped(FABRICS["ice40"]) for unit in units(config).values()]
    assert sum(each[3] for each in mapped) == counted.bram > 0


def test_the_flip_flops_of_an_array_are_counted_exactly():
    config = HardwareConfig(rows=1, cols=3, weight_bits=5, act_bits=6)
    counted = synthesize(emit(SystolicArray(config.array), "array"), "array")
    terms = UNITS["array"](config).mapped(FABRICS["ecp5"])[1]
    assert sum(terms.values()) == counted.ff


@pytest.mark.parametrize(
    ("style", "rows", "cols", "b", "m"),
    [
        ("ecp5-carry", 1, 3, 5, 6),
        ("ecp5-carry", 3, 1, 2, 2),
        ("ecp5-carry", 2, 2, 4, 8),
        ("ecp5-carry", 4, 2, 3, 7),
        ("ecp5-ternary", 1, 3, 2, 8),
        ("ecp5-ternary", 4, 2, 2, 3),
    ],
)
def test_carry_chains_are_counted_exactly(style, rows, cols, b, m):
    """Beside them there is only the AND that the lowest bit of each product is."""
    config = HardwareConfig(rows, cols, weight_bits=b, act_bits=m, multiplier=style)
    counted = synthesize(emit(SystolicArray(config.array), "array"), "array")
    lut, ff, dsp, bram = UNITS["array"](config).mapped(FABRICS["ecp5"])
    assert (sum(ff.values()), dsp, bram) == (counted.ff, counted.dsp, counted.bram)
    carry = style == "ecp5-carry"
    chains = lut["carry chain bits" if carry else "ternary chain bits"]
    assert chains == 2 * counted.cells["CCU2C"]
    assert counted.lut == chains + carry * lut["PEs"]


@pytest.mark.parametrize(
    ("family", "style", "cols", "b", "m", "groups"),
    [
        ("ecp5", "packed18", 5, 4, 5, [2, 2, 1]),
        ("ecp5", "packed18", 7, 2, 4, [3, 3, 1]),
        ("gowin", "packed18", 3, 4, 4, [2, 1]),
        ("cyclonev", "packed18", 3, 4, 4, [2, 1]),
        ("ice40", "packed16", 4, 3, 3, [3, 1]),  # the last column's products are in LUTs
        ("xilinx7", "packed25", 3, 8, 8, [2, 1]),
        ("xcup", "packed27", 4, 4, 3, [4]),
    ],
)
def test_packed_products_are_counted_exactly(family, style, cols, b, m, groups):
    """A DSP block for each group of a row; flip-flops where yosys moves none into the blocks."""
    config = HardwareConfig(2, cols, weight_bits=b, act_bits=m, multiplier=style)
    counted = synthesize(emit(SystolicArray(config.array), "array"), "array", family)
    lut, ff, dsp, bram = UNITS["array"](config).mapped(FABRICS[family])
    assert config.array.groups == groups
    assert (dsp, bram) == (counted.dsp, counted.bram)
    assert dsp == 2 * (len(groups) - (family == "ice40"))
    if family in ("ecp5", "gowin", "cyclonev"):
        assert sum(ff.values()) == counted.ff
    packing = lut.get("packed packing bits", 0) + lut.get("packing bits", 0)
    assert packing == sum(size - 1 for size in groups) * (b + 1)


@pytest.mark.parametrize(("rows", "cols", "b", "m"), [(1, 2, 2, 2), (2, 4, 4, 4), (5, 2, 8, 7)])
def test_blocks_of_two_products_are_counted_exactly(rows, cols, b, m):
    config = HardwareConfig(rows, cols, weight_bits=b, act_bits=m, multiplier="ice40-dual")
    counted = synthesize(emit(SystolicArray(config.array), "array"), "array", "ice40")
    lut, ff, dsp, bram = UNITS["array"](config).mapped(FABRICS["ice40"])
    assert (sum(ff.values()), dsp, bram) == (counted.ff, counted.dsp, counted.bram)
    assert counted.lut == lut["dual swap bits"] + lut.get("packed sum bits", 0)


@pytest.mark.parametrize("family", ["ecp5", "ice40", "xilinx7", "gowin"])
@pytest.mark.parametrize(("accumulator", "scale"), [("fixed20", "e8m0"), ("fixed40", "bf16")])
def test_blocks_of_fixed_point_units_are_counted_exactly(family, accumulator, scale):
    config = HardwareConfig(6, 1, scale=scale, accumulator=accumulator, accumulator_depth=600)
    for name, unit in (
        ("scale_unit", ScaleUnit(config.scale_unit)),
        ("requantizer", Requantizer(config.requantizer)),
    ):
        counted = synthesize(emit(unit, "unit"), "unit", family)
        _, _, dsp, bram = UNITS[name](config).mapped(FABRICS[family])
        assert (dsp, bram) == (counted.dsp, counted.bram), name


@pytest.mark.parametrize(
    ("accumulator", "pipeline", "depth"),
    [("float32", "ecp5-fast", 3000), ("fixed20", "ecp5-fast", 40), ("fixed40", "fast", 600)],
)
@pytest.mark.parametrize("scale", ["bf16", "e8m0"])
def test_instanced_blocks_are_counted_exactly(accumulator, pipeline, depth, scale):
    config = HardwareConfig(
        *(6, 1), accumulator=accumulator, accumulator_depth=depth, scale_multiplier="ecp5-dsp",
        pipeline=pipeline, scale=scale,
    )  # fmt: skip
    counted = synthesize(emit(ScaleUnit(config.scale_unit), "unit"), "unit")
    _, _, dsp, bram = UNITS["scale_unit"](config).mapped(FABRICS["ecp5"])
    assert (dsp, bram) == (counted.dsp, counted.bram)


def test_a_form_that_is_not_calibrated_is_refused(monkeypatch):
    config = replace(CONFIG, multiplier="ecp5-carry")
    known = json.loads(json.dumps(resources._calibration()))
    # Only what the usual accelerator needs is known.
    for kind, position in (("lut", 0), ("ff", 1)):
        needed = {
            term
            for unit in UNITS.values()
            for term in unit(CONFIG).mapped(FABRICS["ecp5"])[position]
        }
        for unit, costs in known["ecp5"][kind].items():
            known["ecp5"][kind][unit] = {term: costs[term] for term in costs if term in needed}
    assert resources.covers(CONFIG, "ecp5")
    monkeypatch.setattr(resources, "_calibration", lambda: known)
    assert not resources.covers(config, "ecp5")
    message = "^resources are not calibrated for multiplier 'ecp5-carry' with float32 acc"
    with pytest.raises(ValueError, match=message):
        resources.area(config, "ecp5")
    message = "^resources are not calibrated for multiplier 'lut' with fixed24 acc"
    with pytest.raises(ValueError, match=message):
        resources.area(replace(CONFIG, accumulator="fixed24"), "ecp5")
    for change, named in (
        ({"pipeline": "fast"}, "scale_multiplier 'dsp' and pipeline 'fast'"),
        ({"scale_multiplier": "ecp5-dsp"}, "scale_multiplier 'ecp5-dsp' and pipeline 'balanced'"),
    ):
        other = replace(CONFIG, **change)
        assert not resources.covers(other, "ecp5")
        message = f"^resources are not calibrated for multiplier 'lut' with .*, {named} on ecp5$"
        with pytest.raises(ValueError, match=message):
            resources.area(other, "ecp5")
    message = r"^resources are not calibrated for control 'serial' on ecp5$"
    with pytest.raises(ValueError, match=message):
        resources.area(replace(CONFIG, control="serial"), "ecp5")
    known["ecp5"]["lut"]["array"]["carry chain bits"] = 1.0
    assert resources.covers(config, "ecp5")
    assert resources.area(config, "ecp5").dsp == resources.area(CONFIG, "ecp5").dsp


def test_a_family_that_is_not_calibrated_is_refused(monkeypatch):
    monkeypatch.setattr(resources, "_calibration", lambda: {"ecp5": {}})
    with pytest.raises(ValueError, match=r"^resources are calibrated for ecp5, not for 'gowin'$"):
        resources.area(CONFIG, "gowin")
    monkeypatch.setattr(resources, "_calibration", dict)
    with pytest.raises(ValueError, match=r"^resources are calibrated for no family, not for 'x'$"):
        resources.area(CONFIG, "x")


def costs(config: HardwareConfig) -> dict:
    """A cost for every term, another one for each."""
    found: dict[str, Any] = {}
    found["period_ns"] = {
        "queued control": 4.0, "short bursts": 0.25, "clamp behind block RAM": 5.0,
        "exponents from block RAM": 4.5, "instructions from block RAM": 4.25,
        "product in LUTs": 1.0, "product rows": 0.5, "normalization after rows": 1.5,
    }  # fmt: skip
    for kind, position in (("lut", 0), ("ff", 1)):
        found[kind] = {"shared": dict.fromkeys(SHARED, 1.5)}
        if kind == "ff":
            found[kind]["shared"] |= calibrate.KNOWN
        for name, unit in units(config).items():
            terms = set(unit.mapped(FABRICS["ecp5"])[:2][position]) - SHARED
            found[kind][name] = {term: 1 + (7 * len(name) + len(term)) % 5 / 4 for term in terms}
    return found


def test_an_estimate_is_the_sum_of_its_units(monkeypatch):
    monkeypatch.setattr(resources, "_calibration", lambda: {"ecp5": costs(CONFIG)})
    found = resources.area(CONFIG, "ecp5")
    assert set(found.units) == set(UNITS)
    assert (found.dsp, found.bram) == (4, 21)
    assert found.lut == round(sum(unit.lut for unit in found.units.values()))
    assert found.ff == round(sum(unit.ff for unit in found.units.values()))
    larger = resources.area(replace(CONFIG, cols=8), "ecp5")
    assert larger.lut > found.lut
    assert (found.fmax_mhz, larger.fmax_mhz) == (200, 200)
    # The slowest path counts.
    for changes, clock in (
        ({"clamp": False}, 250), ({"pipeline": "short"}, 200),
        ({"pipeline": "short", "clamp": False}, 1000 / 4.5),
        ({"clamp": False, "burst_beats": 2}, 1000 / 4.5),
        # 1 + 13 rows of 0.5, and 1.5 with the short pipeline.
        ({"scale_multiplier": "lut", "scale": "fp32"}, 1000 / 7.5),
        ({"scale_multiplier": "lut", "scale": "fp32", "pipeline": "short"}, 1000 / 9),
    ):  # fmt: skip
        config = replace(CONFIG, **changes)
        monkeypatch.setattr(resources, "_calibration", lambda of=config: {"ecp5": costs(of)})
        assert resources.area(config, "ecp5").fmax_mhz == clock
    # A path that nothing was fitted to is not one that takes no time.
    config = replace(CONFIG, scale="fp32", pipeline="short", accumulator="fixed32")
    monkeypatch.setattr(resources, "_calibration", lambda: {"ecp5": costs(config)})
    with pytest.raises(KeyError, match=WIDE):
        resources.area(config, "ecp5")


def test_the_fit_finds_the_costs_that_made_its_data(monkeypatch):
    """Data made of known costs: the fit estimates other configurations as those costs do."""
    made = costs(CONFIG)
    monkeypatch.setattr(resources, "_calibration", lambda: {"ecp5": made})
    drawn = [
        config
        for config in calibrate.take("test of the fit", 120)
        if all(
            set(terms[k]) - SHARED <= set(made[kind][name])
            for name, unit in units(config).items()
            for terms in [unit.mapped(FABRICS["ecp5"])[:2]]
            for k, kind in enumerate(("lut", "ff"))
        )
    ]
    assert len(drawn) > 12
    samples = []
    for config in drawn:
        whole = resources.area(config, "ecp5")
        sample = {"config": asdict(config)}
        samples.append(sample | {"unit": calibrate.WHOLE, "lut": whole.lut, "ff": whole.ff})
        samples += [
            sample | {"unit": name, "lut": unit.lut, "ff": unit.ff}
            for name, unit in whole.units.items()
        ]
    fitted = calibrate.fit(samples, "ecp5")
    monkeypatch.setattr(resources, "_calibration", lambda: {"ecp5": fitted | {"period_ns": None}})
    for sample in samples:
        if sample["unit"] == calibrate.WHOLE:
            found = resources.area(HardwareConfig(**sample["config"]), "ecp5")
            assert abs(found.lut / sample["lut"] - 1) < 0.01
            assert abs(found.ff / sample["ff"] - 1) < 0.01


def test_nothing_that_calibrates_is_held_out():
    for family, count in estimated_resources.HELD_OUT.items():
        assert family in FAMILIES
        calibrating = {config for _, config in calibrate.wanted(family)}
        drawn = estimated_resources.held_out(family)
        number = estimated_resources.DRAWS[family]
        draws = [estimated_resources.held_out(family, each + 1) for each in range(number)]
        assert draws[-1] == drawn
        assert len({*chain(*draws)}) == sum(map(len, draws))
        timed = estimated_resources.clocked(family)
        assert len({*timed}) == (12 if family in calibrate.SMALL_TIMED else 0)
        assert {*timed}.isdisjoint([*calibrating, *calibrate.timed(family)])
        if timed:
            assert {*timed}.isdisjoint(chain(*draws))
        assert len({*drawn} - calibrating) == count + estimated_resources.SERIAL
        assert sum(config.control == "serial" for config in drawn) == estimated_resources.SERIAL
        for key, others in calibrate.choices(family).items():
            assert {getattr(config, key) for config in drawn} & {*others} or not others
    assert calibrate.take("x", 2) == calibrate.take("x", 2) != calibrate.take("y", 2)
    assert calibrate.choices("ecp5")["scale_multiplier"] == ["ecp5-dsp"]
    assert calibrate.choices("ice40")["pipeline"] == ["short", "fast"]


def test_what_is_shipped_is_the_fit_of_what_was_synthesized():
    shipped = json.loads(calibrate.CALIBRATION.read_text(encoding="utf-8"))["families"]
    for family, found in shipped.items():
        fitted = calibrate.calibrated(calibrate.load(family), family)
        assert json.loads(json.dumps(fitted)) == found
        assert ("period_ns" in found) == (family in calibrate.SMALL_TIMED)


def test_every_clock_that_calibrates_is_there():
    samples = {
        HardwareConfig(**each["config"]): each
        for each in calibrate.load("ecp5")
        if each["unit"] == calibrate.WHOLE
    }
    assert len({*calibrate.timed("ecp5")}) == 11 + 12 + 23 + 6 + 12
    for config in calibrate.timed("ecp5"):
        assert {*samples[config]["seeds"]} >= {*calibrate.CLOCK_SEEDS}
        assert samples[config]["fmax_mhz"] > 0


@pytest.mark.parametrize(
    ("changes", "slow"),
    [
        ({}, []),
        ({"burst_beats": 32, "load_fifo": 64, "store_fifo": 64}, ["instructions from block RAM"]),
        ({"clamp": True}, ["clamp behind block RAM"]),
        ({"clamp": True, "accumulator_depth": 16}, []),
        ({"clamp": True, "pipeline": "fast"}, []),
        ({"clamp": True, "pipeline": "ecp5-fast"}, []),
        ({"pipeline": "short"}, ["exponents from block RAM"]),
        ({"pipeline": "short", "accumulator": "fixed32"}, []),
        ({"pipeline": "short", "accumulator_depth": 16}, []),
        (
            {"pipeline": "short", "clamp": True},
            ["clamp behind block RAM", "exponents from block RAM"],
        ),
        ({"pipeline": "short", "accumulator_depth": 16, "scale": "fp32"}, []),
    ],
)
def test_paths_that_limit_the_clock(changes: dict, slow: list[str]):
    config = replace(CONFIG, **{"clamp": False, "accumulator_depth": 512} | changes)
    assert resources.clock_paths(config) == [CONTROL, *({name: 1} for name in slow)]


def test_every_part_of_every_path_was_fitted():
    known = {*resources._calibration()["ecp5"]["period_ns"]}
    found = set()
    for pipeline, scale, multiplier, accumulator, control in product(
        PIPELINES,
        ("e8m0", "bf16", "fp16", "fp32"),
        ("lut", "dsp"),
        ("float32", "fixed32"),
        ("queued", "serial"),
    ):
        config = HardwareConfig(
            *(4, 4), scale=scale, pipeline=pipeline, scale_multiplier=multiplier, control=control,
            accumulator=accumulator, burst_beats=32, load_fifo=64, store_fifo=64,
        )  # fmt: skip
        found |= {*chain(*resources.clock_paths(config))}
    assert found == known


@pytest.mark.parametrize(("scale", "rows"), [("bf16", 5), ("fp16", 6), ("fp32", 13)])
@pytest.mark.parametrize(
    ("accumulator", "beside"),
    [("float32", "normalization after rows"), ("fixed32", "shift before rows")],
)
def test_products_in_luts_add_row_after_row(scale: str, rows: int, accumulator: str, beside: str):
    """As many as the significand has Booth digits; the short pipeline does more in that cycle."""
    config = HardwareConfig(
        *(4, 4), scale=scale, accumulator=accumulator, accumulator_depth=16,
        scale_multiplier="lut", pipeline="short",
    )  # fmt: skip
    alone = {"product in LUTs": 1, "product rows": rows}
    assert resources.clock_paths(config) == [CONTROL, alone | {beside: 1}]
    for pipeline in ("balanced", "fast", "ecp5-fast"):
        registered = replace(config, pipeline=pipeline)
        assert resources.clock_paths(registered) == [CONTROL, alone]
    assert resources.clock_paths(replace(config, scale="e8m0")) == [CONTROL]


@pytest.mark.parametrize(
    ("changes", "blocks"),
    [
        # 11 bits, shifted by up to 7 and with a sign, are a bit more than a block takes.
        ({"scale": "fp16"}, 1),
        ({"scale": "fp32"}, 2),
        ({"rows": 32, "weight_bits": 8, "act_bits": 8}, 2),  # sums of 21 bits
        ({}, None),
        ({"scale_multiplier": "ecp5-dsp"}, None),
        ({"scale": "e8m0"}, None),
        ({"scale": "fp32", "pipeline": "balanced"}, None),
        ({"scale": "fp32", "accumulator": "float32"}, None),
    ],
)
def test_wide_products_behind_a_shifter(changes: dict, blocks: int | None):
    """In fixed point; a cut between the two, or an operand that a block takes, is fast."""
    short = {"accumulator": "fixed32", "pipeline": "short", "accumulator_depth": 16}
    config = replace(CONFIG, **short | changes)
    wide = [] if blocks is None else [{WIDE: 1, "further blocks": blocks - 1}]
    assert resources.clock_paths(config) == [CONTROL, *wide]


@pytest.mark.parametrize(
    ("beats", "amount"), [(2, 2), (3, np.log2(8 / 3)), (4, 1), (8, 0), (24, 0), (256, 0)]
)
def test_shorter_bursts_take_longer_to_choose(beats: int, amount: float):
    fifos = dict.fromkeys(("weight_fifo", "load_fifo", "store_fifo"), 512)
    config = replace(CONFIG, burst_beats=beats, **fifos)
    assert resources.clock_paths(config)[0] == CONTROL | {"short bursts": amount}
    serial = {"serial control": 1, "short bursts": amount}
    assert resources.clock_paths(replace(config, control="serial"))[0] == serial


def test_the_fit_of_the_clock_finds_its_paths_and_the_middle_of_what_differs():
    costs = {
        "queued control": 10.0, "serial control": 9.5, "short bursts": 0.4,
        "instructions from block RAM": 10.5, "clamp behind block RAM": 11.0,
        "exponents from block RAM": 12.0, "product in LUTs": 2.0, "product rows": 1.6,
        "shift before rows": 3.0,
        "normalization after rows": 2.0, WIDE: 11.0, "further blocks": 1.0,
    }  # fmt: skip

    def clock(config: HardwareConfig) -> float:
        paths = resources.clock_paths(config)
        periods = (sum(costs[name] * amount for name, amount in path.items()) for path in paths)
        return 1000 / max(periods)

    drawn = calibrate.timed("ecp5")
    samples = [{"config": asdict(config), "fmax_mhz": clock(config)} for config in drawn]
    assert calibrate.fit_clock(samples) == pytest.approx(costs, abs=0.02)
    # Three alike and a slow one: least squares would be at 97 and a half.
    config = asdict(replace(CONFIG, clamp=False))
    alike = [{"config": config, "fmax_mhz": mhz} for mhz in (100, 100, 100, 90)]
    assert 95 < 1000 / calibrate.fit_clock(alike)["queued control"] < 97


def test_a_clock_of_other_placements_is_not_compared(monkeypatch: pytest.MonkeyPatch):
    """Nor one that calibrates. Nothing is placed for it."""
    monkeypatch.setattr(calibrate, "place_and_route", None)
    held = estimated_resources.clocked("ecp5")
    for clocked, seeds, count in (
        (held, [1, 2, 3], 1), (held, [1], 0), (held, [], 0), (held, [1, 2, 3, 4], 0),
        (calibrate.timed("ecp5"), [1, 2, 3], 0),
    ):  # fmt: skip
        monkeypatch.setattr(estimated_resources, "clocked", lambda _, drawn=clocked: drawn)
        placed = {"unit": calibrate.WHOLE, "config": asdict(clocked[0])}
        samples = [
            {key: value for key, value in each.items() if key not in ("fmax_mhz", "seeds")}
            for each in calibrate.load("ecp5")
            if not placed.items() <= each.items()
        ]
        samples.append(placed | {"fmax_mhz": 100.0, "seeds": seeds})
        found = estimated_resources.compare("ecp5", samples, missing=False)
        assert (found["fmax_mhz"] or {"count": 0})["count"] == count
        # Whatever calibrates the clock, areas are compared.
        assert found["configurations"] == 36


def row(**changes) -> dict:
    """A result of the benchmark that keeps every limit."""
    good = {"mean": 4.0, "worst": -14.0, "of": "4x4", "count": 30}
    found = {"family": "ecp5", "configurations": 36, "lut": good, "ff": good}
    found |= {"fmax_mhz": good | {"worst": 11.0, "count": 12}, "wrong_blocks": []}
    return found | changes


@pytest.mark.parametrize(
    ("changes", "bad"),
    [
        ({}, False),
        ({"lut": {"mean": 5.1, "worst": 9.0, "of": "", "count": 30}}, True),
        ({"ff": {"mean": 4.0, "worst": -15.1, "of": "", "count": 30}}, True),
        ({"fmax_mhz": {"mean": 4.0, "worst": -12.1, "of": "", "count": 12}}, True),
        ({"fmax_mhz": {"mean": 4.0, "worst": 2.0, "of": "", "count": 11}}, True),
        ({"wrong_blocks": ["4x4: bram 9, not 10"]}, True),
        ({"configurations": 35}, True),
        ({"fmax_mhz": None}, True),
    ],
)
def test_a_missed_limit_fails_the_benchmark(changes, bad):
    assert estimated_resources.failed(row(**changes)) == bad


@pytest.mark.parametrize("family", estimated_resources.HELD_OUT)
def test_what_is_shipped_keeps_every_limit(family):
    """On the held-out accelerators whose synthesis, and clock on ECP5, are kept."""
    found = estimated_resources.compare(family, calibrate.load(family), missing=False)
    assert not estimated_resources.failed(found), found


def test_the_summary_names_the_worst():
    found = estimated_resources.summary([(1.0, "a"), (-3.0, "b"), (2.0, "c")])
    assert found == {"mean": 2.0, "worst": -3.0, "of": "b", "count": 3}
    assert estimated_resources.summary([]) is None


def test_results_of_other_verilog_are_renewed(monkeypatch: pytest.MonkeyPatch, tmp_path):
    """Without `renew` a result stays, whatever it is of; a clock is never lost."""
    monkeypatch.setattr(calibrate, "SYNTHESIZED", tmp_path)
    luts, clocks = iter(range(10)), iter(range(50, 60))
    monkeypatch.setattr(calibrate, "synthesize", lambda *_: Resources(next(luts), 0, 0, 0, {}))
    monkeypatch.setattr(
        calibrate, "place_and_route", lambda *_, seeds: Timing((next(clocks),) * len(seeds), ())
    )
    config, other = HardwareConfig(2, 2), HardwareConfig(2, 3)

    def result(of: HardwareConfig = config, **options: Any) -> tuple[int, float | None, int]:
        samples = calibrate.load("ecp5")
        found = calibrate.synthesized(samples, "ecp5", "array", of, **options)
        assert calibrate.load("ecp5") == samples
        return found["lut"], found.get("fmax_mhz"), len(samples)

    assert result() == (0, None, 1)
    assert result(seeds=(1, 2)) == (0, 50, 1)
    assert result(seeds=(2,)) == (0, 50, 1)
    assert calibrate.load("ecp5")[0]["seeds"] == [1, 2]
    assert result(seeds=(1, 2, 3)) == (0, 51, 1)
    assert calibrate.load("ecp5")[0]["seeds"] == [1, 2, 3]
    assert result(other) == (1, None, 2)
    assert result(renew=True) == (0, 51, 2)
    samples = calibrate.load("ecp5")
    del samples[0]["text"]
    calibrate.save(samples, "ecp5")
    assert result() == (0, 51, 2)
    assert result(renew=True) == (2, 51, 2)
    samples = calibrate.load("ecp5")
    samples[0]["placed"] = "of another tool"
    calibrate.save(samples, "ecp5")
    assert result(renew=True) == (2, 52, 2)
    assert result(other, renew=True) == (1, None, 2)
    monkeypatch.setattr(calibrate, "emit", lambda *args: emit(*args) + "// another text")
    assert result(other) == (1, None, 2)
    assert result(other, renew=True) == (3, None, 2)
    assert result(seeds=(1, 2, 3)) == (2, 52, 2)
    assert result(renew=True) == (4, 53, 2)
    assert calibrate.load("ecp5")[0]["seeds"] == [1, 2, 3]
    options = replace(FAMILIES["ecp5"], command="synth_ecp5 -abc9")
    monkeypatch.setattr(calibrate, "FAMILIES", {"ecp5": options})
    assert result(other) == (3, None, 2)
    assert result(other, renew=True) == (5, None, 2)
    assert result(renew=True) == (6, 54, 2)


def test_costs_of_a_family_are_put_beside_the_others(monkeypatch: pytest.MonkeyPatch, tmp_path):
    file = tmp_path / "calibration.json"
    file.write_text('{"families": {"ecp5": {"lut": 1}, "gowin": {}}, "more": 2}')
    monkeypatch.setattr(calibrate, "CALIBRATION", file)
    calibrate.keep_costs("gowin", {"ff": 3})
    assert json.loads(file.read_text()) == {
        "families": {"ecp5": {"lut": 1}, "gowin": {"ff": 3}},
        "more": 2,
    }
    assert list(tmp_path.iterdir()) == [file]
