"""Prints the measurements as text tables."""

from collections.abc import Iterable, Sequence
from statistics import mean

from engines import Variant
from results import Results

OURS = Variant("ours", "full")
FLOOR = Variant("ours", "floor")
Row = Sequence[str]

NOTHING = "–"
FAILED = "failed"


def table(head: Row, rows: Iterable[Row], names: int = 1) -> str:
    """Aligned columns: the first `names` columns to the left, numbers to the right."""
    lines = [head, *rows]
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    return "\n".join(
        "  "
        + "  ".join(
            cell.ljust(width) if i < names else cell.rjust(width)
            for i, (cell, width) in enumerate(zip(line, widths, strict=True))
        ).rstrip()
        for line in lines
    )


def number(value: float | None, digits: int = 1) -> str:
    return NOTHING if value is None else f"{value:.{digits}f}"


class Report:
    """Formats the results of a run; every part is a heading and a table."""

    def __init__(self, results: Results) -> None:
        self.results = results
        # The floor is no competitor: it only shows the work that cannot be saved.
        self.shown = [v for v in results.variants if v != FLOOR]
        self.peers = [v for v in self.shown if v != OURS] if OURS in results.variants else []
        self.floor = FLOOR in results.variants and OURS in results.variants

    def text(self) -> str:
        parts = [
            self.per_file(), self.totals(), self.failures(), self.differences(),
            self.quality(), self.memory(), self.served(),
        ]  # fmt: skip
        return "\n\n".join(part for part in parts if part)

    def per_file(self) -> str:
        head = ["file", "MP", *(f"{v} ms" for v in self.shown)]
        head += [f"{peer} / ours" for peer in self.peers] + ["ours / floor"] * self.floor
        rows = []
        for picture in self.results.pictures:
            row = [picture.name, number(picture.megapixels)]
            row += [self._cpu_cell(picture.name, v) for v in self.shown]
            row += [number(self._ratio(picture.name, peer, OURS), 2) for peer in self.peers]
            if self.floor:
                row.append(number(self._ratio(picture.name, OURS, FLOOR), 2))
            rows.append(row)
        title = (
            f"CPU time for the three renditions of a picture, median of {self.results.rounds} "
            f"rounds, one core; {'optimized' if self.results.optimize else 'standard'} Huffman tables"
        )
        return f"{title}\n{table(head, rows)}"

    def totals(self) -> str:
        """Sums over the files that every engine could render, by format and in total."""
        common = [
            p for p in self.results.pictures
            if all(self.results.cpu_ms(p.name, v) is not None for v in self.shown)
        ]  # fmt: skip
        formats = sorted({p.format for p in common})
        head = ["format", "files", *(f"{v} ms" for v in self.shown)]
        for peer in self.peers:
            head += [f"{peer} / ours", "worst"]
        rows = []
        for name in [*formats, "all"]:
            files = [p.name for p in common if name in {p.format, "all"}]
            rows.append([name, str(len(files)), *self._sums(files)])
        left_out = len(self.results.pictures) - len(common)
        note = f" ({left_out} left out)" if left_out else ""
        worst = "; worst is the file with the lowest ratio" if self.peers else ""
        return f"Sums over the files that all of them rendered{note}{worst}\n{table(head, rows)}"

    def _sums(self, files: list[str]) -> list[str]:
        sums = {v: sum(self.results.cpu_ms(f, v) or 0 for f in files) for v in self.shown}
        cells = [number(sums[v]) for v in self.shown]
        for peer in self.peers:
            ratios = [self._ratio(f, peer, OURS) for f in files]
            total = sums[peer] / sums[OURS] if sums[OURS] else None
            cells += [number(total, 2), number(min((r for r in ratios if r), default=None), 2)]
        return cells

    def failures(self) -> str:
        lines = [
            f"  {file}: {variant}: {error}"
            for (file, variant), error in self.results.errors.items()
        ]
        return "Refused or failed\n" + "\n".join(lines) if lines else ""

    def differences(self) -> str:
        """Files whose renditions differ between engines, so that the times are not comparable."""
        lines = []
        for picture in self.results.pictures:
            made = {
                str(v): self.results.shapes(picture.name, v)
                for v in self.shown
                if (picture.name, v) in self.results.outputs
            }
            if len(set(made.values())) > 1:
                lines.append(f"  {picture.name}: " + "; ".join(f"{v} {s}" for v, s in made.items()))
        return (
            "Renditions that differ in format or dimensions\n" + "\n".join(lines) if lines else ""
        )

    def quality(self) -> str:
        scores = self.results.quality
        if not scores:
            return ""
        columns = list(dict.fromkeys(name for (_, name, _) in scores))
        files = list(dict.fromkeys(file for (file, _, _) in scores))
        sizes = list(dict.fromkeys(size for (_, _, size) in scores))
        # Means are comparable only over the same files.
        common = [f for f in files if all((f, c, s) in scores for c in columns for s in sizes)]
        if not common:
            return "Quality: no file that all of them rendered"
        head = ["against the lossless reference"]
        for size in sizes:
            head += [f"{size}: SSIM", "lowest", "PSNR", "lowest", "KiB"]
        rows = []
        for column in columns:
            row = [column]
            for size in sizes:
                found = [scores[f, column, size] for f in common]
                row += [
                    number(mean(s.ssim for s in found), 4), number(min(s.ssim for s in found), 4),
                    number(mean(s.psnr for s in found), 2), number(min(s.psnr for s in found), 2),
                    number(mean(s.bytes for s in found) / 1024),
                ]  # fmt: skip
            rows.append(row)
        return f"Quality over {len(common)} opaque pictures: mean and lowest\n{table(head, rows)}"

    def memory(self) -> str:
        found = self.results.memory
        if not found:
            return ""
        variants = list(dict.fromkeys(v for _, v in found))
        files = list(dict.fromkeys(f for f, _ in found))
        head = ["file"]
        for variant in variants:
            head += [f"{variant} MiB", "whole process"]
        rows = []
        for file in files:
            row = [file]
            for variant in variants:
                use = found[file, variant]
                row += [number(use.above_idle_mib), number(use.peak_mib)] if use else [FAILED] * 2
            rows.append(row)
        title = "Peak memory above idle of a fresh process, and of the whole process"
        return f"{title}\n{table(head, rows)}"

    def served(self) -> str:
        served = self.results.served
        if not served:
            return ""
        rows = [[name, number(cpu_ms)] for name, cpu_ms in served.cpu_ms.items()]
        rows += [[f"{peer} / served", number(ratio, 2)] for peer, ratio in served.ratios.items()]
        title = (
            f"The whole server: {served.count} uploads of {served.photo} one after the other, "
            f"CPU ms for each (idle drift of {served.idle_ms_per_s:.1f} ms/s subtracted)"
        )
        return f"{title}\n{table(['', 'ms'], rows)}"

    def _cpu_cell(self, file: str, variant: Variant) -> str:
        if (file, variant) in self.results.errors:
            return FAILED
        return number(self.results.cpu_ms(file, variant))

    def _ratio(self, file: str, above: Variant, below: Variant) -> float | None:
        a, b = self.results.cpu_ms(file, above), self.results.cpu_ms(file, below)
        return a / b if a is not None and b else None
