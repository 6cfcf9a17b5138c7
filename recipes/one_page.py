"""J-BOND (arXiv:2407.14622, Algorithm 2) on one page of plain torch and transformers.

    python recipes/one_page.py

This is `nonpareil distill` on the embedded demo without all that makes it a tool: failed rewards, checkpoints,
bounded memory, bfloat16, several processes, reports. A test holds loss, gradients and steps equal to the trainer's
on the same draws (tests/test_one_page.py). It runs in a few minutes on two cores, in float32.

The aim: draw N completions of a reference policy and keep the one with the highest reward. That law, best-of-N, has
nearly the highest win rate possible at its KL from the reference, but each answer costs N draws. Distillation gives
it to a policy pi that is drawn from once. J-BOND aims at best-of-2 of an *anchor*, pi_2, and lets the anchor follow
the policy slowly: best-of-2 of best-of-2 is best-of-4, so the target moves on as training does.
"""

import copy
import math
from pathlib import Path

import pandas as pd
import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, AutoTokenizer

DEMO = Path(__file__).parents[1] / "src" / "nonpareil" / "assets"

STEPS = 64
PROMPTS = 32  # per step; the demo takes 64
NEW_TOKENS = 40  # per completion, at most
LEARNING_RATE, WARMUP = 3e-4, 10
W = 0.5  # weight of the backward KL; the forward KL has 1 - W
GAMMA = 0.0  # weight of KL(pi || anchor), which can hold a run closer to the anchor
ETA = 0.05  # share of the policy that the anchor takes on after each step

Ids = list[list[int]]


@torch.no_grad()
def draw(model, tokenizer, prompts: list[str]) -> Ids:
    """One completion per prompt, its end token included, at temperature 1 and from the whole vocabulary.

    A truncated law (top-p, top-k) would not be the policy whose log-probs stand in the loss.
    """
    batch = tokenizer(prompts, return_tensors="pt", padding=True, padding_side="left")
    sampling = {"do_sample": True, "temperature": 1.0, "top_p": 1.0, "top_k": 0}
    drawn = model.generate(**batch, max_new_tokens=NEW_TOKENS, **sampling)
    end, rows = model.config.eos_token_id, drawn[:, batch["input_ids"].shape[1] :].tolist()
    return [row[: row.index(end) + 1] if end in row else row for row in rows]


def token_logprobs(model, prompt_ids: Ids, completion_ids: Ids) -> Tensor:
    """log pi of each completion token `[rows, tokens]` in nats; 0 behind the completion's end."""
    pairs = list(zip(prompt_ids, completion_ids, strict=True))
    # Padding stands on the right, where causal attention never looks from a real token: no mask is needed.
    ids = pad_sequence([torch.tensor(prompt + completion) for prompt, completion in pairs], batch_first=True)
    logits = model(input_ids=ids).logits[:, :-1]  # at each place for the token behind it
    logprobs = logits.gather(-1, ids[:, 1:, None])[..., 0] - logits.logsumexp(-1)
    return pad_sequence(
        [row[len(p) - 1 :][: len(c)] for row, (p, c) in zip(logprobs, pairs, strict=True)], batch_first=True
    )


@torch.no_grad()
def score(reward_model, tokenizer, texts: list[str]) -> Tensor:
    """The reward model's logit for each text `[rows]`, in float64, in which close rewards do not tie."""
    batch = tokenizer(texts, return_tensors="pt", padding=True, padding_side="right")
    return reward_model(**batch).logits[:, 0].double()


def less_mean_of_others(values: Tensor, among: Tensor) -> Tensor:
    """Each value less the mean of the others of `among`.

    That baseline does not depend on the draw itself, so it takes noise off a policy gradient and leaves its mean.
    """
    values_among = values * among
    return values - (values_among.sum() - values_among) / (among.sum() - among.double()).clamp(min=1)


