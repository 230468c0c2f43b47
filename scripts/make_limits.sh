#!/bin/sh
# Measures every shape that Pagemill is tuned for against the peaks of the machine: writes docs/limits.md. About seven
# minutes, on an otherwise idle machine, after ./run has built the command line.
set -eu
cd "$(dirname "$0")/.."
scripts/install_packages.sh jq
pagemill=build/tools/pagemill
rows=$(mktemp)
trap 'rm "$rows"' EXIT

# One row: the ratio's name, its goal, what it is, then the arguments of `pagemill bench`.
measure() {
  ratio=$1 goal=$2 label=$3
  shift 3
  echo "$label" >&2
  "$pagemill" bench "$@" --seconds 2 --json |
    jq -r --arg ratio "$ratio" --arg goal "$goal" --arg work "$label" --arg command "$*" \
      '"| \($work) | \($ratio) | \(.[$ratio] * 1000 | round / 1000) | \($goal) | \(.seconds * 1e6 | round / 1000) | \(.peak_read_gbps | round) | \(.peak_gflops | round) | `\($command)` |"' \
      >>"$rows"
}

heads() { echo "--heads $1 --kv-heads $2 --head-dim $3"; }

for page in 16 64 128; do
  measure mbu 0.86 "decode 16 x 4096, pages of $page" decode --page-size $page
done
measure mbu 0.65 'the same on one thread' decode --threads 1
measure mbu 0.75 'decode, rows' decode --layout rows
measure mbu 0.65 'decode, rows, pages of one token' decode --layout rows --page-size 1
# shellcheck disable=SC2046 # heads prints words
{
  measure roofline 0.80 'decode, G = 1' decode $(heads 8 8 128)
  measure roofline 0.70 'decode, G = 8' decode $(heads 64 8 128)
  measure roofline 0.65 'decode, G = 16' decode $(heads 64 4 128)
  measure roofline 0.65 'decode, G = 64' decode $(heads 64 1 128)
}
measure mbu 0.80 'decode 1 x 131072' decode --batch 1 --context 131072
measure roofline 0.50 'decode 64 x 128' decode --batch 64 --context 128
measure roofline 0.70 '16 sequences of 4 queries at 4096' decode --q-len 4
measure mfu 0.83 'prefill 1 x 4096' prefill
measure mfu 0.83 'prefill 1 x 16384' prefill --context 16384
measure mfu 0.80 'prefill 1 x 4096, avx512' prefill --isa avx512
measure mfu 0.80 'prefill 1 x 4096, avx2' prefill --isa avx2
measure mfu 0.70 'prefill 8 x 512' prefill --batch 8 --context 512
measure mfu 0.75 '512 new tokens on 3584' prefill --q-len 512
measure mfu 0.75 'the same, window 1024' prefill --q-len 512 --window 1024
measure roofline - 'mixed: 14 decodes at 4096 and 512 new tokens at 2048' mixed
# shellcheck disable=SC2046 # heads prints words
for dim in 64 80 96 112 256; do
  measure mbu '0.85 of D 128' "decode, D = $dim" decode $(heads 32 8 $dim)
  measure mfu '0.85 of D 128' "prefill, D = $dim" prefill $(heads 32 8 $dim)
done
for dtype in f32 f16; do
  goal=$([ $dtype = f32 ] && echo 0.75 || echo 0.65)
  measure roofline "$goal" "decode, $dtype" decode --dtype $dtype
  measure roofline "$goal" "prefill, $dtype" prefill --dtype $dtype
done
for dtype in f8e4m3 f8e5m2; do
  measure mbu '0.75 of bf16' "decode, cache of $dtype" decode --cache-dtype $dtype
  measure mfu '0.95 of bf16' "prefill, cache of $dtype" prefill --cache-dtype $dtype
done
measure mbu '0.90 of normal' 'decode, batch-invariant' decode --invariant
measure mfu '0.90 of normal' 'prefill, batch-invariant' prefill --invariant
for trace in traces/azure2023_conv.csv traces/azure2023_code.csv traces/mooncake_conversation.jsonl; do
  label="replay of $(basename "$trace")"
  echo "$label" >&2
  "$pagemill" replay "$trace" --seconds 20 --json | tail -n 1 |
    jq -r --arg work "$label" --arg command "$trace --seconds 20" \
      '"| \($work) | roofline | \(.roofline * 1000 | round / 1000) | 0.75 | | | | `pagemill replay \($command)` |"' >>"$rows"
done

times=$(mktemp)
trap 'rm "$rows" "$times"' EXIT
# One row: what it is, its goal, the seconds (an expression of jq) of `pagemill bench` with the arguments.
time_of() {
  label=$1 goal=$2 seconds=$3
  shift 3
  echo "$label" >&2
  "$pagemill" bench "$@" --json |
    jq -r --arg work "$label" --arg goal "$goal" --arg command "$*" \
      "\"| \\(\$work) | \\($seconds * 1e7 | round / 10) | \\(\$goal) | \`\\(\$command)\` |\"" >>"$times"
}
time_of 'one sequence with 16 keys, planned' 10 .seconds decode --batch 1 --context 16
time_of 'a pool woken after 200 us' 30 .seconds pool --idle-us 200
time_of 'a pool woken after 2 ms' 30 .seconds pool
time_of 'planning 256 sequences for 192 threads' 50 .seconds plan --threads 192
time_of 'planning 4096 sequences for 192 threads' 1000 .seconds plan --batch 4096 --threads 192

# Three rounds in turn: the median of mixed / (decodes + chunk).
echo 'mixed beside its parts' >&2
parts=$(for _ in 1 2 3; do
  for step in 'mixed' 'decode --batch 14' 'prefill --context 2048 --q-len 512'; do
    # shellcheck disable=SC2086 # words of a command
    "$pagemill" bench $step --seconds 2 --json
  done | jq -s '.[0].seconds / (.[1].seconds + .[2].seconds)'
done | jq -s 'sort | .[1] * 1000 | round / 1000')

{
  cat <<TEXT
# Every shape against its limit

Made by \`scripts/make_limits.sh\` on $("$pagemill" info --json | jq -r '"\(.cpu), \(.threads) threads, `\(.isas[] | select(.selected).name)`"'),
$(date -u +%F). Medians over two seconds each; bf16, llama3-8b, pages of 16 tokens, layout \`tiles\` and all threads unless
named. The peaks are of the same two seconds: a virtual machine's read bandwidth moves with its neighbours, and where it is
high one core cannot follow it ([kernels.md](kernels.md)).

| work | of | ratio | goal | ms | peak GB/s | peak GFLOP/s | \`pagemill bench\` |
|---|---|---|---|---|---|---|---|
TEXT
  cat "$rows"
  cat <<TEXT

The mixed step takes $parts of what its decodes (\`bench decode --batch 14\`) and its chunk
(\`bench prefill --context 2048 --q-len 512\`) take apart; the goal is 1.05 at most.

| short work | us | at most | \`pagemill bench\` |
|---|---|---|---|
TEXT
  cat "$times"
} >docs/limits.md
