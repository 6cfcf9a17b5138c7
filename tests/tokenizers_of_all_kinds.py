"""Tokenizers of the kinds that are in use, made from nothing; ids 0 to 6 are the special tokens of `SPECIAL`."""

from collections.abc import Callable

from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerFast

SPECIAL = ["<unk>", "<s>", "</s>", "<pad>", "<think>", "</think>", "<|im_end|>"]
UNK, BOS, EOS, PAD, THINK, THOUGHT, TURN = range(7)
TEXT = [
    "The film was good, and the cast was very good.", "He said: we didn't like it at all! Is it good ?",
    "Das Ende war schön – naïve café, 5 € a piece.", "日本語の文章 と 🙂 emoji 🙂", "  two  spaces\nand a line\n\n",
] * 20  # fmt: skip
BYTES = [f"<0x{i:02X}>" for i in range(256)]


def wrapped(core: Tokenizer, **options: object) -> PreTrainedTokenizerFast:
    names = {"unk_token": "<unk>", "bos_token": "<s>", "eos_token": "</s>", "pad_token": "<pad>"}
    core.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", BOS)])
    return PreTrainedTokenizerFast(
        tokenizer_object=core,
        **names,
        additional_special_tokens=["<think>", "</think>", "<|im_end|>"],
        **options,
    )


def bytes_of_gpt2(**options: object) -> PreTrainedTokenizerFast:
    """Byte-level BPE: a character may lie in several tokens."""
    core = Tokenizer(models.BPE())
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    core.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=330, special_tokens=SPECIAL, initial_alphabet=alphabet, show_progress=False
    )
    core.train_from_iterator(TEXT, trainer)
    return wrapped(core, **options)


def llama_2() -> PreTrainedTokenizerFast:
    """SentencePiece with byte fallback, its first space dropped by the decoder's Strip."""
    core = Tokenizer(models.BPE(unk_token="<unk>", fuse_unk=True, byte_fallback=True))
    core.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    core.pre_tokenizer = pre_tokenizers.Split("▁", "merged_with_next")
    ascii_only = [text for text in TEXT if text.isascii()]  # all else falls back to bytes
    trainer = trainers.BpeTrainer(vocab_size=340, special_tokens=[*SPECIAL, *BYTES], show_progress=False)
    core.train_from_iterator(ascii_only, trainer)
    core.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    return wrapped(with_plain_bytes(core))


def with_plain_bytes(core: Tokenizer) -> Tokenizer:
    """Training made byte tokens special; in real files they are pieces like any other."""
    import json

    content = json.loads(core.to_str())
    content["added_tokens"] = [token for token in content["added_tokens"] if token["id"] < len(SPECIAL)]
    content["pre_tokenizer"] = None
    return Tokenizer.from_str(json.dumps(content))


def metaspace(scheme: str) -> PreTrainedTokenizerFast:
    """Unigram with Metaspace, as T5's, Gemma's (never) and newer Llamas' of SentencePiece."""
    core = Tokenizer(models.Unigram())
    core.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme=scheme)
    core.decoder = decoders.Metaspace(prepend_scheme=scheme)
    trainer = trainers.UnigramTrainer(
        vocab_size=200, special_tokens=SPECIAL, unk_token="<unk>", show_progress=False
    )
    core.train_from_iterator(TEXT, trainer)
    return wrapped(core)


def word_piece(cleanup: bool) -> PreTrainedTokenizerFast:
    """As BERT's: lowercased, a space before every word, and tidied by the decoder or by transformers."""
    core = Tokenizer(models.WordPiece(unk_token="<unk>"))
    core.normalizer = normalizers.BertNormalizer(lowercase=True)
    core.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    core.decoder = decoders.WordPiece(prefix="##", cleanup=cleanup)
    trainer = trainers.WordPieceTrainer(vocab_size=260, special_tokens=SPECIAL, show_progress=False)
    core.train_from_iterator(TEXT, trainer)
    return wrapped(core, clean_up_tokenization_spaces=not cleanup)


def suffixed() -> PreTrainedTokenizerFast:
    """BPE whose words end in `</w>`, which is a space but at the end of the text."""
    core = Tokenizer(models.BPE(unk_token="<unk>", end_of_word_suffix="</w>"))
    core.pre_tokenizer = pre_tokenizers.Whitespace()
    core.decoder = decoders.BPEDecoder(suffix="</w>")
    trainer = trainers.BpeTrainer(
        vocab_size=260, special_tokens=SPECIAL, end_of_word_suffix="</w>", show_progress=False
    )
    core.train_from_iterator(TEXT, trainer)
    return wrapped(core)


def words() -> PreTrainedTokenizerFast:
    """Whole words and no decoder: joined by spaces."""
    core = Tokenizer(models.WordLevel(unk_token="<unk>"))
    core.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    core.train_from_iterator(TEXT, trainers.WordLevelTrainer(special_tokens=SPECIAL, show_progress=False))
    return wrapped(core)


KINDS: dict[str, Callable[[], PreTrainedTokenizerFast]] = {
    "bytes": bytes_of_gpt2,
    "bytes_tidied": lambda: bytes_of_gpt2(
        clean_up_tokenization_spaces=True,
        clean_up_tokenization_spaces_for_bpe_even_though_it_will_corrupt_output=True,
    ),
    "llama_2": llama_2,
    "metaspace_always": lambda: metaspace("always"),
    "metaspace_first": lambda: metaspace("first"),
    "metaspace_never": lambda: metaspace("never"),
    "word_piece_tidied": lambda: word_piece(True),
    "word_piece": lambda: word_piece(False),
    "suffixed": suffixed,
    "words": words,
}
