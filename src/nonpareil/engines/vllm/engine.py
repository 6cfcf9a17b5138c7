"""Draw completions with vLLM in this process, and give it new weights after an update."""

import gc
import tempfile
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nonpareil.engines.checks import check_prompts, check_sampling
from nonpareil.engines.decoding import TEXT
from nonpareil.engines.vllm.drawing import draw_by_key, draw_by_seed
from nonpareil.engines.vllm.requests import LOGPROBS_MODE, check_vllm_sampling, draws_of
from nonpareil.engines.vllm.worker import EXTENSION, KEYED_DRAWS
from nonpareil.errors import ConfigError, DataError, EngineError, SyncError
from nonpareil.models.devices import best_device, resolve_dtype
from nonpareil.models.loading import stored_end_token_ids
from nonpareil.models.logprobs import TokenSequences
from nonpareil.models.vllm import make_llm, save_tensors, shut_down, supported_rank, takes_processors
from nonpareil.records import Draws, Prompt, SamplingParams

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PreTrainedTokenizerBase as Tokenizer

MAX_ADAPTERS = 2
"""Policy and anchor."""


class VLLMEngine:
    """An engine over an in-process `vllm.LLM`.

    Args:
        model: a directory or hub name; with adapters, the base model's.
        tokenizer: decodes what is drawn; vLLM itself works on ids alone.
        dtype: "auto" as everywhere here, "bfloat16", "float16" or "float32".
        revision: of a hub model.
        end_ids: the ids that end a completion, as `models.endings` gives them; by default the model's own.
        max_lora_rank: largest rank of the adapters to come; None takes no adapters.
        max_model_len: most tokens of prompt and completion; by default the model's window.
        gpu_memory_utilization: share of the device's memory for weights and cache; by default vLLM's own.
        tensor_parallel_size: devices that the weights are split over.

    Raises:
        ConfigError: vLLM is not installed, or a setting that cannot work.
        ModelError: vLLM cannot load this model.
    """

    def __init__(
        self,
        model: str,
        tokenizer: "Tokenizer",
        *,
        dtype: str = "auto",
        revision: str | None = None,
        end_ids: frozenset[int] | None = None,
        trust_remote_code: bool = False,
        max_lora_rank: int | None = None,
        max_model_len: int | None = None,
        gpu_memory_utilization: float | None = None,
        tensor_parallel_size: int = 1,
    ):
        """See the class."""
        self.model, self.tokenizer = model, tokenizer
        self.dtype = str(resolve_dtype(dtype, best_device())).removeprefix("torch.")
        stored = partial(
            stored_end_token_ids, model, tokenizer, revision, trust_remote_code=trust_remote_code
        )
        self.end_ids = stored() if end_ids is None else end_ids
        self.takes_adapters = max_lora_rank is not None
        self.default_adapter: str | None = None
        """The adapter that `draw` and `completion_logprobs` use when none is named; None is the base model."""
        self._adapters: dict[str, Any] = {}
        self._adapters_pushed = 0
        settings: dict[str, Any] = {"max_model_len": max_model_len}
        self.keyed = takes_processors()
        """Whether the draws are the transformers engine's, from its keys; else vLLM has a seed for each request."""
        if self.keyed:
            settings["logits_processors"] = [KEYED_DRAWS]
        if gpu_memory_utilization is not None:
            settings["gpu_memory_utilization"] = gpu_memory_utilization
        if max_lora_rank is not None:
            settings |= {
                "enable_lora": True,
                "max_loras": MAX_ADAPTERS,
                "max_lora_rank": supported_rank(max_lora_rank),
            }
        self._llm = make_llm(
            model,
            dtype=self.dtype,
            revision=revision,
            logprobs_mode=LOGPROBS_MODE,
            worker_extension_cls=EXTENSION,
            may_compile=True,
            enable_prefix_caching=True,
            tensor_parallel_size=tensor_parallel_size,
            trust_remote_code=trust_remote_code,
            **settings,
        )

    def describe(self) -> dict[str, Any]:
        """What changes the draws."""
        from vllm import __version__

        return {
            "engine": "vllm",
            **TEXT,
            "version": __version__,
            "dtype": self.dtype,
            "logprobs_mode": LOGPROBS_MODE,
            **({"noise": "by key"} if self.keyed else {}),
        }

    def draw(
        self,
        prompts: Sequence[Prompt],
        num_generations: int,
        sampling: SamplingParams,
        on_progress: Callable[[int, int], None] | None = None,
        adapter: str | None = None,
    ) -> list[Draws]:
        """Draw `num_generations` completions per prompt, all with one adapter or all without.

        There is no way to mix them in a call: vLLM silently gives the base model's rows of a mixed batch the
        last adapter.

        Raises:
            DataError: an empty prompt, or one that leaves no room for `max_completion_length` in the window.
            ConfigError: sampling parameters that cannot work, or an adapter that was never pushed.
            EngineError: an answer that is not what was asked for.
        """
        self.check(prompts, sampling)
        lora = self._request_of(adapter)
        if not prompts:
            return []
        generate = partial(self._generate, lora=lora)
        if self.keyed:
            choices = draw_by_key(
                generate, self._drawn_logprobs, prompts, num_generations, sampling, self.end_ids
            )
        else:
            choices = draw_by_seed(generate, prompts, num_generations, sampling, self.end_ids)
        drawn = [
            draws_of(prompt, each, num_generations, sampling, self.end_ids, self.tokenizer)
            for prompt, each in zip(prompts, choices, strict=True)
        ]
        if on_progress is not None:
            on_progress(len(drawn), sum(len(ids) for d in drawn for ids in d.completion_token_ids))
        return drawn

    def check(self, prompts: Sequence[Prompt], sampling: SamplingParams) -> None:
        """Refuse what cannot be drawn; see `draw`."""
        check_sampling(sampling)
        check_vllm_sampling(sampling)
        check_prompts(prompts, sampling.max_completion_length, self.window)

    @property
    def window(self) -> int:
        """Most tokens of prompt and completion together."""
        return self._loaded().model_config.max_model_len

    def completion_logprobs(self, sequences: TokenSequences, adapter: str | None = None) -> list[float]:
        """log pi(completion | prompt) of each, nats, summed, at temperature 1 over the whole vocabulary.

        Teacher-forced, so that it can be compared with `models.logprobs.completion_logprobs`.

        Raises:
            DataError: a sequence that fills the window: vLLM scores only while it draws a token more.
            ConfigError: an adapter that was never pushed.
        """
        lora = self._request_of(adapter)
        for length in sequences.lengths():
            if length >= self.window:
                raise DataError(
                    f"a sequence of {length} tokens cannot be scored in vLLM's window of {self.window}; "
                    "one token must be left"
                )
        rows = list(zip(sequences.prompt_ids, sequences.completion_ids, strict=True))
        if self.takes_adapters:
            return [self._score_by_steps(prompt, completion, lora) for prompt, completion in rows]
        from vllm import SamplingParams as VLLMParams

        params = VLLMParams(max_tokens=1, temperature=1.0, prompt_logprobs=0, detokenize=False)
        values = []
        for (prompt, completion), output in zip(
            rows, self._generate([p + c for p, c in rows], params, lora), strict=True
        ):
            scored = output.prompt_logprobs[len(prompt) :]
            values.append(sum(at[token].logprob for token, at in zip(completion, scored, strict=True)))
        return values

    def _score_by_steps(self, prompt: list[int], completion: list[int], lora: Any) -> float:
        """A request for each token: vLLM's adapters cannot give the log-probs of a prompt."""
        from vllm import SamplingParams as VLLMParams

        params = [
            VLLMParams(max_tokens=1, temperature=1.0, logprob_token_ids=[token], detokenize=False)
            for token in completion
        ]
        contexts = [prompt + completion[:step] for step in range(len(completion))]
        outputs = self._generate(contexts, params, lora)
        steps = [output.outputs[0].logprobs[0] for output in outputs]
        return sum(step[token].logprob for token, step in zip(completion, steps, strict=True))

    def push_weights(self, weights: "str | Path | Iterable[tuple[str, Tensor]]") -> None:
        """Take new weights: a model directory, or a whole state dict's `items()` by transformers' names.

        Tensors stay in memory where one process holds the engine, and go through a temporary directory where
        vLLM has workers of its own.

        Raises:
            ConfigError: an engine with adapters, whose base model is never retrained.
            SyncError: cached prefixes of the old weights cannot be dropped.
        """
        if self.takes_adapters:
            raise ConfigError("an engine made with max_lora_rank takes new adapters; use push_adapter")
        llm = self._loaded()
        if isinstance(weights, str | Path):
            llm.collective_rpc("nonpareil_push_directory", args=(str(weights),))
        elif self._in_this_process():
            pairs = [(name, tensor.detach()) for name, tensor in weights]
            llm.collective_rpc("nonpareil_push_tensors", args=(pairs,))
        else:
            with tempfile.TemporaryDirectory(prefix="nonpareil-push-") as folder:
                save_tensors(weights, Path(folder))
                llm.collective_rpc("nonpareil_push_directory", args=(folder,))
        self._drop_prefixes()

    def push_adapter(self, name: str, directory: str | Path) -> None:
        """Load an adapter, or a new version of one, under a name for `draw`.

        Each version is a new adapter to vLLM: under an id it knows it would go on with the old weights, and
        under a name it knows with prefixes cached for them. The directory is read before this returns.

        Raises:
            ConfigError: an engine made without `max_lora_rank`.
            EngineError: vLLM does not take the adapter.
        """
        if not self.takes_adapters:
            raise ConfigError("an engine made without max_lora_rank takes no adapters; give max_lora_rank")
        from vllm.lora.request import LoRARequest

        engine = self._loaded().llm_engine
        if (old := self._adapters.pop(name, None)) is not None:
            engine.remove_lora(old.lora_int_id)
        elif len(self._adapters) == MAX_ADAPTERS:
            raise ConfigError(f"adapter {name!r} would be one more than the {MAX_ADAPTERS} held at a time")
        self._adapters_pushed += 1
        version = self._adapters_pushed
        request = LoRARequest(f"{name}@{version}", version, str(directory))
        if not engine.add_lora(request):
            raise EngineError(f"vLLM did not take adapter {name!r} of {directory}")
        self._adapters[name] = request

    def release(self) -> None:
        """Free the engine's memory; it cannot draw any more."""
        if self._llm is not None:
            shut_down(self._llm)
            self._llm = None
            gc.collect()

    def _generate(self, rows: list[list[int]], params: Any, lora: Any) -> list[Any]:
        try:
            return self._loaded().generate(
                [{"prompt_token_ids": ids} for ids in rows], params, use_tqdm=False, lora_request=lora
            )
        except BaseException:  # Ctrl-C too
            # The requests of a failed call stay queued, and the next call would never come back.
            self.release()
            raise

    def _drawn_logprobs(self) -> dict[int, list[float]]:
        return dict(self._loaded().collective_rpc("nonpareil_take_logprobs")[0])

    def _loaded(self) -> Any:
        if self._llm is None:
            raise EngineError("this vLLM engine was released; make a new one")
        return self._llm

    def _request_of(self, adapter: str | None) -> Any:
        name = adapter if adapter is not None else self.default_adapter
        if name is not None and name not in self._adapters:
            known = ", ".join(self._adapters) or "none"
            raise ConfigError(f"adapter={name!r} was never pushed (there is {known}); use push_adapter")
        return None if name is None else self._adapters[name]

    def _in_this_process(self) -> bool:
        # vLLM exposes its executor only where the engine core runs here; several workers never do.
        parallel = self._loaded().llm_engine.vllm_config.parallel_config
        return hasattr(self._loaded().llm_engine, "model_executor") and parallel.world_size == 1

    def _drop_prefixes(self) -> None:
        if not self._loaded().reset_prefix_cache():
            raise SyncError(
                "vLLM keeps prefixes that were cached under the old weights: requests are running"
            )
