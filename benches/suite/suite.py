"""Runs every picture of a directory through Safelight, sharp and Pillow; lists where they differ.

Prints counts and outliers on stdout, progress on stderr; writes verdicts.json and sheet-N.png to
target/bench-suite. Exit codes: 0 nothing wrong, 1 something wrong, 2 usage or an engine is missing.
"""

import argparse
import json
import shutil
import sys
from collections import Counter
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from engines import ROOT, TOOLS, Engine
from serve import ServeError

import sheet
from judge import Finding, Judgment, Verdict, judge
from rendered import FRACTIONS, Outcome, Refused, Rendered
from safelight import Safelight, is_program, pictures_of

HERE = Path(__file__).resolve().parent
OUT = ROOT / "target/bench-suite"
PROGRAM = ROOT / "target/release/safelight"
PEERS = {
    "sharp": ["node", str(HERE / "sharp_peer.mjs"), str(TOOLS / "node")],
    "pillow": [sys.executable, "-B", str(HERE / "pillow_peer.py")],
}
# A peer that takes longer for one picture is killed, and counts as one that refuses it.
TIMEOUT_S = 120
# The kind of files that the command may not open.
UNREADABLE = "cannot be read"
# The verdicts that a person should look at, the worst first.
OUTLIERS = (Verdict.WRONG, Verdict.ALONE, Verdict.PEERS_DIFFER, Verdict.REFUSED)


class UsageError(Exception):
    """Wrong usage; the second argument is a hint."""


@dataclass
class Result:
    picture: Path
    name: str
    outcomes: dict[str, Outcome]
    judgment: Judgment


def parse_arguments(arguments: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="benches/suite/run", description=(__doc__ or "").partition("\n")[0]
    )
    parser.add_argument("folder", type=Path, help="directory of pictures; directories in it too")
    parser.add_argument(
        "--size", type=int, default=256, help="side of the renditions (default: 256)"
    )
    parser.add_argument(
        "--program", type=Path, default=PROGRAM,
        help="the safelight to try (default: target/release/safelight)",
    )  # fmt: skip
    parser.add_argument(
        "--out", type=Path, default=OUT, help="where to write (default: target/bench-suite)"
    )
    parser.add_argument(
        "--no-recheck", action="store_true",
        help="do not try outliers again in a fresh server, which finds what depends on the "
        "pictures before",
    )  # fmt: skip
    return parser.parse_args(arguments)


def say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def check(arguments: argparse.Namespace) -> list[Path]:
    """The pictures; raises UsageError."""
    folder, program = arguments.folder, arguments.program
    if not folder.is_dir():
        raise UsageError(f"no directory {folder}", "make bench-suite DIR=directory-of-pictures")
    if not 16 <= arguments.size <= 4096:
        raise UsageError(f"--size {arguments.size} is not from 16 to 4096", "leave it out for 256")
    if not is_program(program):
        raise UsageError(f"no program {program}", "make bench-suite builds it")
    pictures = list(pictures_of(folder))
    if not pictures:
        raise UsageError(f"no files in {folder}", "name a directory of pictures")
    return pictures


class Suite:
    def __init__(self, arguments: argparse.Namespace, safelight: Safelight) -> None:
        self.size, self.folder, self.out = arguments.size, arguments.folder, arguments.out
        self.safelight = safelight
        log = self.out / "engines.log"
        self.peers = {name: Engine(command, log, TIMEOUT_S) for name, command in PEERS.items()}
        self.pool = ThreadPoolExecutor(len(PEERS))

    def close(self) -> None:
        for peer in self.peers.values():
            peer.close()
        self.pool.shutdown()

    def run(self, picture: Path) -> Result:
        name = str(picture.relative_to(self.folder))
        out = self.out / "renditions" / name
        out.mkdir(parents=True)
        try:
            picture.open("rb").close()
        except OSError as error:
            unreadable = Refused(str(error.strerror))
            outcomes = dict.fromkeys(("safelight", *PEERS), unreadable)
            judgment = Judgment(Verdict.NO_PICTURE, [Finding(UNREADABLE, unreadable.why)])
            return Result(picture, name, outcomes, judgment)
        asked = {p: self.pool.submit(self.ask, p, picture, out) for p in PEERS}
        ours = self.safelight.render(picture, out)
        peers = {p: answer.result() for p, answer in asked.items()}
        return Result(picture, name, {"safelight": ours, **peers}, judge(ours, peers))

    def ask(self, peer: str, picture: Path, out: Path) -> Outcome:
        request = {"file": str(picture.resolve()), "size": self.size, "out": str(out.resolve())}
        answer = self.peers[peer].ask({**request, "fractions": FRACTIONS})
        error = answer.get("error")
        return Refused(str(error)) if error is not None else Rendered.from_answer(answer)

    def recheck(self, result: Result) -> None:
        """Tries a picture alone. Another outcome than among others is a fault of its own."""
        self.safelight.restart()
        out = self.out / "renditions" / result.name / "alone"
        out.mkdir()
        ours = self.safelight.render(result.picture, out)
        peers = {p: result.outcomes[p] for p in PEERS}
        alone = judge(ours, peers)
        if alone.verdict != result.judgment.verdict or alone.text != result.judgment.text:
            text = f"alone: {alone.verdict} {alone.text}; among others: {result.judgment.verdict}"
            findings = [Finding("state", text), *result.judgment.findings]
            result.judgment = Judgment(Verdict.WRONG, findings)


