"""The images to render, and a generated large one."""

from dataclasses import dataclass
from pathlib import Path

from PIL import Image

# The user supplies the images, so a large one is no attack.
Image.MAX_IMAGE_PIXELS = None

FORMATS = {
    ".jpg": "jpeg", ".jpeg": "jpeg", ".png": "png", ".gif": "gif", ".webp": "webp",
    ".avif": "avif", ".tif": "tiff", ".tiff": "tiff", ".bmp": "bmp",
}  # fmt: skip

# Formats whose frames are an animation; in others (TIFF, MPO in JPEG) frames are pages.
ANIMATED = {"gif", "webp"}

# Exactly 100 megapixels, a common limit of services.
HUGE = (12_500, 8_000)


class CorpusError(Exception):
    """A directory that cannot be measured; the second argument is a hint."""


@dataclass(frozen=True)
class Picture:
    path: Path
    format: str
    width: int
    height: int
    # "webp" for transparency or animation, otherwise "jpeg".
    rendition_format: str

    @property
    def name(self) -> str:
        return self.path.name

    @property
    def megapixels(self) -> float:
        return self.width * self.height / 1e6

    @property
    def is_opaque_photo(self) -> bool:
        """Whether to measure quality: no animation, no transparency, not lossy twice."""
        return self.format in {"jpeg", "png"} and self.rendition_format == "jpeg"


def read_corpus(folder: Path) -> list[Picture]:
    """All images of a directory, found by file extension and sorted by name."""
    if not folder.is_dir():
        raise CorpusError(
            f"no directory {folder}", "name a directory of images: make bench-imaging CORPUS=dir"
        )
    paths = sorted(p for p in folder.iterdir() if p.suffix.lower() in FORMATS and p.is_file())
    if not paths:
        endings = " ".join(sorted(ending[1:] for ending in FORMATS))
        raise CorpusError(f"no images in {folder}", f"supported file extensions: {endings}")
    return [read_picture(path) for path in paths]


def read_picture(path: Path) -> Picture:
    """Reads the header, and checks whether any pixel is transparent."""
    format_ = FORMATS[path.suffix.lower()]
    try:
        with Image.open(path) as image:
            width, height = image.size
            animated = format_ in ANIMATED and getattr(image, "n_frames", 1) > 1
            webp = animated or is_transparent(image)
    except (OSError, SyntaxError):  # Pillow raises either for what it cannot read
        # Pillow cannot read it, but the engines may: let them report their own result.
        return Picture(path, format_, 0, 0, "jpeg")
    return Picture(path, format_, width, height, "webp" if webp else "jpeg")


def is_transparent(image: Image.Image) -> bool:
    """Whether any pixel is transparent; an opaque alpha channel does not count."""
    if not image.has_transparency_data:
        return False
    # The histogram counts the pixels for each value of alpha.
    return any(image.convert("RGBA").getchannel("A").histogram()[:255])


def largest_jpeg(pictures: list[Picture]) -> Picture | None:
    jpegs = [p for p in pictures if p.format == "jpeg"]
    return max(jpegs, key=lambda p: p.megapixels, default=None)


def make_huge(tile: Picture, folder: Path) -> Picture:
    """A baseline JPEG of 100 megapixels, tiled from an image; made once."""
    path = folder / f"100mp-of-{tile.path.stem}.jpg"
    if not path.exists():
        huge = Image.new("RGB", HUGE)
        with Image.open(tile.path) as image:
            pixels = image.convert("RGB")
        for top in range(0, huge.height, pixels.height):
            for left in range(0, huge.width, pixels.width):
                huge.paste(pixels, (left, top))
        # Never leave half a file under the final name.
        partial = path.with_suffix(".partial")
        huge.save(partial, "jpeg", quality=90, subsampling="4:2:0")
        partial.rename(path)
    return read_picture(path)
