"""Log-probabilities of completions, in chunks, so that memory does not grow with tokens x vocabulary."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from weakref import WeakKeyDictionary

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint
from transformers import PreTrainedModel

from nonpareil.maths.kl import token_kl
from nonpareil.models.devices import device_of
from nonpareil.models.packing import even_sizes, pack, row_width
from nonpareil.models.sharding import output_head, within
from nonpareil.records import Draws, Prompt

CHUNK_ELEMENTS = 2**22
"""Logits held at once, tokens x vocabulary of one chunk: 16 MiB in float32, which a CPU's cache helps with."""
ACCELERATOR_CHUNKS = 16
"""An accelerator takes so many times as much, to keep its matrix units busy."""


@dataclass(frozen=True)
class TokenSequences:
    """Prompts with the completions that were sampled for them; plain ids, padded only inside a forward pass."""

    prompt_ids: list[list[int]]
    completion_ids: list[list[int]]

    @classmethod
    def of(cls, prompts: Sequence[Prompt], drawn: Sequence[Draws]) -> "TokenSequences":
        """Every completion with its prompt, prompt by prompt."""
        pairs = list(zip(prompts, drawn, strict=True))
        return cls(
            [prompt.token_ids for prompt, draws in pairs for _ in draws.completion_token_ids],
            [ids for _, draws in pairs for ids in draws.completion_token_ids],
        )

    def __len__(self) -> int:
        return len(self.prompt_ids)

    def select(self, rows: Sequence[int]) -> "TokenSequences":
        """Some of the sequences, in the order given."""
        return TokenSequences([self.prompt_ids[i] for i in rows], [self.completion_ids[i] for i in rows])

    def lengths(self) -> list[int]:
        """Tokens of prompt and completion together, one number per sequence."""
        return [len(p) + len(c) for p, c in zip(self.prompt_ids, self.completion_ids, strict=True)]

    def by_prompt(self) -> list[list[int]]:
        """The sequences of each prompt, where they come one after another."""
        groups: list[list[int]] = []
        for index, prompt in enumerate(self.prompt_ids):
            if groups and self.prompt_ids[groups[-1][0]] == prompt:
                groups[-1].append(index)
            else:
                groups.append([index])
        return groups

    def in_rows(self, per_row: int) -> list[list[int]]:
        """The sequences of each row, where up to so many of one prompt share one."""
        rows = []
        for group in self.by_prompt():
            start = 0
            for size in even_sizes(len(group), per_row):
                rows.append(group[start : start + size])
                start += size
        return rows

    def width(self, row: Sequence[int]) -> int:
        """Tokens of a row that these sequences share."""
        return row_width(len(self.prompt_ids[row[0]]), [len(self.completion_ids[i]) for i in row])


def row_batches(sequences: TokenSequences, per_row: int, max_tokens: int) -> list[list[list[int]]]:
    """Batches as `token_budget_batches` makes them, of rows that up to `per_row` sequences of a prompt share."""
    rows = sequences.in_rows(per_row)
    batches = token_budget_batches([sequences.width(row) for row in rows], max_tokens)
    return [[rows[i] for i in batch] for batch in batches]


def token_budget_batches(lengths: Sequence[int], max_tokens: int) -> list[list[int]]:
    """Rows in batches of about one length: rows x longest stays within `max_tokens` (one row may exceed it)."""
    batches: list[list[int]] = []
    for row in sorted(range(len(lengths)), key=lambda i: (-lengths[i], i)):
        # Longest first, so the first row of a batch is its width and an out-of-memory shows at once.
        if batches and lengths[batches[-1][0]] * (len(batches[-1]) + 1) <= max_tokens:
            batches[-1].append(row)
        else:
            batches.append([row])
    return batches


def completion_logprobs(
    model: PreTrainedModel, sequences: TokenSequences, temperature: float = 1.0
) -> Float[Tensor, " b"]:
    """log pi(completion | prompt) of each sequence, nats, summed over its tokens, the end token included.

    See `completion_token_logprobs`.
    """
    return completion_token_logprobs(model, sequences, temperature).sum(-1)


