"""The manifest: how the groups of a folder were drawn and scored, and how many there are."""

import hashlib
import json
import platform
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from nonpareil.constant_rewards import RewardSpread
from nonpareil.errors import ConfigError, DataError
from nonpareil.files import jsonable, write_json
from nonpareil.records import Prompt, SamplingParams, prompt_identity
from nonpareil.rollouts.folder import MANIFEST
from nonpareil.rollouts.rendering import token_ids_sha256
from nonpareil.rollouts.summaries import ShardSummary
from nonpareil.settings import differing, flat
from nonpareil.terminal import printable

FORMAT = 2
"""Of the folder; shards of format 1 had no checksum and did not say of which run they are."""
PACKAGES = ("nonpareil", "torch", "transformers", "tokenizers", "datasets", "pyarrow", "numpy")
TOKEN_IDS = "token_ids_sha256"
JOINED_FROM = "joined_from"
"""Of a joined folder's `draw`: how its parts were drawn."""
SEARCH = "search"
"""Of the `draw` of a folder of answers that a search is finding: its schedule and rewards."""
ENDS = "model.end_token_ids"
_IN_WORDS = {
    ENDS: " (where a completion ends)",
    "model.turn_end_token_id": " (a completion ends where the chat template closes a turn)",
    "model.fingerprint": " (the model's files were changed)",
    "prompts.sha256": " (other prompts, or another order)",
    "prompts.columns_sha256": " (other values in the dataset's further columns)",
    "prompts.token_ids_sha256": " (the tokenizer reads the same texts otherwise)",
    "prompts.rendering.tokenizer": " (another tokenizer)",
    "prompts.rendering.chat_template": " (another chat template)",
}
FAILURE_REASONS_KEPT = 20
"""Of each reward: reasons may quote the sample, and then there are as many as samples."""


def draw_settings(
    prompts: Sequence[Prompt], sampling: SamplingParams, num_generations: int, model_info: Mapping[str, Any]
) -> dict[str, Any]:
    """Everything that decides which groups are drawn, save the engine's own settings."""
    parameters = jsonable(sampling.described())
    seed = parameters.pop("seed")
    return {
        "model": jsonable(dict(model_info)),
        "sampling": parameters,
        "seed": seed,
        "num_generations": num_generations,
        "prompts": {**prompt_identity(prompts), TOKEN_IDS: token_ids_sha256(prompts)},
    }


def rendering_moved(stored: Mapping[str, Any], asked: Mapping[str, Any]) -> bool:
    """Whether the same prompts, template, arguments and tokenizer gave other token ids than they did then."""
    old, new = stored["prompts"], asked["prompts"]
    alike = all(old.get(key) == new.get(key) for key in ("sha256", "rendering"))
    return alike and "rendering" in new and old.get(TOKEN_IDS) != new.get(TOKEN_IDS)


def differences(stored: Mapping[str, Any], asked: Mapping[str, Any]) -> list[str]:
    """Every setting that differs, in words, with the stored and the asked value; so do keys that a side lacks.

    Where both know the model's fingerprint, its path is a label and may change.
    """
    from nonpareil.models.first_fingerprint import (
        renewed,
    )  # imports transformers; readers of groups need none

    old, new = flat(renewed(stored, asked)), flat(asked)
    others = old.get("prompts.sha256") != new.get("prompts.sha256")
    if others or any(key.startswith("prompts.rendering") for key in (*old, *new)):
        # Other texts have other ids; those of a conversation follow from what stands beside them, and the clock.
        old.pop(f"prompts.{TOKEN_IDS}", None)
        new.pop(f"prompts.{TOKEN_IDS}", None)
    if "model.fingerprint" in old and "model.fingerprint" in new:
        old.pop("model.path", None)
        new.pop("model.path", None)
    if ENDS not in old or ENDS not in new:  # of a version that did not keep them
        old.pop(ENDS, None)
        new.pop(ENDS, None)
    return [
        f"{key}: {there!r} there, {now!r} now{_IN_WORDS.get(key, '')}"
        for key, (there, now) in differing(old, new).items()
    ]


