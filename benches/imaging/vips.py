"""The libvips engine: renders images with pyvips for run.py.

Reads one JSON request per line of stdin, writes one answer per line of stdout (README.md).
"""

import json
import os
import re
import resource
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

os.environ["VIPS_CONCURRENCY"] = "1"  # read when the library is loaded

import pyvips

SIZES = (1280, 640, 256)
QUALITY = 80
WEBP_EFFORT = 4

Request = dict[str, Any]
Rendition = tuple[pyvips.Image, bytes]

# No cache between repetitions: each must do the whole work.
pyvips.cache_set_max(0)


class Source:
    """An image's bytes, and the decoder options that follow from its header."""

    def __init__(self, data: bytes, request: Request) -> None:
        self.data = data
        header = pyvips.Image.new_from_buffer(data, "")
        has_profile = header.get_typeof("icc-profile-data") != 0
        # Without a profile, libvips would still convert through Lab and back: half its time on a
        # plain photograph.
        converts = has_profile or header.interpretation == "cmyk"
        # The same intent as sharp and the reference.
        self.options = {"export_profile": "srgb", "intent": "perceptual"} if converts else {}
        # Only these loaders have the option for all pages.
        pages = data[:4] == b"GIF8" or data[8:12] == b"WEBP"
        if pages and request["format"] == "webp":
            self.options["option_string"] = "n=-1"

    def thumbnail(self, size: int, **more: Any) -> pyvips.Image:
        """Decodes as small as the format allows, and resizes to fit `size`."""
        return pyvips.Image.thumbnail_buffer(
            self.data, size, height=size, size="down", **self.options, **more
        )


def encode(image: pyvips.Image, request: Request) -> bytes:
    if request["format"] == "webp":
        return image.webpsave_buffer(Q=QUALITY, effort=WEBP_EFFORT, keep="none")
    return image.jpegsave_buffer(
        Q=QUALITY, subsample_mode="on", optimize_coding=request["optimize"], keep="none"
    )


def usual(source: Source, request: Request) -> list[Rendition]:
    """What people usually write: the whole pipeline again for each size."""
    images = [source.thumbnail(size) for size in SIZES]
    return [(image, encode(image, request)) for image in images]


def best(source: Source, request: Request) -> list[Rendition]:
    """One decode, and each size made from the pixels of the one above it."""
    # Rotate after shrinking: an image that is rotated first is held in memory as a whole.
    image = eight_bit(source.thumbnail(SIZES[0], no_rotate=True), request).copy_memory().autorot()
    image = image.copy_memory()
    renditions = [(image, encode(image, request))]
    for size in SIZES[1:]:
        image = smaller(image, size).copy_memory()
        renditions.append((image, encode(image, request)))
    return renditions


def eight_bit(image: pyvips.Image, request: Request) -> pyvips.Image:
    """The encoder's input format, converted once and not for each size."""
    if image.hasalpha() and request["format"] == "jpeg":
        image = image.flatten()
    if image.format != "uchar":
        image = image.colourspace("b-w" if image.bands == 1 else "srgb")
    return image


def smaller(image: pyvips.Image, size: int) -> pyvips.Image:
    if image.hasalpha() or image.get_n_pages() > 1:
        # Slower than resize, but premultiplies alpha and keeps frames separate.
        return image.thumbnail_image(size, height=size, size="down", no_rotate=True)
    scale = size / max(image.width, image.height)
    return image.resize(scale) if scale < 1 else image


MODES: dict[str, Callable[[Source, Request], list[Rendition]]] = {"usual": usual, "best": best}


def memory_kib(name: str) -> int:
    status = Path("/proc/self/status").read_text()
    found = re.search(rf"^{name}:\s+(\d+)", status, re.MULTILINE)
    assert found
    return int(found[1])


def cpu_ms() -> float:
    usage = resource.getrusage(resource.RUSAGE_SELF)
    return (usage.ru_utime + usage.ru_stime) * 1e3


def described(rendition: Rendition, size: int, request: Request) -> dict[str, Any]:
    image, encoded = rendition
    path = None
    if request["out"]:
        suffix = "webp" if request["format"] == "webp" else "jpg"
        path = Path(request["out"]) / f"{Path(request['file']).name}-{size}.{suffix}"
        path.write_bytes(encoded)
    return {
        "size": size,
        "path": str(path) if path else None,
        "bytes": len(encoded),
        "width": image.width,
        "height": image.get_page_height(),
    }


class Engine:
    """Answers requests one after the other."""

    def __init__(self) -> None:
        # Measured at the first request: later requests see what earlier ones left behind.
        self.idle_kib: int | None = None

    def answer(self, request: Request) -> dict[str, Any]:
        if request["mode"] not in MODES:
            return {"error": f"vips has no mode {request['mode']}"}
        render = MODES[request["mode"]]
        data = Path(request["file"]).read_bytes()
        if self.idle_kib is None:
            self.idle_kib = memory_kib("VmRSS")
        # Before the clock starts, in favor of libvips: the kind of image counts as known.
        source = Source(data, request)
        cpu, wall = [], []
        renditions: list[Rendition] = []
        for _ in range(request["repeat"]):
            renditions = []  # freed before the clock starts
            cpu_before, wall_before = cpu_ms(), time.perf_counter()
            renditions = render(source, request)
            wall.append((time.perf_counter() - wall_before) * 1e3)
            cpu.append(cpu_ms() - cpu_before)
        peak_kib = memory_kib("VmHWM")
        outputs = [described(r, size, request) for r, size in zip(renditions, SIZES, strict=True)]
        return {
            "cpu_ms": cpu,
            "wall_ms": wall,
            "outputs": outputs,
            "peak_kib": peak_kib,
            "idle_kib": self.idle_kib,
        }


def main() -> None:
    engine = Engine()
    for line in sys.stdin:
        try:
            reply = engine.answer(json.loads(line))
        except (pyvips.Error, OSError) as error:
            reply = {"error": " ".join(str(error).split())}
        print(json.dumps(reply), flush=True)


if __name__ == "__main__":
    main()
