"""Scripts as TRL's users write them: a model by its path, rows of a dataset, a function that reads a column."""

import shutil
from pathlib import Path
from typing import Any

import datasets
import pytest
import torch
from peft import LoraConfig
from safetensors.torch import load_file

from nonpareil import DistillationConfig, DistillationTrainer
from nonpareil.engines.transformers import TransformersEngine
from nonpareil.errors import ConfigError, DataError
from nonpareil.methods import build
from nonpareil.models.fingerprint import fingerprint
from nonpareil.models.loading import load_policy
from nonpareil.records import SamplingParams
from nonpareil.rewards import load_rewards
from nonpareil.rollouts import draw_and_score, read_groups, tokenize_prompts
from nonpareil.training.given import default_config
from tests.tiny import WORDS, make_tokenizer
from tests.training.conftest import ending_model

TEMPLATE = (
    "{{ bos_token }}{% if mood %}{{ mood }} {% endif %}{% for tool in tools or [] %}{{ tool.function.name }} "
    "{% endfor %}{% for m in messages %}<user> {{ m.content }} {% endfor %}"
    "{% if add_generation_prompt %}<assistant>{% endif %}"
)
ROWS = [
    {"prompt": f"the {word} film", "answer": answer} for word, answer in zip(WORDS, WORDS[::-1], strict=True)
]
CHATS = [
    {
        "prompt": [{"role": "user", "content": row["prompt"]}],
        "tools": [{"type": "function", "function": {"name": t}}],
    }
    for row, t in zip(ROWS, WORDS, strict=True)
]


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """A model with its tokenizer, as the hub has them."""
    made = tmp_path_factory.mktemp("policy")
    ending_model().save_pretrained(made)
    tokenizer = make_tokenizer()
    tokenizer.chat_template = TEMPLATE
    tokenizer.save_pretrained(made)
    return made


def says_answer(completions: list[str], answer: list[str], **kwargs: Any) -> list[float]:
    """How often the row's answer is said, and a little for length, so that ties are rare."""
    return [text.split().count(one) + 0.01 * len(text) for text, one in zip(completions, answer, strict=True)]


def length(completions: list[Any], **kwargs: Any) -> list[float]:
    return [float(len(str(completion))) for completion in completions]


def config(folder: Path, **changes: Any) -> DistillationConfig:
    return DistillationConfig(
        **{
            "output_dir": str(folder),
            "max_steps": 2,
            "per_device_train_batch_size": 4,
            "learning_rate": 1e-2,
            "max_completion_length": 6,
            "report_to": "none",
            "use_cpu": True,
            "bf16": False,
            "disable_tqdm": True,
            **changes,
        }
    )


def trained(
    output: Path, model: Path, train_dataset: Any, reward: Any = says_answer, **given: Any
) -> dict[str, Any]:
    """The adapter that a whole script leaves."""
    changes = given.pop("changes", {})
    trainer = DistillationTrainer(
        model=str(model),
        reward_funcs=reward,
        args=config(output, **changes),
        train_dataset=train_dataset,
        peft_config=LoraConfig(r=4, target_modules="all-linear", init_lora_weights="gaussian"),
        **given,
    )
    trainer.train()
    trainer.save_model()
    return load_file(output / "adapter_model.safetensors")


def assert_equal(ours: dict[str, Any], theirs: dict[str, Any]) -> None:
    assert ours.keys() == theirs.keys()
    for name, value in ours.items():
        assert torch.equal(value, theirs[name]), name


def test_rows_train_as_prompts_tokenised_by_hand_do(tmp_path, folder):
    by_hand = trained(tmp_path / "hand", folder, tokenize_prompts(ROWS, make_tokenizer()))
    evaluated = {"eval_strategy": "steps", "eval_steps": 1}
    given = {"eval_dataset": datasets.Dataset.from_list(ROWS[:2]), "changes": evaluated}
    assert_equal(trained(tmp_path / "rows", folder, datasets.Dataset.from_list(ROWS), **given), by_hand)
    assert any(value.abs().max() > 0 for name, value in by_hand.items() if "lora_B" in name)
    stream = datasets.Dataset.from_list(ROWS * 9).to_iterable_dataset()
    streamed = trained(tmp_path / "stream", folder, stream)  # two steps of four prompts
    assert_equal(streamed, trained(tmp_path / "first", folder, ROWS[:8]))


def test_the_templates_arguments_and_tools_reach_the_prompts_of_training_and_evaluation(tmp_path, folder):
    mood = {"mood": "good"}
    trainer = DistillationTrainer(
        model=ending_model(),
        reward_funcs=length,
        args=config(tmp_path, chat_template_kwargs='{"mood": "good"}', eval_strategy="steps"),
        train_dataset=datasets.Dataset.from_list(CHATS),
        eval_dataset=CHATS[:2],
        processing_class=make_tokenizer_of(folder),
    )
    text = trainer.processing_class.decode(trainer.train_dataset[1].token_ids)
    assert text == "<s> good the <user> the the film <assistant>"
    assert [prompt.token_ids for prompt in trainer.eval_dataset] == [
        prompt.token_ids for prompt in trainer.train_dataset[:2]
    ]
    rendering = trainer.identity["prompts"]["rendering"]
    assert (rendering["chat_template_kwargs"], rendering["tools"]) == (mood, True)
    assert trainer.evaluate(CHATS[:3])["eval_completions/mean_length"] > 0
    for prompts in (
        trainer.train_dataset,
        tokenize_prompts(CHATS, make_tokenizer_of(folder), {"mood": "bad"}),
    ):
        given = {"train_dataset": prompts, "processing_class": make_tokenizer_of(folder)}
        if prompts is trainer.train_dataset:  # which were rendered so
            DistillationTrainer(ending_model(), length, config(tmp_path, chat_template_kwargs=mood), **given)
            continue
        with pytest.raises(ConfigError, match="train_dataset is tokenised already"):
            DistillationTrainer(ending_model(), length, config(tmp_path, chat_template_kwargs=mood), **given)


