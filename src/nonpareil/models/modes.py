"""The two ways in which a policy is run: to draw from it, and to train it. Both give one and the same law."""

from collections.abc import Iterator
from contextlib import contextmanager

from torch import nn
from transformers import PreTrainedModel


@contextmanager
def generation_mode(model: PreTrainedModel) -> Iterator[None]:
    """Evaluation mode, cache on, gradient checkpointing off; all put back afterwards, also after an error.

    Drawing with checkpointing on silently turns the cache off in some models, and dropout changes the policy.
    """
    cached = hasattr(model.config, "use_cache")  # some configs have no such switch
    use_cache = model.config.use_cache if cached else None
    # Flags, not gradient_checkpointing_enable: that would forget how checkpointing had been set up.
    checkpointing = [module for module in model.modules() if getattr(module, "gradient_checkpointing", False)]
    with evaluation_mode(model):
        if cached:
            model.config.use_cache = True
        for module in checkpointing:
            module.gradient_checkpointing = False  # type: ignore[assignment]
        try:
            yield
        finally:
            for module in checkpointing:
                module.gradient_checkpointing = True  # type: ignore[assignment]
            if cached:
                model.config.use_cache = use_cache


@contextmanager
def evaluation_mode(model: nn.Module) -> Iterator[None]:
    """Evaluation mode; each module's own is put back afterwards."""
    training = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        yield
    finally:
        for module, was in training:
            module.training = was


def training_mode(model: nn.Module) -> None:
    """Evaluation mode, save for the flags that gradient checkpointing asks for.

    In training mode some routers add noise or draw their experts, and the policy that is trained would not be the
    one that draws. Layers that can be checkpointed still need `disable_dropout`, and are compared when loaded.
    """
    model.eval()
    for module in model.modules():
        if hasattr(module, "gradient_checkpointing"):
            module.training = True
    model.training = True
