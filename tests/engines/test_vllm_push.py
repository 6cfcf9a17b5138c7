"""Weights pushed into vLLM are the trainer's; the ways in which they silently are not, each caught."""

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import PreTrainedModel

from nonpareil.engines.canary import Canary
from nonpareil.engines.vllm.engine import VLLMEngine
from nonpareil.errors import ConfigError, SyncError
from nonpareil.models.logprobs import completion_logprobs
from nonpareil.records import SamplingParams
from tests.engines.vllm_models import CANARIES, save, tied_llama
from tests.tiny import UNEVEN, make_tokenizer, worst_error

pytestmark = pytest.mark.vllm
SAMPLING = SamplingParams(max_completion_length=10, seed=3)


@torch.no_grad()
def trainers(model: PreTrainedModel) -> list[float]:
    return completion_logprobs(model, CANARIES).tolist()


def trained(seed: int) -> PreTrainedModel:
    """The first model after an update that moves every weight a little."""
    model, step = tied_llama(), tied_llama(seed)
    with torch.no_grad():
        for parameter, other in zip(model.parameters(), step.parameters(), strict=True):
            parameter.lerp_(other, 0.1)
    return model


@pytest.fixture(scope="module")
def engine(tmp_path_factory: pytest.TempPathFactory) -> Iterator[VLLMEngine]:
    engine = VLLMEngine(
        save(tied_llama(), tmp_path_factory.mktemp("push") / "lm"), make_tokenizer(), dtype="float32"
    )
    yield engine
    engine.release()


@pytest.fixture
def fresh(engine: VLLMEngine) -> VLLMEngine:
    engine.push_weights(tied_llama().state_dict().items())
    return engine


@pytest.mark.parametrize("route", ["tensors", "directory", "tensors through a directory"])
def test_after_a_push_the_engine_draws_from_the_new_weights(
    fresh: VLLMEngine, route: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    canary, model = Canary(CANARIES, fresh.dtype), trained(1)
    assert canary.check(fresh.completion_logprobs(CANARIES), trainers(tied_llama())) < 1e-4
    fresh.draw(UNEVEN, 2, SAMPLING)  # so that there are prefixes to forget
    if "through" in route:
        monkeypatch.setattr(fresh, "_in_this_process", lambda: False)
    fresh.push_weights(save(model, tmp_path / "new") if route == "directory" else model.state_dict().items())
    assert canary.check(fresh.completion_logprobs(CANARIES), trainers(model)) < 1e-4
    assert worst_error(model, UNEVEN, fresh.draw(UNEVEN, 4, SAMPLING), SAMPLING) < 1e-4
    assert worst_error(tied_llama(), UNEVEN, fresh.draw(UNEVEN, 4, SAMPLING), SAMPLING) > 0.05


def test_long_prompts_are_not_answered_from_the_old_weights_prefixes(fresh: VLLMEngine) -> None:
    """A prompt of several cache blocks, drawn before and after a push."""
    from nonpareil.records import Prompt

    block = fresh._loaded().llm_engine.vllm_config.cache_config.block_size
    ids = torch.randint(6, 18, (300,), generator=torch.Generator().manual_seed(0)).tolist()
    assert block <= 300, "the prompt must fill a block for this to show anything"
    prompt = [Prompt("long", "long", ids)]
    fresh.draw(prompt, 4, SAMPLING)
    model = trained(2)
    fresh.push_weights(model.state_dict().items())
    assert worst_error(model, prompt, fresh.draw(prompt, 4, SAMPLING), SAMPLING) < 1e-4


def without_the_tied_head(model: PreTrainedModel) -> list[tuple[str, torch.Tensor]]:
    """A tied model's weights as files and `named_parameters` hold them: the head is not among them."""
    weights = [(name, parameter.detach()) for name, parameter in model.named_parameters()]
    assert not [name for name, _ in weights if "lm_head" in name]
    return weights


def test_a_tied_head_that_is_not_packed_anew_is_caught(fresh: VLLMEngine) -> None:
    canary, model = Canary(CANARIES, fresh.dtype), trained(1)
    canary.check(fresh.completion_logprobs(CANARIES), trainers(tied_llama()))
    weights = without_the_tied_head(model)
    fresh._loaded().collective_rpc("reload_weights", kwargs={"weights_iterator": iter(weights)})
    fresh._drop_prefixes()
    with pytest.raises(SyncError, match=r"nats per token apart \(at most 0.002\).*tied to the embeddings"):
        canary.check(fresh.completion_logprobs(CANARIES), trainers(model))


def test_a_push_packs_a_tied_head_anew(fresh: VLLMEngine) -> None:
    model = trained(1)
    fresh.push_weights(without_the_tied_head(model))
    assert fresh.completion_logprobs(CANARIES) == pytest.approx(trainers(model), abs=1e-4)


def test_a_push_that_never_arrived_is_caught(fresh: VLLMEngine) -> None:
    canary = Canary(CANARIES, fresh.dtype)
    canary.check(fresh.completion_logprobs(CANARIES), trainers(tied_llama()))
    with pytest.raises(SyncError, match=r"exactly as before the push: weights never arrived"):
        canary.check(fresh.completion_logprobs(CANARIES), trainers(trained(1)))


def test_an_engine_that_stands_still_is_caught_within_the_tolerance(fresh: VLLMEngine) -> None:
    """An update too small to stand out by its size still shows: the engine did not move at all."""
    canary = Canary(CANARIES, fresh.dtype)
    values = fresh.completion_logprobs(CANARIES)
    canary.check(values, trainers(tied_llama()))
    moved = [value + 0.5 * canary.tolerance * 3 for value in trainers(tied_llama())]
    with pytest.raises(SyncError, match="never arrived"):
        canary.check(values, moved)


def test_an_engine_survives_the_end_of_another(fresh: VLLMEngine, tmp_path: Path) -> None:
    """A reward model's, say, that is let go between two updates."""
    other = VLLMEngine(save(tied_llama(5), tmp_path / "other"), make_tokenizer(), dtype="float32")
    assert other.completion_logprobs(CANARIES) == pytest.approx(trainers(tied_llama(5)), abs=1e-4)
    other.release()
    assert fresh.completion_logprobs(CANARIES) == pytest.approx(trainers(tied_llama()), abs=1e-4)


# --- Adapters


def add_adapters(base: PreTrainedModel) -> Any:
    from peft import LoraConfig, get_peft_model

    torch.manual_seed(7)
    config = LoraConfig(r=4, lora_alpha=8, target_modules=["q_proj", "v_proj", "down_proj"])
    model = get_peft_model(base, config, adapter_name="policy")
    model.add_adapter("anchor", config)
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.3)
    return model.eval()


