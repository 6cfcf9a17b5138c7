"""Score under policy and anchor where both are sharded, so that no process ever holds a whole model."""

import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from safetensors.torch import save_file
from torch import Tensor, nn
from transformers import PreTrainedModel

from nonpareil.models.anchors import Anchor
from nonpareil.models.distributed import max_over_processes, process_index, wait_for_all
from nonpareil.models.logprobs import TokenSequences, completion_token_logprobs, token_budget_batches
from nonpareil.models.sharding import whole
from nonpareil.training.config import DistillationConfig

if TYPE_CHECKING:
    from nonpareil.engines.vllm.engine import VLLMEngine
    from nonpareil.engines.vllm.server import VLLMServerEngine

FILE_BYTES = 4 * 2**30
"""About what one file of handed-over weights holds, and with it the first process's memory."""


class ShardedScorers:
    """What scores beside a vLLM server that draws; see `base.Scorers`."""

    adapters = {"policy": "", "anchor": ""}  # noqa: RUF012  (as `Scorers` has it)

    def __init__(self, policy: PreTrainedModel, anchor: Anchor | None, config: DistillationConfig):
        self.models: dict[str, PreTrainedModel] = {"policy": policy}
        if anchor is not None:
            self.models["anchor"] = anchor.module
        self.anchor_moves = anchor is not None and anchor.moves
        self.config = config

    def begin_step(self) -> None:
        """See `Scorers`; the models are scored where they are."""

    @torch.no_grad()
    def token_logprobs(self, role: str, sequences: TokenSequences, temperature: float) -> list[Tensor]:
        """See `Scorers`. Every pass gathers shards from all processes, so all make the same number."""
        model = self.models[role]
        training = model.training
        model.eval()
        batches = token_budget_batches(sequences.lengths(), self.config.max_tokens_per_batch)
        values: list[Tensor] = [torch.empty(0)] * len(sequences)
        for index in range(max_over_processes(len(batches))):
            rows = batches[index] if index < len(batches) else []
            mine = sequences.select(rows) if rows else TokenSequences([[0]], [[0]])
            part = completion_token_logprobs(model, mine, temperature).float().cpu()
            for row, logprobs in zip(rows, part, strict=bool(rows)):
                values[row] = logprobs[: len(sequences.completion_ids[row])]
        model.train(training)
        return values

    def hand_over(self, role: str, engine: "VLLMEngine | VLLMServerEngine") -> None:
        """See `Scorers`. Weights are gathered one at a time, and go through files that the server can see."""
        folder = Path(str(self.config.output_dir)).resolve()
        with tempfile.TemporaryDirectory(prefix="push-", dir=folder) as directory:
            for number, tensors in enumerate(self._files(self.models[role])):
                if process_index() == 0:
                    save_file(tensors, Path(directory) / f"model-{number:05d}.safetensors")
            if process_index() == 0:
                engine.push_weights(directory)
            wait_for_all()

    def _files(self, model: nn.Module) -> Iterator[dict[str, Tensor]]:
        """Whole weights in the compute type, a file's worth at a time; empty but in the first process."""
        tensors: dict[str, Tensor] = {}
        held = 0
        for name, parameter in model.named_parameters():
            weight = whole(parameter.detach())
            held += weight.numel() * 4
            if process_index() == 0:
                tensors[name] = weight.to(self.config.compute_dtype(weight.dtype)).cpu().contiguous()
            if held >= FILE_BYTES:
                yield tensors
                tensors, held = {}, 0
        yield tensors