def run(arguments: argparse.Namespace) -> int:
    pictures = check(arguments)
    arguments.out.mkdir(parents=True, exist_ok=True)
    shutil.rmtree(arguments.out / "renditions", ignore_errors=True)
    for old in (*arguments.out.glob("sheet-*.png"), *arguments.out.glob("*.log")):
        old.unlink()
    with Safelight(arguments.program.resolve(), arguments.size, arguments.out) as safelight:
        suite = Suite(arguments, safelight)
        try:
            results = measure(suite, pictures, recheck=not arguments.no_recheck)
        finally:
            suite.close()
    outliers = [r for v in OUTLIERS for r in results if r.judgment.verdict == v]
    pages = sheet.draw([row(result) for result in outliers], arguments.out)
    written = json.dumps([as_json(result) for result in results], indent=1, ensure_ascii=False)
    (arguments.out / "verdicts.json").write_text(written + "\n")
    print(report(results, outliers))
    say(f"written to {arguments.out}: verdicts.json, {len(pages)} contact sheets (sheet-N.png)")
    return int(any(r.judgment.verdict == Verdict.WRONG for r in results))


def measure(suite: Suite, pictures: list[Path], *, recheck: bool) -> list[Result]:
    results = []
    for number, picture in enumerate(pictures, 1):
        result = suite.run(picture)
        results.append(result)
        verdict = result.judgment.verdict
        say(f"[{number}/{len(pictures)}] {result.name}: {verdict} {result.judgment.text}")
        if verdict not in OUTLIERS:
            shutil.rmtree(suite.out / "renditions" / result.name)
    if recheck:
        # Where peers differ, Safelight's own outcome is not in doubt.
        doubtful = [r for r in results if r.judgment.verdict in {Verdict.WRONG, Verdict.REFUSED}]
        for number, result in enumerate(doubtful, 1):
            say(f"again, alone [{number}/{len(doubtful)}] {result.name}")
            suite.recheck(result)
    return results


def row(result: Result) -> sheet.Row:
    tiles = {
        name: Path(outcome.still) if isinstance(outcome, Rendered) else outcome.why
        for name, outcome in result.outcomes.items()
    }
    judgment = result.judgment
    return sheet.Row(result.name, f"{judgment.verdict}: {judgment.text}", tiles)


def as_json(result: Result) -> dict[str, object]:
    judgment = result.judgment
    return {
        "picture": result.name,
        "verdict": judgment.verdict,
        "kind": judgment.kind,
        "text": judgment.text,
        "refused_by": {n: o.why for n, o in result.outcomes.items() if isinstance(o, Refused)},
    }


def report(results: list[Result], outliers: list[Result]) -> str:
    lines = ["| format | " + " | ".join(Verdict) + " |", "|---|" + "---|" * len(Verdict)]
    formats = sorted({ending(result) for result in results})
    for format_ in [*formats, "all"]:
        of = [r for r in results if format_ in {ending(r), "all"}]
        counts = Counter(r.judgment.verdict for r in of)
        lines.append(f"| {format_} | " + " | ".join(str(counts[v]) for v in Verdict) + " |")
    kinds = sorted({(OUTLIERS.index(r.judgment.verdict), r.judgment.kind) for r in outliers})
    for order, kind in kinds:
        verdict = OUTLIERS[order]
        of = [r for r in outliers if (r.judgment.verdict, r.judgment.kind) == (verdict, kind)]
        lines += ["", f"{verdict}, {kind}: {len(of)}"]
        lines += [f"- {r.name}: {r.judgment.text}" for r in of]
    if unreadable := [r for r in results if r.judgment.kind == UNREADABLE]:
        lines += ["", f"files that {UNREADABLE}: {len(unreadable)}"]
        lines += [f"- {r.name}: {r.judgment.text}" for r in unreadable]
    return "\n".join(lines)


def ending(result: Result) -> str:
    return result.picture.suffix.lower().removeprefix(".") or "none"


def main() -> int:
    try:
        return run(parse_arguments(sys.argv[1:]))
    except (UsageError, ServeError) as error:
        message, hint = error.args
        say(f"error: {message}\nhint: {hint}")
        return 2


if __name__ == "__main__":
    sys.exit(main())
