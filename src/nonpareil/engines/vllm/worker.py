"""What runs inside vLLM's workers. Named by its import path, so that every kind of worker can load it.

Imports nothing: workers of another process load this file before anything else of ours.
"""

from collections.abc import Sequence
from typing import Any

EXTENSION = "nonpareil.engines.vllm.worker.WeightPush"
"""For vLLM's `worker_extension_cls`."""
KEYED_DRAWS = "nonpareil.engines.vllm.keyed_draws:KeyedDraws"
"""For vLLM's `logits_processors`."""


class WeightPush:
    """Mixed into vLLM's worker; `collective_rpc` calls its methods by name."""

    reload_weights: Any
    model_runner: Any
    vllm_config: Any

    def nonpareil_describe(self) -> dict[str, Any]:
        """How this engine was started, in plain values for a server's JSON."""
        config = self.vllm_config.model_config
        return {
            "dtype": str(config.dtype).removeprefix("torch."),
            "logprobs_mode": str(config.logprobs_mode),
            "max_model_len": config.max_model_len,
            "vocab_size": config.get_vocab_size(),
            "takes_adapters": self.vllm_config.lora_config is not None,
        }

    def nonpareil_take_logprobs(self) -> list[tuple[int, list[float]]]:
        """Log-probs of what `KeyedDraws` drew since they were last taken, beside the number of each request."""
        name = KEYED_DRAWS.rpartition(":")[2]
        processors = self.model_runner.input_batch.logitsprocs.all
        (ours,) = (each for each in processors if type(each).__name__ == name)
        return list(ours.log.take().items())

    def nonpareil_push_directory(self, path: str) -> bool:
        """Read new weights from a model directory that this worker can see."""
        self.reload_weights(weights_path=path)
        return self._repack_tied_head()

    def nonpareil_push_tensors(self, named_tensors: Sequence[tuple[str, Any]]) -> bool:
        """Take new weights from tensors of this process."""
        self.reload_weights(weights_iterator=iter(named_tensors))
        return self._repack_tied_head()

    def _repack_tied_head(self) -> bool:
        """Pack a tied output head anew: the CPU backend packs a copy, which a reload leaves as it was."""
        model = self.model_runner.model
        head = getattr(model, "lm_head", None)
        tied = getattr(getattr(model, "config", None), "tie_word_embeddings", False)
        if tied and head is not None and hasattr(head, "cpu_linear"):
            head.quant_method.process_weights_after_loading(head)
        return True
