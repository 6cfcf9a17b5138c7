"""The policy that a trainer is given by its path, before it is loaded."""

from collections.abc import Sequence
from functools import cached_property
from typing import TYPE_CHECKING, Any

from nonpareil.models.model_init import PLAIN, ModelInit, base_init
from nonpareil.records import Prompt

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase as Tokenizer

    from nonpareil.models.endings import Endings


class NamedPolicy:
    """What groups are compared with; see `stored_folder.KnownPolicy`."""

    def __init__(
        self,
        name_or_path: str,
        tokenizer: "Tokenizer",
        *,
        trust_remote_code: bool = False,
        init: ModelInit = PLAIN,
    ):
        """Reads nothing yet; `init` is how the model is read."""
        self.name_or_path, self.tokenizer = name_or_path, tokenizer
        self._how: dict[str, Any] = {"trust_remote_code": trust_remote_code, "init": init}

    @cached_property
    def config(self) -> Any:
        """The model's configuration; of an adapter its base's."""
        from nonpareil.models.adapters import adapter_base
        from nonpareil.models.pretrained import read_config

        how, name, revision = self._how, self.name_or_path, None
        if (base := adapter_base(name)) is not None:
            how = {**how, "init": base_init(name, how["init"])}
            name, revision = base
        return read_config(name, revision, subject=f"model={name!r} has no readable config", **how)

    def info(self) -> dict[str, Any]:
        """Its path and fingerprint."""
        from nonpareil.models.fingerprint import fingerprint

        return {
            "path": self.name_or_path,
            "fingerprint": fingerprint(self.name_or_path, **self._how),
            **({"trust_remote_code": True} if self._how["trust_remote_code"] else {}),
        }

    def endings_of(self, prompts: Sequence[Prompt]) -> "Endings":
        """Where a completion of these prompts ends."""
        from nonpareil.models.endings import stored_endings

        return stored_endings(self.name_or_path, self.tokenizer, prompts, **self._how)
