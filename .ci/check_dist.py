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
FOLDERS = ("src", "tests", "recipes", "docs", "benchmarks", ".ci")  # of the sdist
FILES = {
    *("CHANGELOG.md", "CITATION.cff", "CONTRIBUTING.md", "LICENSE", "Makefile", "README.md", "SECURITY.md"),
    *("constraints.txt", "constraints-floor.txt", "constraints-newest.txt", "constraints-vllm.txt"),
    *("pyproject.toml", ".gitignore", "PKG-INFO"),
}
NEEDED = {  # in both, below nonpareil/: what is no Python and would be missed only when it is used
    "py.typed",
    "assets/demo.yaml",
    "assets/demo-lm/model.safetensors",
    "assets/demo-rm/model.safetensors",
    "assets/demo-prompts/train.parquet",
}
LARGE = 1_000_000  # bytes
LIMIT = 40_000_000  # bytes of either archive, as it is sent


def main(dist: Path) -> None:
    """Ends with what is wrong, or prints the sizes."""
    (wheel,), (sdist,) = dist.glob("*.whl"), dist.glob("*.tar.gz")
    package = files_below(ROOT / "src" / "nonpareil")
    assert package >= NEEDED, sorted(NEEDED - package)
    assert any(name.endswith(".j2") for name in package), "no template in the package"

    with zipfile.ZipFile(wheel) as archive:
        in_wheel = {name: archive.read(name) for name in archive.namelist()}
    check_same(
        "wheel", {name for name in in_wheel if ".dist-info/" not in name}, {f"nonpareil/{n}" for n in package}
    )
    with tarfile.open(sdist) as archive:
        members = [member for member in archive.getmembers() if member.isfile()]
        in_sdist = {member.name.split("/", 1)[1]: archive.extractfile(member).read() for member in members}
    source = {f"src/nonpareil/{name}" for name in package}
    check_same("sdist's src", {name for name in in_sdist if name.startswith("src/")}, source)
    others = {name for name in in_sdist if not name.startswith(tuple(f"{folder}/" for folder in FOLDERS))}
    check_same("sdist, beside its folders", others, FILES)
    strangers = sorted(name for name in in_sdist if name != "PKG-INFO" and not (ROOT / name).is_file())
    assert not strangers, f"the sdist has files that are not here: {strangers}"

    for path, contents in ((wheel, in_wheel), (sdist, in_sdist)):
        check_once(path.name, contents)
        size = path.stat().st_size
        assert size <= LIMIT, f"{path.name}: {size} bytes"
        print(f"{path.name}: {len(contents)} files, {size / 1e6:.1f} MB")


def files_below(folder: Path) -> set[str]:
    """Every file's path below a folder, caches left out."""
    paths = (path for path in folder.rglob("*") if path.is_file() and "__pycache__" not in path.parts)
    return {path.relative_to(folder).as_posix() for path in paths}


def check_same(what: str, found: set[str], wanted: set[str]) -> None:
    """Two sets of names are one."""
    assert found == wanted, f"{what}: missing {sorted(wanted - found)}, not wanted {sorted(found - wanted)}"


def check_once(what: str, contents: Mapping[str, bytes]) -> None:
    """No large file is there under two names."""
    seen: dict[str, str] = {}
    for name, raw in contents.items():
        if len(raw) >= LARGE:
            twin = seen.setdefault(hashlib.sha256(raw).hexdigest(), name)
            assert twin == name, f"{what}: {name} and {twin} are one file"


if __name__ == "__main__":
    main(Path(sys.argv[1]))
