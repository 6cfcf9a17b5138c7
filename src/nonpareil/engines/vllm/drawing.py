"""The two ways to draw with vLLM in this process: by our keys, or by a seed that vLLM has for each request."""

from collections.abc import Callable, Sequence
from typing import Any

from nonpareil.engines.vllm.requests import VLLMChoice, keyed_settings, request_settings
from nonpareil.errors import EngineError
from nonpareil.records import Prompt, SamplingParams

Generate = Callable[[list[list[int]], Any], list[Any]]
"""vLLM's outputs for the token ids of prompts and the parameters of each, in their order."""


def draw_by_key(
    generate: Generate,
    take_logprobs: Callable[[], dict[int, list[float]]],
    prompts: Sequence[Prompt],
    count: int,
    sampling: SamplingParams,
    end_ids: frozenset[int],
) -> list[list[VLLMChoice]]:
    """A request for each completion, whose tokens `keyed_draws` draws: those of the transformers engine.

    One request for a group would be no cheaper: vLLM makes `count` of it, which share the prompt's cache alike.
    `take_logprobs` gives the log-probs that the draws left, by the number of the request.

    Raises:
        EngineError: another prompt answered than the one it was sent.
    """
    from vllm import SamplingParams as VLLMParams

    asked = keyed_settings(prompts, count, sampling, end_ids)
    params = [VLLMParams(**each, detokenize=False) for each in asked]
    repeated = [prompt for prompt in prompts for _ in range(count)]
    outputs = generate([prompt.token_ids for prompt in repeated], params)
    logprobs = take_logprobs()
    choices = []
    for number, (prompt, output) in enumerate(zip(repeated, outputs, strict=True)):
        (one,) = _answers(prompt, output)
        choices.append(VLLMChoice(list(one.token_ids), logprobs.get(number, []), one.finish_reason))
    return [choices[start : start + count] for start in range(0, len(choices), count)]


def draw_by_seed(
    generate: Generate,
    prompts: Sequence[Prompt],
    count: int,
    sampling: SamplingParams,
    end_ids: frozenset[int],
) -> list[list[VLLMChoice]]:
    """A request for each prompt, with a seed of its own; vLLM draws, and gives the log-probs.

    Raises:
        EngineError: another prompt answered than the one it was sent.
    """
    from vllm import SamplingParams as VLLMParams

    settings = [request_settings(prompt, count, sampling, end_ids) for prompt in prompts]
    params = [VLLMParams(**each, detokenize=False) for each in settings]
    outputs = generate([prompt.token_ids for prompt in prompts], params)
    return [
        [_choice(one) for one in _answers(prompt, output)]
        for prompt, output in zip(prompts, outputs, strict=True)
    ]


def _answers(prompt: Prompt, output: Any) -> list[Any]:
    """The completions of a request, by their index."""
    if list(output.prompt_token_ids) != prompt.token_ids:
        raise EngineError(f"prompt {prompt.prompt_id}: vLLM answered another prompt in its place")
    return sorted(output.outputs, key=lambda each: each.index)


def _choice(completion: Any) -> VLLMChoice:
    ids = list(completion.token_ids)
    logprobs = [at[token].logprob for token, at in zip(ids, completion.logprobs, strict=True)]
    return VLLMChoice(ids, logprobs, completion.finish_reason)
