#!/bin/sh
# Measures what README.md shows: writes docs/results.md, docs/results.svg and the README's table. Three minutes, on
# an otherwise idle machine, after ./run has built the command line.
set -eu
cd "$(dirname "$0")/.."
scripts/install_packages.sh jq gnuplot-nox
pagemill=build/tools/pagemill
lines=$(mktemp -d)
trap 'rm -r "$lines"' EXIT

# One row: label | the command behind it | the ratio's name.
measure() {
  ratio=$1 label=$2
  shift 2
  echo "$label" >&2
  "$pagemill" "$@" --json >"$lines/json"
  tail -n 1 "$lines/json" | jq -r --arg ratio "$ratio" --arg work "$label" --arg command "pagemill $*" \
    '[$work, $command, $ratio, .[$ratio], (.peak_read_gbps | round)] | @tsv' >>"$lines/rows"
}

for model in llama3-8b qwen3-8b gemma3-4b gpt-oss-20b; do
  measure mbu "decode 16 x 4096, $model" bench decode --model $model
  measure mfu "prefill 1 x 4096, $model" bench prefill --model $model
done
measure mbu 'decode 16 x 4096, llama3-8b, rows' bench decode --model llama3-8b --layout rows
measure mfu 'prefill 1 x 4096, llama3-8b, rows' bench prefill --model llama3-8b --layout rows
measure roofline 'decodes with a prefill chunk, llama3-8b' bench mixed --model llama3-8b
measure roofline 'replay of azure2023_conv, llama3-8b' replay traces/azure2023_conv.csv --seconds 60 --verify

{
  echo "Median of many repetitions on $("$pagemill" info --json | jq -r '"\(.cpu), \(.threads) threads, `\(.isas[] | select(.selected).name)`"'),"
  echo "bf16, pages of 16 tokens, layout \`tiles\` unless named:"
  echo
  echo '| work | of the peak | ratio | reading, GB/s |'
  echo '|---|---|--:|--:|'
  awk -F '\t' '{ print "| " $1 " | " ($3 == "roofline" ? $3 : toupper($3)) " | " sprintf("%.2f", $4) " | " $5 " |" }' "$lines/rows"
} >"$lines/table"
{
  printf '# Results\n\nMade by `scripts/make_results.sh` with the commands below.\n\n'
  cat "$lines/table"
  printf '\n![Ratios to the peaks](results.svg)\n\n'
  awk -F '\t' '{ print "    build/tools/" $2 }' "$lines/rows"
} >docs/results.md

gnuplot <<PLOT
set terminal svg size 860,420 font 'sans-serif,13' background 'white'
set output 'docs/results.svg'
set datafile separator '\t'
set style fill solid 0.85
set xrange [0:1]
set yrange [*:*] reverse
set offsets 0, 0, 0.6, 0.6
set xlabel 'ratio to the measured peak'
set ytics noenhanced
set grid x
unset key
plot '$lines/rows' using (0):0:(0):4:(\$0-0.3):(\$0+0.3):ytic(1) title 'ratio' with boxxyerror linecolor rgb '#4477aa'
PLOT

awk -v table="$lines/table" '
  /^<!-- results -->$/ { print; while ((getline line < table) > 0) print line
                         print "\n![Ratios to the peaks](docs/results.svg)"; skip = 1 }
  /^<!-- end of results -->$/ { skip = 0 }
  !skip { print }' README.md >"$lines/README.md"
cp "$lines/README.md" README.md
