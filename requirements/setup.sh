#!/usr/bin/env bash
# Makes .venv ready to run prefloop; does nothing when it already is. `make setup` calls it; docs/install.md describes it.
#   PYTHON=python3.12     the interpreter to use, instead of the first one found that is new enough
#   PREFLOOP_SETUP=cpu    what to install: cpu (vLLM's CPU build), gpu (vLLM's CUDA build) or plain (no vLLM);
#                         by default gpu where nvidia-smi lists a GPU, cpu on other Linux machines, plain elsewhere
set -Eeuo pipefail
cd -P "$(dirname "$0")/.."

venv=.venv
stamp=$venv/prefloop-setup
log=$venv/setup.log
python=$venv/bin/python
step="starting"

fail() {
    printf '\nprefloop setup: %s\n' "$*" >&2
    exit 1
}

on_error() {
    [ -f "$log" ] && tail -n 15 "$log" >&2
    fail "stopped while $step (the whole output is in $log). What is installed so far is kept: the same command goes on
from there. If the lines above speak of a connection or of no matching version, this machine cannot reach a Python
package index, which setup needs once."
}

begin() {  # begin WHAT: name the step that follows, on the screen and in the log
    step=$1
    echo "prefloop setup: $step"
    echo "== $step" >>"$log"
}

wanted() {  # a fingerprint of everything that decides what gets installed
    cat pyproject.toml requirements/*.lock requirements/setup.sh | cksum
    echo "$PWD ${PREFLOOP_SETUP:-auto}"
}

find_python() {
    local candidate
    for candidate in ${PYTHON:-python3.11 python3.12 python3.13 python3}; do
        if "$candidate" -c 'import sys; sys.exit(not (3, 11) <= sys.version_info < (3, 14))' 2>/dev/null; then
            echo "$candidate"
            return
        fi
    done
    fail "needs Python 3.11, 3.12 or 3.13; looked for: ${PYTHON:-python3.11 python3.12 python3.13 python3}.
Install one, or name it: make setup PYTHON=/path/to/python3.11"
}

find_flavour() {
    if [ -n "${PREFLOOP_SETUP:-}" ]; then
        echo "$PREFLOOP_SETUP"
    elif command -v nvidia-smi >/dev/null && nvidia-smi -L 2>/dev/null | grep -q '^GPU'; then
        echo gpu
    elif [ "$(uname -s)" = Linux ]; then
        echo cpu
    else
        echo plain
    fi
}

venv_is_usable() {  # it works, and it was made here: a moved one holds the paths of its old place
    grep -qsF "$PWD/$venv" "$venv/pyvenv.cfg" && "$python" -m pip --version >/dev/null 2>&1
}

make_venv() {
    local base
    base=$(find_python)
    "$base" -c 'import ensurepip, venv' 2>/dev/null ||
        fail "$base has no venv module. On Debian and Ubuntu: apt install python3-venv"
    "$base" -m venv --clear "$venv"
}

uv_pip() { VIRTUAL_ENV=$PWD/$venv "$venv/bin/uv" pip "$@" >>"$log" 2>&1; }
pip() { "$python" -m pip --disable-pip-version-check "$@" >>"$log" 2>&1; }

install_locked() {  # install_locked LOCKFILE: exactly the listed files; pip where uv fails, as it may know a mirror
    uv_pip install --no-deps --require-hashes --no-build-isolation --compile-bytecode -r "requirements/$1" ||
        pip install --no-deps --require-hashes --no-build-isolation -r "requirements/$1"
}

install_torch() {  # the CPU build where it is found, else the package index's build, which on Linux is the CUDA one
    pip install --no-deps --require-hashes -r requirements/torch-cpu.lock ||
        uv_pip install --torch-backend cpu --no-deps --require-hashes -r requirements/torch-cpu.lock ||
        { echo "  no CPU build of torch in reach: taking the package index's build (on Linux several GB)" &&
            install_locked torch.lock; }
}

install_pycosat() {  # the one dependency that needs a C compiler; without it a stand-in keeps reasoning-gym importable
    install_locked compiled.lock && return
    echo "  no C compiler: the reasoning-gym task zebra_puzzles will not run, everything else does"
    cat >"$("$python" -c 'import sysconfig; print(sysconfig.get_path("purelib"))')/pycosat.py" <<'STAND_IN'
"""Stands in for pycosat, which needs a C compiler: reasoning_gym imports it always and uses it for one task."""


def __getattr__(name):
    if name.startswith("__"):
        raise AttributeError(name)
    raise ImportError("zebra_puzzles needs pycosat: install a C compiler, then run: .venv/bin/pip install pycosat==0.6.6")
STAND_IN
}

install_everything() {
    local flavour=$1
    begin "installing the installers"
    pip install --no-deps --require-hashes -r requirements/build.lock
    case $flavour in
    cpu)
        begin "installing torch (CPU build)"
        install_torch
        begin "installing the locked packages with vLLM's CPU build"
        install_locked cpu.lock
        ;;
    gpu) # not verified: no machine with a GPU and a package index was at hand
        begin "installing the locked packages"
        install_locked base.lock
        begin "installing torch and vLLM for this machine's GPU (several GB)"
        uv_pip install --torch-backend auto --constraint requirements/base.lock torch==2.13.0 vllm==0.32.0
        ;;
    plain)
        begin "installing torch"
        if [ "$(uname -s)" = Linux ]; then install_torch; else install_locked torch.lock; fi
        begin "installing the locked packages without vLLM"
        install_locked base.lock
        ;;
    *) fail "PREFLOOP_SETUP=$flavour is not one of cpu, gpu, plain" ;;
    esac
    begin "installing what has to be compiled"
    install_pycosat
    begin "installing prefloop itself, editable"
    pip install --no-deps --no-build-isolation --editable .
}

[ -f "$stamp" ] && [ "$(cat "$stamp")" = "$(wanted)" ] && exit 0
rm -f "$stamp"
venv_is_usable || make_venv
: >"$log"
flavour=$(find_flavour)
trap on_error ERR
install_everything "$flavour"
wanted >"$stamp"
echo "prefloop setup: done in $SECONDS s"
