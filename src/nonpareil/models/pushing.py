"""A folder sent to the hub: the model and what is told of it, and nothing else that lies there.

Groups and completions hold prompts, `training_args.bin` may hold a token, and checkpoints are large: all stay here.
"""

import json
from collections.abc import Iterable
from concurrent.futures import Future
from contextlib import suppress
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

from nonpareil.errors import RemoteError
from nonpareil.terminal import reason_of

MODEL_FILES = (
    *("config.json", "generation_config.json", "sampling.json", "model*.safetensors*", "pytorch_model*.bin*"),
    *("adapter_config.json", "adapter_model.safetensors", "base_model.json"),
    *("tokenizer*", "special_tokens_map.json", "added_tokens.json", "chat_template*"),
    *("vocab.json", "vocab.txt", "merges.txt", "sentencepiece*.model", "spiece.model"),
)
"""What a model and its tokenizer are, as globs right in their folder."""
CARD_FILES = ("README.md", "evaluation/report.json", "evaluation/*.png")
"""What is told of it; the report's page has held-out prompts in it."""


def files_to_push(folder: Path, *, card: bool) -> list[str]:
    """What of a folder is sent, relative to it."""
    patterns = [*MODEL_FILES, *(CARD_FILES if card else ())]
    found = {path.relative_to(folder).as_posix() for pattern in patterns for path in folder.glob(pattern)}
    with suppress(OSError, ValueError):
        if "auto_map" in json.loads((folder / "config.json").read_bytes()):  # it brings its code along
            found |= {path.name for path in folder.glob("*.py")}
    return sorted(name for name in found if (folder / name).is_file())


def push_folder(
    folder: Path,
    repo_id: str,
    *,
    message: str,
    token: str | None = None,
    revision: str | None = None,
    private: bool | None = None,
    card: bool = True,
) -> str:
    """Send a folder's model to the hub, its card with it; returns the commit's address.

    Raises:
        RemoteError: it was not taken; with how to send what lies in the folder.
    """
    from huggingface_hub import HfApi

    names = files_to_push(folder, card=card)
    try:
        hub = HfApi(library_name="nonpareil", token=token)
        url = hub.create_repo(repo_id, private=private, exist_ok=True)
        sent: Any = hub.upload_folder(
            repo_id=url.repo_id,
            folder_path=folder,
            allow_patterns=_exactly(names),
            commit_message=message,
            revision=revision,
        )
    except Exception as error:  # of whatever client the library has in this version
        raise RemoteError(
            f"{folder} is whole and was not pushed to {repo_id}: {reason_of(error)}. Push it once that is mended: "
            f"hf upload {repo_id} {folder} --include {' '.join(names)}"
        ) from error
    return str(getattr(sent, "commit_url", sent))


def push_in_background(
    folder: Path,
    repo_id: str,
    *,
    message: str,
    token: str | None,
    revision: str | None,
    path_in_repo: str | None = None,
) -> "Future[Any]":
    """Send a checkpoint meanwhile: its model, or with `path_in_repo` the whole of it to that place."""
    from huggingface_hub import HfApi

    whole = path_in_repo is not None
    return HfApi(library_name="nonpareil", token=token).upload_folder(
        repo_id=repo_id,
        folder_path=folder,
        path_in_repo=path_in_repo,
        allow_patterns=None if whole else _exactly(files_to_push(folder, card=False)),
        ignore_patterns=["training_args.bin", "README.md"] if whole else None,
        commit_message=message,
        revision=revision,
        run_as_future=True,
    )


def _exactly(names: Iterable[str]) -> list[str]:
    """Names as patterns that match them alone."""
    quoted = ["".join(f"[{c}]" if c in "*?[" else c for c in name) for name in names]
    assert all(fnmatch(name, pattern) for name, pattern in zip(names, quoted, strict=True))
    return quoted
