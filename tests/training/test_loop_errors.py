"""An error amid a training costs one step: what was done before it is in a checkpoint, exact to the bit."""

import signal
from pathlib import Path
from typing import Any

import pytest
from transformers import TrainerCallback

from nonpareil.errors import DataError, RewardError
from nonpareil.folders import is_bookkeeping
from nonpareil.rewards import Reward
from nonpareil.training.checkpoint_files import checkpoints_in, last_whole_checkpoint
from tests.training.conftest import assert_same, goodness, make_trainer, metrics, weights
from tests.training.test_spent import spent

FAILS_AT = 5  # of the calls; a step has one, however many batches make it


class Failing(Reward):
    """`goodness`, and at one call an error, until it is mended."""

    def __init__(self, error: Exception | None):
        self.error, self.calls, self.name = error, 0, "goodness"

    def score(self, request: Any) -> Any:
        from nonpareil.records import Scores

        self.calls += 1
        if self.error is not None and self.calls == FAILS_AT:
            raise self.error
        values = goodness(request.completion_ids)
        return Scores(list(values), [None] * len(values))

    def describe(self) -> dict[str, Any]:
        return {"name": self.name}


@pytest.mark.parametrize(
    ("error", "raised", "accumulate"),
    [
        (RewardError("it broke"), RewardError, 1),
        (RewardError("it broke"), RewardError, 2),
        (OSError(28, "No space left on device"), DataError, 1),
        (ZeroDivisionError("a bug"), ZeroDivisionError, 2),
    ],
)
def test_what_was_done_is_kept_and_gone_on_from(
    error: Exception, raised: type, accumulate: int, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The fifth scoring fails: that of step 5."""
    settings = {"max_steps": 6, "per_device_train_batch_size": 3 // accumulate, "num_train_epochs": 9}
    settings |= {"gradient_accumulation_steps": accumulate}
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    straight = make_trainer(whole, reward=Failing(None), **settings)
    straight.train()
    with pytest.raises(raised):
        make_trainer(parts, reward=Failing(error), **settings).train()
    again = make_trainer(parts, reward=Failing(None), **settings)
    assert_gone_on_from(straight, again, FAILS_AT - 1, capsys.readouterr().err)


def test_what_a_step_has_counted_before_it_fails_is_taken_back(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Its draws are counted, and the first of its two passes is in the gradient, when the second fails."""
    settings = {"max_steps": 4, "per_device_train_batch_size": 2, "max_tokens_per_batch": 1}
    straight = make_trainer(tmp_path / "whole", **settings)
    straight.train()
    fails = make_trainer(tmp_path / "parts", **settings)
    backward, passes = fails.accumulator.backward, []

    def breaks(loss: Any) -> None:
        passes.append(fails.state.global_step)
        if passes.count(2) == 2:
            raise ZeroDivisionError("a bug")
        backward(loss)

    fails.accumulator.backward = breaks
    with pytest.raises(ZeroDivisionError):
        fails.train()
    again = make_trainer(tmp_path / "parts", **settings)
    assert_gone_on_from(straight, again, 2, capsys.readouterr().err)


def assert_gone_on_from(straight: Any, again: Any, done: int, said: str) -> None:
    """What failed after `done` steps ends as what never failed."""
    whole, parts = (Path(trainer.args.output_dir) for trainer in (straight, again))
    assert last_whole_checkpoint(parts) == parts / f"checkpoint-{done}"
    assert f"an error ends the training after step {done}, of which {parts}/checkpoint-{done} is kept" in said
    again.train(resume_from_checkpoint=True)
    assert_same(weights(again.model), weights(straight.model))
    assert metrics(parts) == metrics(whole)
    for name in ("completions_drawn", "tokens_drawn", "tokens_trained", "steps"):
        assert spent(parts)[name] == spent(whole)[name], name


def test_nothing_is_written_where_nothing_was_done_or_all_is_kept(tmp_path: Path) -> None:
    reward = Failing(RewardError("at once"))
    reward.calls = FAILS_AT - 1
    with pytest.raises(RewardError):
        make_trainer(tmp_path / "first", reward=reward).train()
    assert not checkpoints_in(tmp_path / "first")
    saved = {"save_strategy": "steps", "save_steps": 4, "max_steps": 6}
    with pytest.raises(RewardError):
        make_trainer(tmp_path / "kept", reward=Failing(RewardError("then")), **saved).train()
    before = (tmp_path / "kept" / "checkpoint-4" / "checkpoint.json").stat().st_mtime_ns
    assert [path.name for path in checkpoints_in(tmp_path / "kept")] == ["checkpoint-4"]
    assert before > 0


def test_between_two_steps_on_the_same_draws_nothing_can_be_kept(tmp_path: Path) -> None:
    class Breaks(TrainerCallback):
        def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            if state.global_step == 3:
                raise DataError("amid")

    settings = {
        "method": "vbon",
        "n": 2,
        "num_iterations": 2,
        "num_generations": 2,
        "num_reference_samples": 2,
    }
    with pytest.raises(DataError, match="amid"):
        make_trainer(tmp_path, callbacks=[Breaks()], **settings).train()
    assert not checkpoints_in(tmp_path)


def test_an_error_while_the_weights_move_keeps_nothing_of_that_step(tmp_path: Path) -> None:
    """After the optimizer's step and before the anchor's the two do not belong together."""

    class Breaks(TrainerCallback):
        def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            if state.global_step == 2:
                raise DataError("amid")

    with pytest.raises(DataError, match="amid"):
        make_trainer(tmp_path, callbacks=[Breaks()]).train()
    assert not checkpoints_in(tmp_path)


def test_a_full_disk_is_one_error_and_leaves_no_half(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A limit on the size of files: the log grows over it, and then no checkpoint can be written either."""
    import resource

    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    trainer = make_trainer(tmp_path, max_steps=6, save_strategy="steps", save_steps=2, log_completions=False)

    class Fills(TrainerCallback):
        def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            if state.global_step == 3:
                resource.setrlimit(resource.RLIMIT_FSIZE, (100, limits[1]))

    trainer.add_callback(Fills())
    previous = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)  # as Python's own start does
    try:
        with pytest.raises(DataError, match=r"^training ended at step 4: .*File too large") as caught:
            trainer.train()
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        signal.signal(signal.SIGXFSZ, previous)
    assert "\n" not in str(caught.value)
    assert "nothing after step 2 is kept: " in capsys.readouterr().err
    assert last_whole_checkpoint(tmp_path) == tmp_path / "checkpoint-2"
    left = {path.name for path in tmp_path.iterdir() if not is_bookkeeping(path)}
    assert left == {"checkpoint-2", "metrics.jsonl"}
