"""The engines: child processes that render images and report the cost.

All use the same protocol, lines of JSON (README.md), so that all are measured in the same way.
"""

import json
import subprocess
import sys
import threading
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent.parent
TOOLS = ROOT / "target/tools/imaging"
OURS = ROOT / "target/release/imaging"

COMMANDS: dict[str, list[str]] = {
    "ours": [str(OURS), "engine"],
    "sharp": ["node", str(HERE / "sharp.mjs"), str(TOOLS / "node")],
    "vips": [sys.executable, "-B", str(HERE / "vips.py")],
}
MODES: dict[str, tuple[str, ...]] = {
    "ours": ("full", "floor"),
    "sharp": ("usual", "best"),
    "vips": ("usual", "best"),
}
# The modes of an engine that is named without a mode.
DEFAULT_MODES = MODES | {"vips": ("best",)}

# An engine that takes longer for one image is killed, and the image counts as failed.
TIMEOUT_S = 300

Answer = dict[str, Any]


@dataclass(frozen=True)
class Variant:
    """An engine in one of its modes."""

    engine: str
    mode: str

    def __str__(self) -> str:
        return self.engine if self.mode == "full" else f"{self.engine} {self.mode}"


def parse_variants(text: str) -> list[Variant]:
    """Parses `ours,sharp,vips:usual`: engines with their default modes, or with one named mode."""
    variants: dict[Variant, None] = {}  # an ordered set
    for item in text.split(","):
        engine, _, mode = item.strip().partition(":")
        if engine not in COMMANDS or (mode and mode not in MODES[engine]):
            known = [f"{e}:{m}" for e, modes in MODES.items() for m in modes]
            raise ValueError(f"no engine {item.strip()!r}; there are {', '.join(known)}")
        modes = (mode,) if mode else DEFAULT_MODES[engine]
        variants.update(dict.fromkeys(Variant(engine, m) for m in modes))
    return list(variants)


def request_for(
    picture: Any, mode: str, *, optimize: bool, out: Path | None, repeat: int = 1
) -> Answer:
    """One request of the protocol for a `corpus.Picture`."""
    return {
        "file": str(picture.path),
        "mode": mode,
        "format": picture.rendition_format,
        "optimize": optimize,
        "repeat": repeat,
        "out": str(out) if out else None,
    }


class Engine:
    """A running engine; restarted after an image that killed it."""

    def __init__(self, command: list[str], log: Path, timeout_s: float = TIMEOUT_S) -> None:
        self.command = command
        self.log = log
        self.timeout_s = timeout_s
        self.process: subprocess.Popen[str] | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def ask(self, request: Answer) -> Answer:
        """The engine's answer, or `{"error": …}`; never raises if an image kills the engine."""
        process = self._running()
        assert process.stdin and process.stdout
        timer = threading.Timer(self.timeout_s, process.kill)
        timer.start()
        try:
            process.stdin.write(json.dumps(request) + "\n")
            process.stdin.flush()
            line = process.stdout.readline()
        except BrokenPipeError:
            line = ""
        finally:
            timer.cancel()
        return json.loads(line) if line else {"error": self._how_it_ended()}

    def close(self) -> None:
        """Ends the engine by closing its input."""
        if self.process:
            assert self.process.stdin and self.process.stdout
            self.process.stdin.close()
            try:
                self.process.wait(timeout=10)
            except subprocess.TimeoutExpired:
                self.process.kill()
                self.process.wait()
            self.process.stdout.close()
            self.process = None

    def _running(self) -> subprocess.Popen[str]:
        if self.process is None:
            with self.log.open("a") as log:
                self.process = subprocess.Popen(
                    self.command,
                    stdin=subprocess.PIPE,
                    stdout=subprocess.PIPE,
                    stderr=log,
                    text=True,
                )
        return self.process

    def _how_it_ended(self) -> str:
        assert self.process
        status = self.process.wait()
        self.process = None
        how = f"killed by signal {-status}" if status < 0 else f"exit code {status}"
        return f"the engine died: {how}; see {self.log.name}"


class Fleet:
    """One running engine for each that the variants need."""

    def __init__(self, variants: Iterable[Variant], log: Path) -> None:
        self.engines = {name: Engine(COMMANDS[name], log) for name in {v.engine for v in variants}}

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        for engine in self.engines.values():
            engine.close()

    def ask(self, variant: Variant, request: Answer) -> Answer:
        return self.engines[variant.engine].ask(request)
