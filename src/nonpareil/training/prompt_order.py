"""The order of prompts: whole batches for every process, and batches that serve several optimizer steps."""

import math
from collections.abc import Iterator

import torch
from accelerate.data_loader import prepare_data_loader
from torch.utils.data import DataLoader, Sampler

from nonpareil.errors import ConfigError
from nonpareil.methods.base import Method
from nonpareil.training.config import DistillationConfig


class RepeatedBatches(Sampler[int]):
    """Shuffled indices in whole batches, each batch `repeats` times in a row; a rest that fills no batch waits.

    The order follows from seed and epoch alone, so that a resumed run sees the same.

    Raises:
        ConfigError: fewer prompts than fill one batch.
    """

    def __init__(self, size: int, batch_size: int, repeats: int, seed: int):
        if size < batch_size:
            raise ConfigError(
                f"per_device_train_batch_size: a step has {batch_size} prompts over all processes, more than the "
                f"{size} there are, and with num_iterations={repeats} every batch must be full; lower it, or "
                "gradient_accumulation_steps"
            )
        self.size, self.batch_size, self.repeats, self.seed = size, batch_size, repeats, seed
        self.epoch = 0

    def set_epoch(self, epoch: int) -> None:
        """Shuffle anew; called by the Trainer."""
        self.epoch = epoch

    def __len__(self) -> int:
        return self.size // self.batch_size * self.batch_size * self.repeats

    def __iter__(self) -> Iterator[int]:
        generator = torch.Generator().manual_seed(self.seed * 1_000_003 + self.epoch)
        order = torch.randperm(self.size, generator=generator).tolist()
        for start in range(0, self.size // self.batch_size * self.batch_size, self.batch_size):
            for _ in range(self.repeats):
                yield from order[start : start + self.batch_size]


def planned_steps(args: DistillationConfig, method: Method, prompts: int) -> int:
    """Optimizer steps that a training on so many prompts has in all.

    Raises:
        ConfigError: not a single one.
    """
    repeats, size = method.num_iterations, args.prompts_per_step
    only_full = args.dataloader_drop_last or repeats > 1
    steps = prompts // size * repeats if only_full else math.ceil(prompts / size)
    if not steps:
        reason = "dataloader_drop_last=true leaves out what does not"
        if not args.dataloader_drop_last:
            reason = f"with num_iterations={repeats} every batch must be full"
        raise ConfigError(
            f"no step would be taken: {prompts} prompts do not fill one batch of {size} over all processes, and "
            f"{reason}; lower per_device_train_batch_size or gradient_accumulation_steps, or give more prompts"
        )
    return args.max_steps if args.max_steps > 0 else math.ceil(args.num_train_epochs * steps)


def whole_batches(loader: DataLoader, data_seed: int | None) -> DataLoader:
    """The loader as accelerate prepares it for one process: shuffled by seed and epoch, to be taken up on resume.

    Of several processes each then holds the whole batch, not its part, so that one that does not divide is neither
    filled up with prompts a second time nor cut.
    """
    return prepare_data_loader(
        loader, num_processes=1, process_index=0, use_seedable_sampler=True, data_seed=data_seed
    )
