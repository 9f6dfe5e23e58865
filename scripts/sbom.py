#!/usr/bin/env python3
"""What a build of the program consists of, the C and assembly sources inside crates included.

    sbom.py            prints an SBOM (CycloneDX 1.5, JSON) for scanners: `scripts/sbom.py >sbom.json`
    sbom.py --page     writes docs/bundled-sources.md
    sbom.py --check    exits 1 if that page is not true, or a crate has sources that SOURCES does not name

Advisories for Rust crates know nothing of the C libraries that crates bring along. The versions are read from
the sources that cargo compiles.
"""

import json
import pathlib
import re
import subprocess
import sys

ROOT = pathlib.Path(__file__).resolve().parent.parent
PAGE = ROOT / "docs/bundled-sources.md"
TARGET = "x86_64-unknown-linux-gnu"

# Crate: (what it brings along, CPE vendor:product, the file that tells the version, a pattern for it, what it does).
SOURCES = {
    "av-scenechange": ("assembly of dav1d", None, None, None, "compares frames for the AVIF encoder"),
    "libmimalloc-sys": (
        "mimalloc", "microsoft:mimalloc", "c_src/mimalloc/v3/include/mimalloc.h",
        r"#define MI_MALLOC_VERSION (\d+)(\d\d)(\d\d)\b", "allocates memory",
    ),
    "libsqlite3-sys": (
        "SQLite", "sqlite:sqlite", "sqlite3/sqlite3.h", r'#define SQLITE_VERSION +"([\d.]+)"',
        "the database of one process",
    ),
    "libwebp-sys": (
        "libwebp", "webmproject:libwebp", "vendor/configure.ac", r"AC_INIT\(\[libwebp\], \[([\d.]+)\]",
        "decodes and encodes WebP",
    ),
    "rav1e": ("assembly of dav1d", None, None, None, "encodes AVIF"),
    "re_rav1d": (
        "assembly of dav1d", "videolan:dav1d", "NEWS.dav1d", r"Changes for ([\d.]+)", "decodes AVIF",
    ),
    "ring": ("parts of BoringSSL", None, None, None, "cryptography of TLS"),
    "turbojpeg-sys": (
        "libjpeg-turbo", "libjpeg-turbo:libjpeg-turbo", "libjpeg-turbo/CMakeLists.txt",
        r"set\(VERSION ([\d.]+)\)", "decodes and encodes JPEG",
    ),
}

# Fixes that a bundled library has beyond its version, with a text that its sources have only with the fix.
BACKPORTS = {
    "libwebp-sys": ("CVE-2023-4863", "vendor/src/utils/huffman_utils.h", "struct HuffmanTablesSegment"),
}

# Files that are never compiled into the program.
NOT_COMPILED = {"nix", "walkdir"}


def packages():
    """The packages of the program, by name and version, without build and dev dependencies."""
    command = ["cargo", "metadata", "--locked", "--format-version", "1", "--filter-platform", TARGET]
    found = json.loads(subprocess.run(command, cwd=ROOT, check=True, capture_output=True).stdout)
    by_id = {package["id"]: package for package in found["packages"]}
    edges = {
        node["id"]: [
            dependency["pkg"] for dependency in node["deps"]
            if any(kind["kind"] is None for kind in dependency["dep_kinds"])
        ]
        for node in found["resolve"]["nodes"]
    }
    pending = [id for id, package in by_id.items() if package["name"] == "safelight"]
    reached = set()
    while pending:
        id = pending.pop()
        if id not in reached:
            reached.add(id)
            pending += edges[id]
    return sorted((by_id[id] for id in reached), key=lambda package: (package["name"], package["version"]))


def folder(package):
    return pathlib.Path(package["manifest_path"]).parent


def has_other_sources(package):
    """Whether a crate from a registry has C, C++ or assembly that a build script could compile."""
    if package["source"] is None or package["name"] in NOT_COMPILED:
        return False
    suffixes = {".c", ".cc", ".cpp", ".S", ".asm"}
    return any(path.suffix in suffixes for path in folder(package).rglob("*") if path.is_file())


