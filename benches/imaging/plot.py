"""Draws the measurements: CPU time, memory and quality side by side."""

from pathlib import Path
from statistics import mean
from typing import Any

import matplotlib

matplotlib.use("Agg")  # files only, no display

import matplotlib.pyplot as plt
from matplotlib.axes import Axes
from matplotlib.ticker import MaxNLocator, ScalarFormatter

from engines import Variant
from quality import ENCODED_REFERENCE
from report import FLOOR
from results import Results

# Okabe and Ito's palette, which color-blind people can distinguish.
COLORS = {
    "ours": "#D55E00",
    "sharp usual": "#56B4E9",
    "sharp best": "#0072B2",
    "vips usual": "#B2DFCF",
    "vips best": "#009E73",
    ENCODED_REFERENCE: "#999999",
}


def draw(results: Results, folder: Path) -> list[Path]:
    """Writes imaging.svg and imaging.png."""
    variants = [v for v in results.variants if v != FLOOR]
    height = max(6.0, 0.14 * len(results.pictures) * len(variants) + 2)
    panels = ["memory"] * bool(results.memory) + ["quality"] * bool(results.quality)
    # The right column is as high as its few bars need, independent of the left one.
    mosaic: list[Any] = [["cpu", panel] for panel in [*panels, "."]] if panels else [["cpu"]]
    figure, axes = plt.subplot_mosaic(
        mosaic,
        layout="constrained",
        figsize=(12 if panels else 8, height),
        width_ratios=[1.5, 1] if panels else None,
        height_ratios=[*[2.6] * len(panels), max(0.1, height - 2.6 * len(panels))]
        if panels
        else None,
    )
    draw_cpu(axes["cpu"], results, variants)
    if results.memory:
        draw_memory(axes["memory"], results)
    if results.quality:
        draw_quality(axes["quality"], results)
    handles = {
        label: handle
        for panel in axes.values()
        for handle, label in zip(*panel.get_legend_handles_labels(), strict=True)
    }
    names = [name for name in COLORS if name in handles]
    figure.legend(
        [handles[n] for n in names],
        names,
        loc="outside lower center",
        ncols=len(names),
        frameon=False,
    )
    paths = [folder / "imaging.svg", folder / "imaging.png"]
    for path in paths:
        figure.savefig(path, dpi=110)
    plt.close(figure)
    return paths


def grouped_bars(
    axes: Axes, groups: list[str], bars: dict[str, list[float | None]], *, missing: str = ""
) -> None:
    """Horizontal bars from top to bottom; `missing` replaces a bar that is None."""
    height = 0.8 / len(bars)
    for i, (name, values) in enumerate(bars.items()):
        places = [group - 0.4 + height * (i + 0.5) for group in range(len(groups))]
        color = COLORS[name]
        axes.barh(places, [v or 0 for v in values], height, label=name, color=color)
        for place, value in zip(places, values, strict=True):
            if value is None:
                axes.annotate(
                    missing, (0, place), (2, 0), xycoords=("axes fraction", "data"),
                    textcoords="offset points", va="center", fontsize=6, color=color,
                )  # fmt: skip
    finish(axes, groups)


def finish(axes: Axes, groups: list[str]) -> None:
    """The style that all panels share."""
    axes.set_yticks(range(len(groups)), groups, fontsize=8)
    axes.set_ylim(len(groups) - 0.4, -0.6)
    axes.tick_params(axis="x", labelsize=8)
    axes.grid(axis="x", alpha=0.3)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)


def draw_cpu(axes: Axes, results: Results, variants: list[Variant]) -> None:
    bars = {str(v): [results.cpu_ms(p.name, v) for p in results.pictures] for v in variants}
    grouped_bars(axes, [p.name for p in results.pictures], bars, missing="failed")
    axes.set_xscale("log")
    axes.xaxis.set_major_formatter(ScalarFormatter())
    axes.set_title("CPU time for 1280, 640 and 256 px", fontsize=10)
    axes.set_xlabel("ms on one core, median (logarithmic)", fontsize=9)


def draw_memory(axes: Axes, results: Results) -> None:
    files = list(dict.fromkeys(file for file, _ in results.memory))
    variants = list(dict.fromkeys(variant for _, variant in results.memory))
    bars = {
        str(v): [use.above_idle_mib if (use := results.memory[f, v]) else None for f in files]
        for v in variants
    }
    grouped_bars(axes, [file.replace("-of-", "\nof ") for file in files], bars, missing="failed")
    axes.set_title("Peak memory above idle", fontsize=10)
    axes.set_xlabel("MiB", fontsize=9)


def draw_quality(axes: Axes, results: Results) -> None:
    """Points, not bars: the interesting range is 0.9 to 1, and a bar must start at 0."""
    names = list(dict.fromkeys(name for _, name, _ in results.quality))
    sizes = list(dict.fromkeys(size for _, _, size in results.quality))
    files = {file for file, _, _ in results.quality}
    common = [f for f in files if all((f, n, s) in results.quality for n in names for s in sizes)]
    if not common:
        axes.set_axis_off()
        return
    for i, name in enumerate(names):
        means = [mean(results.quality[f, name, s].ssim for f in common) for s in sizes]
        # Side by side, so that equal values do not hide each other.
        places = [place + 0.12 * (i - (len(names) - 1) / 2) for place in range(len(sizes))]
        axes.plot(means, places, "o", markersize=5, label=name, color=COLORS[name])
    axes.set_title(f"Quality: mean SSIM over {len(common)} pictures", fontsize=10)
    axes.set_xlabel("SSIM against the lossless reference", fontsize=9)
    axes.xaxis.set_major_locator(MaxNLocator(6))
    finish(axes, [f"{size} px" for size in sizes])
