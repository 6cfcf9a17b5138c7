"""Train the demo's sentiment reward model from the demo's language model.

    python recipes/demo/train_rm.py --data imdb.parquet --lm demo-lm --output_dir demo-rm

The human labels of the 25,000 train reviews teach it directly. They also train a bag-of-words teacher
(TF-IDF of words and pairs, logistic regression on whole reviews), whose probabilities label the unlabelled
reviews. Every prefix of a review is scored, not only its end, since a reward model for short completions must
judge beginnings. Prints the accuracy on test reviews cut to 48 and 254 tokens.
"""

import argparse
import json
from pathlib import Path

import numpy as np
import torch
from data import encode, reviews
from optim import MuonWithAdamW, warmup_stable_decay
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.linear_model import LogisticRegression
from torch.nn.functional import binary_cross_entropy_with_logits
from torch.utils.data import Dataset
from transformers import (
    AutoTokenizer,
    LlamaForCausalLM,
    LlamaForSequenceClassification,
    Trainer,
    TrainingArguments,
    set_seed,
)

CROP, FIRST_SCORED, DROPPED = 254, 8, 0.08


def teacher_probabilities(texts: list[str], labels: np.ndarray, unlabelled: list[str]) -> np.ndarray:
    """P(positive) of unlabelled reviews by a bag of words trained on the human labels."""
    features = TfidfVectorizer(ngram_range=(1, 2), min_df=3, sublinear_tf=True, max_features=300_000)
    classifier = LogisticRegression(C=20.0, max_iter=60)
    classifier.fit(features.fit_transform(texts), labels)
    return classifier.predict_proba(features.transform(unlabelled))[:, 1]


class Crops(Dataset):
    """A crop of each review: from its start every other time, with a few tokens dropped at random."""

    def __init__(self, ids: list[list[int]], targets: np.ndarray, seed: int):
        self.ids, self.targets, self.seed = ids, targets, seed

    def __len__(self) -> int:
        return len(self.ids)

    def __getitem__(self, i: int) -> tuple[np.ndarray, float]:
        rng = np.random.default_rng((self.seed, i))
        body = np.asarray(self.ids[i][1:])
        spare = max(0, len(body) - CROP)
        start = rng.integers(spare + 1) if rng.random() < 0.5 else 0
        body = body[start : start + CROP]
        return np.concatenate([self.ids[i][:1], body[rng.random(len(body)) >= DROPPED]]), self.targets[i]


def collate(rows: list[tuple[np.ndarray, float]]) -> dict[str, torch.Tensor]:
    """Right-padded ids, their lengths, and the targets."""
    lengths = torch.tensor([len(ids) for ids, _ in rows])
    input_ids = torch.full((len(rows), int(lengths.max())), 1)
    for row, (ids, _) in enumerate(rows):
        input_ids[row, : len(ids)] = torch.from_numpy(ids)
    return {"input_ids": input_ids, "lengths": lengths, "labels": torch.tensor([t for _, t in rows]).float()}


class PrefixTrainer(Trainer):
    """Binary cross-entropy of the score after every token, each review weighing the same."""

    def compute_loss(self, model, inputs, return_outputs=False, **kwargs):
        states = model.model(input_ids=inputs["input_ids"]).last_hidden_state
        scores = model.score(states)[..., 0].float()
        place = torch.arange(scores.shape[1])[None]
        scored = (place >= FIRST_SCORED) & (place < inputs["lengths"][:, None])
        losses = binary_cross_entropy_with_logits(
            scores, inputs["labels"][:, None].expand_as(scores), reduction="none"
        )
        loss = ((losses * scored).sum(1) / scored.sum(1).clamp(min=1)).mean()
        return (loss, scores) if return_outputs else loss


def start_from(lm: Path, layers: int) -> LlamaForSequenceClassification:
    """A scorer whose body is the language model's first layers; the head starts at zero."""
    language_model = LlamaForCausalLM.from_pretrained(lm, dtype=torch.float32)
    config = language_model.config
    config.num_hidden_layers, config.num_labels = layers, 1
    config.id2label, config.label2id = {0: "sentiment"}, {"sentiment": 0}
    model = LlamaForSequenceClassification(config)
    body = language_model.model.state_dict()
    model.model.load_state_dict({k: body[k] for k in model.model.state_dict()})
    torch.nn.init.zeros_(model.score.weight)
    return model


@torch.no_grad()
def accuracy(
    model: LlamaForSequenceClassification, ids: list[list[int]], labels: np.ndarray, cut: int
) -> float:
    """Share of reviews, cut to `cut` tokens after the leading one, whose score has the label's sign."""
    rows = sorted(range(len(ids)), key=lambda i: len(ids[i]))
    right = 0
    for start in range(0, len(rows), 50):
        batch = rows[start : start + 50]
        inputs = collate([(np.asarray(ids[i][: cut + 1]), 0.0) for i in batch])
        mask = torch.arange(inputs["input_ids"].shape[1])[None] < inputs["lengths"][:, None]
        scores = model(input_ids=inputs["input_ids"], attention_mask=mask.long()).logits[:, 0]
        right += int(((scores > 0).numpy() == (labels[batch] == 1)).sum())
    return right / len(ids)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--lm", type=Path, required=True)
    parser.add_argument("--output_dir", type=Path, required=True)
    parser.add_argument("--layers", type=int, default=5)
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--labelled_passes", type=int, default=1)
    parser.add_argument("--unlabelled", type=int, default=10000)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    set_seed(args.seed)

    tokenizer = AutoTokenizer.from_pretrained(args.lm)
    texts, labels = reviews(args.data, "train")
    more, _ = reviews(args.data, "unsupervised")
    more = more[: args.unlabelled]
    soft = teacher_probabilities(texts, labels, more)
    ids = encode(tokenizer, texts) * args.labelled_passes + encode(tokenizer, more)
    hard = 0.05 + 0.9 * labels
    targets = np.concatenate([*[hard] * args.labelled_passes, soft])
    model = start_from(args.lm, args.layers)
    model.model.compile(dynamic=True)
    steps = len(ids) // args.batch
    optimizer = MuonWithAdamW(model, matrix_lr=0.004, other_lr=1e-3, weight_decay=0.05)
    PrefixTrainer(
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
            remove_unused_columns=False,
            report_to="none",
            seed=args.seed,
        ),
        train_dataset=Crops(ids, targets, args.seed),
        data_collator=collate,
        optimizers=(optimizer, warmup_stable_decay(optimizer, steps, warmup=60, decay=0.8)),
    ).train()
    model.to(torch.bfloat16).save_pretrained(args.output_dir)
    tokenizer.save_pretrained(args.output_dir)

    model = LlamaForSequenceClassification.from_pretrained(args.output_dir, dtype=torch.bfloat16).eval()
    texts, labels = reviews(args.data, "test")
    chosen = np.random.default_rng(0).permutation(len(texts))[:5000]
    ids, labels = encode(tokenizer, [texts[i] for i in chosen]), labels[chosen]
    print(
        json.dumps(
            {
                "parameters": model.num_parameters(),
                "accuracy_48_tokens": accuracy(model, ids, labels, 48),
                "accuracy_254_tokens": accuracy(model, ids, labels, 254),
            }
        )
    )


if __name__ == "__main__":
    main()
