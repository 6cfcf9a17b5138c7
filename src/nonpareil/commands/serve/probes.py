"""What can be answered at all: a chat, a completion, or both; tried before anything is served."""

from typing import TYPE_CHECKING, Any

from nonpareil.errors import DataError, NonpareilError
from nonpareil.records import Group, Prompt, PromptText, SamplingParams, ScoreRequest
from nonpareil.serving.problems import told
from nonpareil.terminal import tell

if TYPE_CHECKING:
    from nonpareil.commands.serve.upstreams import LocalSource, ServedSource
    from nonpareil.rewards.combine import CombinedReward

TRIALS: dict[bool, PromptText] = {False: "Hello", True: [{"role": "user", "content": "Hello"}]}
"""By whether it is a chat."""
_KINDS = {False: "/v1/completions", True: "/v1/chat/completions"}


def unanswerable(
    source: "LocalSource | ServedSource", reward: "CombinedReward | None", best_of: int
) -> dict[bool, str]:
    """By whether it is a chat: why requests of this kind cannot be answered; empty where all can.

    Raises:
        NonpareilError: none can be; or the reward cannot score at all.
    """
    if reward is not None:
        reward.check_group_size(best_of)
    failed: dict[bool, NonpareilError] = {}
    for chat, trial in TRIALS.items():
        try:
            prompt = _prompt(source, trial)
            if reward is None:
                continue
            reward.check_prompts([prompt], 1, source.tokenizer)
            if not reward.compares_within_groups:  # a judge's verdicts cost
                _score(reward, prompt, _KINDS[chat])
        except (DataError, NonpareilError) as error:
            failed[chat] = error
    if len(failed) == len(TRIALS):
        raise failed[False]
    found = {chat: f"{_KINDS[chat]} is not served here: {told(error)}" for chat, error in failed.items()}
    for words in found.values():
        tell(words)
    return found


def _prompt(source: "LocalSource | ServedSource", trial: PromptText) -> Prompt:
    from nonpareil.rollouts.prompts import tokenize_prompts

    kwargs: dict[str, Any] = {} if isinstance(trial, str) else getattr(source, "template_kwargs", {})
    (prompt,) = tokenize_prompts([{"prompt": trial}], source.tokenizer, kwargs)
    if source.tokenizer is not None:
        source.check(prompt, SamplingParams(max_completion_length=1))
    return prompt


def _score(reward: "CombinedReward", prompt: Prompt, kind: str) -> None:
    """One text; this also loads what scores.

    Raises:
        NonpareilError: the reward cannot go on.
    """
    group = Group(prompt.prompt_id, prompt.prompt, prompt.token_ids, [" there."], [[]], ["stop"], [[]])
    for name, scores in reward.score_each(ScoreRequest.of([group])).items():
        if scores.values[0] is None:
            tell(f"{kind}: the reward {name} of a trial text is null: {scores.failures[0]}")
