"""A policy at a strength of its training: it is drawn from and compared like any other, and is never on disk."""

from typing import Any

import torch
from transformers import PreTrainedModel

from nonpareil.commands.policies.local import LocalPolicy
from nonpareil.errors import ConfigError
from nonpareil.models.devices import best_device, cast_weights
from nonpareil.models.interpolation import (
    check_interpolable,
    check_scalable,
    interpolated_model,
    scaled_adapter,
)
from nonpareil.models.model_init import base_init
from nonpareil.models.stored_weights import stored_weights


class InterpolatedPolicy(LocalPolicy):
    """reference + strength * (trained - reference); tokenizer, endings and config are the trained policy's."""

    def __init__(self, trained: LocalPolicy, reference: LocalPolicy, strength: float):
        super().__init__(
            trained.name_or_path,
            trained.revision,
            trained.dtype,
            trust_remote_code=trained.trust_remote_code,
            init=trained.init,
        )
        self.trained, self.reference, self.strength = trained, reference, strength
        self.endings = trained.endings

    def info(self) -> dict[str, Any]:
        """Of both models and the strength, so that groups of another strength are never taken for this one's."""
        return {
            **super().info(),
            "strength": self.strength,
            "reference_fingerprint": self.reference.fingerprint,
        }

    def whole_model(self) -> PreTrainedModel:
        """At 0 and 1 the reference and the trained policy as they are loaded; else computed in float32 from both.

        Raises:
            ModelError, ConfigError: models that cannot be loaded, or not be interpolated.
        """
        if self.strength in (0, 1):
            return (self.trained if self.strength else self.reference).whole_model()
        dtype, names = self.resolved_dtype, (self.trained.name_or_path, self.reference.name_or_path)
        if self.base is not None and dtype is not torch.float32:
            model = scaled_adapter(
                self.name_or_path,
                dtype,
                self.strength,
                trust_remote_code=self.trust_remote_code,
                init=self.init,
            )
        else:
            start = stored_weights(
                names[1],
                self.reference.revision,
                trust_remote_code=self.trust_remote_code,
                init=self.reference.init,
            )
            model = interpolated_model(
                self.name_or_path,
                self.revision,
                start,
                self.strength,
                names=names,
                trust_remote_code=self.trust_remote_code,
                init=self.init,
            )
            cast_weights(model, dtype)
        return model.to(best_device()).eval()  # type: ignore[arg-type]


def check_strengths(trained: LocalPolicy, reference: LocalPolicy) -> None:
    """Refuse two policies between which there are none, before any weight is read.

    Raises:
        ConfigError: as `check_interpolable`; or an adapter that would be scaled beside another base than the
            reference.
    """
    names = (trained.name_or_path, reference.name_or_path)
    check_interpolable((trained.config, trained.tokenizer), (reference.config, reference.tokenizer), names)
    if trained.base is None or trained.resolved_dtype is torch.float32:
        return
    check_scalable(trained.name_or_path, trained.resolved_dtype)
    name, revision = trained.base
    init = base_init(trained.name_or_path, trained.init)
    base = LocalPolicy(name, revision, trust_remote_code=trained.trust_remote_code, init=init)
    if reference.base is not None or base.fingerprint != reference.fingerprint:
        raise ConfigError(
            f"{names[0]!r} is an adapter of {name!r}, and the reference {names[1]!r} is another model: strengths "
            f"between them need dtype=float32, where the adapter is merged"
        )
