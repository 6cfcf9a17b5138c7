"""A policy that is known by its path first and loaded only when it must draw."""

from collections.abc import Sequence
from functools import cached_property
from typing import Any

import torch
from transformers import PreTrainedModel
from transformers import PreTrainedTokenizerBase as Tokenizer

from nonpareil.commands.policies.base import Policy
from nonpareil.engines.cache import check_architecture
from nonpareil.engines.checks import check_prompts, check_sampling, check_token_ids
from nonpareil.engines.transformers import TransformersEngine
from nonpareil.errors import ConfigError, ModelError
from nonpareil.models.adapters import adapter_base
from nonpareil.models.devices import best_device, dtype_name, resolve_dtype
from nonpareil.models.empty import model_folder
from nonpareil.models.endings import Endings, end_at, shown, stored_endings, tell_endings
from nonpareil.models.fingerprint import fingerprint
from nonpareil.models.loading import load_policy, load_tokenizer, stated_limits, widened
from nonpareil.models.merging import adapter_vocabulary
from nonpareil.models.model_init import PLAIN, ModelInit, base_init, model_init
from nonpareil.models.pretrained import read_config
from nonpareil.models.quantized import check_quantized
from nonpareil.options.evaluate import EvaluateOptions
from nonpareil.options.shared import ModelOptions
from nonpareil.options.strengths import InterpolateOptions
from nonpareil.records import Prompt, SamplingParams


