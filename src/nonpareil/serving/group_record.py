"""A served request as the group that is kept of it."""

from typing import cast

from nonpareil.records import FinishReason, Group, PromptText
from nonpareil.serving.records import Drawn, Scored


def group_of(prompt: PromptText, drawn: Drawn, scored: Scored) -> Group:
    """The group, without its id; ids, and log-probs, of all answers or of none."""
    answers = drawn.answers
    ids = bool(drawn.prompt_token_ids) and all(answer.token_ids for answer in answers)
    logprobs = ids and all(
        answer.token_logprobs is not None and len(answer.token_logprobs) == len(answer.token_ids or ())
        for answer in answers
    )
    return Group(
        prompt_id="",
        prompt=prompt,
        prompt_token_ids=list(drawn.prompt_token_ids or []) if ids else [],
        completions=[answer.text for answer in answers],
        completion_token_ids=[list(answer.token_ids or []) if ids else [] for answer in answers],
        finish_reasons=[cast(FinishReason, answer.finish_reason) for answer in answers],
        logprobs=[list(answer.token_logprobs or []) if logprobs else [] for answer in answers],
        rewards_by_name={name: list(values) for name, values in scored.by_name.items()},
        rewards=list(scored.rewards),
        opening=drawn.info.get("opening"),
    )


def null_reasons(scored: Scored) -> list[tuple[str, str]]:
    """Of every null: the reward's name, and why."""
    found = []
    for name, values in scored.by_name.items():
        reasons = scored.failures_by_name.get(name) or [None] * len(values)
        pairs = zip(values, reasons, strict=True)
        found += [(name, reason or "no reason given") for value, reason in pairs if value is None]
    return found