@pytest.fixture(scope="module")
def peft_model() -> Any:
    return add_adapters(tied_llama())


@pytest.fixture(scope="module")
def lora_engine(
    engine: VLLMEngine, peft_model: Any, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[VLLMEngine]:
    folder = tmp_path_factory.mktemp("lora")
    engine.release()  # comes last in this file; one engine at a time
    lora = VLLMEngine(save(tied_llama(), folder / "lm"), make_tokenizer(), dtype="float32", max_lora_rank=4)
    yield lora
    lora.release()


def with_adapter(peft_model: Any, name: str | None) -> list[float]:
    if name is None:
        with peft_model.disable_adapter():
            return trainers(peft_model.base_model.model)
    peft_model.set_adapter(name)
    return trainers(peft_model.base_model.model)


@pytest.fixture
def pushed(lora_engine: VLLMEngine, peft_model: Any, tmp_path: Path) -> VLLMEngine:
    peft_model.save_pretrained(tmp_path)
    for name in ("policy", "anchor"):
        lora_engine.push_adapter(name, tmp_path / name)
    return lora_engine


def test_policy_anchor_and_base_are_drawn_each_from_its_own_weights(
    pushed: VLLMEngine, peft_model: Any
) -> None:
    expected = {name: with_adapter(peft_model, name) for name in ("policy", None, "anchor")}
    assert len({round(values[0], 2) for values in expected.values()}) == 3
    for name, values in expected.items():
        assert pushed.completion_logprobs(CANARIES, adapter=name) == pytest.approx(values, abs=1e-3)
    peft_model.set_adapter("policy")
    drawn = pushed.draw(UNEVEN, 4, SAMPLING, adapter="policy")
    assert worst_error(peft_model, UNEVEN, drawn, SAMPLING) < 1e-4
    with peft_model.disable_adapter():
        drawn = pushed.draw(UNEVEN, 4, SAMPLING)
        assert worst_error(peft_model, UNEVEN, drawn, SAMPLING) < 1e-4


def test_a_new_version_of_an_adapter_replaces_the_old(
    pushed: VLLMEngine, peft_model: Any, tmp_path: Path
) -> None:
    canary = Canary(CANARIES, pushed.dtype)
    for _ in range(3):  # more versions than the engine holds at a time
        with torch.no_grad():
            for name, parameter in peft_model.named_parameters():
                if "lora_B.policy" in name:
                    parameter.add_(0.1)
        peft_model.save_pretrained(tmp_path / "again", selected_adapters=["policy"])
        pushed.push_adapter("policy", tmp_path / "again" / "policy")
        pushed.draw(UNEVEN, 1, SAMPLING, adapter="policy")
        values = pushed.completion_logprobs(CANARIES, adapter="policy")
        assert canary.check(values, with_adapter(peft_model, "policy"), "policy") < 1e-4


def test_an_adapter_pushed_under_an_id_already_held_is_caught(
    pushed: VLLMEngine, peft_model: Any, tmp_path: Path
) -> None:
    canary = Canary(CANARIES, pushed.dtype)
    canary.check(pushed.completion_logprobs(CANARIES, "policy"), with_adapter(peft_model, "policy"), "policy")
    with torch.no_grad():
        for name, parameter in peft_model.named_parameters():
            if "lora_B.policy" in name:
                parameter.add_(0.1)
    peft_model.save_pretrained(tmp_path)  # over the files that the engine read
    pushed._loaded().llm_engine.add_lora(pushed._adapters["policy"])
    with pytest.raises(SyncError, match="under an id that the engine already held"):
        canary.check(
            pushed.completion_logprobs(CANARIES, "policy"), with_adapter(peft_model, "policy"), "policy"
        )


def test_rows_of_the_base_model_that_got_an_adapter_are_caught(pushed: VLLMEngine, peft_model: Any) -> None:
    """vLLM's own trap, in a batch that mixes them, which `draw` has no way to ask for."""
    from vllm import SamplingParams as VLLMParams

    steps = [
        (p + c[:k], c[k])
        for p, c in zip(CANARIES.prompt_ids, CANARIES.completion_ids, strict=True)
        for k in range(len(c))
    ]
    params = [VLLMParams(max_tokens=1, logprob_token_ids=[token], detokenize=False) for _, token in steps]
    adapters = [None] * len(steps) + [pushed._adapters["anchor"]] * len(steps)
    outputs = pushed._generate([ids for ids, _ in [*steps, *steps]], [*params, *params], adapters)
    each = iter(
        output.outputs[0].logprobs[0][token].logprob
        for output, (_, token) in zip(outputs, steps, strict=False)
    )
    mixed = [sum(next(each) for _ in ids) for ids in CANARIES.completion_ids]
    base, anchor = with_adapter(peft_model, None), with_adapter(peft_model, "anchor")
    canary = Canary(CANARIES, pushed.dtype)
    with pytest.raises(SyncError, match=r"They are those of anchor: the engine mixes its models up"):
        canary.check(mixed, base, "base", {"anchor": lambda: anchor})
    assert canary.check(pushed.completion_logprobs(CANARIES), base, "base", {"anchor": lambda: anchor}) < 1e-4


def test_what_an_adapter_engine_refuses(pushed: VLLMEngine, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="push_adapter"):
        pushed.push_weights([])
    with pytest.raises(ConfigError, match="one more than the 2"):
        pushed.push_adapter("third", tmp_path)


def test_a_process_group_of_the_trainers_outlives_the_engine(tmp_path: Path) -> None:
    """In a process of its own: this one's group may already be vLLM's."""
    program = """
import sys, torch.distributed as dist
from nonpareil.models.vllm import make_llm, shut_down
dist.init_process_group("gloo", init_method=f"file://{sys.argv[2]}", rank=0, world_size=1)
ours = dist.group.WORLD
shut_down(make_llm(sys.argv[1], dtype="float32", max_model_len=64))
assert dist.is_initialized() and dist.group.WORLD is ours
"""
    words = [sys.executable, "-c", program, save(tied_llama(), tmp_path / "lm"), str(tmp_path / "store")]
    done = subprocess.run(words, capture_output=True, text=True, check=False, timeout=120)
    assert done.returncode == 0, done.stderr[-2000:]