class LocalPolicy(Policy):
    """Model, tokenizer and identity of one policy; checks what can be checked before any weight is read."""

    def __init__(
        self,
        name_or_path: str,
        revision: str | None = None,
        dtype: str = "auto",
        *,
        field: str = "model_name_or_path",
        trust_remote_code: bool = False,
        init: ModelInit = PLAIN,
    ):
        """Reads the tokenizer, so that a directory without one fails here. `field` is the option that names it."""
        check_quantized(init.quantization, adapted=True)
        self.init = init
        self.name_or_path, self.revision, self.dtype = name_or_path, revision, dtype
        self.trust_remote_code = trust_remote_code
        self.tokenizer: Tokenizer = load_tokenizer(
            name_or_path, revision, field=field, trust_remote_code=trust_remote_code, init=init
        )
        self.base = adapter_base(name_or_path)
        """Of an adapter: its base model and that one's revision."""
        self.endings: Endings | None = None
        """Where a completion of the prompts that were checked ends."""

    @cached_property
    def config(self) -> Any:
        """The model's configuration; of an adapter its base's."""
        name, revision = self.base or (self.name_or_path, self.revision)
        of = f"adapter {self.name_or_path!r}: its base model " if self.base else ""
        subject = f"{of}{name!r} has no readable config"
        init = base_init(self.name_or_path, self.init) if self.base else self.init
        return read_config(
            name, revision, subject=subject, trust_remote_code=self.trust_remote_code, init=init
        )

    @cached_property
    def fingerprint(self) -> str:
        """The content behind the name."""
        return fingerprint(
            self.name_or_path, self.revision, trust_remote_code=self.trust_remote_code, init=self.init
        )

    def check_drawable(self) -> None:
        """Refuse an architecture that `TransformersEngine` cannot draw from, before any prompt or weight is read.

        Raises:
            ModelError: naming it; as `engines.cache.check_architecture`.
        """
        try:
            check_architecture(self.config)
        except ModelError as error:
            raise ModelError(f"{self.name_or_path!r}: {error}") from None

    def check(self, prompts: Sequence[Prompt], sampling: SamplingParams) -> None:
        """Refuse sampling settings and prompts that cannot work; see `engines.transformers`.

        This decides where completions end, as prompts of all checks must have it.
        """
        check_sampling(sampling)
        window, vocabulary = stated_limits(self.config)
        if self.base:
            vocabulary = adapter_vocabulary(self.name_or_path) or vocabulary
        check_prompts(prompts, sampling.max_completion_length, window)
        name, _ = self.base or (self.name_or_path, None)
        check_token_ids(prompts, vocabulary, f"{'the base model' if self.base else 'the model'} {name!r}")
        endings = self.endings_of(prompts)
        if self.endings is None:
            tell_endings(endings, self.tokenizer, self.name_or_path)
        elif self.endings.ids != endings.ids:
            train, held_out = (shown(each.ids, self.tokenizer) for each in (self.endings, endings))
            raise ConfigError(
                f"a completion of the training prompts ends with {train}, of the held-out prompts with {held_out}, "
                "since the chat template closes a turn so; give strings for both, or conversations for both"
            )
        self.endings = endings

    def ends_of_run(self) -> dict[str, list[int]]:
        """Where completions end, as a training's checkpoints keep it."""
        return {} if self.endings is None else {"end_token_ids": sorted(self.endings.ids)}

    def endings_of(self, prompts: Sequence[Prompt]) -> Endings:
        """Where a completion of these prompts ends."""
        return stored_endings(
            self.name_or_path,
            self.tokenizer,
            prompts,
            self.revision,
            trust_remote_code=self.trust_remote_code,
            init=self.init,
        )

    @property
    def resolved_dtype(self) -> torch.dtype:
        """What the weights are loaded in on this machine, whatever they are stored in."""
        return resolve_dtype(self.dtype, best_device())

    @property
    def stored_dtype(self) -> torch.dtype | None:
        """What the weights are stored in; None where the config does not say."""
        if self.base:
            return torch.float32  # in which an adapter is added to its base
        stored = getattr(self.config, "dtype", None)
        return stored if isinstance(stored, torch.dtype) else None

    def load(self, products: torch.dtype | None = None) -> PreTrainedModel:
        """The model, on the best device of this machine.

        `products`: what its matrices are multiplied in, where that is to be wider than `dtype`. The weights are
        those of `dtype` all the same: it is the model that draws.
        """
        model = self.whole_model()
        if self.endings is not None:
            end_at(model, self.tokenizer, self.endings.ids)
        return model if products in (None, self.resolved_dtype) else widened(model, products)

    def whole_model(self) -> PreTrainedModel:
        """The model as its files have it, in the dtype and on the device that it is drawn from in."""
        return load_policy(
            self.name_or_path,
            dtype=self.dtype,
            revision=self.revision,
            trust_remote_code=self.trust_remote_code,
            init=self.init,
        )[0]

    def local_path(self) -> str:
        """The model's folder on this machine, for what reads it by itself; a hub model's is downloaded.

        Raises:
            ConfigError: a model that is more than the folder says.
        """
        self.check_plain("shard_weights and vLLM")
        return str(model_folder(self.name_or_path, self.revision))

    def check_plain(self, what: str) -> None:
        """Refuse a policy that is more than its folder says, for `what` reads the folder by itself.

        Raises:
            ConfigError: naming the setting.
        """
        if self.init.law:
            law = ", ".join(f"{name}={value!r}" for name, value in self.init.law.items())
            raise ConfigError(
                f"{what} would read {self.name_or_path!r} without {law}; load the model with it, save it "
                "(save_pretrained), and name that folder"
            )

    def engine(self, max_tokens_per_batch: int) -> TransformersEngine:
        """The engine over the model, which is loaded now."""
        return TransformersEngine(self.load(), self.tokenizer, max_tokens_per_batch=max_tokens_per_batch)

    def info(self) -> dict[str, Any]:
        """What decides the policy, for manifests: groups of another one are refused."""
        return {
            "path": self.name_or_path,
            "revision": self.revision,
            "fingerprint": self.fingerprint,
            "dtype": dtype_name(self.resolved_dtype),
            **({} if self.endings is None else self.endings.describe()),
            **({"trust_remote_code": True} if self.trust_remote_code else {}),
            **self.init.law,
        }


def local_policy(options: ModelOptions) -> LocalPolicy:
    """The policy of a command's options, on this machine."""
    return LocalPolicy(
        options.model_name_or_path or "",
        options.model_revision,
        options.dtype,
        trust_remote_code=options.trust_remote_code,
        init=model_init(options, gguf_file=options.gguf_file),
    )


def reference_policy(options: EvaluateOptions | InterpolateOptions) -> LocalPolicy:
    """The policy that it is compared with: what it was before it was trained."""
    return LocalPolicy(
        options.reference_model_name_or_path or "",
        options.reference_model_revision,
        options.dtype,
        field="reference_model_name_or_path",
        trust_remote_code=options.trust_remote_code,
        init=model_init(options, gguf_file=options.reference_gguf_file),
    )
