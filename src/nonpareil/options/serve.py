"""The options of `nonpareil serve`. Plain dataclasses, read without importing torch."""

from dataclasses import dataclass
from typing import ClassVar

from nonpareil.options.engines import ChosenEngineOptions
from nonpareil.options.rewards import RewardOptions, specs_of
from nonpareil.options.shared import LOADED_HERE, FileOptions, ModelOptions
from nonpareil.settings import CheckedOptions, option
from nonpareil.training.settings.template import TemplateSettings

CHOOSES = "a reward that chooses among answers"
"""A reader; `commands.serve.run` says when it is absent."""


@dataclass
class ServedTemplateOptions(TemplateSettings, CheckedOptions):
    """How conversations are rendered, by an engine in this process."""

    HEADING: ClassVar = "Policy"


@dataclass
class ServerOptions(CheckedOptions):
    """Where the server is, who may ask it, and how much at once."""

    HEADING: ClassVar = "Server"

    host: str = option("127.0.0.1", "Address that is listened at; 0.0.0.0 is every network of this machine.")
    port: int = option(8000, "Of the server; 0 takes a free one.", at_least=0, at_most=65535)
    client_key_env: str | None = option(
        None, "Environment variable of the key that clients must give. Default: none is asked for."
    )
    served_model_name: str | None = option(
        None, "What clients call the model. Default: its folder's name, or the upstream's name of it."
    )
    request_deadline: float = option(
        120.0, "Seconds from a request's arrival to its answer; then it is told 504.", above=0, at_most=86400
    )
    max_running: int = option(64, "Requests under way at once; the others wait.", at_least=1)
    max_waiting: int = option(256, "Requests that wait; the next is told 429.", at_least=0)
    max_tokens_per_request: int | None = option(
        None, "Most tokens that all answers of one request may have: best_of times max_tokens.", at_least=1
    )
    max_tokens_per_minute: int | None = option(
        None,
        "Most tokens drawn per minute; a request that may draw more than is left is told 429.",
        at_least=1,
    )
    max_body_bytes: int = option(4 * 2**20, "Of a request; a longer one is told 413.", at_least=1024)
    drain_seconds: float = option(
        30.0, "That requests under way are given when the server is stopped.", at_least=1, at_most=3600
    )


@dataclass
class ServedGroupsOptions(CheckedOptions):
    """Whether what is served is kept, as groups."""

    HEADING: ClassVar = "Groups"

    groups: str | None = option(
        None,
        "Folder that every request's prompt, answers and rewards are kept in, for curve, export and "
        "distill --groups. Default: nothing is kept.",
        path=True,
        reader=CHOOSES,
    )
    groups_flush: int = option(
        16,
        "Groups that wait to be written together: what a kill -9 can cost. The clock writes them, too.",
        at_least=1,
        of="groups",
    )
    groups_model: str | None = option(
        None,
        "Directory or hub name of the weights that the upstream serves (which gives token ids, as vLLM does): with "
        "it, its groups can train them.",
        names="input",
        of="engine=openai",
    )
    groups_keep_days: float | None = option(
        None, "Delete groups that are older. Default: never.", above=0, at_most=36500, of="groups"
    )
    groups_redact: str | None = option(
        None,
        "file.py:function or package.module.function that is given each group's words before they are kept, and "
        "returns them, changed or not, or None to keep nothing.",
        names="code",
        of="groups",
    )


@dataclass
class ServeOptions(
    ModelOptions,
    ServedTemplateOptions,
    RewardOptions,
    ChosenEngineOptions,
    ServerOptions,
    ServedGroupsOptions,
    FileOptions,
):
    """Options of `nonpareil serve`."""

    HEADING: ClassVar = "Drawing"

    model_name_or_path: str | None = option(
        None,
        "Model directory or hub name; of an upstream (base_url) its name there, by default the only one. Default: "
        "the embedded demo, if no upstream and no reward is named.",
        names="input",
        replaces_demo=True,
        heading="Policy",
    )
    best_of: int = option(
        8, "Answers drawn for a request that does not say. Without any reward it is 1.", at_least=1
    )
    max_best_of: int = option(64, "Most answers that a request may have drawn.", at_least=1, reader=CHOOSES)
    max_draws: int | None = option(
        None,
        "Most answers, drawn in rounds of best_of until one is good enough, by stop_at_reward or stop_at_quantile. "
        "Default: one round.",
        at_least=1,
        reader=CHOOSES,
    )
    stop_at_reward: float | None = option(
        None, "Reward of an answer after which no further round is drawn, with max_draws.", reader=CHOOSES
    )
    stop_at_quantile: float | None = option(
        None,
        "The same by an answer's quantile among all that the policy may give to its prompt, told by calibration.",
        at_least=0,
        below=1,
        reader=CHOOSES,
    )
    calibration: str | None = option(
        None,
        "Folder of groups of this policy and these rewards, which tell quantiles.",
        names="input",
        reader=CHOOSES,
    )
    rule: str = option("best_of_n", "How the answer is chosen where a request does not say.", reader=CHOOSES)
    fallback: str = option(
        "none",
        "Where no answer of a request has a reward: none (an error says why), or first, the first that was drawn.",
        choices=("none", "first"),
        reader=CHOOSES,
    )
    max_completion_length: int = option(
        512, "Most tokens of each answer to a request that gives no max_tokens.", at_least=1
    )
    max_tokens_per_batch: int = option(
        32768, "Tokens, padding included, of one batch; bounds memory.", at_least=1, of=LOADED_HERE
    )
    choices_per_request: int | None = option(
        None,
        "Answers that one request asks the upstream for: 1 for one that ignores n. Default: all of them.",
        at_least=1,
        of="engine=openai",
        reader=CHOOSES,
    )
    request_timeout: float | None = option(
        None,
        "Seconds of one try of an upstream request. Default: all that is left until the deadline.",
        above=0,
        of="engine=openai",
    )

    @property
    def chooses(self) -> bool:
        """Whether any reward is named to choose by; else one answer is served as it is drawn."""
        return bool(specs_of(self)) or self.judge_model is not None
