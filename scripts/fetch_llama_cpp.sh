#!/bin/sh
# Fetches the source of ggml and libllama, which `pagemill generate` runs all of a model with but its attention, into
# build/llama.cpp: from llama-cpp-python's source archive on PyPI, version and hash pinned.
set -eu
cd "$(dirname "$0")/.."
target=build/llama.cpp requirements=engine/llama.cpp/requirements.txt
fail() {
  echo "fetch_llama_cpp.sh: $*" >&2
  exit 1
}

cmp -s $requirements $target/requirements.txt && exit 0
scripts/install_packages.sh python3-venv
echo "Fetching the source of llama.cpp" >&2
work=build/llama.cpp.part
rm -rf $work
mkdir -p $work
# pip asks an archive's build backend for its metadata, even of an archive that it only downloads.
scripts/make_venv.sh build/fetch-venv engine/llama.cpp/build-backend.txt ||
  fail "cannot make a virtual environment: needs python3 with venv and pip (Debian: python3-venv) and the network (PyPI)"
build/fetch-venv/bin/pip --disable-pip-version-check --quiet download --no-deps --require-hashes --no-binary :all: \
  --no-build-isolation --dest $work --requirement $requirements ||
  fail "pip could not download llama-cpp-python: needs the network (PyPI, or an index that PIP_INDEX_URL names)"
tar -xzf $work/llama_cpp_python-*.tar.gz -C $work --strip-components=3 --wildcards \
  '*/vendor/llama.cpp/CMakeLists.txt' '*/vendor/llama.cpp/LICENSE' '*/vendor/llama.cpp/AUTHORS' \
  '*/vendor/llama.cpp/cmake' '*/vendor/llama.cpp/ggml' '*/vendor/llama.cpp/include' '*/vendor/llama.cpp/src' \
  '*/vendor/llama.cpp/vendor' '*/vendor/llama.cpp/licenses'
rm $work/llama_cpp_python-*.tar.gz
cp $requirements $work/
rm -rf $target
mv $work $target