def completion_token_logprobs(
    model: PreTrainedModel,
    sequences: TokenSequences,
    temperature: float = 1.0,
    sizes: Sequence[int] | None = None,
) -> Float[Tensor, "b t"]:
    """log pi of each completion token, nats, the end token included; 0 behind the completion's end.

    t is the longest completion. One forward pass; gradients flow where grad mode is on. Logits are upcast to
    float32 before the softmax, `CHUNK_ELEMENTS` of them at a time, and computed anew in the backward pass.

    `sizes`: how many consecutive sequences, of one prompt, share each row (`packing`), of a model that takes such
    rows (`packing_check`); without it, each has its own.
    """
    values = within(model, _token_logprobs, sequences, temperature, sizes)
    if sizes is not None and not torch.is_grad_enabled() and not values.isfinite().all():
        # NaN in one completion reaches all of its row; alone, each has its own numbers.
        return within(model, _token_logprobs, sequences, temperature, None)
    return values


def _token_logprobs(
    model: PreTrainedModel, sequences: TokenSequences, temperature: float, sizes: Sequence[int] | None
) -> Float[Tensor, "b t"]:
    hidden, targets, owner, logits_of = predicting_states(model, sequences, sizes)
    values = []
    for chunk in chunks(hidden, model.config.get_text_config().vocab_size):
        arguments = (logits_of, hidden[chunk], targets[chunk], temperature)
        if torch.is_grad_enabled():
            values.append(checkpoint(_target_logprobs, *arguments, use_reentrant=False))
        else:
            values.append(_target_logprobs(*arguments))
    lengths = [len(ids) for ids in sequences.completion_ids]
    column = torch.cat([torch.arange(length) for length in lengths]).to(owner.device)
    padded = torch.zeros(len(sequences), max(lengths), device=hidden.device)
    return padded.index_put((owner, column), torch.cat(values)) if values else padded


@torch.no_grad()
def completion_divergence(
    policy: PreTrainedModel,
    reference: PreTrainedModel,
    sequences: TokenSequences,
    temperature: float = 1.0,
    sizes: Sequence[int] | None = None,
) -> tuple[Float[Tensor, " b"], Float[Tensor, " b"]]:
    """Exact per-token KL(policy || reference), and log pi - log pi_ref, summed along each completion, nats.

    Averaged over completions that the policy drew, both estimate the sequence-level KL; the first with far
    less variance, since each step's expectation is exact. `sizes`: as in `completion_token_logprobs`.
    """
    states, targets, owner, policy_logits = predicting_states(policy, sequences, sizes)
    reference_states, _, _, reference_logits = predicting_states(reference, sequences, sizes)
    kl = torch.zeros(len(sequences), device=states.device)
    log_ratio = torch.zeros_like(kl)
    for chunk in chunks(states, 2 * policy.config.get_text_config().vocab_size):
        ours = policy_logits(states[chunk]).float() / temperature
        theirs = reference_logits(reference_states[chunk]).float() / temperature
        kl.index_add_(0, owner[chunk], token_kl(ours, theirs))
        ratio = _gather(ours, targets[chunk]) - _gather(theirs, targets[chunk])
        log_ratio.index_add_(0, owner[chunk], ratio)
    return kl, log_ratio


def predicting_states(
    model: PreTrainedModel, sequences: TokenSequences, sizes: Sequence[int] | None
) -> tuple[Float[Tensor, "t d"], Int[Tensor, " t"], Int[Tensor, " t"], Callable[[Tensor], Tensor]]:
    """The states that predict each completion token, those tokens, the sequence of each, and the output head."""
    device = device_of(model)
    completions = sequences.completion_ids
    if sizes is None or max(sizes) == 1:
        inputs, predicting = _separate_rows(sequences, device)
    else:
        packed = pack(sequences.prompt_ids, completions, sizes, device)
        added = model.config._attn_implementation == "eager"
        inputs, predicting = packed.inputs(additive=model.dtype if added else None), packed.predicting
    target_ids = torch.tensor([token for ids in completions for token in ids], dtype=torch.long).to(device)
    owners = torch.repeat_interleave(
        torch.arange(len(completions)), torch.tensor([len(ids) for ids in completions])
    ).to(device)
    if output_head_is_plain(model):
        states = _hidden_states(model, inputs)
        return states.flatten(0, 1)[predicting], target_ids, owners, output_head(model)
    logits = model(**inputs, use_cache=False).logits
    return logits.flatten(0, 1)[predicting], target_ids, owners, nn.Identity()


