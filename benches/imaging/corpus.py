"""The pictures to render, and the big one that no corpus needs to carry."""

from dataclasses import dataclass
from pathlib import Path

from PIL import Image

# The pictures are the user's own: a big one is no attack.
Image.MAX_IMAGE_PIXELS = None

FORMATS = {
    ".jpg": "jpeg", ".jpeg": "jpeg", ".png": "png", ".gif": "gif", ".webp": "webp",
    ".avif": "avif", ".tif": "tiff", ".tiff": "tiff", ".bmp": "bmp",
}  # fmt: skip

# The formats whose frames are an animation; in others (TIFF, MPO in JPEG) they are pages.
ANIMATED = {"gif", "webp"}

# Exactly a hundred megapixels, which services have as their limit.
HUGE = (12_500, 8_000)


class CorpusError(Exception):
    """A folder that cannot be measured; the second argument is a hint."""


@dataclass(frozen=True)
class Picture:
    path: Path
    format: str
    width: int
    height: int
    # Of the renditions: "webp" where there is transparency or animation, else "jpeg".
    rendition_format: str

    @property
    def name(self) -> str:
        return self.path.name

    @property
    def megapixels(self) -> float:
        return self.width * self.height / 1e6

    @property
    def is_opaque_photo(self) -> bool:
        """Whether its quality is measured: neither animation nor transparency nor lossy twice."""
        return self.format in {"jpeg", "png"} and self.rendition_format == "jpeg"


def read_corpus(folder: Path) -> list[Picture]:
    """All pictures of a folder by the endings of their names, in order of name."""
    if not folder.is_dir():
        raise CorpusError(
            f"no folder {folder}", "name a folder of pictures: make bench-imaging CORPUS=dir"
        )
    paths = sorted(p for p in folder.iterdir() if p.suffix.lower() in FORMATS and p.is_file())
    if not paths:
        endings = " ".join(sorted(ending[1:] for ending in FORMATS))
        raise CorpusError(f"no pictures in {folder}", f"files count that end in: {endings}")
    return [read_picture(path) for path in paths]


def read_picture(path: Path) -> Picture:
    """What the header says, and whether any pixel is transparent."""
    format_ = FORMATS[path.suffix.lower()]
    try:
        with Image.open(path) as image:
            width, height = image.size
            animated = format_ in ANIMATED and getattr(image, "n_frames", 1) > 1
            webp = animated or is_transparent(image)
    except (OSError, SyntaxError):  # Pillow raises either for what it cannot read
        # Not ours to judge: the engines get it, and say themselves what they make of it.
        return Picture(path, format_, 0, 0, "jpeg")
    return Picture(path, format_, width, height, "webp" if webp else "jpeg")


def is_transparent(image: Image.Image) -> bool:
    """Whether some pixel is; an alpha channel alone, opaque throughout, does not count."""
    if not image.has_transparency_data:
        return False
    # From the histogram: how often each value of alpha stands in the picture.
    return any(image.convert("RGBA").getchannel("A").histogram()[:255])


def largest_jpeg(pictures: list[Picture]) -> Picture | None:
    jpegs = [p for p in pictures if p.format == "jpeg"]
    return max(jpegs, key=lambda p: p.megapixels, default=None)


def make_huge(tile: Picture, folder: Path) -> Picture:
    """A baseline JPEG of a hundred megapixels, tiled from a picture; made once."""
    path = folder / f"100mp-of-{tile.path.stem}.jpg"
    if not path.exists():
        huge = Image.new("RGB", HUGE)
        with Image.open(tile.path) as image:
            pixels = image.convert("RGB")
        for top in range(0, huge.height, pixels.height):
            for left in range(0, huge.width, pixels.width):
                huge.paste(pixels, (left, top))
        # Never half a file under the name that is looked for.
        partial = path.with_suffix(".partial")
        huge.save(partial, "jpeg", quality=90, subsampling="4:2:0")
        partial.rename(path)
    return read_picture(path)
