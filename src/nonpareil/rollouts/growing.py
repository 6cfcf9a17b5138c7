"""A folder of groups that grows: more prompts behind those it has, or more completions of each."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Protocol

from nonpareil.engines.base import Engine
from nonpareil.errors import ConfigError
from nonpareil.records import Draws, Group, Prompt, SamplingParams, prompt_identity
from nonpareil.rollouts.manifest import TOKEN_IDS
from nonpareil.rollouts.reading import GROWN_FROM
from nonpareil.rollouts.rendering import token_ids_sha256
from nonpareil.rollouts.store import ShardNotes, notes_of, read_table, to_groups
from nonpareil.settings import flat
from nonpareil.terminal import tell

DRAWS_MORE = ("transformers",)
"""Engines whose further completions are those that they would have drawn with the first ones: by keys."""
_GROWS = ("num_generations", "prompts")


class GrowingEngine(Protocol):
    """An engine that can leave out the first completions of a group."""

    def draw_more(
        self,
        prompts: Sequence[Prompt],
        first: int,
        num_generations: int,
        sampling: SamplingParams,
        on_progress: Callable[[int, int], None] | None = None,
    ) -> list[Draws]:
        """Completions `first` .. `num_generations` - 1 of each prompt, as `draw` would have drawn them."""
        ...


def part_there(stored: Mapping[str, Any], asked: dict[str, Any], prompts: Sequence[Prompt]) -> dict[str, Any]:
    """What is asked for of the prompts and completions that a folder has; `asked` itself where it would not grow.

    `stored`, `asked`: as a manifest has them under `draw`.
    """
    count, completions = stored["prompts"]["count"], stored["num_generations"]
    fewer = count > len(prompts) or completions > asked["num_generations"]
    if fewer or (count, completions) == (len(prompts), asked["num_generations"]):
        return asked
    identity = asked["prompts"]
    if count < len(prompts):
        identity = {**prompt_identity(prompts[:count]), TOKEN_IDS: token_ids_sha256(prompts[:count])}
    return {**asked, "num_generations": completions, "prompts": identity}


def grown(
    manifest: Mapping[str, Any], asked: Mapping[str, Any], folder: Path, *, moved: bool
) -> dict[str, Any]:
    """The manifest of the folder as it is to be, which remembers how the shards that have not grown yet were drawn.

    `moved`: whether its prompts would be rendered otherwise now.

    Raises:
        ConfigError: the engine's further completions would not be those of one draw, or conversations that would be
            of another day than the first ones; or a folder of an early version, whose shards do not know their run.
    """
    draw = manifest["draw"]
    more = {name: (was, now) for name, was, now in _sizes(draw, asked) if was != now}
    words = ", ".join(f"{name} from {was} to {now}" for name, (was, now) in more.items())
    elsewhere = "give another output_dir, or overwrite to draw all anew (--overwrite)"
    if manifest["format"] == 1:
        raise ConfigError(
            f"output_dir={str(folder)!r} is of an early version and cannot grow ({words}); {elsewhere}"
        )
    engine = engine_of(draw, folder)["engine"]
    if "num_generations" in more and engine not in DRAWS_MORE:
        raise ConfigError(
            f"output_dir={str(folder)!r} would grow ({words}), and engine={engine} cannot draw the further "
            f"completions of a prompt as it would have drawn them with the first ones "
            f"({', '.join(DRAWS_MORE)} can); {elsewhere}"
        )
    if moved and "prompts" in more:
        raise ConfigError(
            f"output_dir={str(folder)!r} would grow ({words}), and the chat template renders its prompts "
            "otherwise now (it may write the date): hold it still as it was then (chat_template_kwargs), or give "
            "another output_dir"
        )
    tell(f"{folder} grows: {words}; what is there stays")
    prompts = asked["prompts"] if "prompts" in more else draw["prompts"]
    return {
        **{key: value for key, value in manifest.items() if key != "counts"},
        "complete": False,
        "draw": {**asked, "prompts": prompts, "engine": draw["engine"]},
        GROWN_FROM: [*manifest.get(GROWN_FROM, ()), draw],
    }


def engine_of(draw: Mapping[str, Any], folder: Path) -> Mapping[str, Any]:
    """What drew the groups of a folder to which more is to be added; `draw`: of its manifest.

    Raises:
        ConfigError: the manifest does not say, so that nobody knows whether more would be of the same distribution.
    """
    engine = draw.get("engine")
    if not isinstance(engine, Mapping) or "engine" not in engine:
        raise ConfigError(
            f"output_dir={str(folder)!r} cannot be added to: its manifest does not say which engine drew it "
            "(draw.engine is missing), so further draws might be of another distribution; give another output_dir, "
            "or overwrite to draw all anew (--overwrite)"
        )
    return engine


def is_part_of(draw: Mapping[str, Any], whole: Mapping[str, Any]) -> bool:
    """Whether a shard drawn so may be one of a folder that has grown to the `whole` since."""
    own, other = ({k: v for k, v in flat(each).items() if not k.startswith(_GROWS)} for each in (draw, whole))
    return own == other and all(was <= now for _, was, now in _sizes(draw, whole))


def _sizes(draw: Mapping[str, Any], asked: Mapping[str, Any]) -> list[tuple[str, int, int]]:
    return [
        ("num_generations", draw["num_generations"], asked["num_generations"]),
        ("prompts", draw["prompts"]["count"], asked["prompts"]["count"]),
    ]


def grown_shard(
    path: Path,
    prompts: Sequence[Prompt],
    num_generations: int,
    engine: Engine,
    sampling: SamplingParams,
    on_progress: Callable[[int, int], None] | None,
) -> tuple[list[Group], ShardNotes]:
    """A shard's groups with what they lack, and what it says of itself, but for its draw.

    Scores stay only where nothing was added: rewards that compare a group's completions need all of them together.

    Raises:
        DataError: a damaged shard.
    """
    table = read_table(path)
    groups, notes = to_groups(table), notes_of(table.schema)
    there, first = len(groups), len(groups[0])
    if (there, first) == (len(prompts), num_generations):
        return groups, notes
    groups = [replace(group, rewards_by_name={}, rewards=None) for group in groups]
    if first < num_generations:
        growing: GrowingEngine = engine  # type: ignore[assignment]
        more = growing.draw_more(prompts[:there], first, num_generations, sampling, on_progress)
        groups = [g.joined(Group.of(p, d)) for g, p, d in zip(groups, prompts, more, strict=False)]
    draws = (
        engine.draw(prompts[there:], num_generations, sampling, on_progress) if there < len(prompts) else []
    )
    groups += [Group.of(p, d) for p, d in zip(prompts[there:], draws, strict=True)]
    return groups, ShardNotes()
