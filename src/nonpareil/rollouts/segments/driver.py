"""The driver of every search: propose, score what stands so far, keep, go on."""

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

from nonpareil.engines.segments import Partial, SegmentedDraws, SegmentingEngine
from nonpareil.errors import ConfigError
from nonpareil.records import Group, Prompt, SamplingParams, ScoreRequest, refuse_repeated
from nonpareil.rewards.combine import CombinedReward
from nonpareil.rollouts.progress import Progress, Silent
from nonpareil.rollouts.segments.choice import best_places, tie_numbers
from nonpareil.rollouts.segments.schedule import Layer, Schedule
from nonpareil.rollouts.select import best
from nonpareil.setting_types import check_value


@dataclass(frozen=True)
class Found:
    """What a search found for one prompt, and what it cost."""

    candidates: Group
    """The whole completions at its end, scored, in the order of their places in the group. No draws of the policy
    as such: which there are followed from scores."""
    best: int | None
    """Which of them is the answer: the highest reward, ties by the seed; None where all rewards are null."""
    partial_rewards: list[list[float | None]]
    """Of each candidate, the rewards at the schedule's lengths that it was scored at while it had not ended."""
    tokens_drawn: int
    """Of all completions, those given up included; what several go on from counts once."""
    tokens_scored: int
    """Of all texts that the rewards were given, each time again, prompts not counted."""
    failures: dict[str, int]
    """Why rewards were null, and how often."""


@dataclass
class _Pool:
    """The completions of one prompt while it is searched."""

    prompt: Prompt
    place: int
    compared: list[Partial]
    aside: list[Partial] = field(default_factory=list)
    """Ended and behind those that go on: no longer compared, and candidates all the same."""
    scores: dict[int, dict[str, float | None]] = field(default_factory=dict)
    """By sample, what each reward gives, and under "" what they are together: of its present text."""
    ended: set[int] = field(default_factory=set)
    """Samples that are scored as they ended."""
    history: dict[int, list[float | None]] = field(default_factory=dict)
    """By sample, the partial rewards."""
    begun: int = 0
    """Places in the group that are given out."""
    drawn: int = 0
    scored: int = 0
    failures: Counter[str] = field(default_factory=Counter)

    def keep(self, layer: Layer, seed: int) -> list[tuple[Partial, list[int]]]:
        """Give up what is not kept; returns what goes on, and as which samples."""
        values = [self.scores[partial.sample][""] for partial in self.compared]
        ties = tie_numbers(self.prompt.prompt_id, [one.sample for one in self.compared], seed, layer.length)
        places = best_places(values, layer.keeps(len(values)), ties)
        kept = [self.compared[place] for place in places]
        self.aside += [one for place, one in enumerate(self.compared) if one.ended and place not in {*places}]
        going = []
        for partial in kept:
            value = self.scores[partial.sample][""]
            more = 0 if partial.ended else layer.children - 1
            samples = [partial.sample, *range(self.begun, self.begun + more)]
            self.begun += more
            before = self.history.get(partial.sample, [])
            if not partial.ended:
                self.history |= {sample: [*before, value] for sample in samples}
            going.append((partial, samples))
        return going


def search(
    prompts: Sequence[Prompt],
    engine: SegmentingEngine,
    reward: CombinedReward,
    sampling: SamplingParams,
    schedule: Schedule,
    progress: Progress | None = None,
) -> Iterator[Found]:
    """Search for the best completion of each prompt; gives what was found, prompt by prompt, as it is found.

    A completion that has ended stays a candidate to the end, and is scored once. Every random number follows from
    the seed, the prompt's id and the completion's place, so that batches change nothing but by rounding; without
    layers, or where all are kept, the candidates are the group that `engine.draw` gives.

    Raises:
        ConfigError: a layer at or beyond `max_completion_length`, a group that does not fit into the engine's
            `max_tokens_per_batch`, rewards that only compare, or sampling that the engine does not take.
        DataError: no prompts, or two with one id; prompts that cannot be drawn from.
        NotFiniteError: the model's logits are NaN or infinite.
    """
    check_value("schedule", schedule, Schedule)
    schedule.check_length(sampling.max_completion_length)
    refuse_repeated((prompt.prompt_id for prompt in prompts), "the prompts")
    refuse_comparing(reward)
    batches = _batches(prompts, schedule, sampling.max_completion_length, engine.max_tokens_per_batch)
    told = progress or Silent()
    told.start("search", len(prompts))

    def found() -> Iterator[Found]:
        for batch in batches:
            answers = _searched(batch, engine, reward, sampling, schedule)
            told.update(len(answers), sum(one.tokens_drawn for one in answers))
            yield from answers

    return found()


