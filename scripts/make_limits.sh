#!/bin/sh
# make_limits.sh [-s SECONDS] [COMMAND...]: measures every shape that Pagemill is tuned for against the peaks of the
# machine and writes the section of docs/limits.md for its CPU and ISA; those of other machines stay. Each of fifty
# measurements takes SECONDS (2), on an otherwise idle machine, after ./run has built the command line. COMMAND is put
# before each, such as `numactl --membind 0`.
set -eu
cd "$(dirname "$0")/.."
seconds=2
if [ "${1:-}" = -s ]; then
  seconds=$2
  shift 2
fi
before=$*
scripts/install_packages.sh jq
pagemill=build/tools/pagemill page=docs/limits.md
work=$(mktemp -d)
trap 'rm -r "$work"' EXIT
# shellcheck disable=SC2086 # words of a command
run() { $before "$pagemill" "$@"; }
machine=$(run info --json)
isa=$(echo "$machine" | jq -r '.isas[] | select(.selected).name')

# What must be reached and what is aimed at in prefill: less of a tile unit's peak, which neither softmax nor caches
# can keep up with.
case $isa in
  amx) long='0.45 0.75' short='0.35 0.65' chunk=0.40 ;;
  avx512bf16) long='0.83 0.93' short='0.70 0.87' chunk=0.75 ;;
  *) long='0.80 0.90' short='0.70 0.87' chunk=0.75 ;;
esac

# One row: the ratio's name, what it must reach and aims at, what it is, then the arguments of `pagemill bench`.
measure() {
  ratio=$1 must=$2 aim=$3 label=$4
  shift 4
  echo "$label" >&2
  run bench "$@" --seconds "$seconds" --json |
    jq -r --arg ratio "$ratio" --arg must "$must" --arg aim "$aim" --arg work "$label" --arg command "$*" \
      '"| \($work) | \($ratio) | \(.[$ratio] * 1000 | round / 1000) | \($must) | \($aim) | \(.seconds * 1e6 | round / 1000) | \(.peak_read_gbps | round) | \(.peak_gflops | round) | `\($command)` |"' \
      >>"$work/rows"
}

heads() { echo "--heads $1 --kv-heads $2 --head-dim $3"; }

for size in 16 64 128; do
  measure mbu 0.86 0.97 "decode 16 x 4096, pages of $size" decode --page-size $size
done
measure mbu 0.65 0.88 'the same on one thread' decode --threads 1
measure mbu 0.75 0.92 'decode, rows' decode --layout rows
measure mbu 0.65 0.92 'decode, rows, pages of one token' decode --layout rows --page-size 1
# shellcheck disable=SC2046 # heads prints words
{
  measure roofline 0.80 0.95 'decode, G = 1' decode $(heads 8 8 128)
  measure roofline 0.70 0.95 'decode, G = 8' decode $(heads 64 8 128)
  measure roofline 0.65 0.95 'decode, G = 16' decode $(heads 64 4 128)
  measure roofline 0.65 0.95 'decode, G = 64' decode $(heads 64 1 128)
}
measure mbu 0.80 0.95 'decode 1 x 131072' decode --batch 1 --context 131072
measure roofline 0.50 0.80 'decode 64 x 128' decode --batch 64 --context 128
measure roofline 0.70 0.90 '16 sequences of 4 queries at 4096' decode --q-len 4
# shellcheck disable=SC2086 # two words
{
  measure mfu $long 'prefill 1 x 4096' prefill
  measure mfu $long 'prefill 1 x 16384' prefill --context 16384
}
for other in avx512bf16 avx512 avx2; do
  [ $other = avx512bf16 ] && must='0.83 0.93' || must='0.80 0.90'
  echo "$machine" | jq -e --arg isa $other 'any(.isas[]; .name == $isa and .available and (.selected | not))' >/dev/null ||
    continue
  # shellcheck disable=SC2086 # two words
  measure mfu $must "prefill 1 x 4096, $other" prefill --isa $other
done
# shellcheck disable=SC2086 # two words
measure mfu $short 'prefill 8 x 512' prefill --batch 8 --context 512
measure mfu $chunk 0.88 '512 new tokens on 3584' prefill --q-len 512
measure mfu $chunk 0.88 'the same, window 1024' prefill --q-len 512 --window 1024
measure roofline - - 'mixed: 14 decodes at 4096 and 512 new tokens at 2048' mixed
# shellcheck disable=SC2046 # heads prints words
for dim in 64 80 96 112 256; do
  measure mbu '0.85 of D 128' equal "decode, D = $dim" decode $(heads 32 8 $dim)
  measure mfu '0.85 of D 128' equal "prefill, D = $dim" prefill $(heads 32 8 $dim)
