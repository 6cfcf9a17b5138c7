"""A reward model that vLLM runs in this process: the ids and the logit are those of `RewardModel`."""

from pathlib import Path
from typing import Any

from safetensors import safe_open

from nonpareil.errors import ConfigError, ModelError, RewardError
from nonpareil.models.devices import best_device, resolve_dtype
from nonpareil.models.fingerprint import fingerprint
from nonpareil.models.loading import load_tokenizer
from nonpareil.models.pretrained import check_local_path, read_config, reading
from nonpareil.models.stored_places import stale_shards
from nonpareil.models.vllm import make_llm, shut_down
from nonpareil.records import ScoreRequest, Scores
from nonpareil.rewards.models.classifier_reward import ClassifierReward, score_once
from nonpareil.rewards.models.encoding import RewardEncoder, without_end_pads
from nonpareil.rewards.models.loading import HEAD_NAMES, check_single_label
from nonpareil.rewards.models.text_options import TextOptions


class VLLMRewardModel(ClassifierReward):
    """Scores prompt + completion with a `num_labels=1` classifier in vLLM's pooling runner.

    vLLM gets token ids, so that its own reading of the text never matters, and no activation is applied.

    Args:
        model: a path or hub id; a model in memory runs on transformers.
        tokenizer: the reward model's own; by default the one beside it.
        name: of the reward's column; by default the last part of the model's path.
        dtype: of the body: "auto", "bfloat16", "float16" or "float32". vLLM keeps the head in float32.
        gpu_memory_utilization: share of a GPU's memory; a policy may lie beside it. A CPU ignores it.
        revision: of a hub model.
        trust_remote_code: run code that the model brings along.
        **text: how a text is written for it, as `RewardModel` takes them; see `TextOptions`.

    Raises:
        ModelError: num_labels not 1, no tokenizer, or a class that vLLM cannot run as a classifier.
        ConfigError: a setting that cannot work, or no vLLM installed.
    """

    def __init__(
        self,
        model: Any,
        tokenizer: Any | None = None,
        *,
        name: str | None = None,
        dtype: str = "auto",
        gpu_memory_utilization: float = 0.3,
        revision: str | None = None,
        trust_remote_code: bool = False,
        **text: Any,
    ) -> None:
        """See the class. Loads the model, so that what vLLM cannot run is refused before anything is drawn."""
        if not isinstance(model, str | Path):
            raise ConfigError(
                f"reward_engine='vllm' takes reward models by path; a {type(model).__name__} in memory needs "
                "reward_engine='transformers'"
            )
        options = TextOptions(**text)
        self._path, self._revision, self._trust = str(model), revision, trust_remote_code
        check_local_path(self._path, "reward model", revision=revision)
        self._memory_share = gpu_memory_utilization
        self._dtype = str(resolve_dtype(dtype, best_device())).removeprefix("torch.")
        if tokenizer is None:
            tokenizer = load_tokenizer(
                self._path, revision, field="reward model", trust_remote_code=trust_remote_code
            )
        config = _classifier_config(self._path, revision, trust_remote_code)
        _check_head(self._path, revision)
        self._pad = config.get_text_config().pad_token_id
        self.name = name or Path(self._path).name
        self.encoder = RewardEncoder.of(tokenizer, config, self.name, options)
        self._fingerprint: str | None = None
        self._llm: Any = None
        self._load()

    def score(self, request: ScoreRequest) -> Scores:
        """The logit of every prompt + completion; None where it is not finite or the text cannot be scored.

        Raises:
            DataError, ModelError: as `inspect`.
        """
        return score_once(self._encoded(request), self._score_rows)

    def describe(self) -> dict[str, Any]:
        """Settings that change the scores, with a fingerprint of the weights."""
        from vllm import __version__

        self._fingerprint = self._fingerprint or fingerprint(
            self._path, self._revision, trust_remote_code=self._trust
        )
        return {
            "name": self.name,
            "kind": "model",
            "engine": "vllm",
            "version": __version__,
            "path": self._path,
            "revision": self._revision,
            "fingerprint": self._fingerprint,
            "dtype": self._dtype,
            **self.encoder.options.describe(),
            **({"trust_remote_code": True} if self._trust else {}),
        }

    def release(self) -> None:
        """Free the model's memory; it is loaded again when next it scores."""
        if self._llm is not None:
            shut_down(self._llm)
            self._llm = None

    def _load(self) -> None:
        try:
            llm = make_llm(
                self._path,
                runner="pooling",
                skip_tokenizer_init=False,  # the pooling runner refuses to start without, and never uses it
                dtype=self._dtype,
                revision=self._revision,
                trust_remote_code=self._trust,
                max_model_len=self.encoder.options.max_length,
                default_gpu_share=self._memory_share,
            )
        except ModelError as error:
            raise ModelError(f"{error}; reward_engine='transformers' runs every classifier") from error
        model_config = llm.llm_engine.vllm_config.model_config
        if "classify" not in llm.supported_tasks:
            shut_down(llm)
            raise ModelError(
                f"vLLM runs {self._path!r} for {', '.join(llm.supported_tasks)} and not as a classifier; "
                "use reward_engine='transformers'"
            )
        self._pools_last = model_config.pooler_config.seq_pooling_type == "LAST"
        self._llm = llm

    def _score_rows(self, rows: list[tuple[int, ...]]) -> list[float]:
        """One logit per row, in order."""
        if not rows:
            return []
        if self._llm is None:
            self._load()
        from vllm import PoolingParams

        pad = self._pad if self._pools_last else None
        outputs = self._llm.classify(
            [{"prompt_token_ids": without_end_pads(row, pad)} for row in rows],
            pooling_params=PoolingParams(use_activation=False),
            use_tqdm=False,
        )
        logits = [output.outputs.probs for output in outputs]  # so called, but without activation
        if len(logits) != len(rows) or any(len(logit) != 1 for logit in logits):
            raise RewardError(f"vLLM answered {len(logits)} scores of {self.name!r} for {len(rows)} texts")
        return [float(logit[0]) for logit in logits]


def _classifier_config(path: str, revision: str | None, trust_remote_code: bool) -> Any:
    subject = f"reward model {path!r} has no readable config"
    config = read_config(path, revision, subject=subject, trust_remote_code=trust_remote_code)
    architectures = config.architectures or []
    if not any("ForSequenceClassification" in name for name in architectures):
        raise ModelError(
            f"reward model {path!r} is a {', '.join(architectures) or 'model of no stated class'}: vLLM would "
            "score it with a head that was never trained. Is it a reward model trained with num_labels=1?"
        )
    check_single_label(config, path)
    return config


def _check_head(path: str, revision: str | None) -> None:
    """Refuse a checkpoint without a trained head: vLLM starts with whatever lies in the memory for it."""
    folder = Path(path)
    if not folder.is_dir():
        from huggingface_hub import snapshot_download

        wanted = ["*.safetensors", "*.safetensors.index.json"]
        with reading(path, f"reward model {path!r} could not be loaded"):
            folder = Path(snapshot_download(path, revision=revision, allow_patterns=wanted))
    stale, names = stale_shards(folder), set[str]()
    with reading(path, f"reward model {path!r} could not be loaded"):
        for file in folder.glob("*.safetensors"):
            if file.name not in stale:
                with safe_open(file, "pt") as weights:
                    names.update(weights.keys())
    if not any(name.split(".")[0] in HEAD_NAMES for name in names):
        raise ModelError(
            f"reward model {path!r} holds none of {', '.join(HEAD_NAMES)} in its safetensors files, and vLLM would "
            "score with a random head; use reward_engine='transformers', which says what is missing"
        )
