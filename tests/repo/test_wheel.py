"""The wheel, built, unpacked and used from an empty folder: it holds the three rooms, the command and the configs."""

import configparser
import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
CONFIG_NAMES = sorted(str(path.relative_to(ROOT / "configs")) for path in (ROOT / "configs").rglob("*.*"))


@pytest.fixture(scope="module")
def unpacked(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel's contents as pip would lay them out; built by hatchling itself, so nothing is fetched."""
    folder = tmp_path_factory.mktemp("wheel")
    build = [sys.executable, "-m", "hatchling", "build", "--target", "wheel", "--directory", str(folder)]
    subprocess.run(build, cwd=ROOT, check=True, capture_output=True, timeout=120)
    (wheel,) = folder.glob("prefloop-*.whl")
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(folder / "site")
    return folder / "site"


def run_from_wheel(unpacked: Path, folder: Path, code: str) -> str:
    """Run the code in an empty folder where the unpacked wheel comes before the checkout."""
    environment = {**os.environ, "PYTHONPATH": str(unpacked)}
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=folder,
        env=environment,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 0, f"{done.stdout}\n{done.stderr}"
    return done.stdout


def test_the_wheel_holds_the_rooms_the_configs_and_the_license_only(unpacked: Path) -> None:
    (metadata,) = unpacked.glob("prefloop-*.dist-info")
    assert sorted(path.name for path in unpacked.iterdir()) == sorted(
        ["judges", "loop", "prefloop.py", "trainer", metadata.name]
    )
    configs = unpacked / "loop" / "shipped"
    assert sorted(str(path.relative_to(configs)) for path in configs.rglob("*.*")) == CONFIG_NAMES
    assert (metadata / "licenses" / "LICENSE").read_text(encoding="utf-8").lstrip().startswith("Apache License")


def test_the_wheel_installs_the_command(unpacked: Path) -> None:
    (entry_points,) = unpacked.glob("prefloop-*.dist-info/entry_points.txt")
    parser = configparser.ConfigParser()
    parser.read_string(entry_points.read_text(encoding="utf-8"))
    assert dict(parser["console_scripts"]) == {"prefloop": "prefloop:main"}


@pytest.mark.parametrize(
    "arguments",
    [["plan", "quickstart"], ["plan", "quickstart", "--json"], ["plan", "recipes/spin", "--toy"]],
    ids=" ".join,
)
def test_the_quickstart_is_planned_from_the_wheel_in_an_empty_folder(
    unpacked: Path, tmp_path: Path, arguments: list[str]
) -> None:
    code = f"import sys; sys.argv = ['prefloop', *{arguments!r}]\nfrom loop.cli.main import main\nsys.exit(main())"
    assert "sample" in run_from_wheel(unpacked, tmp_path, code)
    where = run_from_wheel(unpacked, tmp_path, "import loop; print(loop.__file__)")
    assert Path(where.strip()).is_relative_to(unpacked), "the test looked at the checkout, not at the wheel"


def test_the_wheel_holds_what_a_report_is_made_of(unpacked: Path, tmp_path: Path) -> None:
    code = "from loop.report.page import environment\nprint(*environment().list_templates())"
    templates = sorted(path.name for path in (ROOT / "loop" / "report" / "templates").iterdir())
    assert run_from_wheel(unpacked, tmp_path, code).split() == templates
    assert {"run.html", "style.css", "browser.js"} <= set(templates)
