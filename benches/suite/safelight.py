"""Safelight as users run it: `safelight serve`, an upload, and requests for the renditions."""

import contextlib
import http.client
import io
import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Self

from PIL import Image
from serve import Client, running_server

from rendered import FASTEST_MS, SLOW_MS, Outcome, Refused, Rendered, sample_frames

# The codes of a failed task that blame the engine, not the picture.
CRASHES = {
    "decoder_crashed", "decoder_timed_out", "decoder_out_of_memory", "internal", "lease_lost",
}  # fmt: skip

# A task that takes longer, with its repetitions, counts as crashed.
TIMEOUT_S = 120

# The first without loss, to compare colors; the second keeps animations.
STILL, MOVING = "still", "moving"


class Safelight:
    """A running server; started again on request, since a decoder may carry something from one
    picture to the next."""

    def __init__(self, program: Path, size: int, folder: Path) -> None:
        presets = (
            f'{{ {STILL} = {{ size = {size}, format = "png" }}, '
            f'{MOVING} = {{ size = {size}, format = "webp", quality = 100 }} }}'
        )
        # One decoder, so that all pictures go through the same.
        self.settings = {"SAFELIGHT_PRESETS": presets, "SAFELIGHT_CONCURRENCY": "1"}
        self.program, self.folder = program, folder
        self.stack = contextlib.ExitStack()
        self.client: Client | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.stack.close()

    def restart(self) -> None:
        self.stack.close()
        server = running_server(self.folder, self.program, self.settings)
        _, self.client = self.stack.enter_context(server)

    def render(self, picture: Path, out: Path) -> Outcome:
        """Raises ServeError if the server does not start."""
        if self.client is None:
            self.restart()
        assert self.client
        try:
            # The server closes connections that idle while a peer takes its time.
            self.client.connection.close()
            return self._render(picture, out)
        except (OSError, http.client.HTTPException) as error:
            self.client = None
            return Refused(f"no answer: {type(error).__name__} {error}", crashed=True)

    def _render(self, picture: Path, out: Path) -> Outcome:
        status, task = self._call("POST", "/v1/images", picture.read_bytes())
        if status >= 500:
            return Refused(f"HTTP {status}", crashed=True)
        if status != 202:
            return Refused(f"HTTP {status} {task.get('code', '')}".strip())
        deadline = time.monotonic() + TIMEOUT_S
        while task["status"] in {"queued", "running"}:
            if time.monotonic() > deadline:
                return Refused(f"not done after {TIMEOUT_S} s", crashed=True)
            _, task = self._call("GET", f"/v1/tasks/{task['id']}")
        if task["status"] != "succeeded":
            error = task.get("error") or next(j["error"] for j in task["jobs"] if j.get("error"))
            return Refused(f"{error['code']}: {error['message']}", error["code"] in CRASHES)
        return self._fetch(task["image"], out)

    def _fetch(self, image: dict[str, Any], out: Path) -> Outcome:
        still, moving = out / "safelight.png", out / "safelight.webp"
        for preset, path in ((STILL, still), (MOVING, moving)):
            status, content = self._call("GET", f"/images/{image['id']}/{preset}")
            if status != 200:
                return Refused(f"HTTP {status} for the rendition", crashed=True)
            path.write_bytes(content)
        return Rendered((image["width"], image["height"]), str(still), *read_animation(moving, out))

    def _call(self, method: str, path: str, body: bytes | None = None) -> tuple[int, Any]:
        assert self.client
        return self.client.call(method, path, body)


def read_animation(path: Path, out: Path) -> tuple[list[int], int, list[str]]:
    """Durations, plays and samples of a rendition; none for one that does not move."""
    with Image.open(io.BytesIO(path.read_bytes())) as image:
        count = getattr(image, "n_frames", 1)
        if count == 1:
            return [], 1, []
        frames, durations = [], []
        for number in range(count):
            image.seek(number)
            frames.append(image.convert("RGBA"))
            ms = int(image.info.get("duration", 0))
            durations.append(SLOW_MS if ms <= FASTEST_MS else ms)
        samples = []
        for number in sample_frames(durations):
            samples.append(str(out / f"safelight-{number}.png"))
            frames[number].save(samples[-1], compress_level=1)
        return durations, int(image.info.get("loop") or 0), samples


def is_program(path: Path) -> bool:
    return path.is_file() and os.access(path, os.X_OK)


def pictures_of(folder: Path) -> Iterator[Path]:
    """All files beneath a folder, hidden ones excepted, by name."""
    for path in sorted(folder.rglob("*")):
        hidden = any(part.startswith(".") for part in path.relative_to(folder).parts)
        if path.is_file() and not hidden:
            yield path
