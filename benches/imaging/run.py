"""Compares Safelight's imaging with sharp and libvips; `./run CORPUS` installs both and calls it.

Prints tables on stdout, progress on stderr; writes imaging.json, imaging.svg and imaging.png to
target/bench-imaging. Exit codes: 0 done, 1 failed, 2 usage.
"""

import argparse
import json
import os
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path

import corpus
import engines
import plot
import quality
import serve
from corpus import CorpusError, Picture
from engines import Engine, Fleet, Variant
from report import FLOOR, Report
from results import Memory, Results

OUT = engines.ROOT / "target/bench-imaging"
# With fewer rounds, chance decides the median.
FEWEST_ROUNDS = 3


class UsageError(Exception):
    """Wrong usage; the second argument is a hint."""


def parse_arguments(arguments: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="benches/imaging/run", description=(__doc__ or "").split(";")[0] + "."
    )
    parser.add_argument("corpus", type=Path, help="directory of images")
    parser.add_argument(
        "--engines", default="ours,sharp,vips", metavar="LIST",
        help="engines, or single modes such as vips:usual (default: %(default)s)",
    )  # fmt: skip
    parser.add_argument(
        "--rounds", type=int, default=7, help="measured rounds after a warm-up (default: 7)"
    )
    parser.add_argument(
        "--optimize", action="store_true", help="use optimized Huffman tables in all engines"
    )
    parser.add_argument("--core", type=int, help="core to run on (default: the last one)")
    parser.add_argument(
        "--memory", nargs="*", type=Path, metavar="FILE",
        help="images to measure memory with (default: the corpus's largest JPEG, and "
        "100 megapixels tiled from it)",
    )  # fmt: skip
    parser.add_argument("--no-memory", action="store_true", help="skip memory")
    parser.add_argument("--no-quality", action="store_true", help="skip PSNR and SSIM")
    parser.add_argument(
        "--serve", nargs="?", type=Path, const=Path(), metavar="PHOTO",
        help="also measure the whole server with that JPEG (default: the corpus's first)",
    )  # fmt: skip
    return parser.parse_args(arguments)


def say(text: str) -> None:
    print(text, file=sys.stderr)


def choose_variants(text: str) -> list[Variant]:
    try:
        variants = engines.parse_variants(text)
    except ValueError as error:
        raise UsageError(str(error), "--engines sharp,vips") from error
    for variant in variants:
        program = engines.COMMANDS[variant.engine][0]
        if not shutil.which(program):
            ours = variant.engine == "ours"
            missing = f"no target/release/{Path(program).name}" if ours else f"no {program}"
            remedy = "make bench-imaging builds it" if ours else "benches/imaging/run installs it"
            raise UsageError(
                f"{missing}, which is the engine {variant.engine}",
                f"{remedy}; --engines leaves it out",
            )
    return variants


def pin(core: int | None) -> None:
    """To one core, and with this process the engines, which inherit it."""
    allowed = os.sched_getaffinity(0)
    # The first core serves most interrupts.
    core = max(allowed) if core is None else core
    if core not in allowed:
        raise UsageError(f"no core {core}", f"there are {', '.join(map(str, sorted(allowed)))}")
    os.sched_setaffinity(0, {core})


def measure_times(results: Results) -> None:
    """In each round the engines take turns, so that a slow moment affects all of them."""
    folders = {v: OUT / "renditions" / str(v).replace(" ", "-") for v in results.variants}
    for folder in folders.values():
        folder.mkdir(parents=True)
    with Fleet(results.variants, OUT / "engines.log") as fleet:
        for number, picture in enumerate(results.pictures, 1):
            say(f"[{number}/{len(results.pictures)}] {picture.name}")
            asked = [v for v in results.variants if v != FLOOR or picture.format == "jpeg"]
            for round_ in range(results.rounds + 1):
                for variant in asked:
                    # The first round warms up and writes the renditions for the quality.
                    measure_once(
                        results, fleet, picture, variant, None if round_ else folders[variant]
                    )


def measure_once(
    results: Results, fleet: Fleet, picture: Picture, variant: Variant, out: Path | None
) -> None:
    key = picture.name, variant
    if key in results.errors:
        return
    request = engines.request_for(picture, variant.mode, optimize=results.optimize, out=out)
    answer = fleet.ask(variant, request)
    if "error" in answer:
        results.errors[key] = answer["error"]
        results.answers.pop(key, None)  # it may have failed in a later round
        results.outputs.pop(key, None)
    elif out:
        results.outputs[key] = answer["outputs"]
    else:
        results.answers.setdefault(key, []).append(answer)


