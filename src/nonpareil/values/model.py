"""A fitted value: of every prefix the distribution of the final quantile, which gives the value of any target."""

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor
from transformers import PreTrainedModel
from transformers import PreTrainedTokenizerBase as Tokenizer

from nonpareil.errors import ConfigError, DataError, ModelError
from nonpareil.files import jsonable, write_json
from nonpareil.maths.scalars import Real
from nonpareil.maths.target_weights import TargetLaw, log_target_weights, log_values
from nonpareil.models.candidate_states import score_candidates
from nonpareil.models.devices import best_device, resolve_dtype
from nonpareil.models.fingerprint import fingerprint, module_fingerprint
from nonpareil.models.loading import load_tokenizer
from nonpareil.models.logprobs import TokenSequences, token_budget_batches
from nonpareil.models.modes import evaluation_mode
from nonpareil.models.pretrained import check_local_path
from nonpareil.terminal import tell
from nonpareil.text_files import parse_json, read_text
from nonpareil.values.examples import begun_with
from nonpareil.values.network import load_network, prefix_states, read_head

NOTES = "value.json"
"""Beside the weights, written last: a folder without it holds no value."""
FORMAT = 1


@dataclass(frozen=True)
class ValueNotes:
    """What a value is of; all but the bins is empty where nobody knows."""

    bins: int
    """Of equal width, of the quantile of a completion's reward within its group."""
    policy: str | None = None
    """The fingerprint of the reference, whose futures it tells."""
    groups: str | None = None
    """Those that it was fitted on, as `rollouts.credits.groups_identity` has them."""
    rewards: Any = None
    """What scored them."""
    temperature: float | None = None
    """That they were drawn at, at which alone the reference goes on as the value tells."""
    fitted: dict[str, Any] = field(default_factory=dict)
    """How."""
    first_ids: list[int] = field(default_factory=list)
    """Token ids before every text that the network reads: what it began as was trained with them."""


class ValueModel:
    """A causal sequence classifier with a label per bin, read at every prefix.

    Args:
        model: whole in this process; as `network.load_network` gives it.
        tokenizer: the policy's, which is saved beside it.
        notes: what it is of.

    Raises:
        ModelError: a model that has not a label for each of the notes' bins.
    """

    def __init__(self, model: PreTrainedModel, tokenizer: Tokenizer, notes: ValueNotes):
        """See the class."""
        if model.config.num_labels != notes.bins:
            raise ModelError(
                f"a value with {notes.bins} bins, whose network has {model.config.num_labels} labels; they are of "
                "two fits: take the whole folder of one"
            )
        self.model, self.tokenizer, self.notes = model, tokenizer, notes
        self._fingerprint: str | None = None

    def at(self, n: Real, target: TargetLaw = "tilt", *, max_tokens_per_batch: int = 4096) -> "ModelValue":
        """The value for one target: best-of-n, or the exponential tilt that wins as often.

        Raises:
            ConfigError: an unknown target, or n < 1 or not finite.
        """
        return ModelValue(self, float(n), target, max_tokens_per_batch)

    @property
    def fingerprint(self) -> str:
        """Of the weights."""
        if self._fingerprint is None:
            self._fingerprint = module_fingerprint(self.model)
        return self._fingerprint

    def save(self, folder: str | Path) -> None:
        """Write a plain Hugging Face folder and, last of all, value.json."""
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        (folder / NOTES).unlink(missing_ok=True)
        self.model.save_pretrained(folder)
        self.tokenizer.save_pretrained(folder)
        write_json(folder / NOTES, {"format": FORMAT, **asdict(self.notes)})


def read_notes(path: str | Path) -> ValueNotes:
    """What the value of a folder is of; no weight is read.

    Raises:
        ModelError: no such folder, or none of a value.
        DataError: a value.json that is damaged.
    """
    check_local_path(str(path), "value")
    file = Path(path) / NOTES
    if not file.is_file():
        raise ModelError(
            f"value={str(path)!r} has no {NOTES}, so it is no value, or one that was not written to its end; give "
            "a folder that `nonpareil value` wrote"
        )
    found = parse_json(read_text(file), str(file))
    if not isinstance(found, dict) or found.pop("format", None) != FORMAT or not _is_whole(found):
        raise DataError(
            f"{file} is damaged, or of another version; fit the value again with `nonpareil value`"
        )
    return ValueNotes(**found)


def _is_whole(found: dict[str, Any]) -> bool:
    known = set(ValueNotes.__dataclass_fields__)
    if not known - {"temperature", "first_ids"} <= set(found) <= known:  # earlier versions noted neither
        return False
    temperature = found.get("temperature")
    return (
        type(found["bins"]) is int
        and found["bins"] > 0
        and all(type(token) is int for token in found.get("first_ids", []))
        and (temperature is None or (type(temperature) in (int, float) and 0 < temperature < math.inf))
    )


def load_value(
    path: str | Path,
    *,
    dtype: str = "auto",
    device: torch.device | None = None,
    trust_remote_code: bool = False,
) -> ValueModel:
    """The value of a folder, on the machine's best device, in evaluation mode.

    `dtype="auto"` is bfloat16 where the machine gains from it, else float32; the head is float32 always.

    Raises:
        ModelError, DataError: as `read_notes`, or weights that are missing, damaged or of other bins.
    """
    notes = read_notes(path)
    device = device or best_device()
    tokenizer = load_tokenizer(str(path), field="value", trust_remote_code=trust_remote_code)
    model = load_network(
        str(path),
        notes.bins,
        fresh_head=False,
        dtype=resolve_dtype(dtype, device),
        trust_remote_code=trust_remote_code,
    )
    value = ValueModel(model.to(device).eval(), tokenizer, notes)  # type: ignore[arg-type]
    value._fingerprint = fingerprint(str(path), trust_remote_code=trust_remote_code)
    return value


