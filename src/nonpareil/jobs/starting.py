"""The folder of a distillation when it begins."""

import shutil
from pathlib import Path

from nonpareil.errors import ConfigError


def prepare_folder(output_dir: Path, overwrite: bool, resume: bool) -> None:
    """Refuse a directory that holds something, unless it is to be continued or overwritten, or a kill left it."""
    from nonpareil.training.leftovers import clear_leftovers, is_leftover

    if not output_dir.exists():
        return
    if not output_dir.is_dir():
        raise ConfigError(f"output_dir={str(output_dir)!r} is a file; name a directory")
    if not resume and is_leftover(output_dir):
        clear_leftovers(output_dir)
        return
    if overwrite and not resume:
        ours = ("metrics.jsonl", "trainer_state.json", "model.safetensors", "config.json")
        if any(output_dir.iterdir()) and not any((output_dir / name).exists() for name in ours):
            raise ConfigError(
                f"output_dir={str(output_dir)!r} holds no earlier run, and overwrite would delete all of it; "
                "name another directory"
            )
        shutil.rmtree(output_dir)
    elif any(output_dir.iterdir()) and not resume:
        raise ConfigError(
            f"output_dir={str(output_dir)!r} exists; give --resume_from_checkpoint true to go on, "
            "--overwrite to start anew, or another output_dir"
        )
