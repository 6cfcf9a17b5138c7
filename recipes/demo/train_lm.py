"""Train the demo's language model of film reviews from random weights.

    python recipes/demo/train_lm.py --data imdb.parquet --output_dir demo-lm

Reads the train and unlabelled reviews (never the test ones), trains a byte-level BPE and a small Llama in
bfloat16 autocast with plain transformers, and prints the loss on test reviews in nats per token and nats per byte.
"""

import argparse
import json
from pathlib import Path

import numpy as np
import torch
from data import reviews, token_stream, train_tokenizer
from optim import MuonWithAdamW, warmup_stable_decay
from torch.utils.data import Dataset
from transformers import LlamaConfig, LlamaForCausalLM, Trainer, TrainingArguments, set_seed

WINDOW = 256


class Windows(Dataset):
    """Consecutive windows of a token stream; a new random offset each pass moves their borders."""

    def __init__(self, stream: np.ndarray, passes: int, seed: int):
        rng = np.random.default_rng(seed)
        starts = [
            rng.permutation(np.arange(rng.integers(WINDOW), len(stream) - WINDOW, WINDOW))
            for _ in range(passes)
        ]
        self.stream, self.starts = stream, np.concatenate(starts)

    def __len__(self) -> int:
        return len(self.starts)

    def __getitem__(self, i: int) -> dict[str, torch.Tensor]:
        ids = torch.from_numpy(self.stream[self.starts[i] :][:WINDOW].astype(np.int64))
        return {"input_ids": ids, "labels": ids}


class InOrder(Trainer):
    """The windows are shuffled already; a fixed order makes `passes` mean what it says."""

    def _get_train_sampler(self, *args):
        return torch.utils.data.SequentialSampler(self.train_dataset)


@torch.no_grad()
def test_loss(model: LlamaForCausalLM, stream: np.ndarray, windows: int) -> float:
    """Mean nats per token over evenly spread windows."""
    starts = np.linspace(0, len(stream) - WINDOW, windows).astype(int)
    losses = []
    for chunk in np.array_split(starts, max(1, windows // 16)):
        ids = torch.from_numpy(np.stack([stream[s : s + WINDOW] for s in chunk]).astype(np.int64))
        with torch.autocast("cpu", torch.bfloat16):
            losses.append((model(input_ids=ids, labels=ids).loss.item(), len(chunk)))
    return float(np.average([loss for loss, _ in losses], weights=[n for _, n in losses]))


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--output_dir", type=Path, required=True)
    parser.add_argument("--passes", type=float, default=0.8)
    parser.add_argument("--max_steps", type=int, default=-1)
    parser.add_argument("--batch", type=int, default=24)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    set_seed(args.seed)

    texts, _ = reviews(args.data, "train", "unsupervised")
    tokenizer = train_tokenizer(texts, vocab_size=8192, window=WINDOW)
    order = np.random.default_rng(args.seed).permutation(len(texts))
    stream = token_stream(tokenizer, [texts[i] for i in order])
    dataset = Windows(stream, passes=int(np.ceil(args.passes)), seed=args.seed)

    model = LlamaForCausalLM(
        LlamaConfig(
            vocab_size=8192,
            hidden_size=256,
            intermediate_size=704,
            num_hidden_layers=7,
            num_attention_heads=4,
            num_key_value_heads=4,
            max_position_embeddings=WINDOW,
            tie_word_embeddings=True,
            bos_token_id=0,
            eos_token_id=0,
            pad_token_id=1,
        )
    )
    steps = args.max_steps if args.max_steps > 0 else int(args.passes * (len(stream) // WINDOW) / args.batch)
    optimizer = MuonWithAdamW(model, matrix_lr=0.015, other_lr=3e-3, weight_decay=0.05)
    model.compile()
    trainer = InOrder(
        model=model,
        args=TrainingArguments(
            output_dir=str(args.output_dir / "checkpoints"),
            max_steps=steps,
            per_device_train_batch_size=args.batch,
            bf16=True,
            use_cpu=not torch.cuda.is_available(),
            max_grad_norm=1.0,
            logging_steps=50,
            disable_tqdm=True,
            save_strategy="no",
            report_to="none",
            seed=args.seed,
        ),
        train_dataset=dataset,
        optimizers=(optimizer, warmup_stable_decay(optimizer, steps, warmup=60, decay=0.7)),
    )
    trainer.train()

    test_texts, _ = reviews(args.data, "test")
    test_stream = token_stream(tokenizer, test_texts)
    tokenizer.save_pretrained(args.output_dir)
    model.to(torch.bfloat16).save_pretrained(args.output_dir)
    model = LlamaForCausalLM.from_pretrained(args.output_dir).eval()
    loss = test_loss(model, test_stream, windows=2000)
    test_bytes = sum(len(text.encode()) for text in test_texts)
    print(
        json.dumps(
            {
                "parameters": model.num_parameters(),
                "train_tokens": steps * args.batch * WINDOW,
                "test_nats_per_token": round(loss, 4),
                "test_nats_per_byte": round(loss * len(test_stream) / test_bytes, 4),
            }
        )
    )


if __name__ == "__main__":
    main()
