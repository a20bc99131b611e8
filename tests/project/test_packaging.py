"""Check what is shipped: metadata, the wheel, the sdist, and the pins that development relies on.

Nothing is installed or fetched: the build backend runs in a process of its own on a copy.
"""

from __future__ import annotations

import configparser
import email
import re
import shutil
import subprocess
import sys
import tarfile
import zipfile
from email.message import Message
from importlib import metadata
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

import ignite_evalhook

ROOT = Path(__file__).parents[2]
PACKAGE = ROOT / "ignite_evalhook"
SHIPPED = (
    "ignite_evalhook",
    "tests",
    "changelog.d",
    "docs",
    "pyproject.toml",
    "setup.cfg",
    "constraints.txt",
    "MANIFEST.in",
    "Makefile",
    "README.md",
    "CHANGELOG.md",
    "CONTRIBUTING.md",
    "LICENSE",
)


@pytest.fixture(scope="module")
def config() -> configparser.ConfigParser:
    parser = configparser.ConfigParser(interpolation=None)
    parser.read(ROOT / "setup.cfg", encoding="utf-8")
    return parser


@pytest.fixture(scope="module")
def pins() -> dict[str, Requirement]:
    lines = (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
    requirements = [Requirement(line) for line in lines if line and not line.startswith("#")]
    return {canonicalize_name(requirement.name): requirement for requirement in requirements}


def _build(kind: str, source: Path, into: Path) -> Path:
    code = f"import sys; from setuptools.build_meta import *; build_{kind}(sys.argv[1])"
    result = subprocess.run(
        [sys.executable, "-c", code, str(into)], cwd=source, capture_output=True, text=True
    )
    assert result.returncode == 0, result.stderr
    (built,) = into.iterdir()
    return built


@pytest.fixture(scope="module")
def sdist(tmp_path_factory: pytest.TempPathFactory) -> Path:
    copy = tmp_path_factory.mktemp("checkout")
    for name in SHIPPED:
        source = ROOT / name
        if source.is_dir():
            shutil.copytree(source, copy / name, ignore=shutil.ignore_patterns("_build"))
        else:
            shutil.copy(source, copy)
    return _build("sdist", copy, tmp_path_factory.mktemp("sdist"))


@pytest.fixture(scope="module")
def wheel(sdist: Path, tmp_path_factory: pytest.TempPathFactory) -> zipfile.ZipFile:
    """Built from the unpacked sdist, as an installer would."""
    unpacked = tmp_path_factory.mktemp("unpacked")
    with tarfile.open(sdist) as archive:
        archive.extractall(unpacked, filter="data")
    (source,) = unpacked.iterdir()
    return zipfile.ZipFile(_build("wheel", source, tmp_path_factory.mktemp("wheel")))


@pytest.fixture(scope="module")
def wheel_metadata(wheel: zipfile.ZipFile) -> Message:
    (name,) = (name for name in wheel.namelist() if name.endswith(".dist-info/METADATA"))
    return email.message_from_bytes(wheel.read(name))


def test_the_version_has_one_source(config: configparser.ConfigParser) -> None:
    expected = config["metadata"]["version"]
    assert ignite_evalhook.__version__ == expected
    assert metadata.version("ignite-evalhook") == expected


@pytest.mark.parametrize(
    ("field", "expected"),
    [
        ("Name", "ignite-evalhook"),
        ("Author", "The ignite-evalhook authors"),
        ("License-Expression", "BSD-3-Clause"),
        ("Requires-Python", ">=3.10"),
        ("Description-Content-Type", "text/markdown"),
    ],
)
def test_the_metadata_says(wheel_metadata: Message, field: str, expected: str) -> None:
    assert wheel_metadata[field] == expected


def test_the_readme_is_the_description(wheel_metadata: Message) -> None:
    readme = (ROOT / "README.md").read_text(encoding="utf-8").strip()
    payload = wheel_metadata.get_payload(decode=True)
    assert isinstance(payload, bytes)
    assert payload.decode().strip() == readme


def test_only_torch_and_ignite_are_needed_at_run_time(wheel_metadata: Message) -> None:
    needed = [
        requirement
        for requirement in map(Requirement, wheel_metadata.get_all("Requires-Dist", []))
        if requirement.marker is None
    ]
    assert sorted(map(str, needed)) == ["pytorch-ignite>=0.5.3", "torch>=2.4"]


def test_the_extras_for_users_are_there(wheel_metadata: Message) -> None:
    extras = set(wheel_metadata.get_all("Provides-Extra", []))
    assert {"progress", "tensorboard", "openmmlab", "examples"} <= extras


def test_the_wheel_holds_the_package_its_type_marker_and_nothing_else(
    wheel: zipfile.ZipFile,
) -> None:
    shipped = {name for name in wheel.namelist() if ".dist-info/" not in name}
    sources = {path.relative_to(ROOT).as_posix() for path in PACKAGE.rglob("*.py")}
    assert shipped == sources | {"ignite_evalhook/py.typed"}


def test_the_wheel_holds_the_licence(wheel: zipfile.ZipFile) -> None:
    assert any(name.endswith("/LICENSE") for name in wheel.namelist())


def test_the_sdist_holds_what_its_own_tests_need(sdist: Path) -> None:
    with tarfile.open(sdist) as archive:
        names = {name.partition("/")[2] for name in archive.getnames()}
    tests = {path.relative_to(ROOT).as_posix() for path in (ROOT / "tests").rglob("*.py")}
    files = {name for name in SHIPPED if (ROOT / name).is_file()}
    assert tests | files | {"ignite_evalhook/py.typed", "docs/conf.py"} <= names
    assert not any("__pycache__" in name for name in names)


def test_every_package_that_an_extra_asks_for_is_pinned(
    config: configparser.ConfigParser, pins: dict[str, Requirement]
) -> None:
    asked = [config["options"]["install_requires"], *config["options.extras_require"].values()]
    names = {
        canonicalize_name(Requirement(line).name)
        for block in asked
        for line in block.split("\n")
        if line
    }
    assert names - pins.keys() == set()


def test_a_pin_is_one_exact_version(pins: dict[str, Requirement]) -> None:
    loose = [str(pin) for pin in pins.values() if not re.fullmatch(r"==[\w.]+", str(pin.specifier))]
    assert loose == []


def test_what_is_pinned_is_allowed_to_users(
    config: configparser.ConfigParser, pins: dict[str, Requirement]
) -> None:
    for line in config["options"]["install_requires"].split():
        requirement = Requirement(line)
        (pin,) = pins[canonicalize_name(requirement.name)].specifier
        assert requirement.specifier.contains(pin.version)


def test_every_pip_install_of_the_makefile_reads_the_pins() -> None:
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    installs = [line for line in makefile.splitlines() if re.search(r"pip\b.*\binstall\b", line)]
    assert installs
    assert [line for line in installs if "-c constraints.txt" not in line] == []


@pytest.mark.parametrize("name", ["constraints.txt", "Makefile", "setup.cfg", "pyproject.toml"])
def test_no_package_registry_is_named(name: str) -> None:
    text = (ROOT / name).read_text(encoding="utf-8")
    assert not re.search(r"https?://|--(extra-)?index-url|--find-links", text)


def test_changelog_fragments_are_numbered_and_say_something() -> None:
    fragments = [path for path in (ROOT / "changelog.d").iterdir() if path.name != "README.md"]
    for path in fragments:
        assert re.fullmatch(r"\d{4}-[a-z0-9-]+\.md", path.name), path.name
        assert path.read_text(encoding="utf-8").strip()
