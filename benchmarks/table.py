"""What was measured, as a table and as a picture."""

from pathlib import Path
from typing import Any

import numpy as np

from minilm.errors import library


def told(rows: list[dict[str, Any]]) -> list[str]:
    """Where and of what, and Markdown: a line a side."""
    first = rows[0]
    versions = ", ".join(f"{name} {version}" for name, version in first["versions"].items() if version)
    where = f"{first['machine']}, {first['threads']} threads, {versions}; {first['date']}, commit {first['commit']}"
    heads = ("row", "precision", "side", "a second", "minilm by it", "10 to 90 % of turns", "of the limit")
    lines = [where, "", f"| {' | '.join((*heads, 'peak MB', 'first s'))} |", "|---" * 9 + "|"]
    for row in rows:
        cells = [row["row"], row["precision"], row["side"]]
        if "failed" in row:
            cells += [f"failed: {row['failed'].replace('|', '/')}", *[""] * 5]
        else:
            ratio, ends = "", f"{row['turns']} turns"
            if "ratio" in row:
                ratio, ends = f"{row['ratio']:.2f}", f"{row['ratio_low']:.2f} to {row['ratio_high']:.2f}"
            share = f"{row['of_limit']:.0%}" if "of_limit" in row else ""
            speed = f"{row[row['unit'] + '_per_s']:,.0f} {row['unit']}"
            cells += [speed, ratio, ends, share, f"{row['peak_mb']:,.0f}", f"{row['first_s']:.1f}"]
        lines.append(f"| {' | '.join(cells)} |")
    return lines


def picture(rows: list[dict[str, Any]], file: Path) -> None:
    """How many times as fast as each other side, with 10 to 90 % of the turns."""
    figure = library("matplotlib.figure").Figure(dpi=120, layout="constrained")
    shown = [row for row in rows if "ratio" in row]
    figure.set_size_inches(8, 1 + 0.35 * len(shown))
    axes, place = figure.subplots(), range(len(shown))
    ratios = np.array([row["ratio"] for row in shown])
    ends = np.array([(row["ratio"] - row["ratio_low"], row["ratio_high"] - row["ratio"]) for row in shown]).T
    axes.barh(place, ratios, xerr=ends, color="#4477cc", ecolor="#222222", capsize=2)
    axes.set_yticks(place, [f"{row['row']}, {row['precision']}: {row['side']}" for row in shown])
    axes.axvline(1, color="#555555", linewidth=1)
    axes.invert_yaxis()
    axes.set_xlabel("times as fast")
    figure.savefig(file)
