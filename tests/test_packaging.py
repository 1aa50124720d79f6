"""The package as it ships: wheel, dependencies, lazy imports and the direction of the arrows."""

import ast
import importlib.metadata
import re
import shutil
import subprocess
import sys
import tomllib
import zipfile
from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from typing import Any

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

import shiftcore

ROOT = Path(__file__).resolve().parents[1]
NOT_SHIPPED = {"tests", "docs", "benchmarks"}

# Folder -> the other folders of shiftcore that it may import.
ARROWS = {
    "golden": set(),
    "frontend": {"golden"},
    "quant": {"frontend", "golden"},
    "compiler": {"golden"},
    "estimate": {"golden", "compiler"},
    "hw": {"golden"},
    "host": {"golden"},
    "sim": {"hw", "golden", "compiler", "estimate", "host", "toolchain"},
    "toolchain": {"hw", "golden"},
    "separable": {"estimate", "compiler", "quant", "frontend", "golden"},
    "explore": {"toolchain", "hw", "estimate", "compiler", "quant", "frontend", "golden"},
}
# Examples may import all of the above, benchmarks the examples as well, and nothing the tests.
ARROWS["examples"] = set(ARROWS)
ARROWS["benchmarks"] = set(ARROWS)
# One framework per folder: framework -> the folders of ARROWS that may import it.
FRAMEWORKS = {
    "torch": {"frontend", "quant", "separable", "examples", "benchmarks"},
    "amaranth": {"hw", "sim", "toolchain", "benchmarks"},
    "cocotb": {"sim"},
    "cocotb_tools": {"sim"},
    "cocotbext": {"sim"},
    "distributed": {"explore"},
    "optuna": {"explore"},
    "plotly": {"explore"},
}


def tree_files() -> set[PurePosixPath]:
    """Every file of the checkout that git does not ignore, relative to the root."""
    if not (ROOT / ".git").exists():
        pytest.skip("only a git checkout knows which files are its own")
    listing = subprocess.run(
        ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
        cwd=ROOT,
        check=True,
        capture_output=True,
        text=True,
    ).stdout
    files = (PurePosixPath(name) for name in listing.split("\0") if name)
    return {file for file in files if (ROOT / file).is_file()}


def shipped_modules(files: set[PurePosixPath]) -> set[PurePosixPath]:
    return {
        file
        for file in files
        if file.suffix == ".py" and file.parts[0] not in NOT_SHIPPED and file.parts[0][0] != "."
    }


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A wheel built from a copy that holds nothing but the checkout's own files."""
    source = tmp_path_factory.mktemp("tree")
    for file in tree_files():
        (source / file).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(ROOT / file, source / file)
    target = tmp_path_factory.mktemp("wheel")
    options = ["--no-build-isolation", "--no-deps", "--no-index", "--disable-pip-version-check"]
    built = subprocess.run(
        [sys.executable, "-P", "-m", "pip", "wheel", *options, "-w", target, source],
        check=False,
        capture_output=True,
        text=True,
    )
    assert built.returncode == 0, built.stdout + built.stderr
    (path,) = target.glob("*.whl")
    return path


def wheel_files(wheel: Path) -> set[PurePosixPath]:
    """The package's files in the wheel, relative to the package."""
    paths = [PurePosixPath(name) for name in zipfile.ZipFile(wheel).namelist()]
    strays = {path.parts[0] for path in paths} - {
        "shiftcore",
        f"shiftcore-{shiftcore.__version__}.dist-info",
    }
    assert not strays
    return {path.relative_to("shiftcore") for path in paths if path.parts[0] == "shiftcore"}


def test_wheel_modules_equal_the_tree(wheel: Path):
    shipped = {file for file in wheel_files(wheel) if file.suffix == ".py"}
    assert shipped == shipped_modules(tree_files())


def test_wheel_data_is_what_is_named(wheel: Path):
    data = {"calibration.json", "digits.safetensors"}
    named = {
        file
        for file in tree_files()
        if file.match("examples/*.toml") or file.suffix == ".sv" or file.name in data | {"py.typed"}
    }
    assert {file for file in wheel_files(wheel) if file.suffix != ".py"} == named


def test_import_loads_no_framework():
    code = (
        "import sys, shiftcore; dir(shiftcore);"
        f"print(*sorted(set(sys.modules) & {set(FRAMEWORKS) | {'numpy'}}))"
    )
    run = subprocess.run(
        [sys.executable, "-P", "-W", "error", "-c", code],
        check=True,
        capture_output=True,
        text=True,
    )
    assert run.stdout.split() == []


@pytest.mark.parametrize("name", shiftcore.__all__)
def test_public_names_resolve(name: str):
    assert getattr(shiftcore, name).__name__ == name
    assert name in dir(shiftcore)


def test_unknown_public_name():
    with pytest.raises(AttributeError, match=r"^module 'shiftcore' has no attribute 'nothing'$"):
        _ = shiftcore.nothing


