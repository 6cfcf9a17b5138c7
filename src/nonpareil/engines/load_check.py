"""Whether a model is one law: asked of every policy once it is loaded, on a few tokens.

Draws come token by token, from a cache, in padded groups; training scores whole completions in one pass. Some
models answer otherwise then: they see the future, count positions from the padding's start, keep a state of their
own, or add noise in training. No list of architectures would know those to come, so the model itself is asked.

Log-probs that are NaN or infinite say nothing here: where a prompt is drawn from or scored, they are told with it.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor
from transformers import PreTrainedModel
from transformers import PreTrainedTokenizerBase as Tokenizer

from nonpareil.engines.canary import TOLERANCE
from nonpareil.engines.rows import Completion
from nonpareil.errors import ModelError, NonpareilError
from nonpareil.models.devices import device_of
from nonpareil.models.finer_dtype import FINER, in_dtype
from nonpareil.models.loading import stated_limits
from nonpareil.models.logprobs import TokenSequences, completion_token_logprobs
from nonpareil.models.modes import evaluation_mode, training_mode
from nonpareil.records import Prompt, SamplingParams
from nonpareil.terminal import reason_of

PROMPT_LENGTHS = (7, 3)
"""Uneven, so that one prompt is padded; less where the model's window leaves no room."""
COMPLETION_LENGTH = 4
LONGEST = max(PROMPT_LENGTHS) + COMPLETION_LENGTH
GROUP = 2
STRICTER = 0.05
LEAST_SPREAD = 0.01
"""Standard deviation of the logits below which a model is not compared more strictly still."""

Draw = Callable[[list[Prompt], int, SamplingParams, frozenset[int]], list[list[Completion]]]
"""Prompts, completions of each, sampling, ids that end one: the completions of each prompt."""


def check_drawing(model: PreTrainedModel, tokenizer: Tokenizer, draw: Draw) -> None:
    """Refuse a model whose draws have other log-probs than it gives to the same tokens in one pass.

    Raises:
        ModelError: naming the model, what was compared, and by how much it differs.
    """
    special = set(tokenizer.all_special_ids)

    def compare() -> None:
        check = _LoadCheck(model, special)
        check.sees_no_future()
        check.scores_alike()
        check.draws_what_it_scores(draw)

    _ask(model, compare)


def draws_alike(model: PreTrainedModel, tokenizer: Tokenizer, draw: Draw) -> bool:
    """Whether this way of drawing gives the log-probs of one pass; what ends in an error does not.

    Held more strictly than a model is: there is another way, and float32 leaves no room for doubt.
    """

    def compare() -> None:
        check = _LoadCheck(model, set(tokenizer.all_special_ids))
        check.sees_no_future()
        if model.dtype == torch.float32:
            check.tolerance *= STRICTER
        check.draws_what_it_scores(draw)

    try:
        _ask(model, compare)
    except ModelError:
        return False
    return True


def check_scoring(model: PreTrainedModel, *, trained: bool = False) -> None:
    """Refuse a model that scores a completion otherwise in a padded pass than alone.

    Args:
        model: with its weights; of shards, all processes ask together.
        trained: it is to be trained, and must give the same log-probs in training mode.

    Raises:
        ModelError: as `check_drawing`.
    """

    def compare() -> None:
        check = _LoadCheck(model, set())
        check.sees_no_future()
        check.scores_alike()
        if trained:
            check.trains_without_noise()

    _ask(model, compare)


class _Differs(Exception):
    """Two numbers that should be one; they may be so but for rounding."""


def _ask(model: PreTrainedModel, compare: Callable[[], None]) -> None:
    where = f" ({model.name_or_path!r})" if model.name_or_path else ""
    name = f"{type(model).__name__}{where} cannot be used here"
    try:
        with told_lacking(model), torch.no_grad(), evaluation_mode(model):
            try:
                compare()
            except _Differs:
                if not _agrees_in_finer_dtype(model, compare):
                    raise
    except (NonpareilError, MemoryError, torch.OutOfMemoryError):
        raise
    except _Differs as found:
        raise ModelError(f"{name}: {found}") from None
    except Exception as error:
        raise ModelError(
            f"{name}: drawing and scoring a few tokens, to check that both agree, ended in "
            f"{reason_of(error)}; use a decoder that takes transformers' cache of "
            "attention's keys and values"
        ) from error


