"""A reward model's scores on a CUDA device are those of the CPU. Marked gpu, skipped without one."""

import pytest
import torch

from nonpareil.rewards import RewardModel
from tests.rewards.conftest import varied_request

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]


@pytest.mark.parametrize("kind", ["llama_rm", "bert_rm"])
def test_scores_are_those_of_the_cpu(kind: str, request: pytest.FixtureRequest) -> None:
    path = request.getfixturevalue(kind)
    asked = varied_request()
    cpu = RewardModel(path, dtype="float32", device="cpu").score(asked)
    gpu = RewardModel(path, dtype="float32", device="cuda").score(asked)
    assert len(set(cpu.values)) > 8
    assert gpu.failures == cpu.failures
    assert gpu.values == pytest.approx(cpu.values, abs=1e-4)


def test_a_model_released_is_gone_from_the_device_and_scores_again(llama_rm: str) -> None:
    asked = varied_request()
    reward = RewardModel(llama_rm, dtype="float32", device="cuda")
    before = reward.score(asked).values
    held = torch.cuda.memory_allocated()
    reward.release()
    assert torch.cuda.memory_allocated() < held
    assert reward.score(asked).values == pytest.approx(before, abs=1e-5)