def imports(module: Path, package: tuple[str, ...]) -> Iterator[str]:
    """Absolute dotted names of all that a module imports, at any depth of the code.

    Args:
        module: the file.
        package: the package that its relative imports start from, e.g. `("shiftcore", "hw")`.
    """
    for node in ast.walk(ast.parse(module.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            start = package[: len(package) + 1 - node.level] if node.level else ()
            base = ".".join((*start, *([node.module] if node.module else [])))
            # `from .. import golden` names a folder, not a member.
            yield from (f"{base}.{alias.name}" for alias in node.names)


def folder_imports(folder: str) -> Iterator[tuple[Path, str]]:
    for module in sorted((ROOT / folder).rglob("*.py")):
        package = ("shiftcore", *module.relative_to(ROOT).parent.parts)
        for name in imports(module, package):
            yield module.relative_to(ROOT), name


@pytest.mark.parametrize("folder", ARROWS)
def test_arrows_run_down(folder: str):
    allowed = ARROWS[folder] | {folder}
    wrong = [
        f"{module} imports {name}"
        for module, name in folder_imports(folder)
        if name.split(".")[0] == "shiftcore" and name.split(".")[1] not in allowed
    ]
    assert wrong == []


@pytest.mark.parametrize("folder", ARROWS)
def test_one_framework_per_folder(folder: str):
    refused = {framework for framework, folders in FRAMEWORKS.items() if folder not in folders}
    wrong = [
        f"{module} imports {name}"
        for module, name in folder_imports(folder)
        if name.split(".")[0] in refused
    ]
    assert wrong == []


@pytest.mark.parametrize("folder", sorted(set(ARROWS) - NOT_SHIPPED))
def test_imports_inside_the_package_are_relative(folder: str):
    wrong = []
    for module in sorted((ROOT / folder).rglob("*.py")):
        # Without a package to start from, only absolute imports yield the package's name.
        names = [name.split(".")[0] for name in imports(module, ())]
        wrong += [str(module.relative_to(ROOT))] if "shiftcore" in names else []
    assert wrong == []


def test_gateware_keeps_its_annotations():
    # A postponed annotation is a string, and an Amaranth component then has no members.
    futures = [module for module, name in folder_imports("hw") if name.startswith("__future__.")]
    assert futures == []


def installed_requirements(name: str, extras: frozenset[str]) -> dict[str, str]:
    """Canonical name -> version of all that an installed distribution needs, itself included."""
    found: dict[str, str] = {}
    seen = set()
    queue = [(name, extras)]
    while queue:
        item = queue.pop()
        if item in seen:
            continue
        seen.add(item)
        distribution = importlib.metadata.distribution(item[0])
        found[canonicalize_name(item[0])] = distribution.version
        for text in distribution.requires or []:
            requirement = Requirement(text)
            environments = [{"extra": extra} for extra in item[1] or {""}]
            marker = requirement.marker
            if marker is None or any(marker.evaluate(each) for each in environments):
                queue.append((requirement.name, frozenset(requirement.extras)))
    return found


def pins() -> dict[str, str]:
    """Canonical name -> version in constraints.txt."""
    lines = (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
    pairs = (line.split("==") for line in lines if line and not line.startswith("#"))
    return {canonicalize_name(name): version for name, version in pairs}


def project() -> dict[str, Any]:
    """What pyproject.toml says of the package."""
    return tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]


def test_every_dependency_is_pinned():
    used = installed_requirements("shiftcore", frozenset({"all"}))
    # torch itself pins the accelerator libraries of its CUDA build.
    accelerator = re.compile(r"^(cuda|nvidia|triton)\b")
    local = {
        name: version.split("+")[0]  # torch 2.13.0+cpu is a build of 2.13.0
        for name, version in used.items()
        if name != "shiftcore" and not accelerator.match(name)
    }
    assert local == pins()


def test_every_bound_holds_the_pin():
    found = project()
    lists = [found["dependencies"], *found["optional-dependencies"].values()]
    needed = [Requirement(text) for texts in lists for text in texts]
    pinned = pins()
    wrong = [
        str(each)
        for each in needed
        if each.name != "shiftcore"
        and not each.specifier.contains(pinned[canonicalize_name(each.name)], prereleases=True)
    ]
    assert wrong == []


@pytest.mark.parametrize("name", ["amaranth", "llvmlite", "numba"])
def test_interfaces_that_change_with_the_minor_version_are_bounded(name: str):
    (own,) = (x for x in map(Requirement, project()["dependencies"]) if x.name == name)
    major, minor, *_ = map(int, pins()[name].split("."))
    assert not own.specifier.contains(f"{major}.{minor + 1}")


def test_every_extra_is_in_all():
    extras = project()["optional-dependencies"]
    (everything,) = extras.pop("all")
    assert Requirement(everything).extras == set(extras)