def version(package):
    """The version of what a crate brings along; None if it has none of its own."""
    _, _, file, pattern, _ = SOURCES[package["name"]]
    if file is None:
        return None
    found = re.search(pattern, (folder(package) / file).read_text(errors="replace"))
    if not found:
        sys.exit(f"{package['name']} {package['version']}: no version in {file}; adapt SOURCES in scripts/sbom.py")
    return ".".join(part if "." in part else str(int(part)) for part in found.groups())


def fixes(package):
    if package["name"] not in BACKPORTS:
        return None
    name, file, text = BACKPORTS[package["name"]]
    return name if text in (folder(package) / file).read_text(errors="replace") else None


def bundled(all_packages):
    found = [package for package in all_packages if has_other_sources(package)]
    unknown = sorted({package["name"] for package in found} - SOURCES.keys())
    gone = sorted(SOURCES.keys() - {package["name"] for package in found})
    if unknown or gone:
        sys.exit(f"SOURCES in scripts/sbom.py: add {unknown or 'nothing'}, remove {gone or 'nothing'}")
    return found


def page(all_packages):
    rows = []
    for package in bundled(all_packages):
        what, _, _, _, use = SOURCES[package["name"]]
        fixed = fixes(package)
        known = version(package) or "that of the crate"
        known += f", with the fix of {fixed}" if fixed else ""
        rows.append(f"| `{package['name']}` {package['version']} | {what} | {known} | {use} |")
    rows = "\n".join(rows)
    return f"""# Bundled sources

Some crates bring along C or assembly. `make audit` knows advisories for Rust crates only, so watch these projects too.
`scripts/sbom.py` reads the versions from the sources that cargo compiles, writes this page (`--page`), and prints an
SBOM (CycloneDX) of the whole program for scanners. `make lint` checks that this page is true.

| crate | brings along | version | what it does |
|---|---|---|---|
{rows}

Everything that decodes images runs in decoders, which are confined ([Security](security.md)).
"""


def sbom(all_packages):
    def component(package):
        found = {
            "type": "library",
            "name": package["name"],
            "version": package["version"],
            "purl": f"pkg:cargo/{package['name']}@{package['version']}",
        }
        if package["license"]:
            found["licenses"] = [{"expression": package["license"].replace("/", " OR ")}]
        return found

    components = [component(package) for package in all_packages if package["source"]]
    for package in bundled(all_packages):
        what, cpe, *_ = SOURCES[package["name"]]
        extra = {"type": "library", "name": what, "description": f"bundled in the crate {package['name']}"}
        if known := version(package):
            extra["version"] = known
            extra["purl"] = f"pkg:generic/{cpe.split(':')[1]}@{known}"
            extra["cpe"] = f"cpe:2.3:a:{cpe}:{known}:*:*:*:*:*:*:*"
        if fixed := fixes(package):
            extra["pedigree"] = {"patches": [{"type": "backport", "resolves": [{"type": "security", "id": fixed}]}]}
        components.append(extra)
    program = next(package for package in all_packages if package["name"] == "safelight")
    about = {"type": "application", "name": "safelight", "version": program["version"]}
    return {
        "bomFormat": "CycloneDX",
        "specVersion": "1.5",
        "version": 1,
        "metadata": {"component": about},
        "components": components,
    }


def main():
    arguments = sys.argv[1:]
    found = packages()
    if arguments == ["--page"]:
        PAGE.write_text(page(found))
    elif arguments == ["--check"]:
        if not PAGE.exists() or PAGE.read_text() != page(found):
            sys.exit("docs/bundled-sources.md is not true; hint: scripts/sbom.py --page")
    elif not arguments:
        json.dump(sbom(found), sys.stdout, indent=2)
        print()
    else:
        sys.exit(__doc__)


if __name__ == "__main__":
    main()