done
for dtype in f32 f16; do
  must=$([ $dtype = f32 ] && echo 0.75 || echo 0.65)
  measure roofline "$must" 0.90 "decode, $dtype" decode --dtype $dtype
  measure roofline "$must" 0.90 "prefill, $dtype" prefill --dtype $dtype
done
for dtype in f8e4m3 f8e5m2; do
  measure mbu '0.75 of bf16' - "decode, cache of $dtype" decode --cache-dtype $dtype
  measure mfu '0.95 of bf16' - "prefill, cache of $dtype" prefill --cache-dtype $dtype
done
measure mbu '0.90 of normal' equal 'decode, batch-invariant' decode --invariant
measure mfu '0.90 of normal' equal 'prefill, batch-invariant' prefill --invariant
for trace in traces/azure2023_conv.csv traces/azure2023_code.csv traces/mooncake_conversation.jsonl; do
  label="replay of $(basename "$trace")"
  echo "$label" >&2
  command="replay $trace --seconds $(echo "$seconds" | jq '10 * .')"
  # shellcheck disable=SC2086 # words of a command
  run $command --json | tail -n 1 |
    jq -r --arg work "$label" --arg command "$command" \
      '"| \($work) | roofline | \(.roofline * 1000 | round / 1000) | 0.75 | 0.88 | | | | `pagemill \($command)` |"' \
      >>"$work/rows"
done

# One row: what it is, the most it may take and aims at, then the arguments of `pagemill bench`.
time_of() {
  label=$1 most=$2 aim=$3
  shift 3
  echo "$label" >&2
  run bench "$@" --json |
    jq -r --arg work "$label" --arg most "$most" --arg aim "$aim" --arg command "$*" \
      '"| \($work) | \(.seconds * 1e7 | round / 10) | \($most) | \($aim) | `\($command)` |"' >>"$work/times"
}
time_of 'one sequence with 16 keys, planned' 10 3 decode --batch 1 --context 16
time_of 'a pool woken after 200 us' 30 15 pool --idle-us 200
time_of 'a pool woken after 2 ms' 30 15 pool
time_of 'planning 256 sequences for 192 threads' 50 - plan --threads 192
time_of 'planning 4096 sequences for 192 threads' 1000 - plan --batch 4096 --threads 192

# Three rounds in turn: the median of mixed / (decodes + chunk).
echo 'mixed beside its parts' >&2
parts=$(for _ in 1 2 3; do
  for step in mixed 'decode --batch 14' 'prefill --context 2048 --q-len 512'; do
    # shellcheck disable=SC2086 # words of a command
    run bench $step --seconds "$seconds" --json
  done | jq -s '.[0].seconds / (.[1].seconds + .[2].seconds)'
done | jq -s 'sort | .[1] * 1000 | round / 1000')

heading="## $(echo "$machine" | jq -r .cpu), \`$isa\`"
{
  cat <<TEXT
$heading

$(date -u +%F), $(echo "$machine" | jq -r .threads) threads, $seconds s a measurement.

| work | of | ratio | must | aim | ms | peak GB/s | peak GFLOP/s | \`pagemill bench\` |
|---|---|---|---|---|---|---|---|---|
TEXT
  cat "$work/rows"
  cat <<TEXT

The mixed step takes $parts of what its decodes (\`bench decode --batch 14\`) and its chunk
(\`bench prefill --context 2048 --q-len 512\`) take apart; it must be 1.05 at most, and 0.95 is aimed at.

| short work | us | at most | aim | \`pagemill bench\` |
|---|---|---|---|---|
TEXT
  cat "$work/times"
  echo
} >"$work/section"

# The new section takes the place of the old one, or comes last.
awk -v heading="$heading" -v section="$work/section" '
  function put() { while ((getline line < section) > 0) print line; done = 1 }
  /^## / { old = $0 == heading; if (old) put() }
  !old
  END { if (!done) { print ""; put() } }
' "$page" | cat -s | sed '${/^$/d}' >"$work/page"
cp "$work/page" "$page"
