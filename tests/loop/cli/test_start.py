"""In a real environment `prefloop` runs, and explains what is wrong once other distributions replace its packages."""

import os
import subprocess
import sys
import sysconfig
import venv
import zipfile
from pathlib import Path

import pytest

from loop.cli.start import MARK, PACKAGES, replaced_packages

ROOT = Path(__file__).resolve().parents[3]


class Environment:
    """A virtual environment with prefloop's wheel; what prefloop depends on is that of the tests."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        venv.create(folder / "venv")
        self.bin = folder / "venv" / ("Scripts" if os.name == "nt" else "bin")
        (site,) = (folder / "venv").glob("[Ll]ib/**/site-packages")
        (site / "dependencies.pth").write_text(sysconfig.get_path("purelib"), encoding="utf-8")

    def pip(self, *arguments: str | Path) -> None:
        quiet = ["--quiet", "--disable-pip-version-check"]
        call = [sys.executable, "-m", "pip", "--python", self.bin / "python", *quiet, *arguments]
        subprocess.run(call, check=True, capture_output=True, timeout=120)

    def install(self, *wheels: Path) -> None:
        self.pip("install", "--no-index", "--no-deps", "--no-compile", "--force-reinstall", *wheels)

    def prefloop(self, **variables: str) -> subprocess.CompletedProcess[str]:
        """`prefloop plan quickstart`, which imports all three packages."""
        environment = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"} | variables
        call = [self.bin / "prefloop", "plan", "quickstart"]
        return subprocess.run(
            call, cwd=self.folder, env=environment, capture_output=True, text=True, timeout=60, check=False
        )

    def refusal(self, **variables: str) -> str:
        """The one paragraph with which prefloop refuses to run."""
        done = self.prefloop(**variables)
        assert (done.returncode, done.stdout) == (2, ""), done.stderr
        (paragraph,) = done.stderr.strip().splitlines()
        return paragraph


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("wheel")
    build = [sys.executable, "-m", "hatchling", "build", "--target", "wheel", "--directory", str(folder)]
    subprocess.run(build, cwd=ROOT, check=True, capture_output=True, timeout=120)
    (wheel,) = folder.glob("prefloop-*.whl")
    return wheel


@pytest.fixture(scope="module")
def environment(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Environment:
    environment = Environment(tmp_path_factory.mktemp("environment"))
    environment.install(wheel)
    return environment


def other_wheel(folder: Path, package: str) -> Path:
    """The wheel of the distribution `other-PACKAGE`, whose one package has the name of ours."""
    information = f"other_{package}-1.0.dist-info"
    files = {
        f"{package}/__init__.py": "import a_dependency_that_is_not_installed\n",
        f"{information}/METADATA": f"Metadata-Version: 2.1\nName: other-{package}\nVersion: 1.0\n",
        f"{information}/WHEEL": "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
    }
    record = "".join(f"{name},,\n" for name in [*files, f"{information}/RECORD"])
    path = folder / f"other_{package}-1.0-py3-none-any.whl"
    with zipfile.ZipFile(path, "w") as archive:
        for name, text in {**files, f"{information}/RECORD": record}.items():
            archive.writestr(name, text)
    return path


def test_replaced_packages_are_explained_and_the_remedy_works(
    environment: Environment, wheel: Path, tmp_path: Path
) -> None:
    assert environment.prefloop().returncode == 0
    environment.install(other_wheel(tmp_path, "loop"), other_wheel(tmp_path, "judges"))
    refusal = environment.refusal()
    for package in ("loop", "judges"):
        assert f"the distribution other-{package} has replaced its package `{package}`" in refusal
        assert f"`pip uninstall other-{package}` and then reinstall prefloop" in refusal
    environment.pip("uninstall", "--yes", "other-loop", "other-judges")
    refusal = environment.refusal()
    assert "its package `loop` is missing or incomplete" in refusal
    assert "its package `judges` is missing or incomplete" in refusal
    environment.install(wheel)
    assert environment.prefloop().returncode == 0


def test_a_folder_on_the_path_that_no_distribution_owns_is_named(environment: Environment, tmp_path: Path) -> None:
    (tmp_path / "trainer").mkdir()
    (tmp_path / "trainer" / "__init__.py").touch()
    refusal = environment.refusal(PYTHONPATH=str(tmp_path))
    assert f"finds a package `trainer` at {tmp_path / 'trainer' / '__init__.py'}" in refusal
    assert "remove its folder from PYTHONPATH" in refusal


def test_every_package_has_the_mark() -> None:
    assert replaced_packages() == {}
    for package in PACKAGES:
        assert (ROOT / package / "__init__.py").read_text(encoding="utf-8").startswith(MARK)
