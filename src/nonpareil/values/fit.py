"""Fit a value's network: cross-entropy to the completion's quantile at every one of its prefixes."""

from collections.abc import Callable, Iterator

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel, get_cosine_schedule_with_warmup

from nonpareil.errors import DivergedError
from nonpareil.models.attention import products_on
from nonpareil.models.devices import device_of, fast_dtype
from nonpareil.models.loading import disable_dropout
from nonpareil.models.logprobs import token_budget_batches
from nonpareil.values.examples import Examples
from nonpareil.values.network import prefix_states, read_head
from nonpareil.values.settings import FitSettings

BETAS = (0.9, 0.98)
WARMUP = 0.1
"""Of the steps."""
MOST_GRADIENT = 1.0


def fit_network(
    model: PreTrainedModel,
    examples: Examples,
    settings: FitSettings,
    progress: Callable[[int, int], None] = lambda completions, tokens: None,
) -> None:
    """Train the network in place, on the device that it lies on; its weights are float32.

    A step's loss is the mean over all prefixes of its completions, in however many passes. Passes multiply in
    bfloat16 where the device gains from that. `progress` is told of completions and tokens done.

    Raises:
        DivergedError: a loss or gradient that is no number.
    """
    disable_dropout(model.eval())
    model.get_input_embeddings().weight.requires_grad_(False)
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    rate = settings.learning_rate or default_rate(model)
    optimizer = torch.optim.AdamW(trained, lr=rate, betas=BETAS, weight_decay=0.0)
    size = settings.per_device_train_batch_size
    steps = settings.num_train_epochs * -(-len(examples) // size)
    schedule = get_cosine_schedule_with_warmup(optimizer, int(WARMUP * steps), steps)
    for step, batch in enumerate(_batches(len(examples), settings)):
        tokens = _descend(model, examples, batch, settings.max_tokens_per_batch)
        norm = nn.utils.clip_grad_norm_(trained, MOST_GRADIENT)
        if not norm.isfinite():
            raise DivergedError(
                f"the fit of the value gave a gradient of {norm.item()} in step {step + 1} of {steps}, at the "
                f"learning_rate {rate:g}; take a lower one"
            )
        optimizer.step()
        schedule.step()
        optimizer.zero_grad()
        progress(len(batch), tokens)


def default_rate(model: PreTrainedModel) -> float:
    """A learning rate in inverse proportion to the model's width, as Adam's steps want it (arXiv:2203.03466)."""
    return min(5e-4, 0.25 / model.config.get_text_config().hidden_size)


def _batches(count: int, settings: FitSettings) -> Iterator[list[int]]:
    generator = torch.Generator().manual_seed(settings.seed)
    for _ in range(settings.num_train_epochs):
        order = torch.randperm(count, generator=generator)
        for rows in order.split(settings.per_device_train_batch_size):
            yield rows.tolist()


def _descend(model: PreTrainedModel, examples: Examples, batch: list[int], max_tokens: int) -> int:
    """The gradient of the mean over the batch's prefixes; returns how many tokens were read."""
    sequences = examples.sequences.select(batch)
    prefixes = sum(len(ids) + 1 for ids in sequences.completion_ids)
    for part in token_budget_batches(sequences.lengths(), max_tokens):
        with products_on(device_of(model)):
            losses = prefix_losses(model, examples, [batch[row] for row in part])
            (losses.sum() / prefixes).backward()
    return sum(sequences.lengths())


def prefix_losses(model: PreTrainedModel, examples: Examples, rows: list[int]) -> Tensor:
    """Cross-entropy to the quantile's bins at every prefix, nats `[q]`, of some examples, one behind another."""
    sequences = examples.sequences.select(rows)
    device = device_of(model)
    half = fast_dtype(device) is torch.bfloat16
    with torch.autocast(device.type, torch.bfloat16, enabled=half):
        states = prefix_states(model, sequences)
    sizes = torch.tensor([len(ids) + 1 for ids in sequences.completion_ids])
    labels = examples.labels[rows].repeat_interleave(sizes, dim=0).to(device)
    return -(labels * read_head(model, states).log_softmax(-1)).sum(-1)
