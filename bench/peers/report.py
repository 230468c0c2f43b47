#!/usr/bin/env python3
"""Writes results of compare.py, one file a peer and all of one machine, into that machine's section of
docs/benchmarks.md, and draws its picture. Sections of other machines stay."""

import argparse
import json
import re
import subprocess
from pathlib import Path
from typing import Any

DOCS = Path(__file__).resolve().parents[2] / "docs"
BEGIN, END = "<!-- results -->\n", "<!-- end of results -->"

Report = dict[str, Any]


def heading(report: Report) -> str:
    """Of the section of its machine: the same whenever that is measured again."""
    return f"## {report['cpu']}, `{report['isa']}`"


def what_ran(reports: list[Report]) -> list[str]:
    first = reports[0]
    kernels = sorted({f"`{case['kernel']}`" for report in reports for case in report["cases"]})
    return [f"{first['date']}, {first['threads']} threads. Pagemill {first['pagemill']}: {', '.join(kernels)}.", ""]


def versions(reports: list[Report]) -> list[str]:
    rows = [f"| {r['peer']} | {r['version']} | {r['dtype']} | {r['ran']} | {r['settings']} |" for r in reports]
    return ["| peer | version | dtype | ran | settings |", "|---|---|---|---|---|", *rows]


def table(case: str, results: list[tuple[Report, Report]]) -> list[str]:
    """results: of one case, each with its report."""
    ratio_name, rate, peak, unit, digits = (
        ("mbu", "kv_gbps", "peak_read_gbps", "GB/s", 1)
        if case.startswith("decode")
        else ("mfu", "tflops", "peak_tflops", "TFLOP/s", 3)
    )
    columns = f"ms | {unit} | {ratio_name.upper()}"
    lines = [
        f"### {case[0].upper()}{case[1:]}",
        "",
        f"| peer | dtype | {columns} | Pagemill: {columns} | peak | times as fast | at the peak |",
        "|---|---|--:|--:|--:|--:|--:|--:|--:|--:|--:|",
    ]
    for report, result in results:
        sides = [
            f"{side['seconds'] * 1e3:.1f} | {side[rate]:.{digits}f} | {side[ratio_name]:.2f}"
            for side in (result["peer"], result["pagemill"])
        ]
        ratio, limit = result["ratio"], 1 / result["peer"][ratio_name]
        lines.append(
            f"| {report['peer']} | {result['dtype']} | {' | '.join(sides)} | {result[peak]:.{digits}f} | "
            f"**{ratio['median']:.2f}** ({ratio['low']:.2f} to {ratio['high']:.2f}) | {limit:.2f} |"
        )
    return [*lines, ""]


def draw(cases: dict[str, list[tuple[Report, Report]]], file: Path) -> None:
    """Clusters of bars, a cluster for each case."""
    peers = [report["peer"] for report, _ in next(iter(cases.values()))]
    data = ""
    for case, results in cases.items():
        cells = (result["ratio"][key] for _, result in results for key in ("median", "low", "high"))
        data += f'"{case}" {" ".join(map(str, cells))}\n'
    colors = ("#4477aa", "#66ccee", "#228833", "#ccbb44", "#ee6677")
    bars = ", ".join(
        f"$data using {3 * i + 2}:{3 * i + 3}:{3 * i + 4}{':xtic(1)' if i == 0 else ''} "
        f"title '{peer}' linecolor rgb '{color}'"
        for i, (peer, color) in enumerate(zip(peers, colors, strict=False))
    )
    script = f"""$data << END
{data}END
set terminal svg size 860,440 font 'sans-serif,13' background 'white'
set output '{file}'
set style data histogram
set style histogram errorbars gap 1 linewidth 1
set style fill solid 0.85
set yrange [0:*]
set ylabel 'time of the peer / time of Pagemill'
set grid y
set key outside below noenhanced
plot {bars}, 1 with lines linecolor rgb '#888888' notitle
"""
    subprocess.run(["gnuplot"], input=script, text=True, check=True)


def sections_of(text: str) -> dict[str, str]:
    """Heading -> the rest of its section, in the order of the text."""
    _, *parts = re.split(r"^(## .*)\n", text, flags=re.MULTILINE)
    return dict(zip(parts[::2], parts[1::2], strict=True))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("results", type=Path, nargs="+")
    reports = [json.loads(file.read_text()) for file in parser.parse_args().results]
    machines = {heading(report) for report in reports}
    if len(machines) > 1:
        parser.error(f"results of {len(machines)} machines: expected one")

    cases: dict[str, list[tuple[Report, Report]]] = {}
    for report in reports:
        for result in report["cases"]:
            cases.setdefault(result["case"], []).append((report, result))
    picture = DOCS / f"benchmarks-{reports[0]['isa']}.svg"
    lines = ["", *what_ran(reports)]
    for case, results in cases.items():
        lines += table(case, results)
    lines += [f"![Time of each peer over Pagemill's]({picture.name})", "", "What ran:", "", *versions(reports), "", ""]

    page = DOCS / "benchmarks.md"
    before, rest = page.read_text().split(BEGIN)
    old, after = rest.split(END)
    sections = sections_of(old) | {machines.pop(): "\n".join(lines)}
    body = "".join(f"{title}\n{text}" for title, text in sections.items())
    page.write_text(before + BEGIN + body + END + after)
    draw(cases, picture)


if __name__ == "__main__":
    main()