def check_same(stored: Mapping[str, Any], asked: Mapping[str, Any], folder: Path) -> None:
    """Refuse to mix groups of different settings in one folder; see `differences`.

    Raises:
        ConfigError: naming every setting that differs, with the stored and the asked value.
    """
    if lines := differences(stored, asked):
        raise ConfigError(
            f"output_dir={str(folder)!r} holds groups drawn with other settings:\n  "
            + "\n  ".join(lines)
            + "\n"
            "Give another output_dir, or overwrite to delete them and draw anew (--overwrite)."
        )


def read_manifest(folder: Path) -> dict[str, Any] | None:
    """The folder's manifest, or None where there is none.

    Raises:
        DataError: it is damaged, or no manifest, or a later version's.
    """
    path = folder / MANIFEST
    if not path.is_file():
        return None
    try:
        manifest = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error.strerror}") from error
    except (ValueError, RecursionError) as error:
        raise _corrupt(path, str(error)) from error
    sealed = isinstance(manifest, dict) and "sha256" in manifest
    if sealed and manifest["sha256"] != _seal(manifest):
        raise _corrupt(path, "its checksum does not hold: it was damaged or edited")
    if not isinstance(manifest, dict) or not isinstance(manifest.get("draw"), dict):
        raise DataError(f"{path} is no manifest of rollouts; give another output_dir")
    if not sealed and manifest.get("format") != 1:
        raise _corrupt(path, "its checksum is gone")
    if not isinstance(manifest.get("format"), int) or manifest["format"] > FORMAT:
        raise DataError(
            f"{path} has format {manifest.get('format')!r}, and this version of nonpareil reads {FORMAT} at most; "
            "read it with the version that wrote it, or a later one"
        )
    return manifest


def write_manifest(folder: Path, manifest: Mapping[str, Any]) -> dict[str, Any]:
    """Write the manifest with a checksum of itself, in one step; returns what was written."""
    content = jsonable(dict(manifest))
    content["sha256"] = _seal(content)
    write_json(folder / MANIFEST, content)
    return content


def _seal(manifest: Mapping[str, Any]) -> str:
    content = {key: value for key, value in manifest.items() if key != "sha256"}
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def _corrupt(path: Path, reason: str) -> DataError:
    return DataError(
        f"{path} is corrupt ({reason}); delete it and rerun with the same settings: it is written anew from what "
        "the shards say of themselves, and nothing is drawn again"
    )


def versions() -> dict[str, str | None]:
    """Of Python and of the libraries that decide what is drawn and scored; None where not installed."""
    found: dict[str, str | None] = {"python": platform.python_version()}
    for package in PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            found[package] = None
    return found


class GroupCounts:
    """Sums over shards."""

    def __init__(self) -> None:
        """Nothing counted yet."""
        self.shards = self.prompts = self.completions = self.tokens = 0
        self.finish_reasons: Counter[str] = Counter()
        self.failures: dict[str, Counter[str]] = {}
        self.rewards = 0
        """Completions whose aggregate is not null."""
        self.spread = RewardSpread()

    def add(self, shard: ShardSummary) -> None:
        """Count one shard."""
        self.shards += 1
        self.prompts += shard.prompts
        self.completions += shard.completions
        self.tokens += shard.tokens
        self.finish_reasons.update(shard.finish_reasons)
        self.rewards += shard.rewards
        for name in shard.notes.rewards:
            self.failures.setdefault(name, Counter()).update(shard.notes.failures.get(name, {}))
        self.spread.include(shard.spread)

    def reasons(self, names: Iterable[str], most: int = 3) -> str:
        """Why rewards of these names are null, the commonest first, in words."""
        return "; ".join(
            f"{name}: {', '.join(f'{count} times {printable(reason)}' for reason, count in common)}"
            for name in names
            if (common := self.failures.get(name, Counter()).most_common(most))
        )

    def to_dict(self) -> dict[str, Any]:
        """As the manifest has it. `failed_rewards` has, by name, how many are null and the reasons why.

        `constant_rewards`, where there are some, names those that tie in every group.
        """
        constant = self.spread.constant()
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
            **({"constant_rewards": constant} if constant else {}),
        }
