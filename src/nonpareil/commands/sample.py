"""Draw m completions per prompt, score them, and keep the groups."""

from collections.abc import Mapping
from itertools import islice
from pathlib import Path
from typing import Any

from nonpareil.commands.command import Command
from nonpareil.commands.inputs import check_reward, load_prompts, load_reward, require_all
from nonpareil.commands.places import check_output, inputs_of
from nonpareil.commands.policies.choose import policy_of
from nonpareil.console import console
from nonpareil.constant_rewards import tell_constant
from nonpareil.options.demo import demo_defaults, uses_demo
from nonpareil.options.guidance import guiding_n
from nonpareil.options.rewards import asked_rewards
from nonpareil.options.sample import SampleOptions
from nonpareil.options.shared import WITH_SPLITS
from nonpareil.options.unread import absent_rewards, absent_splits
from nonpareil.records import Group, ScoreRequest
from nonpareil.settings import refuse_unread
from nonpareil.terminal import printable, tell


def run(options: SampleOptions) -> dict[str, Any]:
    """Draw and score; returns the counts of the manifest.

    Raises:
        NonpareilError: options, prompts, models or rewards that cannot work, before anything is drawn.
    """
    _check(options)
    from nonpareil.rollouts.progress import ProgressBar
    from nonpareil.rollouts.reading import stored_groups
    from nonpareil.rollouts.run import draw_and_score

    policy, sampling = policy_of(options), options.sampling()
    prompts = load_prompts(
        options,
        policy,
        sampling,
        source=options.prompt_source,
        split=options.dataset_split,
        limit=options.max_prompts,
    )
    tell(f"{len(prompts)} prompts, {options.num_generations} completions of each, into {options.output_dir}")
    reward = load_reward(options, policy.tokenizer, prompts, options.max_completion_length)
    most_calls = reward.check_group_size(options.num_generations)
    check_reward(
        reward, prompts, options.max_completion_length, policy.tokenizer, errors_in=options.output_dir
    )
    _tell_calls(most_calls, len(prompts))
    with ProgressBar() as progress:
        result = draw_and_score(
            prompts,
            policy.drawn_by(options.max_tokens_per_batch),
            reward,
            sampling,
            options.num_generations,
            options.output_dir,
            model_info=policy.info(),
            reward_options=asked_rewards(options),
            shard_size=options.shard_size,
            progress=progress,
            overwrite=options.overwrite,
        )
    counts = _asked_for(result.manifest["counts"], reward.names)
    _tell_constant(counts, options.output_dir)
    if options.inspect:
        _inspect(list(islice(stored_groups(result.output_dir), 2)), reward, policy.tokenizer)
    return {
        "output_dir": str(Path(options.output_dir)),
        "shards_drawn": result.shards_drawn,
        "shards_scored": result.shards_scored,
        **({"judge": result.reward_counts} if result.reward_counts else {}),
        **counts,
    }


def _check(options: SampleOptions) -> None:
    """What can be refused before anything is read."""
    require_all(options)
    if options.value is not None:
        guiding_n(options.value, options.n)
    splits = absent_splits({WITH_SPLITS: options.prompt_source or ""})
    refuse_unread(options, absent_rewards(options, None) | splits)
    check_output("output_dir", options.output_dir, inputs_of(options), deletes=options.overwrite)
    from nonpareil.rollouts.folder import check_folder  # with much behind it

    check_folder(options.output_dir, overwrite=options.overwrite)


def _asked_for(counts: dict[str, Any], names: list[str]) -> dict[str, Any]:
    """The counts without what concerns rewards that an earlier run asked for."""
    constant = [name for name in counts.get("constant_rewards", ()) if name in names]
    counts = {key: value for key, value in counts.items() if key != "constant_rewards"}
    counts |= {"constant_rewards": constant} if constant else {}
    failed = {name: counts["failed_rewards"][name] for name in names}
    return {**counts, "failed_rewards": failed}


def _tell_constant(counts: dict[str, Any], output_dir: str) -> None:
    for name in counts.get("constant_rewards", ()):
        tell_constant(name, counts["prompts"], output_dir)


def _tell_calls(most_calls: int, num_prompts: int) -> None:
    """What a judge may cost."""
    if most_calls:
        total = most_calls * num_prompts
        tell(f"the judge is asked at most {total} times, {most_calls} times per prompt")


def _inspect(groups: list[Group], reward: Any, tokenizer: Any) -> None:
    """What policy and reward models really read, for the first completion of each group."""
    for group in groups:
        text = group.prompt if tokenizer is None else tokenizer.decode(group.prompt_token_ids)
        print("policy reads", group.prompt_token_ids, repr(text))
        drew = group.completion_token_ids[0] or repr(group.completions[0])  # a server may give no ids
        print("policy drew", drew, f"({group.finish_reasons[0]})")
        for name, part in zip(reward.names, reward.rewards, strict=True):
            request = reward.as_read(ScoreRequest.of([group]).select([0]))
            if (ids := part.inspect(request)) is not None:
                print(f"reward {printable(name)} reads", ids[0])


def show(result: dict[str, Any]) -> None:
    """Where the groups are, which rewards are null, and what a judge was asked; on stderr."""
    terminal = console()
    terminal.print(
        f"{result['prompts']} groups of {result['completions'] // result['prompts']} in {result['output_dir']} "
        f"({result['shards_drawn']} shards drawn now). Next: nonpareil curve --groups {result['output_dir']}",
        soft_wrap=True,
    )
    show_failed(result)
    if result.get("judge"):
        asked = ", ".join(f"{value} {key}" for key, value in result["judge"].items())
        terminal.print(f"The judge: {asked}", soft_wrap=True)


def show_failed(result: dict[str, Any]) -> None:
    """Which rewards are null, and why; on stderr."""
    for name, failed in result["failed_rewards"].items():
        if failed["count"]:
            reasons = "; ".join(f"{count} times {reason}" for reason, count in failed["reasons"].items())
            console().print(f"{failed['count']} rewards of {name} are null: {reasons}", soft_wrap=True)


def _defaults(given: Mapping[str, Any]) -> dict[str, Any]:
    return {**demo_defaults("test"), "max_prompts": 128} if uses_demo(SampleOptions, given) else {}


COMMAND = Command(
    description=__doc__,
    example=(
        "nonpareil sample --model_name_or_path ./my-model --dataset_name prompts.jsonl \\\n"
        "      --reward_model_name_or_path ./my-reward-model --num_generations 16 --output_dir groups"
    ),
    options=lambda: [SampleOptions],
    run=run,
    show=show,
    defaults=_defaults,
)
