"""Set-up: the lock files pin and hash everything, and setup.sh never calls a half-made environment finished."""

import os
import re
import shutil
import stat
import subprocess
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
LOCKS = sorted((ROOT / "requirements").glob("*.lock"))
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]


def requirements_in(lock: Path) -> list[str]:
    """The requirements of a lock file, each with its hashes on one line."""
    lines = [line for line in lock.read_text(encoding="utf-8").splitlines() if not line.lstrip().startswith("#")]
    return [line for line in "\n".join(lines).replace("\\\n", " ").splitlines() if line.strip()]


@pytest.mark.parametrize("lock", LOCKS, ids=lambda lock: lock.name)
def test_every_locked_package_has_one_version_and_a_hash(lock: Path) -> None:
    assert [
        line for line in requirements_in(lock) if not re.match(r"[\w.\[\]-]+==\S+.* --hash=sha256:\w{64}", line)
    ] == []


def test_the_locks_name_no_index_and_no_place_on_disk() -> None:
    text = "".join(lock.read_text(encoding="utf-8") for lock in LOCKS)
    assert not re.search(r"https?://|file:|--index|--find-links|--extra", text)


def test_both_locks_agree_on_the_packages_they_share() -> None:
    base, cpu = (
        {line.split()[0] for line in requirements_in(ROOT / "requirements" / name)}
        for name in ("base.lock", "cpu.lock")
    )
    assert base <= cpu


def test_vllm_and_torch_have_the_same_version_wherever_it_is_written() -> None:
    cpu = (ROOT / "requirements" / "cpu.lock").read_text(encoding="utf-8")
    script = (ROOT / "requirements" / "setup.sh").read_text(encoding="utf-8")
    extras = str(PROJECT["optional-dependencies"])
    versions = re.findall(r"\bvllm(?:-cpu)?==([\d.]+)", cpu + script + extras)
    assert len(versions) >= 4
    assert len(set(versions)) == 1
    torch_files = [ROOT / "requirements" / name for name in ("torch.in", "torch.lock", "torch-cpu.lock", "setup.sh")]
    torch_versions = [
        re.findall(r"(?<![\w-])torch==([\d.]+\d)", path.read_text(encoding="utf-8")) for path in torch_files
    ]
    assert all(torch_versions)
    assert len({version for found in torch_versions for version in found}) == 1


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """A copy of what set-up reads, and a PATH of the test's own (bin/) with only the plain tools on it."""
    shutil.copytree(ROOT / "requirements", tmp_path / "requirements")
    shutil.copy(ROOT / "pyproject.toml", tmp_path)
    (tmp_path / "bin").mkdir()
    for tool in ("bash", "cat", "cksum", "dirname", "grep", "rm", "tail", "uname"):
        (tmp_path / "bin" / tool).symlink_to(shutil.which(tool) or f"/bin/{tool}")
    return tmp_path


