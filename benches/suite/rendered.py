"""What an engine made of a picture, in the form in which pictures are compared."""

from dataclasses import dataclass, field
from itertools import accumulate
from typing import Any

# Frames of at most this long are shown as long as SLOW_MS, as browsers do.
FASTEST_MS = 10
SLOW_MS = 100

# When an animation is looked at, as parts of its length; uneven, so that it is not when frames change.
FRACTIONS = tuple((k + 0.37) / 10 for k in range(10))


@dataclass(frozen=True)
class Rendered:
    """`size` is that of the upright picture in pixels, not of the rendition."""

    size: tuple[int, int]
    still: str
    durations: list[int] = field(default_factory=list)
    # 0 is forever.
    plays: int = 1
    samples: list[str] = field(default_factory=list)

    @property
    def moves(self) -> bool:
        return len(self.durations) > 1

    @classmethod
    def from_answer(cls, answer: dict[str, Any]) -> "Rendered":
        width, height = answer.pop("size")
        return cls((width, height), **answer)


@dataclass(frozen=True)
class Refused:
    """`crashed`: no reason was found in the picture; the engine failed."""

    why: str
    crashed: bool = False


Outcome = Rendered | Refused


def sample_frames(durations: list[int]) -> list[int]:
    """The frames that are shown at FRACTIONS of an animation."""
    ends, last = list(accumulate(durations)), len(durations) - 1
    return [
        next((i for i, end in enumerate(ends) if end > ends[-1] * fraction), last)
        for fraction in FRACTIONS
    ]
