"""Compares what engines made of one picture, and says which of them is an outlier."""

from dataclasses import dataclass, field
from enum import StrEnum

import numpy as np
from PIL import Image

from rendered import Outcome, Refused, Rendered

# Engines round a side differently; more is another picture.
ROUNDING_PX = 1

# Filters differ at edges, so shrunk renditions are compared by the means of blocks of this side.
BLOCK_PX = 8

# Of 255. Color management by other libraries differs by 2 or 3; what a person notices is more.
MEAN_TOLERANCE = 4.0
WORST_TOLERANCE = 40.0
# Animations are compared after a lossy encoding.
MOVING_TOLERANCE = 8.0

# Another orientation must be this much nearer before it is called the true one.
ORIENTATION_FACTOR = 4.0

# Frame times are rounded, a GIF's to 10 ms each.
LENGTH_TOLERANCE = 0.03

ORIENTATIONS = tuple(Image.Transpose)


class Verdict(StrEnum):
    RIGHT = "right"
    REFUSED = "refused"
    WRONG = "wrong"
    PEERS_DIFFER = "peers differ"
    ALONE = "alone"
    NO_PICTURE = "no picture"


@dataclass(frozen=True)
class Finding:
    """`kind` is one of size, orientation, color, frames, length, plays, crash, state."""

    kind: str
    text: str


@dataclass(frozen=True)
class Judgment:
    verdict: Verdict
    findings: list[Finding] = field(default_factory=list)

    @property
    def kind(self) -> str:
        return self.findings[0].kind if self.findings else ""

    @property
    def text(self) -> str:
        return "; ".join(finding.text for finding in self.findings)


def judge(ours: Outcome, peers: dict[str, Outcome]) -> Judgment:
    """Peers that agree are right; where they do not, nobody here knows who is."""
    readers = {name: peer for name, peer in peers.items() if isinstance(peer, Rendered)}
    if isinstance(ours, Refused):
        return judge_refusal(ours, list(readers))
    if not readers:
        return Judgment(Verdict.ALONE, [Finding("alone", "no peer renders it")])
    against = {name: compare(ours, peer) for name, peer in readers.items()}
    if not any(against.values()):
        return Judgment(Verdict.RIGHT)
    findings = [
        Finding(finding.kind, f"{finding.text} ({name})")
        for name, found in against.items()
        for finding in found
    ]
    first, *others = readers.values()
    if any(compare(first, other) for other in others):
        sides = [name for name, found in against.items() if not found] or ["neither"]
        findings.append(Finding("side", f"Safelight agrees with {sides[0]}"))
        return Judgment(Verdict.PEERS_DIFFER, findings)
    # Within tolerance of one of two that agree with each other: no outlier.
    if not all(against.values()):
        return Judgment(Verdict.RIGHT)
    return Judgment(Verdict.WRONG, findings)


def judge_refusal(ours: Refused, readers: list[str]) -> Judgment:
    if ours.crashed:
        return Judgment(Verdict.WRONG, [Finding("crash", ours.why)])
    if not readers:
        return Judgment(Verdict.NO_PICTURE, [Finding("refused", ours.why)])
    kind = ours.why.partition(":")[0]
    text = f"{ours.why} (rendered by {' and '.join(readers)})"
    return Judgment(Verdict.REFUSED, [Finding(kind, text)])


def compare(ours: Rendered, peer: Rendered) -> list[Finding]:
    found = compare_sizes(ours, peer)
    found += compare_stills(ours.still, peer.still)
    return found or compare_animations(ours, peer)


def compare_sizes(ours: Rendered, peer: Rendered) -> list[Finding]:
    if ours.size == peer.size:
        return []
    turned = ours.size == peer.size[::-1]
    text = f"{ours.size[0]} × {ours.size[1]} instead of {peer.size[0]} × {peer.size[1]}"
    return [Finding("orientation" if turned else "size", text)]


def compare_stills(ours: str, peer: str) -> list[Finding]:
    left, right = pixels(ours), pixels(peer)
    if any(abs(a - b) > ROUNDING_PX for a, b in zip(left.size, right.size, strict=True)):
        sizes = f"{left.width} × {left.height} instead of {right.width} × {right.height}"
        return [Finding("size", f"a rendition of {sizes}")]
    mean, worst = difference(left, right)
    if mean <= MEAN_TOLERANCE and worst <= WORST_TOLERANCE:
        return []
    for turn in ORIENTATIONS:
        turned = left.transpose(turn)
        if turned.size == right.size and difference(turned, right)[0] * ORIENTATION_FACTOR < mean:
            return [Finding("orientation", f"would be right after {turn.name}")]
    return [Finding("color", f"colors differ by {mean:.1f} of 255, at one place by {worst:.0f}")]


def compare_animations(ours: Rendered, peer: Rendered) -> list[Finding]:
    """Frames that look alike may be one, so the length and what is seen at a time count, not the
    number of frames."""
    found = []
    if ours.moves and peer.moves:
        length, expected = sum(ours.durations), sum(peer.durations)
        if abs(length - expected) > LENGTH_TOLERANCE * expected:
            found.append(Finding("length", f"{length} ms instead of {expected} ms"))
        if ours.plays != peer.plays:
            text = f"plays {ours.plays} times instead of {peer.plays} (0: forever)"
            found.append(Finding("plays", text))
    samples = max(len(ours.samples), len(peer.samples))
    left, right = (side.samples or [side.still] * samples for side in (ours, peer))
    for number, (a, b) in enumerate(zip(left, right, strict=True)):
        # The encoder has quartered the color samples, which is all of a tiny picture's color.
        mean, _ = difference(*(pixels(side).convert("LA").convert("RGBA") for side in (a, b)))
        if mean > MOVING_TOLERANCE:
            text = f"sample {number} of {samples} differs by {mean:.1f} of 255"
            found.append(Finding("frames", text))
            break
    return found


def pixels(path: str) -> Image.Image:
    with Image.open(path) as image:
        return image.convert("RGBA")


def difference(a: Image.Image, b: Image.Image) -> tuple[float, float]:
    """Mean and largest difference of the channels, colors multiplied by alpha, so that what is
    invisible does not count."""
    if a.size != b.size:
        b = b.resize(a.size, Image.Resampling.BILINEAR)
    block = min(BLOCK_PX, max(1, min(a.size) // 2))
    blocks = (side.convert("RGBa").reduce(block) for side in (a, b))
    left, right = (np.asarray(side, dtype=np.float64) for side in blocks)
    distance = np.abs(left - right)
    return float(distance.mean(axis=(0, 1)).max()), float(distance.max())
