"""The results of a run, and their JSON form."""

import json
import platform
from dataclasses import asdict, dataclass, field
from pathlib import Path
from statistics import median
from typing import Any

from corpus import Picture
from engines import HERE, Answer, Variant
from quality import Score


@dataclass(frozen=True)
class Memory:
    idle_kib: int
    peak_kib: int

    @property
    def above_idle_mib(self) -> float:
        return (self.peak_kib - self.idle_kib) / 1024

    @property
    def peak_mib(self) -> float:
        return self.peak_kib / 1024


@dataclass(frozen=True)
class Served:
    """The whole server, compared with a bare loop over the same photograph."""

    photo: str
    count: int
    idle_ms_per_s: float
    cpu_ms: dict[str, float]  # mean per image; "served" is the server
    ratios: dict[str, float]  # a peer's time divided by the server's


@dataclass
class Results:
    pictures: list[Picture]
    variants: list[Variant]
    rounds: int
    optimize: bool
    # One answer per measured round.
    answers: dict[tuple[str, Variant], list[Answer]] = field(default_factory=dict)
    # The renditions that the warm-up round wrote.
    outputs: dict[tuple[str, Variant], list[dict[str, Any]]] = field(default_factory=dict)
    errors: dict[tuple[str, Variant], str] = field(default_factory=dict)
    quality: dict[tuple[str, str, int], Score] = field(default_factory=dict)
    # None where the engine failed on the picture.
    memory: dict[tuple[str, Variant], Memory | None] = field(default_factory=dict)
    served: Served | None = None

    def cpu_ms(self, file: str, variant: Variant) -> float | None:
        """The median over the rounds."""
        times = [t for a in self.answers.get((file, variant), []) for t in a["cpu_ms"]]
        return median(times) if times else None

    def shapes(self, file: str, variant: Variant) -> str:
        """Formats and dimensions as text."""
        return ", ".join(
            f"{o.get('width')}×{o.get('height')}{format_of(o)}" for o in self.outputs[file, variant]
        )

    def as_json(self) -> dict[str, Any]:
        return {
            "machine": machine(),
            "versions": versions(),
            "rounds": self.rounds,
            "optimize": self.optimize,
            "files": [self._file_as_json(p) for p in self.pictures],
            "quality": [
                {"file": file, "of": of, "size": size, **asdict(score)}
                for (file, of, size), score in self.quality.items()
            ],
            "memory": [
                {
                    "file": file,
                    "variant": str(variant),
                    **(asdict(use) if use else {"error": "failed"}),
                }
                for (file, variant), use in self.memory.items()
            ],
            "served": asdict(self.served) if self.served else None,
        }

    def _file_as_json(self, picture: Picture) -> dict[str, Any]:
        return {
            "file": picture.name,
            "format": picture.format,
            "width": picture.width,
            "height": picture.height,
            "rendition_format": picture.rendition_format,
            "variants": {str(v): self._variant_as_json(picture.name, v) for v in self.variants},
        }

    def _variant_as_json(self, file: str, variant: Variant) -> dict[str, Any] | None:
        if error := self.errors.get((file, variant)):
            return {"error": error}
        answers = self.answers.get((file, variant))
        if not answers:
            return None
        # Paths are specific to this machine.
        outputs = [{k: v for k, v in o.items() if k != "path"} for o in self.outputs[file, variant]]
        return {
            "cpu_ms_median": self.cpu_ms(file, variant),
            "cpu_ms": [t for a in answers for t in a["cpu_ms"]],
            "wall_ms": [t for a in answers for t in a["wall_ms"]],
            "outputs": outputs,
        }


def format_of(output: dict[str, Any]) -> str:
    return Path(output["path"]).suffix if output.get("path") else ""


def machine() -> dict[str, Any]:
    cpu = [
        line.partition(":")[2].strip()
        for line in Path("/proc/cpuinfo").read_text().splitlines()
        if line.startswith("model name")
    ]
    return {
        "cpu": cpu[0] if cpu else platform.machine(),
        "cores": len(cpu),
        "kernel": platform.release(),
    }


def versions() -> dict[str, str]:
    """The pinned versions of the peers."""
    pinned = [
        line.split("==") for line in (HERE / "requirements.txt").read_text().split() if "==" in line
    ]
    node = json.loads((HERE / "package.json").read_text())["dependencies"]
    return dict(pinned) | node