def measure_quality(results: Results) -> None:
    for picture in results.pictures:
        if not picture.is_opaque_photo:
            continue
        say(f"quality: {picture.name}")
        try:
            reference = quality.Reference(picture.path)
        except (OSError, SyntaxError) as error:
            say(f"  no reference: Pillow cannot decode it: {error}")
            continue
        for size in quality.SIZES:
            key = picture.name, quality.ENCODED_REFERENCE, size
            score(results, reference, key, reference.encoded(size))
        for variant in results.variants:
            if variant != FLOOR:
                for output in results.outputs.get((picture.name, variant), []):
                    key = picture.name, str(variant), output["size"]
                    score(results, reference, key, Path(output["path"]).read_bytes())


def score(
    results: Results, reference: quality.Reference, key: tuple[str, str, int], encoded: bytes
) -> None:
    _, of, size = key
    try:
        results.quality[key] = reference.score(encoded, size)
    except quality.NotScored as error:
        say(f"  not scored: {of}: {error}")


def memory_pictures(chosen: list[Path] | None, pictures: list[Picture]) -> list[Picture]:
    if chosen is not None:
        for path in chosen:
            if not path.is_file() or path.suffix.lower() not in corpus.FORMATS:
                raise UsageError(f"no image {path}", "--memory takes files")
        return [corpus.read_picture(path) for path in chosen]
    largest = corpus.largest_jpeg(pictures)
    if largest is None:
        say("memory: not measured: no JPEG in the corpus; name files by --memory")
        return []
    return [largest, corpus.make_huge(largest, OUT)]


def measure_memory(results: Results, pictures: list[Picture]) -> None:
    """Each in a fresh process: the peak of a used one is that of its largest image."""
    for picture in pictures:
        say(f"memory: {picture.name}")
        for variant in results.variants:
            if variant == FLOOR:
                continue
            with Engine(engines.COMMANDS[variant.engine], OUT / "engines.log") as engine:
                request = engines.request_for(
                    picture, variant.mode, optimize=results.optimize, out=None
                )
                answer = engine.ask(request)
            if error := answer.get("error"):
                say(f"  {variant}: {error}")
                results.memory[picture.name, variant] = None
            else:
                results.memory[picture.name, variant] = Memory(
                    answer["idle_kib"], answer["peak_kib"]
                )


def photo_to_serve(chosen: Path, pictures: list[Picture]) -> Picture:
    if chosen != Path():
        if not chosen.is_file():
            raise UsageError(f"no photograph {chosen}", "--serve takes a JPEG")
        photo = corpus.read_picture(chosen)
    else:
        jpegs = [p for p in pictures if p.format == "jpeg"]
        if not jpegs:
            raise UsageError("no JPEG in the corpus to serve", "--serve PHOTO names one")
        photo = jpegs[0]
    if photo.format != "jpeg":
        raise UsageError(f"{photo.name} is not a JPEG", "--serve takes a JPEG")
    return photo


def prepare_output() -> None:
    """Empties the output directory, except for the large image, which takes long to make."""
    OUT.mkdir(parents=True, exist_ok=True)
    shutil.rmtree(OUT / "renditions", ignore_errors=True)
    for name in ("engines.log", "serve.log", "imaging.json", "imaging.svg", "imaging.png"):
        (OUT / name).unlink(missing_ok=True)


def run(arguments: argparse.Namespace) -> None:
    if arguments.rounds < FEWEST_ROUNDS:
        raise UsageError(
            f"{arguments.rounds} rounds are too few", f"--rounds {FEWEST_ROUNDS} or more"
        )
    pictures = corpus.read_corpus(arguments.corpus)
    variants = choose_variants(arguments.engines)
    photo = None if arguments.serve is None else photo_to_serve(arguments.serve, pictures)
    pin(arguments.core)
    prepare_output()
    weighed = [] if arguments.no_memory else memory_pictures(arguments.memory, pictures)

    results = Results(pictures, variants, arguments.rounds, arguments.optimize)
    # The server first: it is the part most likely to be missing, and that should show immediately.
    if photo:
        say(f"serve: {photo.name}")
        results.served = serve.measure(photo, OUT, optimize=arguments.optimize)
    measure_times(results)
    measure_memory(results, weighed)
    if not arguments.no_quality:
        measure_quality(results)
    (OUT / "imaging.json").write_text(json.dumps(results.as_json(), indent=1) + "\n")
    plot.draw(results, OUT)
    print(Report(results).text())
    say(f"written to {OUT.relative_to(engines.ROOT)}: imaging.json, imaging.svg, imaging.png")


def main() -> int:
    try:
        run(parse_arguments(sys.argv[1:]))
    except (UsageError, CorpusError) as error:
        message, hint = error.args
        code = 2
    except serve.ServeError as error:
        message, hint = error.args
        code = 1
    else:
        return 0
    say(f"error: {message}\nhint: {hint}")
    return code


if __name__ == "__main__":
    sys.exit(main())
