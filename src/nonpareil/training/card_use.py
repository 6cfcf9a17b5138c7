"""How to draw from a trained policy: a few lines that run as they stand in its model card."""

_CHAT = '[{"role": "user", "content": "Which planet is the largest?"}]'
_TEXT = '"Once upon a time"'


def how_to_use(name: str, *, chat: bool, adapter: bool, temperature: float, most_tokens: int) -> str:
    """Markdown; `name` is the model's, in quotes. A conversation for a chat model, plain text for any other."""
    drawing = f"max_new_tokens={most_tokens}, do_sample=True, temperature={temperature}, top_p=1.0, top_k=0"
    lines = (_of_adapter if adapter else _of_model)(name, chat, drawing)
    return "\n".join(
        [
            "```python",
            *lines,
            "```",
            f"A sample at temperature {temperature}, of the whole vocabulary: that is how the policy was trained.",
        ]
    )


def _of_model(name: str, chat: bool, drawing: str) -> list[str]:
    said = '[-1]["content"]' if chat else ""
    return [
        "from transformers import pipeline",
        "",
        f'generate = pipeline("text-generation", model={name})',
        f"prompt = {_CHAT if chat else _TEXT}",
        f"completions = generate(prompt, {drawing})",
        f'print(completions[0]["generated_text"]{said})',
    ]


def _of_adapter(name: str, chat: bool, drawing: str) -> list[str]:
    """By PEFT, which also loads the base model that the adapter names."""
    if chat:
        read = [
            f"prompt = {_CHAT}",
            "inputs = tokenizer.apply_chat_template(",
            '    prompt, add_generation_prompt=True, return_tensors="pt", return_dict=True',
            ")",
        ]
    else:
        read = [f"prompt = {_TEXT}", 'inputs = tokenizer(prompt, return_tensors="pt")']
    return [
        "from peft import AutoPeftModelForCausalLM",
        "from transformers import AutoTokenizer",
        "",
        f"model = AutoPeftModelForCausalLM.from_pretrained({name})",
        f"tokenizer = AutoTokenizer.from_pretrained({name})",
        *read,
        f"output = model.generate(**inputs.to(model.device), {drawing})",
        'print(tokenizer.decode(output[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True))',
    ]
