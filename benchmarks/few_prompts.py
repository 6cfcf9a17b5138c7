"""Where SFT on best-of-n ends with few prompts per step, exactly: a step whose prompts all tie moves nothing.

python benchmarks/few_prompts.py

0/1 rewards of one success rate at every prompt. The pull of a tied prompt is lost where the others of its step tie.
"""

from math import comb

SUCCESS, N = 0.1, 4


def success_at_the_end(prompts: int) -> float:
    """The success rate at which the expected gradient of the steps that are taken is zero."""
    chances = [comb(N, k) * SUCCESS**k * (1 - SUCCESS) ** (N - k) for k in range(N + 1)]
    kept = 1 - (chances[0] + chances[N]) ** (prompts - 1)
    contrast = sum(chances[k] * (1 - k / N) for k in range(1, N))
    good = sum(chances[k] * k / N for k in range(1, N)) + chances[N] * kept
    bad = sum(chances[k] * (1 - k / N) for k in range(1, N)) + chances[0] * kept
    low, high = SUCCESS, 1.0
    for _ in range(60):
        x = (low + high) / 2
        pull = (x / SUCCESS - 1) * good * (1 - x) - ((1 - x) / (1 - SUCCESS) - 1) * bad * x
        low, high = (x, high) if contrast > pull else (low, x)
    return low


if __name__ == "__main__":
    print(f"best-of-{N} at success rate {SUCCESS}: {1 - (1 - SUCCESS) ** N:.4f}")
    for prompts in (1, 2, 4, 8, 32):
        print(f"{prompts:2d} prompts per step: {success_at_the_end(prompts):.4f}")