def refuse_comparing(reward: CombinedReward) -> None:
    """Refuse rewards of which a completion has none alone.

    Raises:
        ConfigError: naming them.
    """
    if reward.names_within_groups:
        raise ConfigError(
            f"reward {', '.join(map(repr, reward.names_within_groups))} compares the completions of a group, and a "
            "search scores each alone, again and again; use a reward model or a function, or draw whole groups "
            "(nonpareil sample)"
        )


def check_room(
    prompts: Sequence[Prompt], schedule: Schedule, max_completion_length: int, max_tokens_per_batch: int
) -> None:
    """Refuse a prompt whose completions cannot be drawn together: they are compared while they are drawn.

    Raises:
        ConfigError: naming what would be needed.
    """
    longest = max((len(prompt.token_ids) for prompt in prompts), default=0)
    needed = schedule.most_rows * (longest + max_completion_length)
    if needed > max_tokens_per_batch:
        raise ConfigError(
            f"max_tokens_per_batch={max_tokens_per_batch}: the {schedule.most_rows} completions of a prompt are "
            f"drawn together, and with {longest} tokens of the longest prompt and max_completion_length="
            f"{max_completion_length} they take {needed}; give that, or lower num_generations"
        )


def _batches(
    prompts: Sequence[Prompt], schedule: Schedule, budget: int, max_tokens: int
) -> list[list[Prompt]]:
    """Prompts that are drawn together, in their order; a prompt's completions are never apart."""
    check_room(prompts, schedule, budget, max_tokens)
    batches: list[list[Prompt]] = []
    longest = 0
    for prompt in prompts:
        longest = max(longest, len(prompt.token_ids))
        if batches and (len(batches[-1]) + 1) * schedule.most_rows * (longest + budget) <= max_tokens:
            batches[-1].append(prompt)
        else:
            batches.append([prompt])
            longest = len(prompt.token_ids)
    return batches


def _searched(
    prompts: Sequence[Prompt],
    engine: SegmentingEngine,
    reward: CombinedReward,
    sampling: SamplingParams,
    schedule: Schedule,
) -> list[Found]:
    count = schedule.num_generations
    with engine.segments(prompts, count, sampling) as draws:
        pools = [
            _Pool(prompt, place, [one for one in draws.partials if one.prompt == place], begun=count)
            for place, prompt in enumerate(prompts)
        ]
        for layer in schedule.layers:
            _draw_and_score(draws, pools, layer.length, reward)
            draws.go_on([going for pool in pools for going in pool.keep(layer, sampling.seed)])
            for pool in pools:
                pool.compared = [one for one in draws.partials if one.prompt == pool.place]
            if all(partial.ended for partial in draws.partials):
                break
        _draw_and_score(draws, pools, sampling.max_completion_length, reward)
        return [_found(draws, pool, reward, sampling.seed) for pool in pools]


def _draw_and_score(
    draws: SegmentedDraws, pools: Sequence[_Pool], length: int, reward: CombinedReward
) -> None:
    """Draw on to a length, and score every text that is new."""
    for pool, tokens in zip(pools, draws.draw_to(length), strict=True):
        pool.drawn += tokens
    new = [[one for one in pool.compared if one.sample not in pool.ended] for pool in pools]
    groups = [
        Group.of(pool.prompt, draws.draws(pool.place, partials))
        for pool, partials in zip(pools, new, strict=True)
    ]
    request = ScoreRequest.of(groups)
    if not len(request):
        return
    each = reward.score_each(request)
    values = reward.aggregate({name: scores.values for name, scores in each.items()})
    row = 0
    for pool, partials in zip(pools, new, strict=True):
        for partial in partials:
            by_name = {name: scores.values[row] for name, scores in each.items()}
            pool.scores[partial.sample] = {**by_name, "": values[row]}
            pool.scored += len(partial.token_ids)
            pool.ended |= {partial.sample} if partial.ended else set()
            pool.failures.update(
                f"{name}: {scores.failures[row] or 'no reason given'}"
                for name, scores in each.items()
                if scores.values[row] is None
            )
            row += 1


def _found(draws: SegmentedDraws, pool: _Pool, reward: CombinedReward, seed: int) -> Found:
    last = sorted([*pool.compared, *pool.aside], key=lambda partial: partial.sample)
    group = Group.of(pool.prompt, draws.draws(pool.place, last))
    scores = [pool.scores[partial.sample] for partial in last]
    group.rewards_by_name = {name: [each[name] for each in scores] for name in reward.names}
    group.rewards = [each[""] for each in scores]
    return Found(
        candidates=group,
        best=best(group, seed=seed),
        partial_rewards=[pool.history.get(partial.sample, []) for partial in last],
        tokens_drawn=pool.drawn,
        tokens_scored=pool.scored,
        failures=dict(pool.failures),
    )
