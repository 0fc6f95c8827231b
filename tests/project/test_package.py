"""The package as somebody else gets it: built, installed away from the checkout with what it declares, and used."""

import importlib.metadata
import os
import re
import shutil
import subprocess
import sys
import sysconfig
import tomllib
import venv
import zipfile
from email.parser import HeaderParser
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from PIL import Image
from support import tiny

import minigrad
from minigrad import backend

ROOT = tiny.ROOT
PACKAGES = ("minigrad", "resnext", "train")


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    """The wheel, built from a copy, for a build leaves files behind."""
    pytest.importorskip("setuptools", "77", reason="building needs setuptools 77: pip install 'setuptools>=77'")
    pytest.importorskip("pip", reason="building needs pip")
    copy, out = tmp_path_factory.mktemp("copy"), tmp_path_factory.mktemp("wheel")
    for name in PACKAGES:
        shutil.copytree(ROOT / name, copy / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, copy)
    options = "-m pip wheel --quiet --disable-pip-version-check --no-deps --no-build-isolation --no-index"
    command(sys.executable, *options.split(), "--wheel-dir", out, copy, cwd=out)
    (found,) = out.glob("*.whl")
    return found


def command(*words, cwd, **variables):
    """Run a command that must succeed in a folder, without what leads to the checkout; return what it printed."""
    environment = {k: v for k, v in os.environ.items() if not k.startswith("PYTHON")} | variables
    done = subprocess.run(
        [str(word) for word in words], cwd=cwd, env=environment, capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, f"{words}\n{done.stdout}\n{done.stderr}"
    return done.stdout


def metadata(wheel):
    """The METADATA of a wheel."""
    with zipfile.ZipFile(wheel) as archive:
        (name,) = (n for n in archive.namelist() if n.endswith(".dist-info/METADATA"))
        return HeaderParser().parsestr(archive.read(name).decode())


def needed(requirements):
    """The distributions that satisfy requirements, and theirs, without extras; fails where one is not installed."""
    found, waiting = {}, list(requirements)
    while waiting:
        requirement = Requirement(waiting.pop())
        if requirement.name in found or (requirement.marker and not requirement.marker.evaluate({"extra": ""})):
            continue
        found[requirement.name] = distribution = importlib.metadata.distribution(requirement.name)
        waiting += distribution.requires or []
    return found.values()


@pytest.fixture(scope="module")
def python(wheel, tmp_path_factory):
    """The interpreter of a fresh environment that holds the wheel and links to what it declares to need, no more."""
    folder = tmp_path_factory.mktemp("environment")
    venv.create(folder, with_pip=False, symlinks=os.name != "nt")
    paths = sysconfig.get_paths("venv", {"base": str(folder), "platbase": str(folder)})
    site = Path(paths["purelib"])
    with zipfile.ZipFile(wheel) as archive:  # a wheel of pure Python is installed when it is unpacked
        archive.extractall(site)
    for distribution in needed(metadata(wheel).get_all("Requires-Dist")):
        for top in {file.parts[0] for file in distribution.files or () if file.parts[0] not in ("..", "__pycache__")}:
            (site / top).symlink_to(distribution.locate_file(top))
    return Path(paths["scripts"]) / "python"


def test_the_wheel_holds_the_packages_and_nothing_else(wheel):
    head = metadata(wheel)
    assert (head["Name"], head["Version"]) == ("minigrad-resnext", minigrad.__version__)
    with zipfile.ZipFile(wheel) as archive:
        names = {name for name in archive.namelist() if ".dist-info/" not in name}
    here = {path for name in PACKAGES for path in (ROOT / name).rglob("*") if path.is_file()}
    assert names == {path.relative_to(ROOT).as_posix() for path in here if "__pycache__" not in path.parts}


@pytest.mark.slow
def test_installed_elsewhere_it_trains_predicts_explores_and_reports(python, tmp_path):
    where = command(python, "-c", "import minigrad, train; print(minigrad.__file__, train.__file__)", cwd=tmp_path)
    assert where.count(str(python.parents[1])) == 2 and str(ROOT) not in where
    command(python, "-m", "train.cifar", *tiny.OPTIONS, "--epochs", "1", "--out", "run", cwd=tmp_path)
    assert (tmp_path / "run" / "report.html").stat().st_size > 10_000
    (tmp_path / "run" / "report.html").unlink()
    command(python, "-m", "train.report", "run", cwd=tmp_path)
    assert (tmp_path / "run" / "report.html").stat().st_size > 10_000
    Image.new("RGB", (32, 32), (200, 30, 30)).save(tmp_path / "red.png")
    shown = command(python, "-m", "train.predict", "red.png", "--checkpoint", "run/last.safetensors", cwd=tmp_path)
    assert len(re.findall(r"\d%|\d %", shown)) >= 5
    command(python, "-m", "minigrad.explore", cwd=tmp_path)
    assert "</html>" in (tmp_path / "explorer.html").read_text()
    assert "resnext29_8x64d" in command(python, "-m", "resnext", cwd=tmp_path)


def test_the_lowest_versions_that_are_tested_are_those_that_are_allowed():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    allowed = {}
    for line in project["dependencies"] + project["optional-dependencies"]["test"]:
        requirement = Requirement(line)
        (allowed[canonicalize_name(requirement.name)],) = (s.version for s in requirement.specifier)
    pins = [line for line in (ROOT / ".ci" / "lowest.txt").read_text().splitlines() if not line.startswith("#")]
    assert allowed == {canonicalize_name(name): version for name, _, version in (pin.partition("==") for pin in pins)}


def test_constraints_pin_everything_and_name_no_host():
    for name in ("constraints.txt", "lowest.txt"):
        for line in (ROOT / ".ci" / name).read_text().splitlines():
            assert re.fullmatch(r"#.*|[\w-]+==[\w.]+", line), line


def test_who_cites_names_this_version():
    assert f"\nversion: {minigrad.__version__}\n" in (ROOT / "CITATION.cff").read_text()


def test_what_is_missing_is_named(monkeypatch):
    for module, call in (("cupy", backend.cupy), ("ml_dtypes", lambda: backend.float_dtype("bfloat16", "cuda"))):
        monkeypatch.setitem(sys.modules, module, None)  # as if it were not installed
        with pytest.raises(backend.DeviceError, match=r"not installed: pip install .*ml_dtypes"):
            call()


def test_nothing_tells_people_to_install_somebody_elses_package():
    """PyPI's `minigrad` is not this project, and nobody keeps `minigrad-resnext` there: say what is missing instead."""
    texts = [path for pattern in ("*.py", "*.md", "*.sh", "*.html") for path in ROOT.rglob(pattern)]
    texts = [path for path in texts if not any(part.startswith(".") for part in path.relative_to(ROOT).parts)]
    assert len(texts) > 100
    for path in texts:
        found = re.search(r"pip install[^\n]*minigrad", path.read_text(errors="replace"))
        assert found is None or path == Path(__file__), f"{path}: {found}"
