#!/bin/sh
# install_sglang.sh [FOLDER]: SGLang for CPUs from PyPI in a virtual environment, build/venv-sglang unless named, with
# Pagemill of this tree beside it and what its tests need; versions as in tests/sglang/requirements*.txt. SGLang is
# installed without the kernels for GPUs that it asks for; PyPI's PyTorch still brings CUDA's libraries: 7 GB in all.
set -eu
cd "$(dirname "$0")/.."
folder=${1:-build/venv-sglang}
scripts/install_packages.sh g++ cmake ninja-build python3-dev python3-venv
scripts/make_venv.sh "$folder" tests/sglang/requirements.txt tests/sglang/requirements-alone.txt
"$folder/bin/pip" --disable-pip-version-check install --quiet --no-deps --force-reinstall .