def targets(rewards: Tensor, log_ratio: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Steps 1 to 3: what the rewards ask of each draw.

    `rewards` `[b, 3]`: of the policy's draw y, and of the anchor's draws y1 and y2. `log_ratio` `[b]`: log pi(y) -
    log anchor(y), nats. Returns how much more than their mean y1 and y2 are to be imitated `[b, 2]`, and the
    advantages of y in KL(pi || pi_2) and in KL(pi || anchor), `[b]` each.
    """
    own, first, second = rewards.unbind(1)

    # 1. Forward KL(pi_2 || pi): imitate the better of the anchor's draws, itself a draw of pi_2, by
    #    -log pi(better). That pushes even where both are equally good. So the mean of the two is taken off here,
    #    and comes back in `loss` in a form with the same expected gradient and less noise.
    better = (first - second).sign()
    contrast = torch.stack([better, -better], dim=1) / 2

    # 2. Backward KL(pi || pi_2): is y where best-of-2 would put it? The log-quantile of its reward under the
    #    anchor, log p<=(y), says so. The paper estimates it from two draws: -log 16 strictly below both, else 0,
    #    whose mean is right at the median. At the start, where pi is the anchor, a third of all draws are below
    #    both (where rewards do not tie).
    worth = torch.where(own < torch.minimum(first, second), -math.log(16), 0.0)

    # 3. The policy gradient's return is worth - log_ratio, each less its mean over other prompts. Where the
    #    anchor's rewards tie, worth is compared with 0, that of a draw that ties with them.
    differ, every = better != 0, torch.ones_like(better, dtype=torch.bool)
    gain = torch.where(differ, less_mean_of_others(worth, differ), worth)
    distance = less_mean_of_others(log_ratio, every)
    return contrast, gain - distance, distance


def loss(policy, anchor, prompt_ids: Ids, draws: Ids, rewards: Tensor) -> Tensor:
    """Step 4: (1 - W) forward + W backward + GAMMA KL(pi || anchor), nats, the mean over b prompts.

    `draws`: b completions of the policy, then the anchor's first b and second b. `rewards` `[b, 3]`, likewise.
    """
    b = len(prompt_ids)
    ours = token_logprobs(policy, prompt_ids * 3, draws)
    with torch.no_grad():
        theirs = token_logprobs(anchor, prompt_ids * 3, draws)
    log_ratio = ours - theirs  # of two passes alike: exactly 0 where the models are one
    whole = ours.sum(-1)  # of a completion: the sum over its tokens; their mean is no log-probability
    known = targets(rewards, log_ratio[:b].detach().sum(-1).double())
    contrast, advantage, kl_advantage = (value.float() for value in known)

    # The mean's part of the forward KL, -(log pi(y1) + log pi(y2)) / 2, has the expected gradient of
    # KL(anchor || pi). Estimated token by token as rho - 1 - log rho, rho = pi / anchor, it is at rest for each
    # single draw where pi is the anchor: a prompt whose rewards tie only holds the policy there.
    hold = (log_ratio[b:].exp() - 1 - log_ratio[b:]).sum(-1)
    forward = (hold / 2 - contrast.T.flatten() * whole[b:]).view(2, b).sum(0)
    backward = -advantage * whole[:b]  # REINFORCE; in expectation its gradient is that of KL(pi || pi_2)
    kl_to_anchor = kl_advantage * whole[:b]  # the sign of the paper's eq. 19, not of its printed gradient
    return ((1 - W) * forward + W * backward + GAMMA * kl_to_anchor).mean()


def step(policy, anchor, optimizer, *batch) -> float:
    """Descend the loss, then step 5: anchor <- (1 - ETA) anchor + ETA policy. Returns the loss."""
    value = loss(policy, anchor, *batch)
    optimizer.zero_grad()
    value.backward()
    torch.nn.utils.clip_grad_norm_(policy.parameters(), 1.0)
    optimizer.step()
    with torch.no_grad():
        for follower, leader in zip(anchor.parameters(), policy.parameters(), strict=True):
            follower.lerp_(leader, ETA)
    return value.item()


def main() -> None:
    torch.manual_seed(0)
    tokenizer, rm_tokenizer = (AutoTokenizer.from_pretrained(DEMO / name) for name in ("demo-lm", "demo-rm"))
    policy = AutoModelForCausalLM.from_pretrained(DEMO / "demo-lm", dtype=torch.float32).eval()  # no dropout
    anchor, reference = copy.deepcopy(policy), copy.deepcopy(policy)
    rm = AutoModelForSequenceClassification.from_pretrained(DEMO / "demo-rm", dtype=torch.float32).eval()
    optimizer = torch.optim.AdamW(policy.parameters(), lr=LEARNING_RATE, weight_decay=0.0)
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda done: min(done / WARMUP, (STEPS - done) / (STEPS - WARMUP))
    )
    prompts = pd.read_parquet(DEMO / "demo-prompts" / "train.parquet")["prompt"]
    prompts = prompts.sample(frac=1, random_state=0)

    print("step  reward  of the anchor  KL to the reference, nats per completion")
    for done in range(STEPS):
        texts = prompts[done * PROMPTS : (done + 1) * PROMPTS].tolist()
        prompt_ids = tokenizer(texts)["input_ids"]
        draws = draw(policy, tokenizer, texts) + draw(anchor, tokenizer, texts * 2)
        completions = tokenizer.batch_decode(draws, skip_special_tokens=True)
        finished = [prompt + completion for prompt, completion in zip(texts * 3, completions, strict=True)]
        rewards = score(rm, rm_tokenizer, finished).view(3, PROMPTS).T
        if done % 4 == 0 or done == STEPS - 1:  # before the step: the policy that drew
            with torch.no_grad():  # the mean log-ratio of the policy's own draws is an unbiased estimate
                ours, theirs = (token_logprobs(m, prompt_ids, draws[:PROMPTS]) for m in (policy, reference))
            kl, (own, of_anchor) = (ours - theirs).sum(-1).mean(), (rewards[:, 0], rewards[:, 1:])
            print(f"{done:4} {own.mean():7.3f} {of_anchor.mean():14.3f} {kl:6.3f}", flush=True)
        step(policy, anchor, optimizer, prompt_ids, draws, rewards)
        schedule.step()
    print(f"a completion of the last step: {finished[0]!r}")


if __name__ == "__main__":
    main()
