"""Scoring what was drawn: the answers of many requests in one call of the rewards, on a thread of their own."""

from collections.abc import Sequence

from nonpareil.errors import ConfigError, DataError, NonpareilError
from nonpareil.records import FinishReason, Group, PromptText, ScoreRequest
from nonpareil.rewards.combine import CombinedReward
from nonpareil.serving.joined import Batch, Joined
from nonpareil.serving.problems import refused
from nonpareil.serving.reading import answer_text, readable
from nonpareil.serving.records import Drawn, DrawRequest, Scored, UpstreamError

NO_REWARD = "the server has no reward"


class Scorer:
    """A reward that is asked by many requests at once; None leaves every answer without one."""

    def __init__(self, reward: CombinedReward | None) -> None:
        """Starts the thread that scores."""
        self.reward = reward
        self._joined: Joined[Group, Scored] = Joined(self._score, name="scoring")

    @property
    def names(self) -> list[str]:
        """Of the rewards."""
        return [] if self.reward is None else list(self.reward.names)

    def check(self, request: DrawRequest) -> None:
        """Refuse, before anything is drawn, what cannot be scored.

        Raises:
            UpstreamError: 400.
        """
        if self.reward is None:
            return
        readable(request.prompt)
        try:
            self.reward.check_group_size(request.best_of)
        except ConfigError as error:
            raise refused(f"best_of={request.best_of}: {error}", "best_of") from error

    async def score(self, request: DrawRequest, drawn: Drawn) -> Scored:
        """The scores of a request's answers.

        Raises:
            UpstreamError: 400: a text that the reward cannot take; 502: a reward that cannot go on.
        """
        if self.reward is None:
            return unscored((), len(drawn.answers), NO_REWARD)
        try:
            return await self._joined.submit(group_of(readable(request.prompt), drawn))
        except DataError as error:
            raise refused(f"the reward cannot read this: {error}") from error
        except NonpareilError as error:
            raise UpstreamError(502, "reward_error", f"the reward failed: {error}") from error

    async def close(self) -> None:
        """Ends the thread, and lets the rewards go."""
        await self._joined.close()
        if self.reward is not None:
            self.reward.release()

    def _score(self, batch: Batch[Group, Scored]) -> list[Scored]:
        groups = batch.jobs
        assert self.reward is not None  # or nobody asks
        each = self.reward.score_each(ScoreRequest.of(groups))
        found, start = [], 0
        for group in groups:
            here = slice(start, start := start + len(group))
            by_name = {name: scores.values[here] for name, scores in each.items()}
            failures = {name: scores.failures[here] for name, scores in each.items()}
            rewards = self.reward.aggregate(by_name)
            found.append(Scored(by_name, rewards, _reasons(rewards, failures), failures))
        return found


def _reasons(rewards: Sequence[float | None], failures: dict[str, list[str | None]]) -> list[str | None]:
    """Why each aggregate is null, the failing rewards named."""
    found: list[str | None] = []
    for place, reward in enumerate(rewards):
        here = [f"{name}: {words[place]}" for name, words in failures.items() if words[place]]
        found.append(None if reward is not None else "; ".join(here) or "the weighted sum is no number")
    return found


def unscored(names: Sequence[str], count: int, reason: str) -> Scored:
    """So many answers without rewards, and why."""
    failures: list[str | None] = [reason] * count
    nulls: list[float | None] = [None] * count
    return Scored(dict.fromkeys(names, nulls), nulls, failures, dict.fromkeys(names, failures))


def group_of(prompt: PromptText, drawn: Drawn) -> Group:
    """A request's answers as rewards take a group."""
    answers = drawn.answers
    return Group(
        prompt_id="request",
        prompt=prompt,
        prompt_token_ids=drawn.prompt_token_ids or [],
        completions=[answer_text(answer) for answer in answers],
        completion_token_ids=[answer.token_ids or [] for answer in answers],
        finish_reasons=[_ended(answer.finish_reason) for answer in answers],
        logprobs=[[] for _ in answers],
        opening=drawn.info.get("opening"),
    )


def _ended(reason: str) -> FinishReason:
    """How it ended, as rewards know it: an answer that calls tools has ended by itself."""
    return "length" if reason == "length" else "stop"