def _separate_rows(
    sequences: TokenSequences, device: torch.device
) -> tuple[dict[str, Tensor], Int[Tensor, " t"]]:
    """Each sequence as a row, and where in the flattened rows the states that predict its completion lie."""
    width = max(sequences.lengths())
    # Right padding needs no attention mask: under causal attention no real token sees what comes behind it.
    input_ids = torch.zeros(len(sequences), width, dtype=torch.long)
    positions = []
    for row, (prompt, completion) in enumerate(
        zip(sequences.prompt_ids, sequences.completion_ids, strict=True)
    ):
        input_ids[row, : len(prompt) + len(completion)] = torch.tensor(prompt + completion)
        first = row * width + len(prompt) - 1
        positions.append(torch.arange(first, first + len(completion)))
    return {"input_ids": input_ids.to(device)}, torch.cat(positions).to(device)


_PLAIN_HEADS: "WeakKeyDictionary[nn.Module, bool]" = WeakKeyDictionary()


@torch.no_grad()
def output_head_is_plain(model: PreTrainedModel) -> bool:
    """Whether the logits are the output embedding applied to the last hidden state, and nothing more.

    Some models scale or cap their logits behind the head. This asks the model itself, once, on three tokens;
    where the answer is no, the whole logits are formed (right, but memory grows with tokens x vocabulary).
    """
    if model not in _PLAIN_HEADS:
        head = model.get_output_embeddings()
        # base_model answers the model itself where it knows no inner one.
        separate = isinstance(head, nn.Module) and model.base_model is not model
        _PLAIN_HEADS[model] = separate and _logits_are_the_heads(model, head)
    return _PLAIN_HEADS[model]


def _hidden_states(model: PreTrainedModel, inputs: dict[str, Tensor]) -> Float[Tensor, "b t d"]:
    return model.base_model(**inputs, use_cache=False).last_hidden_state


def _logits_are_the_heads(model: PreTrainedModel, head: nn.Module) -> bool:
    seen: list[tuple[Tensor, Tensor]] = []

    def replace(module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> Tensor:
        # A cap shows on large logits only, and those of an untrained model are small.
        large = torch.linspace(-1e4, 1e4, output.numel()).to(output).view_as(output)
        seen.append((inputs[0], large))
        return large

    training = [(module, module.training) for module in model.modules()]
    hook = head.register_forward_hook(replace)
    model.eval()
    try:
        ids = torch.arange(3, device=device_of(model))[None]
        logits = model(input_ids=ids, use_cache=False).logits
        states = within(model, _hidden_states, {"input_ids": ids})
    finally:
        hook.remove()
        # Autocast keeps the casts made here; torch before 2.11 would train on them, and they pass on no gradient.
        torch.clear_autocast_cache()
        for module, was in training:
            module.training = was
    if len(seen) != 1 or seen[0][0].shape != states.shape or seen[0][1].shape != logits.shape:
        return False
    same_states = torch.allclose(seen[0][0].float(), states.float(), rtol=1e-2, atol=1e-3)
    return same_states and torch.equal(seen[0][1].float(), logits.float())


def chunk_elements(device: torch.device) -> int:
    """Logits that may be held at once on a device."""
    return CHUNK_ELEMENTS * (1 if device.type == "cpu" else ACCELERATOR_CHUNKS)


def chunks(states: Float[Tensor, "t d"], vocab_size: int) -> Iterator[slice]:
    """Slices of the states whose logits may be held at once."""
    size = max(1, chunk_elements(states.device) // vocab_size)
    return (slice(start, start + size) for start in range(0, len(states), size))


def _target_logprobs(
    logits_of: Callable[[Tensor], Tensor], states: Tensor, targets: Tensor, temperature: float
) -> Float[Tensor, " t"]:
    return _gather(logits_of(states).float() / temperature, targets)


def _gather(logits: Float[Tensor, "t v"], targets: Int[Tensor, " t"]) -> Float[Tensor, " t"]:
    # Not log_softmax: logsumexp keeps one vocabulary-wide tensor fewer alive.
    return logits.gather(-1, targets[:, None])[:, 0] - logits.logsumexp(-1)