def check_value_of(notes: ValueNotes, policy: str, where: str) -> None:
    """Refuse a value of another policy; `policy`: the fingerprint of this one, `where`: how the value is named.

    Raises:
        ConfigError: it is of another, or of one that nobody knows.
    """
    if notes.policy != policy:
        raise ConfigError(
            f"{where} is the value of prefixes of another policy ({notes.policy}) than this one ({policy}), whose "
            "completions go on otherwise; fit one on groups that this policy drew: `nonpareil value`"
        )


def check_temperature_of(notes: ValueNotes, temperature: float, where: str) -> None:
    """Refuse a value of draws at another temperature than this one's; one that nobody knows is told of.

    Raises:
        ConfigError: naming both.
    """
    if notes.temperature is None:
        tell(
            f"{where} does not say at which temperature its groups were drawn; it tells the truth at that one "
            f"alone, and here draws are at {temperature:g}"
        )
    elif notes.temperature != temperature:
        raise ConfigError(
            f"{where} was fitted on groups drawn at temperature {notes.temperature:g}, and here draws are at "
            f"{temperature:g}, where completions go on otherwise; use temperature={notes.temperature:g}, or fit a "
            f"value on groups drawn at {temperature:g}"
        )


@dataclass(frozen=True)
class ModelValue:
    """A fitted value for one target, as `values.base.PrefixValue` has it."""

    value: ValueModel
    n: float
    target: TargetLaw = "tilt"
    max_tokens_per_batch: int = 4096
    """Of a pass, padding included; it changes no value but for rounding."""

    def __post_init__(self) -> None:
        """See `ValueModel.at`."""
        self._log_weights()

    @property
    def network(self) -> PreTrainedModel:
        """What reads prefixes; `read` makes values of its states."""
        return self.value.model

    def read(self, states: Float[Tensor, "*s d"]) -> Float[Tensor, "*s"]:
        """log E_ref[W | prefix], nats, of the network's last states; a prompt's own is not subtracted."""
        return log_values(read_head(self.value.model, states), self._log_weights())

    @torch.no_grad()
    def prefix_values(self, sequences: TokenSequences) -> Float[Tensor, "b t+1"]:
        """As the protocol says; on the network's device."""
        longest = max(map(len, sequences.completion_ids))
        model = self.value.model
        found = torch.zeros(len(sequences), longest + 1, device=model.device)
        sequences = self._as_read(sequences)
        prompts = self._prompt_values(sequences)
        with evaluation_mode(model):
            for batch in token_budget_batches(sequences.lengths(), self.max_tokens_per_batch):
                some = sequences.select(batch)
                sizes = [len(ids) + 1 for ids in some.completion_ids]
                for row, values in zip(
                    batch, self.read(prefix_states(model, some)).split(sizes), strict=True
                ):
                    found[row, 1 : len(values)] = values[1:] - prompts[row]
        return found

    @torch.no_grad()
    def candidate_values(
        self, sequences: TokenSequences, token_ids: Int[Tensor, "b t k"]
    ) -> Float[Tensor, "b t k"]:
        """As the protocol says; on the network's device."""
        model, sequences = self.value.model, self._as_read(sequences)
        found = score_candidates(
            model, sequences, token_ids, self.read, max_tokens_per_batch=self.max_tokens_per_batch
        )
        lengths = torch.tensor([len(ids) for ids in sequences.completion_ids], device=found.device)
        here = torch.arange(found.shape[1], device=found.device) < lengths[:, None]
        return (found - self._prompt_values(sequences)[:, None, None]) * here[..., None]

    def as_read(self, prompt_ids: Sequence[int]) -> list[int]:
        """A prompt as the network reads it."""
        return begun_with(self.value.notes.first_ids, prompt_ids)

    def describe(self) -> dict[str, Any]:
        """Weights and target."""
        return jsonable({"fingerprint": self.value.fingerprint, "target": self.target, "n": self.n})

    def _log_weights(self) -> Float[Tensor, " w"]:
        return log_target_weights(self.target, self.n, self.value.notes.bins)

    def _as_read(self, sequences: TokenSequences) -> TokenSequences:
        return TokenSequences([self.as_read(ids) for ids in sequences.prompt_ids], sequences.completion_ids)

    def _prompt_values(self, sequences: TokenSequences) -> Float[Tensor, " b"]:
        """log E_ref[W | prompt] of each, as it is read; each prompt is read once, and alike for all that asks."""
        distinct = list(dict.fromkeys(map(tuple, sequences.prompt_ids)))
        alone = TokenSequences([list(ids) for ids in distinct], [[] for _ in distinct])
        values = torch.zeros(len(distinct), device=self.value.model.device)
        with evaluation_mode(self.value.model):
            for batch in token_budget_batches(alone.lengths(), self.max_tokens_per_batch):
                values[batch] = self.read(prefix_states(self.value.model, alone.select(batch)))
        place = {ids: i for i, ids in enumerate(distinct)}
        return values[[place[tuple(ids)] for ids in sequences.prompt_ids]]
