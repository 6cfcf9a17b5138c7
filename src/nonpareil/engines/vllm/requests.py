"""What vLLM is asked and what its answer must hold, in process and over its server alike."""

import hashlib
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from nonpareil.engines.checks import refuse_changed_draws
from nonpareil.engines.decoding import completion_texts
from nonpareil.engines.sampling import sample_keys
from nonpareil.errors import ConfigError, EngineError
from nonpareil.records import Draws, FinishReason, Prompt, SamplingParams

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase as Tokenizer

LOGPROBS_MODE = "processed_logprobs"
"""vLLM's own default leaves temperature and kept set out of the log-probs it reports."""
KEYED = "nonpareil"
"""Of a request's extra arguments: those of `keyed_draws`."""
_OF_POLICY = ("temperature", "top_p", "top_k", "min_p")


@dataclass(frozen=True)
class VLLMChoice:
    """One completion as vLLM answered it."""

    token_ids: list[int]
    logprobs: list[float]
    finish_reason: str | None


def check_vllm_sampling(sampling: SamplingParams) -> None:
    """Refuse what vLLM would draw from another distribution than the transformers engine.

    Raises:
        ConfigError: min_p together with top_p: vLLM applies min_p first and takes top_p of what is left; or stop
            strings or a penalty, which are not asked of it.
    """
    refuse_changed_draws(sampling, "engine=vllm draws without; engine=transformers and openai take it")
    if sampling.min_p > 0 and sampling.top_p < 1:
        raise ConfigError(
            f"min_p={sampling.min_p} together with top_p={sampling.top_p}: vLLM keeps other tokens than "
            "transformers does, since it applies min_p before top_p; give one of them, or "
            "engine=transformers"
        )


def prompt_seed(seed: int, prompt_id: str) -> int:
    """62 bits of the hash of both: vLLM adds the sample's index, and prompts must not share their noise."""
    digest = hashlib.blake2b(f"{seed}/{prompt_id}".encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little") >> 2


def request_settings(
    prompt: Prompt, num_generations: int, sampling: SamplingParams, end_ids: frozenset[int]
) -> dict[str, Any]:
    """Sampling parameters of one prompt, by the names that `vllm.SamplingParams` and the server share.

    The end ids are ours: vLLM's own reading of a model's end tokens is switched off.
    """
    return {
        "n": num_generations,
        "max_tokens": sampling.max_completion_length,
        "temperature": sampling.temperature,
        "top_p": sampling.top_p,
        "top_k": sampling.top_k,
        "min_p": sampling.min_p,
        "seed": prompt_seed(sampling.seed, prompt.prompt_id),
        "logprobs": 0,
        "ignore_eos": True,
        "stop_token_ids": sorted(end_ids),
    }


def keyed_settings(
    prompts: Sequence[Prompt], num_generations: int, sampling: SamplingParams, end_ids: frozenset[int]
) -> list[dict[str, Any]]:
    """Parameters of the requests that `keyed_draws` draws: one a completion, numbered, those of a prompt together.

    Temperature 0 makes vLLM pick greedily what was drawn; the policy's own is among the extra arguments.
    """
    policy = [getattr(sampling, name) for name in _OF_POLICY]
    keys = [
        key
        for prompt in prompts
        for key in sample_keys(prompt.prompt_id, range(num_generations), sampling.seed).tolist()
    ]
    return [
        {
            "max_tokens": sampling.max_completion_length,
            "temperature": 0.0,
            "ignore_eos": True,
            "stop_token_ids": sorted(end_ids),
            "extra_args": {KEYED: [number, key, *policy]},
        }
        for number, key in enumerate(keys)
    ]


def keyed_request(arguments: Sequence[Any]) -> tuple[int, int, SamplingParams]:
    """Number, key and sampling settings of a request of `keyed_settings`."""
    number, key, *policy = arguments
    return number, key, SamplingParams(**dict(zip(_OF_POLICY, policy, strict=True)))


def draws_of(
    prompt: Prompt,
    choices: Sequence[VLLMChoice],
    num_generations: int,
    sampling: SamplingParams,
    end_ids: frozenset[int],
    tokenizer: "Tokenizer",
) -> Draws:
    """The choices of one prompt as a record, each checked to be what was asked for.

    Raises:
        EngineError: another number of choices, or one without ids, log-probs or a proper ending.
    """
    if len(choices) != num_generations:
        raise EngineError(
            f"prompt {prompt.prompt_id}: vLLM answered {len(choices)} completions where n={num_generations} "
            "were asked for"
        )
    reasons = [_ending(prompt, choice, sampling, end_ids) for choice in choices]
    ids = [choice.token_ids for choice in choices]
    return Draws(
        completions=completion_texts(tokenizer, prompt.token_ids, ids, end_ids),
        completion_token_ids=ids,
        finish_reasons=reasons,
        logprobs=[choice.logprobs for choice in choices],
    )


def _ending(
    prompt: Prompt, choice: VLLMChoice, sampling: SamplingParams, end_ids: frozenset[int]
) -> FinishReason:
    """How a completion ended, by its ids and by vLLM's word, which must agree."""
    ids = choice.token_ids
    ended: FinishReason = "stop" if ids and ids[-1] in end_ids else "length"
    full = ended == "stop" or len(ids) == sampling.max_completion_length
    early = any(token in end_ids for token in ids[:-1])
    if not ids or choice.finish_reason != ended or not full or early:
        raise EngineError(
            f"prompt {prompt.prompt_id}: vLLM answered a completion of {len(ids)} tokens that ended by "
            f"{choice.finish_reason!r}; it must end by 'stop' with one of the end tokens {sorted(end_ids)}, or "
            f"by 'length' after max_completion_length={sampling.max_completion_length} tokens"
        )
    if len(choice.logprobs) != len(ids) or not all(map(math.isfinite, choice.logprobs)):
        raise EngineError(
            f"prompt {prompt.prompt_id}: vLLM answered {len(choice.logprobs)} log-probs for {len(ids)} "
            "tokens, or one that is not finite"
        )
    return ended
