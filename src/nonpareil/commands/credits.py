"""Make credits of a value: what other next tokens would have been worth at each position of stored completions."""

import time
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nonpareil.commands.command import Command
from nonpareil.commands.places import check_output, inputs_of
from nonpareil.commands.value.inputs import DrawnGroups, drawn_groups
from nonpareil.commands.value.named import check_named, described, load_named, tell_limits
from nonpareil.commands.value.show import show_credits
from nonpareil.commands.value.spent import add_spent
from nonpareil.errors import ConfigError, DataError
from nonpareil.folders import writing
from nonpareil.options.values import CreditsOptions
from nonpareil.settings import values_of
from nonpareil.terminal import tell
from nonpareil.values.settings import CreditSettings

if TYPE_CHECKING:
    from nonpareil.commands.policies.local import LocalPolicy
    from nonpareil.credits import Credits
    from nonpareil.rollouts.credits import CreditsSource
    from nonpareil.values.credits import CreditTotals

OWNER = "credits"
TOTALS = "totals.json"
SHARD = 64
"""Prompts of a file: what a kill can cost."""


def run(options: CreditsOptions) -> dict[str, Any]:
    """Make what is missing; returns where the credits are, and what they are like.

    Raises:
        NonpareilError: whatever cannot work, before any weight is read where that can be known.
    """
    if options.value is None:
        raise ConfigError(
            "value is missing; give a folder written by `nonpareil value`, or a function: --value FOLDER"
        )
    check_output("output_dir", options.output_dir, inputs_of(options))
    drawn = drawn_groups(options)
    drawn = drawn._replace(groups=drawn.groups[: options.max_prompts])
    check_named(options.value, drawn.policy, drawn.temperature, drawn.manifest.get("rewards"))
    settings = CreditSettings(**values_of(options, CreditSettings))
    with writing(options.output_dir, OWNER) as folder:
        folder.refuse_other_command()
        totals = write_all(
            Path(options.output_dir),
            drawn,
            options.value,
            settings,
            options.seed,
            options.max_tokens_per_batch,
        )
    return {"output_dir": str(Path(options.output_dir)), "totals": totals.to_dict()}


def write_all(
    folder: Path, drawn: DrawnGroups, value_path: str, settings: CreditSettings, seed: int, max_tokens: int
) -> "CreditTotals":
    """The credits of all groups, a file for some prompts at a time; those that are there are kept.

    Raises:
        ConfigError: the folder holds credits made with other settings, or more candidates than there are tokens.
        DataError: a value to which all next tokens of the first prompts are alike.
        NonpareilError: models that cannot be loaded.
    """
    from nonpareil.files import write_json
    from nonpareil.rollouts.credits import begin_credits, has_credits, read_credits, write_credits
    from nonpareil.rollouts.progress import ProgressBar
    from nonpareil.values.credits import credit_totals, make_credits

    check_candidates(drawn.policy, settings)
    shards = [drawn.groups[start : start + SHARD] for start in range(0, len(drawn.groups), SHARD)]
    source = _source(drawn, value_path, settings, seed)
    begin_credits(folder, source, len(shards))
    missing = [index for index in range(len(shards)) if not has_credits(folder, index, source)]
    begun = time.perf_counter()
    if missing:
        tell_limits(value_path, settings, drawn.temperature)
        _tell_cost(drawn, settings, [shards[index] for index in missing])
        policy = drawn.policy.load()
        value = load_named(value_path, settings, drawn.policy, max_tokens)
        with ProgressBar() as progress:
            progress.start("credit", sum(len(shards[index]) for index in missing))
            for index in missing:
                found = make_credits(
                    policy,
                    value,
                    shards[index],
                    settings,
                    temperature=drawn.temperature,
                    seed=seed,
                    max_tokens_per_batch=max_tokens,
                )
                if index == missing[0]:
                    _refuse_constant(credit_totals(_all(found), settings), value_path)
                write_credits(folder, index, found, source)
                progress.update(len(shards[index]), sum(map(len, _all(found))))
                now = time.perf_counter()
                add_spent(folder, now - begun)
                begun = now
    totals = credit_totals(_all(read_credits(folder)), settings)
    write_json(folder / TOTALS, totals.to_dict())
    add_spent(folder, 0.0, candidates=totals.positions * totals.candidates)
    return totals


def _refuse_constant(totals: "CreditTotals", value_path: str) -> None:
    if totals.positions and totals.spread == 0:
        raise DataError(
            f"value={value_path!r} is constant: on the first {totals.completions} completions no next token is "
            "worth more than another, so that credits of it teach nothing; give another value"
        )


def _all(credits: Any) -> Iterator["Credits"]:
    return (each for prompt in credits for each in credits[prompt] if each is not None)


def _source(drawn: DrawnGroups, value_path: str, settings: CreditSettings, seed: int) -> "CreditsSource":
    from dataclasses import asdict

    from nonpareil.rollouts.credits import CreditsSource

    value = {
        **described(value_path, settings),
        **asdict(settings),
        "seed": seed,
        "prompts": len(drawn.groups),
        "dtype": drawn.policy.info()["dtype"],
    }
    return CreditsSource(drawn.policy.info()["fingerprint"], drawn.identity, value, drawn.rewards)


def check_candidates(policy: "LocalPolicy", settings: CreditSettings) -> None:
    """Refuse more candidates than the policy has tokens; no weight is read.

    Raises:
        ConfigError: naming the settings.
    """
    vocabulary = policy.config.get_text_config().vocab_size
    if settings.candidates > vocabulary:
        raise ConfigError(
            f"likeliest={settings.likeliest} and from_tail={settings.from_tail} are, with the completion's own, "
            f"more than the policy's {vocabulary} tokens; lower them"
        )


def _tell_cost(drawn: DrawnGroups, settings: CreditSettings, shards: list[Any]) -> None:
    """What is about to be computed: candidates are the cost."""
    cost = candidates_of([group for shard in shards for group in shard], settings)
    tell(
        f"{cost['completions']} completions, {cost['candidates']} candidates (as many tokens through the value's "
        f"network); loading policy and value"
    )


def candidates_of(groups: list[Any], settings: CreditSettings) -> dict[str, int]:
    """How many completions of groups are credited, and about how many candidates that are in all."""
    completions = sum(min(len(group), settings.credited_completions) for group in groups)
    tokens = sum(sum(map(len, g.completion_token_ids)) / len(g) for g in groups if len(g))
    each = tokens / max(len(groups), 1)
    return {"completions": completions, "candidates": round(completions * each * settings.candidates)}


COMMAND = Command(
    description=__doc__ or "",
    example="nonpareil credits --groups nonpareil-groups --value nonpareil-value --target_n 4",
    options=lambda: [CreditsOptions],
    run=run,
    show=show_credits,
)
