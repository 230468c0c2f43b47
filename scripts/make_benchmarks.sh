#!/bin/sh
# Measures the section of docs/benchmarks.md for the machine it runs on, and its picture: installs the peers, then runs
# Pagemill and each of them in turn. Ten minutes at most once they are installed, if nothing else runs. Arguments, if
# any, are a command put before each of the five measurements, such as `numactl --membind 0`.
set -eu
cd "$(dirname "$0")/.."
scripts/install_packages.sh g++ cmake ninja-build libcli11-dev libfmt-dev nlohmann-json3-dev gnuplot-nox
cmake -S . -B build -G Ninja -DCMAKE_BUILD_TYPE=Release >/dev/null
cmake --build build --target pagemill_peaks
bench/peers/install.sh

results=
for peer in openvino vllm torch onnxruntime ggml; do
  "$@" build/peers/venv/bin/python bench/peers/compare.py "$peer" --json "build/peers/$peer.json"
  results="$results build/peers/$peer.json"
done
# shellcheck disable=SC2086 # one word a file
bench/peers/report.py $results