def put(folder: Path, name: str, script: str) -> None:
    """An executable shell script in place of a real program."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / name
    path.write_text(f"#!/bin/bash\n{script}\n", encoding="utf-8")
    path.chmod(path.stat().st_mode | stat.S_IXUSR)


def set_up(checkout: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        ["/bin/bash", "requirements/setup.sh"],
        cwd=checkout,
        env={"PATH": str(checkout / "bin"), "HOME": str(checkout), **environment},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


def put_working_venv(checkout: Path, *, pip: str, uv: str) -> None:
    """A stand-in for a virtual environment made here, whose pip and uv are the given shell commands."""
    venv = checkout / ".venv"
    put(venv / "bin", "python", f'[ "$3" = --version ] && exit 0\n{pip}')
    put(venv / "bin", "uv", uv)
    (venv / "pyvenv.cfg").write_text(f"command = python -m venv {venv}\n", encoding="utf-8")


def test_without_a_new_enough_python_setup_says_which_it_looked_for(checkout: Path) -> None:
    put(checkout / "bin", "python3", "exit 1")  # the version test fails
    done = set_up(checkout)
    assert done.returncode != 0
    assert "needs Python 3.11, 3.12 or 3.13" in done.stderr
    assert "python3.12" in done.stderr


def test_a_python_without_venv_is_named_with_the_way_out(checkout: Path) -> None:
    put(checkout / "bin", "python3.11", 'case "$2" in *ensurepip*) exit 1 ;; *) exit 0 ;; esac')
    done = set_up(checkout)
    assert done.returncode != 0
    assert "python3.11 has no venv module" in done.stderr
    assert "apt install python3-venv" in done.stderr


def test_a_failed_install_leaves_no_stamp_and_says_where_it_stopped(checkout: Path) -> None:
    put_working_venv(checkout, pip="echo no route to the index; exit 1", uv="exit 1")
    done = set_up(checkout, PREFLOOP_SETUP="cpu")
    assert done.returncode != 0
    assert "no route to the index" in done.stderr
    assert "stopped while installing the installers" in done.stderr
    assert "cannot reach a Python" in done.stderr
    assert not (checkout / ".venv" / "prefloop-setup").exists()


def test_a_failure_after_the_first_steps_leaves_no_stamp_either(checkout: Path) -> None:
    put_working_venv(
        checkout, pip='case "$*" in *cpu.lock*) exit 1 ;; esac', uv='case "$*" in *cpu.lock*) exit 1 ;; esac'
    )
    done = set_up(checkout, PREFLOOP_SETUP="cpu")
    assert done.returncode != 0
    assert not (checkout / ".venv" / "prefloop-setup").exists()


def test_a_finished_setup_does_nothing_the_second_time_and_runs_again_when_a_lock_changes(checkout: Path) -> None:
    put_working_venv(checkout, pip=f'echo "$*" >>{checkout}/calls', uv="exit 0")
    assert set_up(checkout, PREFLOOP_SETUP="plain").returncode == 0
    calls = (checkout / "calls").read_text(encoding="utf-8")
    assert "--editable ." in calls

    second = set_up(checkout, PREFLOOP_SETUP="plain")
    assert (second.returncode, second.stdout) == (0, "")
    assert (checkout / "calls").read_text(encoding="utf-8") == calls

    with (checkout / "requirements" / "base.lock").open("a", encoding="utf-8") as lock:
        lock.write("# changed\n")
    assert set_up(checkout, PREFLOOP_SETUP="plain").stdout != ""
    assert len((checkout / "calls").read_text(encoding="utf-8")) > len(calls)


def test_a_gpu_gets_the_cuda_builds_and_never_the_cpu_lock(checkout: Path) -> None:
    put(checkout / "bin", "nvidia-smi", 'echo "GPU 0: some card"')
    put_working_venv(checkout, pip=f'echo "$*" >>{checkout}/calls', uv=f'echo "$*" >>{checkout}/calls')
    assert set_up(checkout).returncode == 0
    calls = (checkout / "calls").read_text(encoding="utf-8")
    assert "--torch-backend auto" in calls
    assert "vllm==" in calls
    assert "cpu.lock" not in calls


def test_an_unknown_kind_of_setup_is_refused_by_name(checkout: Path) -> None:
    put_working_venv(checkout, pip="exit 0", uv="exit 0")
    done = set_up(checkout, PREFLOOP_SETUP="tpu")
    assert done.returncode != 0
    assert "PREFLOOP_SETUP=tpu is not one of cpu, gpu, plain" in done.stderr


def test_without_a_compiler_reasoning_gym_still_imports(checkout: Path) -> None:
    site = checkout / "site"
    site.mkdir()
    put_working_venv(
        checkout,
        pip=f'case "$*" in *sysconfig*) echo {site} ;; *compiled.lock*) exit 1 ;; esac',
        uv='case "$*" in *compiled.lock*) exit 1 ;; esac',
    )
    assert set_up(checkout, PREFLOOP_SETUP="cpu").returncode == 0
    stand_in: dict[str, object] = {"__name__": "pycosat"}
    exec((site / "pycosat.py").read_text(encoding="utf-8"), stand_in)
    with pytest.raises(ImportError, match="install a C compiler"):
        stand_in["__getattr__"]("itersolve")  # type: ignore[operator]


def test_ci_runs_the_whole_check_and_can_be_executed() -> None:
    script = ROOT / ".ci" / "run"
    assert os.access(script, os.X_OK)
    assert "exec make test" in script.read_text(encoding="utf-8")
