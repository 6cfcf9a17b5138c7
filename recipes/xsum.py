"""What recipes/bond-xsum.yaml needs: prompts of XSum, and how far a summary follows from its document.

    python recipes/xsum.py --output_dir nonpareil-xsum/prompts

The paper rewards with a T5 NLI model (Roit et al., 2023); here an open one with three labels does.
"""

import argparse
from functools import cache
from pathlib import Path
from typing import Any

NLI = "cross-encoder/nli-deberta-v3-large"
INSTRUCTION = "Summarise this article in one sentence.\n\n"


@cache
def nli_model(name: str) -> tuple[Any, Any, int]:
    """Model, tokenizer and the number of the label for entailment."""
    import torch
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    device = "cuda" if torch.cuda.is_available() else "cpu"
    model = AutoModelForSequenceClassification.from_pretrained(name, dtype=torch.float32).eval().to(device)
    labels = {label.lower(): number for number, label in model.config.id2label.items()}
    return model, AutoTokenizer.from_pretrained(name), labels["entailment"]


def entailment(
    completions: list[Any], document: list[str], batch_size: int = 32, **columns: Any
) -> list[float]:
    """log-odds that each summary follows from its document, whose end is cut where it is too long."""
    import torch

    model, tokenizer, entailed = nli_model(NLI)
    texts = [c if isinstance(c, str) else c[-1]["content"] for c in completions]
    scores: list[float] = []
    for start in range(0, len(texts), batch_size):
        rows = slice(start, start + batch_size)
        inputs = tokenizer(
            document[rows],
            texts[rows],
            truncation="only_first",
            max_length=512,
            padding=True,
            return_tensors="pt",
        ).to(model.device)
        with torch.inference_mode():
            log_probs = model(**inputs).logits.float().log_softmax(-1)
        others = log_probs[:, [label for label in range(log_probs.shape[-1]) if label != entailed]]
        scores += (log_probs[:, entailed] - others.logsumexp(-1)).tolist()
    return scores


def main() -> None:
    from datasets import load_dataset

    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--output_dir", type=Path, required=True)
    parser.add_argument("--dataset_name", default="EdinburghNLP/xsum")
    args = parser.parse_args()
    args.output_dir.mkdir(parents=True, exist_ok=True)
    for split in ("train", "validation", "test"):
        rows = load_dataset(args.dataset_name, split=split).select_columns(["document"])
        rows = rows.map(lambda row: {"prompt": [{"role": "user", "content": INSTRUCTION + row["document"]}]})
        rows.to_parquet(args.output_dir / f"{split}.parquet")


if __name__ == "__main__":
    main()
