"""The Pillow engine of the suite: one JSON request per line of stdin, one answer per line of stdout
(README.md)."""

import io
import json
import resource
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pillow_heif
from PIL import Image, ImageCms, ImageOps

from rendered import FASTEST_MS, SLOW_MS, sample_frames

# Without a limit, a header of 4 billion pixels takes all memory of the machine.
MEMORY_BYTES = 8 << 30
resource.setrlimit(resource.RLIMIT_AS, (MEMORY_BYTES, MEMORY_BYTES))
# Within it, a large picture is welcome.
Image.MAX_IMAGE_PIXELS = None
pillow_heif.register_heif_opener()

# Formats whose frames are an animation; in others (TIFF, MPO, APNG here) the first one counts.
ANIMATED = {"GIF", "WEBP"}

SRGB = ImageCms.createProfile("sRGB")


class Unsupported(Exception):
    """A picture of which Pillow makes no colors without being told how; the message says why."""


def answer(request: dict[str, Any]) -> dict[str, Any]:
    size, out = request["size"], Path(request["out"])
    with Image.open(request["file"]) as image:
        count = getattr(image, "n_frames", 1) if image.format in ANIMATED else 1
        first = upright_rgba(image)
        save(first, size, out / "pillow.png")
        reply: dict[str, Any] = {"size": first.size, "still": str(out / "pillow.png")}
        if count > 1:
            reply |= moving(image, count, size, out)
        return reply


def moving(image: Image.Image, count: int, size: int, out: Path) -> dict[str, Any]:
    """Two passes: the samples are chosen by the durations of all frames."""
    durations = []
    for number in range(count):
        image.seek(number)
        image.load()
        ms = int(image.info.get("duration", 0))
        durations.append(SLOW_MS if ms <= FASTEST_MS else ms)
    samples = []
    for number in sample_frames(durations):
        image.seek(number)
        samples.append(str(out / f"pillow-{number}.png"))
        save(upright_rgba(image), size, Path(samples[-1]))
    return {"durations": durations, "plays": plays(image), "samples": samples}


def plays(image: Image.Image) -> int:
    """How often an animation plays; 0 is forever. GIF counts repetitions, WebP counts plays."""
    loop = image.info.get("loop")
    if image.format == "WEBP":
        return int(loop or 0)
    return 1 if loop is None else int(loop) + 1 if loop else 0


def upright_rgba(image: Image.Image) -> Image.Image:
    turned = ImageOps.exif_transpose(image)
    return to_srgb(turned, image.info.get("icc_profile"))


def to_srgb(image: Image.Image, profile: bytes | None) -> Image.Image:
    image = eight_bits(image)
    alpha = None
    if image.has_transparency_data:
        image = image.convert("RGBA")
        alpha = image.getchannel("A")
        image = image.convert("RGB")
    elif image.mode in {"P", "1"}:
        image = image.convert("RGB")
    if image.mode == "LAB":
        image = transformed(image, ImageCms.createProfile("LAB"))
    elif profile:
        image = by_profile(image, profile)
    image = image.convert("RGBA")
    if alpha:
        image.putalpha(alpha)
    return image


def eight_bits(image: Image.Image) -> Image.Image:
    if image.mode.startswith("I;16"):  # Pillow would clip the values at 255
        return Image.fromarray((np.asarray(image) >> 8).astype(np.uint8))
    if image.mode in {"I", "F"}:
        raise Unsupported(f"Pillow leaves the range of mode {image.mode} to its user")
    return image


def by_profile(image: Image.Image, profile: bytes) -> Image.Image:
    """A damaged profile, or one of other channels, is ignored, as browsers do."""
    try:
        return transformed(image, ImageCms.ImageCmsProfile(io.BytesIO(profile)))
    except (ImageCms.PyCMSError, OSError):
        return image


def transformed(image: Image.Image, source: Any) -> Image.Image:
    converted = ImageCms.profileToProfile(image, source, SRGB, outputMode="RGB")
    assert converted
    return converted


def save(image: Image.Image, size: int, path: Path) -> None:
    scale = min(1.0, size / max(image.size))
    smaller = tuple(max(1, round(side * scale)) for side in image.size)
    if smaller != image.size:
        image = image.resize(smaller, Image.Resampling.LANCZOS)
    image.save(path, "png", compress_level=1)


def main() -> None:
    for line in sys.stdin:
        try:
            reply = answer(json.loads(line))
        # A decoder of Python code may raise anything; the picture counts as not rendered.
        except Exception as error:  # noqa: BLE001
            reply = {"error": f"{type(error).__name__}: {error}"}
        print(json.dumps(reply), flush=True)


if __name__ == "__main__":
    main()
