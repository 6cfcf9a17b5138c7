"""The records that pass between floors. Token ids are kept from the moment of drawing; nothing is re-tokenised."""

from nonpareil.records.groups import (
    SOURCE,
    Draws,
    FinishReason,
    Group,
    GroupNumbers,
    Prompt,
    PromptText,
    Rendering,
    SamplingParams,
    prompt_id_of,
    prompt_identity,
    prompt_of,
    refuse_repeated,
    text_of,
)
from nonpareil.records.messages import MESSAGE_KEYS, Message, content_of, has_further, turn_text
from nonpareil.records.scores import MOST_REWARD, Logged, ScoreRequest, Scores

__all__ = [
    "MESSAGE_KEYS",
    "MOST_REWARD",
    "SOURCE",
    "Draws",
    "FinishReason",
    "Group",
    "GroupNumbers",
    "Logged",
    "Message",
    "Prompt",
    "PromptText",
    "Rendering",
    "SamplingParams",
    "ScoreRequest",
    "Scores",
    "content_of",
    "has_further",
    "prompt_id_of",
    "prompt_identity",
    "prompt_of",
    "refuse_repeated",
    "text_of",
    "turn_text",
]
