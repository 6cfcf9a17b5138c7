"""Film reviews, tokenizer and token streams shared by the demo's training scripts."""

from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerFast

END, PAD = "<|endoftext|>", "<|pad|>"


def reviews(path: Path, *splits: str) -> tuple[list[str], np.ndarray]:
    """Texts and labels (1 positive, 0 negative, -1 unlabelled) of the named splits, in file order."""
    table = pq.read_table(path, columns=["split", "label", "text"]).to_pandas()
    table = table[table["split"].isin(splits)]
    return table["text"].tolist(), table["label"].to_numpy()


def train_tokenizer(texts: list[str], vocab_size: int, window: int) -> PreTrainedTokenizerFast:
    """A byte-level BPE that puts the end-of-text token in front of every text, as the models are trained."""
    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bpe.decoder = decoders.ByteLevel()
    bpe.train_from_iterator(
        texts,
        trainers.BpeTrainer(
            vocab_size=vocab_size,
            special_tokens=[END, PAD],
            initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
            show_progress=False,
        ),
    )
    bpe.post_processor = processors.TemplateProcessing(
        single=f"{END} $A", special_tokens=[(END, bpe.token_to_id(END))]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=bpe, bos_token=END, eos_token=END, pad_token=PAD, model_max_length=window
    )


def encode(tokenizer: PreTrainedTokenizerFast, texts: list[str]) -> list[list[int]]:
    """Token ids of each text, the end-of-text token in front and none behind."""
    return [e.ids for e in tokenizer.backend_tokenizer.encode_batch(texts)]


def token_stream(tokenizer: PreTrainedTokenizerFast, texts: list[str]) -> np.ndarray:
    """All texts in one row: each begins with the end-of-text token, which so also ends the one before."""
    return np.concatenate([np.asarray(ids, dtype=np.int32) for ids in encode(tokenizer, texts)])
