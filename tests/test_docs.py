"""The documents are true: snippets run, links lead somewhere, commands exist, the picture fits."""

import doctest
import itertools
import re
from pathlib import Path

import click
import pytest

from shiftcore.benchmarks import area, paper, tables, timing_diagram
from shiftcore.cli import main
from shiftcore.golden.registers import c_header

ROOT = Path(__file__).resolve().parents[1]
DOCUMENTS = [
    "README.md", "CONTRIBUTING.md", "docs/array.md", "docs/boards.md", "docs/estimates.md",
    "docs/explore.md", "docs/integrating.md", "docs/machine.md", "docs/mixed-precision.md",
    "docs/numbers.md", "docs/paper.md", "docs/quantization.md", "docs/separable.md",
    "docs/toolchains.md",
]  # fmt: skip


def text_of(document: str) -> str:
    return (ROOT / document).read_text(encoding="utf-8")


def fenced(text: str, language: str) -> list[str]:
    """The code blocks of one language."""
    return re.findall(rf"^```{language}\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)


def test_all_documents_are_checked():
    found = {p.relative_to(ROOT).as_posix() for p in [*ROOT.glob("*.md"), *ROOT.glob("docs/*.md")]}
    assert found == set(DOCUMENTS)


@pytest.mark.parametrize("document", DOCUMENTS)
def test_snippets(document):
    text = text_of(document)
    # A blank line for every fence ends the expected output and keeps the line numbers.
    source = re.sub(r"^```.*$", "", text, flags=re.MULTILINE)
    test = doctest.DocTestParser().get_doctest(source, {}, document, document, 0)
    assert len(fenced(text, "python")) == sum(">>>" in part for part in fenced(text, "python"))
    runner = doctest.DocTestRunner()
    report = []
    runner.run(test, out=report.append)
    assert not runner.summarize(verbose=False).failed, "".join(report)


def test_generated_tables_are_current():
    text = text_of("docs/machine.md")
    assert tables.filled(text, tables.parts()) == text, "run python benchmarks/tables.py"
    assert text_of("docs/shiftcore.h") == c_header(), "run python benchmarks/tables.py"


def test_the_tables_of_the_paper_are_current():
    text = text_of("docs/paper.md")
    assert tables.filled(text, paper.parts()) == text, "run python benchmarks/paper.py --write"
    assert set(re.findall(r"^<!-- ([\w-]+) -->$", text, re.M)) == {*paper.parts(), "end"}


def anchors(text: str) -> set[str]:
    """What GitHub makes of the headings."""
    headings = re.findall(r"^#+ (.+)$", re.sub(r"```.*?```", "", text, flags=re.DOTALL), re.M)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("document", DOCUMENTS)
def test_links(document):
    text = text_of(document)
    links = re.findall(r"\]\(([^)\s]+)\)|src=\"([^\"]+)\"", text)
    for link in (a or b for a, b in links):
        if re.match(r"https?://", link):
            continue
        path, _, anchor = link.partition("#")
        target = (ROOT / document).parent / path if path else ROOT / document
        assert target.exists(), f"{document} links to {link}"
        assert target.resolve().is_relative_to(ROOT)
        if anchor:
            assert anchor in anchors(target.read_text(encoding="utf-8")), f"{document}: {link}"


@pytest.mark.parametrize("document", DOCUMENTS)
def test_documents_stand_alone(document):
    # An absolute path is one machine's.
    assert re.findall(r"(?<![\w.:/~])/(?:home|root|tmp|usr|work)\b\S*", text_of(document)) == []


@pytest.mark.parametrize("document", DOCUMENTS)
def test_commands_exist(document):
    text = text_of(document)
    assert isinstance(main, click.Group)
    makefile = text_of("Makefile")
    for target in re.findall(r"(?:`|^)make (?:\w+=\S+ )?([a-z]+)\b", text, re.MULTILINE):
        assert re.search(rf"^{target}:", makefile, re.MULTILINE), f"make {target}"
    for block in [*fenced(text, "sh"), *fenced(text, "console")]:
        for line in block.replace("\\\n", " ").splitlines():
            match = re.match(r"(?:\$ )?(?:\.venv/bin/)?shiftcore ([\w-]+)(.*)", line)
            if match is None:
                continue
            command = main.commands[match[1]]
            known = {name for parameter in command.params for name in parameter.opts}
            used = set(re.findall(r"(?<=\s)--?[a-z][\w-]*", match[2].split("#")[0]))
            assert used <= known, line


def test_readme_lists_the_tree():
    listed = set(re.findall(r"^\| `([\w/]+)/` \|", text_of("README.md"), re.MULTILINE))
    folders = {p.parent.name for p in ROOT.glob("*/*.py")} - {".venv", "out"}
    assert listed == {f for f in folders if not f.startswith(".")} | {"docs"}


def test_readme_has_the_area_table():
    """Its names and columns are those that benchmarks/area.py prints."""
    lines = text_of("README.md").splitlines()
    begin = next(n for n, line in enumerate(lines) if line.startswith("| design |"))
    rows = [
        [cell.strip() for cell in line.strip("|").split("|")]
        for line in itertools.takewhile(lambda line: line.startswith("|"), lines[begin:])
    ]
    assert rows[0] == list(area.HEADINGS)
    assert [row[0] for row in rows[2:]] == [design.name for design in area.designs()]
    limits = [bool(design.most) or design.least_mhz is not None for design in area.designs()]
    assert [row[-1] for row in rows[2:]] == ["kept" if limited else "" for limited in limits]


def test_timing_diagram_is_current():
    drawn = timing_diagram.draw(timing_diagram.record())
    assert drawn == text_of("docs/pass.svg"), "run python benchmarks/timing_diagram.py"
