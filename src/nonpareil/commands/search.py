"""Find one good answer per prompt for fewer tokens: completions are scored while they are drawn."""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nonpareil.commands.command import Command
from nonpareil.commands.inputs import check_reward, load_prompts, load_reward, require_all
from nonpareil.commands.places import check_output, inputs_of
from nonpareil.console import console
from nonpareil.errors import ConfigError, RewardError
from nonpareil.folders import writing_file
from nonpareil.options.demo import demo_defaults, uses_demo
from nonpareil.options.search import SearchOptions
from nonpareil.options.shared import WITH_SPLITS
from nonpareil.options.unread import absent_rewards, absent_splits
from nonpareil.settings import refuse_unread
from nonpareil.terminal import printable

if TYPE_CHECKING:
    from nonpareil.rollouts.segments.answers import SearchCounts
    from nonpareil.rollouts.segments.kept import KeptSearch


def run(options: SearchOptions) -> dict[str, Any]:
    """Search, and write the answers; returns their counts.

    Raises:
        NonpareilError: options, prompts, models or rewards that cannot work, before anything is drawn; or a reward
            that is null for all completions.
    """
    output = Path(options.output)
    _check(options, output)
    schedule = schedule_of(options)
    from nonpareil.commands.policies.local import local_policy
    from nonpareil.engines.checks import refuse_changed_draws
    from nonpareil.engines.segments import NO_STOP, SegmentingEngine
    from nonpareil.rollouts.progress import ProgressBar
    from nonpareil.rollouts.segments.driver import check_room, refuse_comparing
    from nonpareil.rollouts.segments.kept import kept_folder, kept_search, let_go

    policy, sampling = local_policy(options), options.sampling()
    policy.check_drawable()
    refuse_changed_draws(sampling, NO_STOP)
    source, split = options.prompt_source, options.dataset_split
    prompts = load_prompts(options, policy, sampling, source=source, split=split, limit=options.max_prompts)
    check_room(prompts, schedule, sampling.max_completion_length, options.max_tokens_per_batch)
    reward = load_reward(options, policy.tokenizer, prompts, options.max_completion_length)
    refuse_comparing(reward)
    check_reward(reward, prompts, options.max_completion_length, policy.tokenizer)
    with (
        kept_folder(output) as kept,
        writing_file(output, "search", option="output") as folder,
        ProgressBar() as progress,
    ):
        folder.refuse_foreign([output.name])
        work = kept_search(
            kept,
            output,
            prompts,
            reward,
            sampling,
            schedule,
            options.described(),
            model_info=policy.info(),
            shard_size=options.shard_size,
            progress=progress,
            overwrite=options.overwrite,
        )
        room = options.max_tokens_per_batch
        work.draw_missing(
            lambda: SegmentingEngine(policy.load(), policy.tokenizer, max_tokens_per_batch=room)
        )
        counts = _write(output, work)
    let_go(output)
    _refuse_nulls(counts)
    return {"output": str(output), "strategy": options.strategy, **counts.to_dict()}


def _write(output: Path, work: "KeptSearch") -> "SearchCounts":
    """Write the file, if there is an answer; from the kept ones, of which few are in memory at a time."""
    from nonpareil.rollouts.row_files import write_rows
    from nonpareil.rollouts.segments.answers import SearchCounts, answer_row

    counts = SearchCounts()
    for answer in work.answers():
        counts.add(answer)
    if counts.answers:
        work.finished()
        write_rows(output, lambda: map(answer_row, work.answers()))
    return counts


def _refuse_nulls(counts: "SearchCounts") -> None:
    if not counts.answers:
        raise RewardError(
            f"no completion of {counts.prompts} prompts has a reward, and nothing was written: "
            f"{_reasons(counts.failures)}"
        )


def schedule_of(options: SearchOptions) -> Any:
    """The schedule that the options mean.

    Raises:
        ConfigError: lengths that do not rise or leave nothing to draw, or children that do not divide.
    """
    from nonpareil.rollouts.segments.schedule import best_of_n, blockwise, speculative_rejection, tree

    count = options.num_generations
    schedule = {
        "best_of_n": lambda: best_of_n(count),
        "speculative_rejection": lambda: speculative_rejection(
            count, options.rejection_rate, options.lengths
        ),
        "tree": lambda: tree(count, options.children, options.lengths),
        "blockwise": lambda: blockwise(count, options.block_length, options.max_completion_length),
    }[options.strategy]()
    schedule.check_length(options.max_completion_length)
    return schedule


def _check(options: SearchOptions, output: Path) -> None:
    """What can be refused before anything is read."""
    require_all(options)
    splits = absent_splits({WITH_SPLITS: options.prompt_source or ""})
    refuse_unread(options, absent_rewards(options, None) | splits)
    check_output("output", output, inputs_of(options))
    if output.suffix not in (".jsonl", ".parquet"):
        raise ConfigError(f"output={str(output)!r} must end in .jsonl or .parquet")
    if output.exists() and not options.overwrite:
        from nonpareil.rollouts.segments.kept import is_written  # with much behind it

        if not is_written(output):
            raise ConfigError(f"output={str(output)!r} exists; give another path, or overwrite (--overwrite)")


def _reasons(failures: Mapping[str, int], most: int = 3) -> str:
    common = sorted(failures.items(), key=lambda item: -item[1])[:most]
    return "; ".join(f"{count} times {printable(reason)}" for reason, count in common)


def show(result: dict[str, Any]) -> None:
    """How good the answers are and what they cost; on stderr."""
    for line in _lines(result):
        console().print(line, soft_wrap=True)


def _lines(result: dict[str, Any]) -> Iterator[str]:
    each = result["tokens_drawn"] / result["prompts"]
    read = result["tokens_scored"] / result["prompts"]
    yield (
        f"{result['answers']} answers in {result['output']}: mean reward {result['mean_reward']:.3f}, for "
        f"{each:.0f} tokens drawn and {read:.0f} scored per prompt"
    )
    if result["cut"]:
        yield f"{result['cut']} of them are cut at max_completion_length"
    if lacking := result["prompts"] - result["answers"]:
        yield f"{lacking} prompts have no answer: all of their rewards are null"
    if result["failed_rewards"]:
        yield f"Rewards that are null: {_reasons(result['failed_rewards'])}"


def _defaults(given: Mapping[str, Any]) -> dict[str, Any]:
    return {**demo_defaults("test"), "max_prompts": 128} if uses_demo(SearchOptions, given) else {}


COMMAND = Command(
    description=__doc__,
    example=(
        "nonpareil search --model_name_or_path ./my-model --dataset_name prompts.jsonl \\\n"
        "      --reward_model_name_or_path ./my-reward-model --num_generations 32 --score_at 32 64 128"
    ),
    options=lambda: [SearchOptions],
    run=run,
    show=show,
    defaults=_defaults,
)
