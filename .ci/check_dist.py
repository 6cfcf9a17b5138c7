"""Holds a built sdist and wheel against the files here: nothing missing, nothing else, no large file twice.

python .ci/check_dist.py DIST
"""

import hashlib
import sys
import tarfile
import zipfile
from collections.abc import Mapping
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
FOLDERS = ("src/", "tests/", "recipes/", "docs/", "benchmarks/", ".ci/")  # of the sdist
FILES = {  # of the sdist, beside them
    *("CHANGELOG.md", "CITATION.cff", "CONTRIBUTING.md", "LICENSE", "Makefile", "README.md", "SECURITY.md"),
    *("constraints.txt", "constraints-floor.txt", "constraints-newest.txt", "constraints-vllm.txt"),
    *("pyproject.toml", ".gitignore", "PKG-INFO"),
}
NEEDED = {  # of the package: what is not Python, and would be missed only when it is used
    "nonpareil/py.typed",
    "nonpareil/commands/compare/templates/comparison.html.j2",
    "nonpareil/assets/demo.yaml",
    "nonpareil/assets/demo-jbond.yaml",
    "nonpareil/assets/demo-lm/model.safetensors",
    "nonpareil/assets/demo-rm/model.safetensors",
    "nonpareil/assets/demo-prompts/train.parquet",
    "nonpareil/evaluation/templates/report.html.j2",
    "nonpareil/viewing/templates/base.html.j2",
    "nonpareil/viewing/static/view.css",
    "nonpareil/viewing/static/view.js",
}
LARGE = 1_000_000  # bytes
LIMIT = 40_000_000  # bytes of either archive, compressed


def main(dist: Path) -> None:
    """Exits with what is wrong, or prints the sizes."""
    (wheel,), (sdist,) = dist.glob("*.whl"), dist.glob("*.tar.gz")
    package = files_below(ROOT / "src", "nonpareil")
    check("the package here", package & NEEDED, NEEDED)

    with zipfile.ZipFile(wheel) as archive:
        in_wheel = {name: archive.read(name) for name in archive.namelist()}
    check("the wheel", {name for name in in_wheel if ".dist-info/" not in name}, package)

    with tarfile.open(sdist) as archive:
        members = [member for member in archive.getmembers() if member.isfile()]
        in_sdist = {member.name.split("/", 1)[1]: archive.extractfile(member).read() for member in members}
    package = {f"src/{name}" for name in package}
    check("src of the sdist", {name for name in in_sdist if name.startswith("src/")}, package)
    check("the sdist, beside its folders", {name for name in in_sdist if not name.startswith(FOLDERS)}, FILES)
    strangers = {name for name in in_sdist if name != "PKG-INFO" and not (ROOT / name).is_file()}
    check("the sdist, of files that are not here", strangers, set())

    for path, contents in ((wheel, in_wheel), (sdist, in_sdist)):
        check(f"{path.name}, of large files under two names", twins(contents), set())
        size = path.stat().st_size
        if size > LIMIT:
            sys.exit(f"{path.name} has {size} bytes, over {LIMIT}")
        print(f"{path.name}: {len(contents)} files, {size / 1e6:.1f} MB")


def files_below(root: Path, folder: str) -> set[str]:
    """Every file below a folder, by its path from the root; caches left out."""
    paths = (path for path in (root / folder).rglob("*") if path.is_file())
    return {path.relative_to(root).as_posix() for path in paths if "__pycache__" not in path.parts}


def check(what: str, found: set[str], wanted: set[str]) -> None:
    """Exit where two sets of names differ, naming what is missing and what is too many."""
    if found != wanted:
        sys.exit(f"{what}: missing {sorted(wanted - found)}, not wanted {sorted(found - wanted)}")


def twins(contents: Mapping[str, bytes]) -> set[str]:
    """The large files whose content another one before them has."""
    seen: dict[str, str] = {}
    large = {name: hashlib.sha256(raw).hexdigest() for name, raw in contents.items() if len(raw) >= LARGE}
    return {name for name, digest in large.items() if seen.setdefault(digest, name) != name}


if __name__ == "__main__":
    main(Path(sys.argv[1]))