def make_tokenizer_of(folder: Path) -> Any:
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(folder)


def test_a_folder_of_groups_trains_as_the_groups_it_holds(tmp_path, folder):
    prompts, sampling = tokenize_prompts(ROWS, make_tokenizer()), SamplingParams(6)
    info = {
        "path": str(folder),
        "fingerprint": fingerprint(str(folder)),
        "dtype": "float32",
        "end_token_ids": [2],
    }
    groups = tmp_path / "groups"
    draw_and_score(
        prompts,
        TransformersEngine(ending_model(), make_tokenizer()),
        load_rewards(says_answer),
        sampling,
        4,
        groups,
        model_info=info,
    )
    changes = {"method": build("bonbon", {"n": 4}, stored=True)}
    by_path = trained(tmp_path / "path", folder, None, groups=groups, changes=changes)
    assert_equal(
        by_path, trained(tmp_path / "read", folder, None, groups=read_groups(groups), changes=changes)
    )
    for other, reward, error in (
        (
            {"temperature": 0.5},
            says_answer,
            "was drawn with temperature=1.0, and this run has temperature=0.5",
        ),
        ({}, length, "was scored with rewards="),
        (
            {"chat_template_kwargs": {"mood": 1}},
            says_answer,
            r"chat_template_kwargs.*the prompts are strings",
        ),
    ):
        with pytest.raises(ConfigError, match=error):
            trained(tmp_path / "no", folder, None, reward, groups=str(groups), changes={**changes, **other})
    refused = {"reward_funcs": says_answer, "args": config(tmp_path / "no", **changes), "groups": groups}
    with pytest.raises(ConfigError, match="beside a model object"):
        DistillationTrainer(ending_model(), processing_class=make_tokenizer(), **refused)
    with pytest.raises(DataError, match="groups and train_dataset are both given"):
        DistillationTrainer(str(folder), train_dataset=ROWS, **refused)
    refused |= {
        "groups": read_groups(groups),
        "args": config(tmp_path, chat_template_kwargs={"mood": 1}, **changes),
    }
    with pytest.raises(ConfigError, match=r"chat_template_kwargs.* is not read: groups"):
        DistillationTrainer(str(folder), **refused)


def test_a_model_object_finds_its_tokenizer_and_settings_their_defaults(tmp_path, folder, monkeypatch):
    from transformers import AutoModelForCausalLM

    monkeypatch.chdir(tmp_path)
    model = AutoModelForCausalLM.from_pretrained(folder, max_position_embeddings=512)
    trainer = DistillationTrainer(model, length, train_dataset=[{"prompt": "the film"}])
    assert trainer.train_dataset[0].token_ids == make_tokenizer()("the film")["input_ids"]
    assert trainer.args.output_dir == default_config(str(folder)).output_dir == f"{folder.name}-distilled"


def test_what_says_how_a_model_is_read_is_refused_beside_one_that_was_read(tmp_path, folder):
    given = {"reward_funcs": length, "train_dataset": ROWS, "processing_class": make_tokenizer()}
    for settings in ({"model_init_kwargs": {"attention_bias": True}}, {"attn_implementation": "eager"}):
        args = config(tmp_path, **settings)
        with pytest.raises(
            ConfigError, match=f"{next(iter(settings))}=.* is not read: the model is given as"
        ):
            DistillationTrainer(ending_model(), args=args, **given)
    model, _ = load_policy(str(folder), init=args.init())  # as `nonpareil distill` does
    assert DistillationTrainer(model, args=args, **given).args.attn_implementation == "eager"


def test_a_reward_that_lacks_a_column_is_refused_before_a_weight_is_read(tmp_path, folder):
    broken = tmp_path / "policy"
    shutil.copytree(folder, broken)
    (broken / "model.safetensors").write_bytes(b"no weights")
    with pytest.raises(ConfigError, match="missing a required argument: 'answer'"):
        DistillationTrainer(str(broken), says_answer, config(tmp_path), [{"prompt": "the film"}])


def test_a_transform_of_a_dataset_makes_its_prompts(tmp_path):
    """As the loader of TRL's trainer reads rows; the columns that are stored are another prompt's."""

    def said_twice(batch: dict[str, list[Any]]) -> dict[str, list[Any]]:
        return {"prompt": [f"{text} and {text}" for text in batch["prompt"]], "answer": batch["answer"]}

    rows = datasets.Dataset.from_list(ROWS[:4]).with_transform(said_twice)
    trainer = DistillationTrainer(
        ending_model(),
        says_answer,
        config(tmp_path),
        rows,
        eval_dataset=rows,
        processing_class=make_tokenizer(),
        quantization_config=None,
    )
    for prompts in (trainer.train_dataset, trainer.eval_dataset):
        assert [prompt.prompt for prompt in prompts] == [row["prompt"] for row in rows]
        assert [prompt.columns for prompt in prompts] == [{"answer": row["answer"]} for row in ROWS[:4]]
