"""A policy that is known by its path first and loaded only when it must draw."""

from collections.abc import Sequence
from functools import cached_property
from typing import Any

from transformers import AutoConfig, PreTrainedModel
from transformers import PreTrainedTokenizerBase as Tokenizer

from nonpareil.engines.transformers import TransformersEngine, check_prompts, check_sampling
from nonpareil.errors import ModelError
from nonpareil.models.adapters import adapter_base
from nonpareil.models.devices import best_device, resolve_dtype
from nonpareil.models.empty import model_folder
from nonpareil.models.fingerprint import fingerprint
from nonpareil.models.loading import load_policy, load_tokenizer
from nonpareil.records import Prompt, SamplingParams


class PolicySource:
    """Model, tokenizer and identity of one policy; checks what can be checked before any weight is read."""

    def __init__(self, name_or_path: str, revision: str | None = None, dtype: str = "auto"):
        """Reads the tokenizer, so that a directory without one fails here."""
        self.name_or_path, self.revision, self.dtype = name_or_path, revision, dtype
        self.tokenizer: Tokenizer = load_tokenizer(name_or_path, revision)
        self.base = adapter_base(name_or_path)
        """Of an adapter: its base model and that one's revision."""

    @cached_property
    def window(self) -> int | None:
        """Most tokens of prompt and completion together, from the model's config alone."""
        try:
            name, revision = self.base or (self.name_or_path, self.revision)
            config = AutoConfig.from_pretrained(name, revision=revision)
        except (OSError, ValueError) as error:
            raise ModelError(f"{self.name_or_path!r} has no readable config: {error}") from error
        return getattr(config.get_text_config(), "max_position_embeddings", None)

    def check(self, prompts: Sequence[Prompt], sampling: SamplingParams) -> None:
        """Refuse sampling settings and prompts that cannot work; see `engines.transformers`."""
        check_sampling(sampling)
        check_prompts(prompts, sampling.max_completion_length, self.window)

    def load(self, dtype: str | None = None) -> PreTrainedModel:
        """The model, on the best device of this machine."""
        return load_policy(self.name_or_path, dtype=dtype or self.dtype, revision=self.revision)[0]

    def local_path(self) -> str:
        """The model's folder on this machine; a hub model's is downloaded."""
        return str(model_folder(self.name_or_path, self.revision))

    def engine(self, max_tokens_per_batch: int) -> TransformersEngine:
        """The engine over the model, which is loaded now."""
        return TransformersEngine(self.load(), self.tokenizer, max_tokens_per_batch=max_tokens_per_batch)

    def info(self) -> dict[str, Any]:
        """What decides the policy, for manifests: groups of another one are refused."""
        return {
            "path": self.name_or_path,
            "revision": self.revision,
            "fingerprint": fingerprint(self.name_or_path, self.revision),
            "dtype": str(resolve_dtype(self.dtype, best_device())).removeprefix("torch."),
        }
