"""A trainer whose result has our model card, and is pushed to the hub only once that is whole."""

import os
from collections.abc import Sequence
from concurrent.futures import Future
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch import nn
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR, HubStrategy, TrainOutput

from nonpareil.errors import ConfigError
from nonpareil.models.adapters import is_adapted, plain_model
from nonpareil.models.license import license_of
from nonpareil.models.pushing import push_folder, push_in_background
from nonpareil.rewards.combine import CombinedReward
from nonpareil.terminal import reason_of, tell
from nonpareil.training.card import CARD, NOT_YET, CardFacts, is_writable, write_card
from nonpareil.training.checkpoints.saving import CheckpointingTrainer

if TYPE_CHECKING:
    from nonpareil.methods.base import Method


_OF_CARD = ("license", "tags", "model_name", "dataset", "dataset_name")
"""What `create_model_card` takes."""


class CardedTrainer(CheckpointingTrainer):
    """A Trainer that writes our card beside what it saves, and knows for which weights it was evaluated.

    Saving pushes nothing. What is pushed is the model and its card (`models.pushing`), once it was evaluated, or
    where the user calls `push_to_hub`; and, as `hub_strategy` says, models of checkpoints, without a card.
    """

    method: "Method"
    reward: CombinedReward
    measured: str = NOT_YET
    """What was reached, for the card; of these very weights."""
    _saved: tuple[str, int] | None = None
    _pushing: "Sequence[Future[Any]]" = ()
    """Checkpoints on their way to the hub."""

    @cached_property
    def card_facts(self) -> CardFacts:
        """What the card says of the training; whoever knows more replaces it."""
        name = plain_model(self.model).name_or_path or ""
        first: Any = self.train_dataset[0]  # type: ignore[index]
        return CardFacts(
            config=self.args,
            method=self.method,
            base=name,
            rewards=self.reward.names,
            adapter=is_adapted(self.model),
            chat=not isinstance(first.prompt, str),
            license=tuple(license_of(name).items()) if name else (),
        )

    @property
    def is_saved(self) -> bool:
        """Whether output_dir holds the weights as they are now."""
        return self._saved == (os.path.realpath(self._folder), self.state.global_step)

    def train(  # type: ignore[override]
        self, resume_from_checkpoint: str | Path | bool | None = None, **kwargs: Any
    ) -> TrainOutput:
        """As `CheckpointingTrainer`; what was saved and measured before is of other weights.

        Without an argument, as `args.resume_from_checkpoint` says.
        """
        if resume_from_checkpoint is None:
            resume_from_checkpoint = self.args.resume_from_checkpoint
        self._saved, self.measured, self._pushing = None, NOT_YET, ()
        return super().train(resume_from_checkpoint, **kwargs)

    def save_model(self, output_dir: str | None = None, _internal_call: bool = False) -> None:
        """As `CheckpointingTrainer`, with the card where it is not a checkpoint that is saved."""
        folder = Path(output_dir or self._folder)
        writable = not _internal_call and self.args.should_save and is_writable(folder / CARD)
        super().save_model(output_dir, _internal_call)
        if _internal_call:
            return
        self.note_saved(folder)
        if writable:  # PEFT has written a card of its own meanwhile
            write_card(folder / CARD, self.card_facts, self.state.global_step, self.measured, anew=True)

    def note_saved(self, folder: Path) -> None:
        """The weights as they are now lie in the folder."""
        self._saved = (os.path.realpath(folder), self.state.global_step)

    def create_model_card(  # type: ignore[override]
        self,
        license: str | None = None,
        tags: str | Sequence[str] | None = None,
        model_name: str | None = None,
        dataset: str | Sequence[str] | None = None,
        dataset_name: str | Sequence[str] | None = None,
    ) -> None:
        """Write our card into output_dir, with what was measured of these weights; in the first process alone.

        Args:
            license: of the model, where it is not the base's.
            tags: beside ours.
            model_name: the card's title.
            dataset: hub names of the training data.
            dataset_name: the same, as TRL calls it.
        """
        facts = self.card_facts
        if license is not None:
            facts = replace(facts, license=(("license", license),))
        facts = replace(
            facts,
            tags=[*facts.tags, *_listed(tags)],
            title=model_name or facts.title,
            datasets=[*facts.datasets, *_listed(dataset), *_listed(dataset_name)],
        )
        self.card_facts = facts  # for the cards of later savings
        if self.is_world_process_zero():
            write_card(self._folder / CARD, facts, self.state.global_step, self.measured)

    def push_to_hub(  # type: ignore[override]
        self,
        commit_message: str | None = None,
        token: str | None = None,
        revision: str | None = None,
        *,
        blocking: bool = True,
        **card: Any,
    ) -> str | None:
        """Send model and card to the hub, after saving what was not saved; returns the commit's address.

        One that was not evaluated says so in its card. `card`: as `create_model_card` takes it. `blocking`, as
        transformers has it, is always so.

        Raises:
            ConfigError: what no card says, or a push that nobody would wait for; before anything is written.
            RemoteError: the hub did not take it; what is saved stays as it is.
        """
        if not blocking:
            raise ConfigError("push_to_hub(blocking=False): the push is waited for; remove it")
        for name in card:
            if name not in _OF_CARD:
                raise ConfigError(
                    f"push_to_hub({name}=...): the model card takes {', '.join(_OF_CARD)}; remove it"
                )
        if not self.is_saved:
            self.save_model()
        self.create_model_card(**card)
        if not self.is_world_process_zero():
            return None
        self._wait_for_pushes()
        args = self.args
        return push_folder(
            self._folder,
            self.hub_model_id or args.hub_model_id or self._folder.resolve().name,
            message=commit_message or f"Trained {self.state.global_step} steps",
            token=token or args.hub_token,
            revision=revision or args.hub_revision,
            private=args.hub_private_repo,
        )

    def _save_checkpoint(self, model: nn.Module, trial: Any) -> None:
        """As `CheckpointingTrainer`; then it is sent to the hub, where that is asked for."""
        super()._save_checkpoint(model, trial)
        if self.args.push_to_hub:
            self.push_checkpoint(self._folder / f"{PREFIX_CHECKPOINT_DIR}-{self.state.global_step}")

    def push_checkpoint(self, folder: Path) -> None:
        """Send a checkpoint's model meanwhile, as `hub_strategy` says; a push that fails is told, and no error."""
        args = self.args
        under_way = [each for each in self._pushing if not each.done()]
        waits = bool(under_way) and not args.hub_always_push
        if args.hub_strategy == HubStrategy.END or not self.is_world_process_zero() or waits:
            return
        message = f"Training in progress, step {self.state.global_step}"
        to: dict[str, Any] = {"token": args.hub_token, "revision": args.hub_revision, "message": message}
        places: list[str | None] = [None]
        if args.hub_strategy in (HubStrategy.CHECKPOINT, HubStrategy.ALL_CHECKPOINTS):
            whole = "last-checkpoint" if args.hub_strategy == HubStrategy.CHECKPOINT else folder.name
            places.append(whole)
        repo_id = str(self.hub_model_id)
        self._pushing = under_way + [
            push_in_background(folder, repo_id, path_in_repo=p, **to) for p in places
        ]

    def _finish_current_push(self) -> None:
        """At the end of a training, by transformers."""
        self._wait_for_pushes()

    def _wait_for_pushes(self) -> None:
        for each in self._pushing:
            if (error := each.exception()) is not None:
                tell(f"a checkpoint was not pushed to {self.hub_model_id}: {reason_of(error)}")
        self._pushing = ()


def _listed(names: str | Sequence[str] | None) -> list[str]:
    return [names] if isinstance(names, str) else list(names or ())
