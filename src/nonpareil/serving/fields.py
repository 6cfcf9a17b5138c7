"""The fields of a request's body: which there are, which of them an upstream is given, and numbers among them."""

import math
from collections.abc import Mapping
from typing import Any

from nonpareil.serving.problems import refused

OWN = frozenset({"best_of", "rule", "max_draws", "stop_at_reward", "stop_at_quantile"})
"""Ours, beside the protocol's."""
READ_HERE = OWN | {"model", "n", "seed", "stream", "stream_options", "messages", "prompt"}
"""What the server reads itself; an upstream is not given it as it came."""

_DRAWING = frozenset(
    {
        *("frequency_penalty", "logit_bias", "logprobs", "max_tokens", "metadata", "presence_penalty"),
        *("service_tier", "stop", "store", "temperature", "top_p", "user", "safety_identifier"),
        *("prompt_cache_key", "prompt_cache_retention"),
    }
)
_CHAT = frozenset(
    {
        *(
            "audio",
            "function_call",
            "functions",
            "max_completion_tokens",
            "modalities",
            "parallel_tool_calls",
        ),
        *("prediction", "reasoning_effort", "response_format", "tool_choice", "tools", "top_logprobs"),
        *("verbosity", "web_search_options"),
    }
)
_TEXT = frozenset({"echo", "suffix"})
_OF_SERVERS = frozenset(  # what vLLM, SGLang, llama.cpp and others take besides
    {
        *("top_k", "min_p", "typical_p", "repetition_penalty", "length_penalty", "min_tokens", "ignore_eos"),
        *("stop_token_ids", "include_stop_str_in_output", "skip_special_tokens", "bad_words", "priority"),
        *(
            "spaces_between_special_tokens",
            "truncate_prompt_tokens",
            "allowed_token_ids",
            "logits_processors",
        ),
        *("guided_json", "guided_regex", "guided_choice", "guided_grammar", "structured_outputs", "regex"),
        *("json_schema", "ebnf", "grammar", "add_special_tokens", "cache_salt", "vllm_xargs", "lora_path"),
        *("cache_prompt", "id_slot", "top_n_sigma", "xtc_probability", "xtc_threshold", "mirostat"),
        *("dry_multiplier", "dry_base", "dry_allowed_length", "thinking_token_budget"),
    }
)
_CHAT_OF_SERVERS = frozenset(
    {
        *("chat_template_kwargs", "add_generation_prompt", "continue_final_message", "documents"),
        *("chat_template", "include_reasoning", "separate_reasoning", "thinking", "enable_thinking"),
        *("mm_processor_kwargs", "reasoning_format"),
    }
)

FORWARDED = {
    True: _DRAWING | _CHAT | _OF_SERVERS | _CHAT_OF_SERVERS,
    False: _DRAWING | _TEXT | _OF_SERVERS | {"response_format"},
}
"""Of a chat, and of a completion: what goes to the upstream as the client gave it."""

WITHOUT_EFFECT = {
    "frequency_penalty": (0,),
    "presence_penalty": (0,),
    "repetition_penalty": (1,),
    "logit_bias": ({},),
    "logprobs": (False,),
    "top_logprobs": (0,),
    "response_format": ({"type": "text"},),
    "tools": ([],),
    "tool_choice": ("none",),
    "modalities": (["text"],),
    "echo": (False,),
    "suffix": ("",),
    "stop": ([], ""),
    "store": (False,),
    "top_k": (-1, 0),
    "min_p": (0,),
    "min_tokens": (0,),
    "ignore_eos": (False,),
    "length_penalty": (1,),
    "service_tier": ("auto", "default"),
}
"""Values that say what is so without the field, which null says of every field: nobody need read them."""


def has_effect(name: str, value: object) -> bool:
    """Whether a field asks for something; `False` and 0 are different values here."""
    if value is None:
        return False
    neutral = WITHOUT_EFFECT.get(name, ())
    return not any(value == one and isinstance(value, bool) == isinstance(one, bool) for one in neutral)


def whole(body: Mapping[str, Any], name: str, default: int) -> int:
    """A field that is a whole number of at least 1; the default where it is not given.

    Raises:
        UpstreamError: 400: another value.
    """
    value = body.get(name)
    if value is None:
        return default
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise refused(f"{name}={value!r} must be a whole number of at least 1", name)
    return value


def is_number(value: Any) -> bool:
    """Whether it is a finite number, and no boolean."""
    try:
        return not isinstance(value, bool) and isinstance(value, int | float) and math.isfinite(value)
    except OverflowError:  # a whole number of hundreds of digits
        return False
