"""The manifest: how the groups of a folder were drawn and scored, and how many there are."""

import json
import platform
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from nonpareil.errors import ConfigError, DataError
from nonpareil.files import jsonable
from nonpareil.records import Prompt, SamplingParams, identity_of
from nonpareil.rollouts.folder import MANIFEST
from nonpareil.rollouts.store import notes_of

PACKAGES = ("nonpareil", "torch", "transformers", "tokenizers", "datasets", "pyarrow", "numpy")
FAILURE_REASONS_KEPT = 20
"""Of each reward: reasons may quote the sample, and then there are as many as samples."""


def draw_settings(
    prompts: Sequence[Prompt], sampling: SamplingParams, num_generations: int, model_info: Mapping[str, Any]
) -> dict[str, Any]:
    """Everything that decides which groups are drawn, save the engine's own settings."""
    parameters = asdict(sampling)
    seed = parameters.pop("seed")
    return {
        "model": jsonable(dict(model_info)),
        "sampling": parameters,
        "seed": seed,
        "num_generations": num_generations,
        "prompts": identity_of(prompts),
    }


def check_same(stored: Mapping[str, Any], asked: Mapping[str, Any], folder: Path) -> None:
    """Refuse to mix groups of different settings in one folder. Keys that either side lacks differ too.

    Where both know the model's fingerprint, its path is a label and may change.

    Raises:
        ConfigError: naming every setting that differs, with the stored and the asked value.
    """
    old, new = _flat(stored), _flat(asked)
    if "model.fingerprint" in old and "model.fingerprint" in new:
        old.pop("model.path", None)
        new.pop("model.path", None)
    differing = [key for key in dict.fromkeys((*old, *new)) if old.get(key) != new.get(key)]
    if differing:
        lines = [f"  {key}: {old.get(key)!r} there, {new.get(key)!r} now" for key in differing]
        raise ConfigError(
            f"output_dir={str(folder)!r} holds groups drawn with other settings:\n" + "\n".join(lines) + "\n"
            "Give another output_dir, or overwrite to delete them and draw anew (--overwrite)."
        )


def read_manifest(folder: Path) -> dict[str, Any] | None:
    """The folder's manifest, or None where there is none.

    Raises:
        DataError: it is no JSON object.
    """
    path = folder / MANIFEST
    if not path.is_file():
        return None
    try:
        manifest = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise DataError(f"{path} is corrupt ({error}); overwrite to draw anew (--overwrite)") from error
    if not isinstance(manifest, dict) or not isinstance(manifest.get("draw"), dict):
        raise DataError(f"{path} is no manifest of rollouts; give another output_dir")
    return manifest


def versions() -> dict[str, str | None]:
    """Of Python and of the libraries that decide what is drawn and scored; None where not installed."""
    found: dict[str, str | None] = {"python": platform.python_version()}
    for package in PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            found[package] = None
    return found


class Counts:
    """Sums over shards, one shard in memory at a time."""

    def __init__(self) -> None:
        """Nothing counted yet."""
        self.shards = self.prompts = self.completions = self.tokens = 0
        self.finish_reasons: Counter[str] = Counter()
        self.failures: dict[str, Counter[str]] = {}

    def add(self, table: pa.Table) -> None:
        """Count one shard."""
        self.shards += 1
        self.prompts += len(table)
        self.completions += len(pc.list_flatten(table["completions"]))
        self.tokens += len(pc.list_flatten(pc.list_flatten(table["completion_token_ids"])))
        reasons = pc.list_flatten(table["finish_reasons"])
        self.finish_reasons.update({r: pc.sum(pc.equal(reasons, r)).as_py() or 0 for r in ("stop", "length")})
        notes = notes_of(table.schema)
        for name in notes.rewards:
            self.failures.setdefault(name, Counter()).update(notes.failures.get(name, {}))

    def to_dict(self) -> dict[str, Any]:
        """As the manifest has it. `failed_rewards` has, by name, how many are null and the reasons why."""
        failed = {}
        for name, reasons in self.failures.items():
            kept = dict(reasons.most_common(FAILURE_REASONS_KEPT))
            if others := reasons.total() - sum(kept.values()):
                kept["other reasons"] = others
            failed[name] = {"count": reasons.total(), "reasons": kept}
        return {
            "shards": self.shards,
            "prompts": self.prompts,
            "completions": self.completions,
            "tokens": self.tokens,
            "finish_reasons": dict(self.finish_reasons),
            "failed_rewards": failed,
        }


def _flat(tree: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in tree.items():
        flat |= _flat(value, f"{prefix}{key}.") if isinstance(value, dict) else {f"{prefix}{key}": value}
    return flat