@contextmanager
def told_lacking(model: PreTrainedModel) -> Iterator[None]:
    """Passes of a model whose attention, or another operation, may not be made for what is asked of it.

    As a kernel may be there for the few tokens of a check, and not for longer rows.

    Raises:
        ModelError: it is not, with what could be given in its place.
    """
    try:
        yield
    except NotImplementedError as error:
        where = f" ({model.name_or_path!r})" if model.name_or_path else ""
        used = getattr(model.config, "_attn_implementation", None)
        other = "eager" if used != "eager" else "sdpa"
        raise ModelError(
            f"{type(model).__name__}{where}: something that it needs is not there on this device, or in this "
            f"dtype: {reason_of(error)}; give another attn_implementation (it has {used}; {other} is there for "
            "most models), another dtype, or a newer torch"
        ) from error


def _agrees_in_finer_dtype(model: PreTrainedModel, compare: Callable[[], None]) -> bool:
    """Whether a difference was rounding, which in bfloat16 can choose another expert."""
    if model.dtype not in FINER:
        return False
    try:
        with in_dtype(model, FINER[model.dtype]):
            compare()
    except Exception:  # noqa: BLE001 - a kernel of one dtype alone, or no room: then the difference stands
        return False
    return True


class _LoadCheck:
    """A few prompts and completions of one model, and what must agree on them."""

    def __init__(self, model: PreTrainedModel, special: set[int]):
        self.model = model
        window = stated_limits(model.config)[0]
        room = window if window is not None else sum(PROMPT_LENGTHS) + COMPLETION_LENGTH
        self.budget = max(1, min(COMPLETION_LENGTH, room - 2))
        longest = max(1, min(PROMPT_LENGTHS[0], room - self.budget))
        self.lengths = (longest, min(PROMPT_LENGTHS[1], max(1, longest - 1)))
        self.ids = _token_ids(model, special, longest + COMPLETION_LENGTH)
        self.prompts = [self.ids[:length] for length in self.lengths]
        self.tolerance = TOLERANCE.get(str(model.dtype).removeprefix("torch."), TOLERANCE["float32"])

    def sees_no_future(self) -> None:
        """Other tokens at the end must change no logit before them. Scales the tolerance by the logits' spread."""
        prompt, changed = self.prompts[0], max(1, self.lengths[0] // 3)
        before = len(prompt) - changed
        both = torch.tensor([prompt, prompt[:before] + self.ids[-changed:]])
        logits = self._logits(both)
        spread = logits.clamp(min=-1e4).std(-1).mean().item()
        self.tolerance *= min(1.0, max(LEAST_SPREAD, spread))
        one, other = logits[:, :before].log_softmax(-1)
        gaps = (one - other).abs()
        self._compare(
            gaps.masked_fill(gaps.isinf(), torch.nan).nanmean(-1).tolist(),
            "a later token changes the log-probs of earlier ones, so it is no causal model and gives no "
            "probability of a completion; use a decoder, not a masked or bidirectional model",
        )

    def scores_alike(self) -> None:
        """Two completions in one padded pass, as each alone."""
        sequences = TokenSequences(self.prompts, [self.ids[-self.budget :], self.ids[-1:]])
        alone = []
        for prompt, completion in zip(sequences.prompt_ids, sequences.completion_ids, strict=True):
            rows = self._logits(torch.tensor([prompt + completion]))[0].log_softmax(-1)[len(prompt) - 1 : -1]
            alone.append([row[token].item() for row, token in zip(rows, completion, strict=True)])
        self._compare(
            _gaps(alone, self._scores(sequences)),
            "it scores a completion otherwise in a batch than alone, so that something besides its own tokens "
            "counts; use a decoder whose attention is causal",
        )

    def trains_without_noise(self) -> None:
        """Training mode, as the trainer sets it, as evaluation mode."""
        sequences = TokenSequences(self.prompts, [self.ids[-self.budget :]] * 2)
        still, device = self._scores(sequences), device_of(self.model)
        with evaluation_mode(self.model), torch.random.fork_rng([device] if device.type == "cuda" else []):
            training_mode(self.model)
            noisy = self._scores(sequences)
        self._compare(
            _gaps(still, noisy),
            "training mode gives other log-probs than evaluation mode, by a dropout or jitter that could not be "
            "turned off; set it to 0 in the model's config",
        )

    def draws_what_it_scores(self, draw: Draw) -> None:
        """Draws in groups of uneven prompts, some of which end before others, as the same tokens in one pass."""
        firsts = [ids[0] for ids in self._drawn(draw, 1, frozenset())[0].completion_ids]
        ends = frozenset([min(firsts, key=firsts.count)]) if len(set(firsts)) > 1 else frozenset()
        sequences, drawn = self._drawn(draw, self.budget, ends)
        self._compare(
            _gaps(drawn, self._scores(sequences)),
            "tokens drawn one by one, from a cache and in padded groups, have other log-probs than the same tokens "
            "in one pass: it may count positions from the padding's start, or keep its past in a way of its own; "
            "use a decoder that takes transformers' cache, attention mask and position ids",
        )

    def _drawn(
        self, draw: Draw, budget: int, ends: frozenset[int]
    ) -> tuple[TokenSequences, list[list[float]]]:
        prompts = [Prompt(f"load check {i}", "", ids) for i, ids in enumerate(self.prompts)]
        groups = draw(prompts, GROUP, SamplingParams(max_completion_length=budget), ends)
        rows = [(prompt, row) for prompt, group in zip(self.prompts, groups, strict=True) for row in group]
        sequences = TokenSequences([prompt for prompt, _ in rows], [row.token_ids for _, row in rows])
        return sequences, [row.logprobs for _, row in rows]

    def _scores(self, sequences: TokenSequences) -> list[list[float]]:
        """By the path that training takes."""
        scores = completion_token_logprobs(self.model, sequences).tolist()
        return [row[: len(ids)] for row, ids in zip(scores, sequences.completion_ids, strict=True)]

    def _logits(self, ids: Int[Tensor, "b t"]) -> Float[Tensor, "b t v"]:
        """Without padding, mask or cache."""
        return self.model(input_ids=ids.to(device_of(self.model)), use_cache=False).logits.float()

    def _compare(self, gaps: Sequence[float], fault: str) -> None:
        dtype = str(self.model.dtype).removeprefix("torch.")
        worst = max((gap for gap in gaps if math.isfinite(gap)), default=0.0)
        if worst > self.tolerance:
            raise _Differs(
                f"{fault} ({worst:.2g} nats per token apart, at most {self.tolerance:.2g} in {dtype})"
            )


def _gaps(ones: Sequence[Sequence[float]], others: Sequence[Sequence[float]]) -> list[float]:
    """Of each sequence, nats per token, averaged over its tokens with numbers."""
    return [
        (torch.tensor(one) - torch.tensor(other)).abs().nanmean().item()
        for one, other in zip(ones, others, strict=True)
    ]


def _token_ids(model: PreTrainedModel, special: set[int], count: int) -> list[int]:
    """Ids spread over the vocabulary, none of them special where that can be."""
    embeddings: Any = model.get_input_embeddings()
    vocabulary = stated_limits(model.config)[1] or embeddings.num_embeddings
    for config in (model.config, model.config.get_text_config()):
        for name, value in vars(config).items():
            if "token_id" in name or "token_index" in name:
                special = special | set(value if isinstance(value, list) else [value])
    plain = [token for token in range(vocabulary) if token not in special] or list(range(vocabulary))
    stride = max(1, len(plain) // count)
    return [plain[i * stride % len(plain)] for i in range(count)]
