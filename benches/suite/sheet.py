"""The contact sheet: each outlier as each engine shows it, in a row."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont

TILE_PX = 200
TEXT_PX = 18
ROWS_PER_PAGE = 12
CHECK_PX = 10


@dataclass(frozen=True)
class Row:
    title: str
    text: str
    # By engine: the rendition, or why there is none.
    tiles: dict[str, Path | str]


def draw(rows: Sequence[Row], folder: Path) -> list[Path]:
    """Writes sheet-1.png and so on."""
    pages = []
    for start in range(0, len(rows), ROWS_PER_PAGE):
        page = folder / f"sheet-{len(pages) + 1}.png"
        draw_page(rows[start : start + ROWS_PER_PAGE]).save(page)
        pages.append(page)
    return pages


def draw_page(rows: Sequence[Row]) -> Image.Image:
    engines = list(rows[0].tiles)
    row_px = TILE_PX + 3 * TEXT_PX
    width = max(len(engines) * (TILE_PX + CHECK_PX), 900)
    page = Image.new("RGB", (width, row_px * len(rows)), "white")
    pen, font = ImageDraw.Draw(page), ImageFont.load_default(TEXT_PX - 5)
    for number, row in enumerate(rows):
        top = number * row_px
        pen.text((4, top), row.title, "black", font)
        # Pillow's own font has no such sign.
        pen.text((4, top + TEXT_PX), row.text.replace("×", "x")[:150], "firebrick", font)
        for column, engine in enumerate(engines):
            left = column * (TILE_PX + CHECK_PX)
            page.paste(tile(row.tiles[engine], font), (left, top + 2 * TEXT_PX))
            pen.text((left + 4, top + 2 * TEXT_PX), engine, "blue", font)
    return page


def tile(content: Path | str, font: ImageFont.FreeTypeFont | ImageFont.ImageFont) -> Image.Image:
    """On a checkered ground, which shows what is transparent."""
    ground = Image.new("RGB", (TILE_PX, TILE_PX), "lightgray")
    pen = ImageDraw.Draw(ground)
    if isinstance(content, str):
        lines = [content[i : i + 28] for i in range(0, min(len(content), 28 * 8), 28)]
        pen.multiline_text((4, TEXT_PX * 2), "\n".join(lines), "black", font)
        return ground
    for y in range(0, TILE_PX, CHECK_PX):
        for x in range(y % (2 * CHECK_PX), TILE_PX, 2 * CHECK_PX):
            pen.rectangle((x, y, x + CHECK_PX - 1, y + CHECK_PX - 1), "white")
    with Image.open(content) as image:
        shown = image.convert("RGBA")
    times = TILE_PX // max(shown.size)
    if times > 1:
        sides = (shown.width * times, shown.height * times)
        shown = shown.resize(sides, Image.Resampling.NEAREST)
    shown.thumbnail((TILE_PX, TILE_PX))
    ground.paste(shown, (0, 0), shown)
    return ground
