"""What gpu.py and memory.py share: Llama-shaped models of random weights, and J-BOND steps taken apart into phases.

The end token is one past the last token that the output head knows: the engine looks for it at every token, as
always, and never finds it, so that every completion has its full length and throughput is that of full batches.
Vocabulary, widths and layers are those of real models of the size; what random weights write does not matter here.
"""

import statistics
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import (
    AutoModelForCausalLM,
    LlamaConfig,
    PreTrainedModel,
    PreTrainedTokenizerFast,
    TrainerCallback,
)

from nonpareil.methods.jbond import JBOND
from nonpareil.models.loading import cast_weights
from nonpareil.records import Prompt
from nonpareil.training import DistillationConfig, DistillationTrainer

# hidden, intermediate, layers, heads, key-value heads, vocabulary
SHAPES: dict[str, tuple[int, int, int, int, int, int]] = {
    "tiny": (64, 128, 2, 4, 2, 512),
    "10M": (320, 864, 6, 5, 5, 8192),
    "25M": (512, 1408, 8, 8, 4, 2048),
    "100M": (768, 2560, 13, 12, 4, 2048),
    "135M": (576, 1536, 30, 9, 3, 49152),
    "250M": (1024, 3584, 18, 16, 8, 2048),
    "0.5B": (896, 4864, 24, 14, 2, 128256),
    "1.5B": (1536, 8960, 28, 12, 2, 128256),
}
LORA = {"use_peft": True, "lora_r": 16, "lora_alpha": 32, "lora_target_modules": ["all-linear"]}
PHASES = ("draw", "score", "anchor_logprobs", "forward_backward", "optimizer_ema")


def make_config(size: str, window: int) -> LlamaConfig:
    """A Llama of this size, tied as models of 0.5B to 1.5B are."""
    hidden, intermediate, layers, heads, kv_heads, vocabulary = SHAPES[size]
    return LlamaConfig(
        vocab_size=vocabulary,
        hidden_size=hidden,
        intermediate_size=intermediate,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        num_key_value_heads=kv_heads,
        max_position_embeddings=window,
        tie_word_embeddings=True,
        bos_token_id=1,
        eos_token_id=None,  # the tokenizer's: one past the last, never drawn
        pad_token_id=0,
    )


def make_model(
    size: str, window: int, device: torch.device, dtype: torch.dtype, seed: int
) -> PreTrainedModel:
    """Random weights, made where they are used."""
    torch.manual_seed(seed)
    with device:
        model = AutoModelForCausalLM.from_config(make_config(size, window), dtype=torch.float32)
    return cast_weights(model, dtype).eval()


def make_tokenizer(vocabulary: int) -> PreTrainedTokenizerFast:
    """One word per token, and the end token behind them."""
    words = {f"w{i}": i for i in range(vocabulary)} | {"</s>": vocabulary}
    core = Tokenizer(models.WordLevel(words, unk_token="w0"))
    core.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(
        tokenizer_object=core, unk_token="w0", bos_token="w1", eos_token="</s>", pad_token="w0"
    )


def make_prompts(count: int, length: int, vocabulary: int, seed: int) -> list[Prompt]:
    """Prompts of exactly so many tokens."""
    generator = torch.Generator().manual_seed(seed)
    rows = torch.randint(2, vocabulary, (count, length), generator=generator).tolist()
    return [Prompt(f"p{i}", f"prompt {i}", ids) for i, ids in enumerate(rows)]


def id_reward(completion_ids: list[list[int]], **columns: Any) -> list[float]:
    """A cheap Python reward without ties."""
    return [sum(ids) / 1e6 for ids in completion_ids]


def make_trainer(
    size: str,
    folder: Path,
    *,
    lora: bool,
    bf16: bool,
    prompts: int,
    prompt_tokens: int,
    completion_tokens: int,
    max_tokens_per_batch: int,
    steps: int,
    seed: int,
    **changes: Any,
) -> DistillationTrainer:
    """A J-BOND trainer as `nonpareil distill` makes it, on random weights."""
    args = DistillationConfig(
        output_dir=str(folder),
        max_steps=steps,
        bf16=bf16,
        per_device_train_batch_size=prompts,
        max_completion_length=completion_tokens,
        max_tokens_per_batch=max_tokens_per_batch,
        method=JBOND(kl_coef=0.1),
        save_strategy="no",
        report_to="none",
        disable_tqdm=True,
        log_completions=False,
        logging_steps=10**6,
        seed=seed,
        **(LORA if lora else {}),
        **changes,
    )
    dtype = getattr(torch, args.policy_dtype())
    model = make_model(size, prompt_tokens + completion_tokens, args.device, dtype, seed)
    vocabulary = model.config.vocab_size
    return DistillationTrainer(
        model,
        id_reward,
        args,
        make_prompts(prompts * args.world_size, prompt_tokens, vocabulary, seed),
        processing_class=make_tokenizer(vocabulary),
    )


class Phases(TrainerCallback):
    """Seconds and peak bytes of each phase of each step.

    `reset_peak` and `peak` say the most bytes since the last reset; `synchronize` waits for the device, so that
    a phase pays for its own kernels.
    """

    def __init__(
        self,
        trainer: DistillationTrainer,
        synchronize: Callable[[], None],
        reset_peak: Callable[[], None],
        peak: Callable[[], int],
    ):
        self.synchronize, self.reset_peak, self.peak = synchronize, reset_peak, peak
        self.seconds: list[dict[str, float]] = []
        self.peaks: dict[str, int] = defaultdict(int)
        self.completions = trainer.method.policy_draws + trainer.method.anchor_draws
        actors = trainer.step_sampler.actors
        self._wrap(actors, "draw", "draw")
        self._wrap(actors, "token_logprobs", "anchor_logprobs")
        self._wrap(trainer.reward, "score_each", "score")
        self._wrap(trainer.accumulator, "step", "forward_backward")
        trainer.add_callback(self)  # behind the anchor's, whose average is then in the last phase

    @contextmanager
    def phase(self, name: str) -> Iterator[None]:
        self._enter()
        yield
        self._leave(name)

    def _enter(self) -> None:
        self.synchronize()
        self.reset_peak()
        self._start = time.perf_counter()

    def _leave(self, name: str) -> None:
        self.synchronize()
        self.seconds[-1][name] += time.perf_counter() - self._start
        self.peaks[name] = max(self.peaks[name], self.peak())

    def _wrap(self, owner: Any, method: str, name: str) -> None:
        inner = getattr(owner, method)

        def timed(*arguments: Any, **options: Any) -> Any:
            with self.phase(name):
                return inner(*arguments, **options)

        object.__setattr__(owner, method, timed)

    def on_step_begin(self, *arguments: Any, **options: Any) -> None:
        self.synchronize()
        self.seconds.append(defaultdict(float))
        self._step_start = time.perf_counter()

    def on_pre_optimizer_step(self, *arguments: Any, **options: Any) -> None:
        self._enter()

    def on_step_end(self, *arguments: Any, **options: Any) -> None:
        self._leave("optimizer_ema")
        self.seconds[-1]["step"] = time.perf_counter() - self._step_start


def spread(values: list[float], digits: int = 4) -> dict[str, float]:
    """Smallest, middle and largest."""
    names = {"min": min(values), "median": statistics.median(values), "max": max(values)}
    return {name: round(value, digits) for name, value in names.items()}
