"""The generated faults: enough of them, the same every time, and judged rightly."""

import ast
from dataclasses import replace

import pytest
from click.testing import CliRunner

from shiftcore.sim import mutants as faults
from shiftcore.sim.mutants import REGIONS, Mutant, Original, Outcome, attempt, chosen, mutants

HAZARD = next(region for region in REGIONS if region.name == "hazard logic")
TESTS = ("tests/hw/test_issue.py::test_one_address_at_every_distance",)


@pytest.mark.parametrize("region", REGIONS, ids=lambda region: region.name)
def test_every_region_has_faults(region):
    found = mutants(region)
    assert len(found) >= 15
    assert len({mutant.source for mutant in found}) == len(found)
    for mutant in found:
        original = (faults.ROOT / mutant.file).read_text(encoding="utf-8")
        assert mutant.source != original
        assert mutant.before in original
        assert mutant.after in mutant.source
        ast.parse(mutant.source)


def test_regions_are_those_that_must_be_proved():
    assert [region.name for region in REGIONS] == [
        "processing element",
        "swap",
        "exponent path",
        "adder rounding",
        "saturation",
        "requantizer",
        "fixed point",
        "hazard logic",
        "pass walk",
        "load",
        "memory port",
        "sequencer",
        "serial sequencer",
        "drain",
    ]


def test_named_tests_exist():
    for region in REGIONS:
        for node in region.tests:
            file, name = node.split("::")
            source = (faults.ROOT / file).read_text(encoding="utf-8")
            assert f"def {name.split('[')[0]}(" in source, node


def test_choice_is_the_same_every_time():
    def judge(mutant: Mutant) -> Outcome:
        # Every third one makes way for the next.
        return Outcome("stillborn" if len(mutant.source) % 3 == 0 else "killed", "test")

    first, again = (list(chosen(HAZARD, 5, 1, judge)) for _ in range(2))
    assert first == again
    assert len(first) == 5
    assert all(len(mutant.source) % 3 for mutant, _ in first)
    assert first != list(chosen(HAZARD, 5, 2, judge))


def test_reviewed_equivalents_are_mutants_of_today():
    today = {(m.file, m.change) for region in REGIONS for m in mutants(region)}
    assert set(faults.EQUIVALENT) <= today


def test_a_fault_is_caught():
    """A comparison of addresses turned round."""
    (mutant,) = [
        m
        for m in mutants(HAZARD)
        if m.before == "older.address == self.i.payload.address" and "!=" in m.after
    ]
    assert attempt(mutant, TESTS) == Outcome("killed", TESTS[0])


def test_what_changes_nothing_survives():
    mutant = mutants(HAZARD)[0]
    original = (faults.ROOT / mutant.file).read_text(encoding="utf-8")
    assert attempt(replace(mutant, source=original + "# The same.\n"), TESTS).kind == "survived"


def test_a_test_that_does_not_end_is_named(monkeypatch, tmp_path):
    """The first passes, the second simulates for ever in a process of its own."""
    package = tmp_path / "shiftcore"
    (package / "tests").mkdir(parents=True)
    (package / "pyproject.toml").write_text("[tool.pytest.ini_options]\n")
    (package / "tests" / "test_two.py").write_text(
        "import pytest, subprocess, sys\n"
        "def test_one():\n"
        "    print('tests/test_x.py::test_printed')\n"
        "@pytest.mark.parametrize('stall', [0.4])\n"
        "def test_two(stall):\n"
        "    subprocess.run([sys.executable, '-c', 'while True: pass'])\n"
    )
    monkeypatch.setattr(faults, "_copy", lambda target: package)
    mutant = replace(mutants(HAZARD)[0], file="fault.py", source="")
    original = Original("digest", 0.1)
    monkeypatch.setattr(faults, "_probe", lambda _: "another digest")
    monkeypatch.setattr(faults, "_LEAST_TIMEOUT", 10)
    named = "tests/test_two.py::test_two[0.4]"
    assert attempt(mutant, ["tests/test_two.py"], original) == Outcome("killed", named, False)
    with pytest.raises(RuntimeError, match=r"^pytest began no test within 0\.01 s"):
        faults._test(package, ["tests"], 0.01)


def test_the_time_limit_follows_the_tests():
    assert Original("digest", 1.0).timeout == 120
    assert Original("digest", 30.0).timeout == 300


def test_survivors_fail_the_run(monkeypatch, tmp_path):
    """One region, judged without running anything: a survivor is named, the exit status is 1."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(faults, "unchanged", lambda tests: Original("digest", 1.0))
    monkeypatch.setattr(faults, "attempt", lambda *_: Outcome("survived"))
    arguments = ["--region", HAZARD.name, "--count", "2", "--jobs", "1"]
    run = CliRunner().invoke(faults.main, arguments)
    assert run.exit_code == 1
    assert "SURVIVED" in run.output
    assert "0 killed, 2 survived" in run.output
    monkeypatch.setattr(faults, "_fingerprint", lambda: "other sources")
    hung = Outcome("killed", "tests/hw/test_x.py::y", ends=False)
    monkeypatch.setattr(faults, "attempt", lambda *_: hung)
    # The second run finds the outcomes of the first.
    for _ in range(2):
        run = CliRunner().invoke(faults.main, arguments)
        assert run.exit_code == 0
        assert "2 killed, 0 survived" in run.output
        assert "does not end" in " ".join(run.output.split())
        monkeypatch.setattr(faults, "attempt", lambda *_: pytest.fail("judged again"))


def test_listing():
    run = CliRunner().invoke(faults.main, ["--list", "--region", "swap"])
    assert run.exit_code == 0
    assert "hw/pe.py:" in run.output
    assert "hw/array.py:" in run.output
