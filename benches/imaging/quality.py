"""Compares renditions with those of a careful, slow program.

The reference is made by Pillow: decoded in full, rotated upright, converted to sRGB by its profile,
resized by Lanczos. SSIM is of the luma, PSNR of the three colors. The reference encoded like the
engines encode (q80, 4:2:0) is listed too: it shows the cost of encoding alone.
"""

import io
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image, ImageCms, ImageOps
from skimage.metrics import peak_signal_noise_ratio, structural_similarity

SIZES = (1280, 640, 256)
ENCODED_REFERENCE = "reference q80"

# Engines may round a side differently; a larger difference means another image.
ROUNDING_PX = 1

# Side of the window for sigma 1.5.
SSIM_WINDOW_PX = 11

# For equal images, whose true value is infinite and would make every mean infinite.
HIGHEST_PSNR_DB = 99.0

Pixels = np.ndarray


@dataclass(frozen=True)
class Score:
    ssim: float
    psnr: float
    bytes: int


class NotScored(Exception):
    """A rendition that cannot be compared; the message says why."""


class Reference:
    """One image, decoded once, and its renditions."""

    def __init__(self, path: Path) -> None:
        with Image.open(path) as image:
            self.image = to_srgb(ImageOps.exif_transpose(image))
        self._resized: dict[tuple[int, int], Image.Image] = {}

    def dimensions(self, size: int) -> tuple[int, int]:
        """The size of the rendition that fits into a square of this side; never enlarged."""
        width, height = self.image.size
        scale = min(1.0, size / max(width, height))
        return max(1, round(width * scale)), max(1, round(height * scale))

    def resized(self, dimensions: tuple[int, int]) -> Image.Image:
        if dimensions not in self._resized:
            self._resized[dimensions] = self.image.resize(dimensions, Image.Resampling.LANCZOS)
        return self._resized[dimensions]

    def score(self, encoded: bytes, size: int) -> Score:
        """Raises NotScored."""
        with Image.open(io.BytesIO(encoded)) as image:
            rendition = image.convert("RGB")
        expected = self.dimensions(size)
        if any(abs(a - b) > ROUNDING_PX for a, b in zip(rendition.size, expected, strict=True)):
            raise NotScored(f"{rendition.size} instead of {expected} for {size}")
        if min(rendition.size) < SSIM_WINDOW_PX:
            raise NotScored(f"{rendition.size} is too small for SSIM")
        wanted, found = np.asarray(self.resized(rendition.size)), np.asarray(rendition)
        return Score(ssim(wanted, found), psnr(wanted, found), len(encoded))

    def encoded(self, size: int) -> bytes:
        buffer = io.BytesIO()
        self.resized(self.dimensions(size)).save(buffer, "jpeg", quality=80, subsampling="4:2:0")
        return buffer.getvalue()


def to_srgb(image: Image.Image) -> Image.Image:
    """RGB by the image's own profile; an image without one counts as sRGB."""
    if profile := image.info.get("icc_profile"):
        if image.mode not in {"RGB", "CMYK", "L"}:
            image = image.convert("RGB")
        source = ImageCms.ImageCmsProfile(io.BytesIO(profile))
        converted = ImageCms.profileToProfile(
            image, source, ImageCms.createProfile("sRGB"), outputMode="RGB"
        )
        assert converted
        return converted
    if image.mode.startswith("I;16"):  # Pillow would clip the values at 255
        image = Image.fromarray((np.asarray(image) >> 8).astype(np.uint8))
    return image.convert("RGB")


def luma(pixels: Pixels) -> Pixels:
    return pixels.astype(np.float64) @ np.array([0.299, 0.587, 0.114])


def ssim(wanted: Pixels, found: Pixels) -> float:
    """With the constants of the paper that defined it (Wang et al., 2004)."""
    return float(
        structural_similarity(
            luma(wanted),
            luma(found),
            gaussian_weights=True,
            sigma=1.5,
            use_sample_covariance=False,
            data_range=255,
        )
    )


def psnr(wanted: Pixels, found: Pixels) -> float:
    if np.array_equal(wanted, found):
        return HIGHEST_PSNR_DB
    return float(peak_signal_noise_ratio(wanted, found, data_range=255))
