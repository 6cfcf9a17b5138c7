"""Stop strings and a penalty: drawn with, kept in the manifest, curved and exported; never trained on."""

import json

import pytest

TRAINED = {
    "method": "bonbon",
    "n": 2,
    "dataset_name": None,
    "evaluate_after": "false",
    "eval_dataset_name": None,
}
TRAINED |= {"num_generations_eval": None, "num_reference_samples_eval": None, "reward_funcs": None}


@pytest.mark.parametrize(
    ("setting", "value", "said"),
    [
        (
            "repetition_penalty",
            1.5,
            "was drawn with repetition_penalty=1.5, which makes each next token depend on",
        ),
        ("stop", "good", "was drawn with stop=['good']: completions end where the policy would have gone on"),
        ("top_k", 3, "was drawn with top_k=3, from a part of the vocabulary, whose log-probs are not"),
    ],
)
def test_they_are_kept_and_training_refuses_them_with_the_reason(nonpareil, files, setting, value, said):
    groups = files / "groups"
    status, _, err = nonpareil("sample", output_dir=groups, **{setting: value})
    assert status == 0, err
    sampling = json.loads((groups / "manifest.json").read_text())["draw"]["sampling"]
    assert sampling[setting] == ([value] if setting == "stop" else value)
    assert nonpareil("curve", "--groups", groups, "--output_dir", files / "curve")[0] == 0
    assert (
        nonpareil("export", "--groups", groups, "--output", files / "x.jsonl", "--truncated", "allow")[0] == 0
    )
    status, _, err = nonpareil("distill", groups=groups, output_dir=files / "d", **TRAINED)
    assert (status, said in err) == (2, True), err
    assert not (files / "d" / "config.json").exists()
    status, _, err = nonpareil("sample", output_dir=groups)
    assert (status, f"sampling.{setting}:" in err) == (2, True), err
    if setting != "top_k":
        status, _, err = nonpareil("sample", engine="vllm", output_dir=files / "v", **{setting: value})
        assert (status, "is not read with engine=vllm; give engine=transformers or openai or ray" in err) == (
            2,
            True,
        )


def test_the_manifest_of_plain_draws_is_as_it_was(nonpareil, files):
    assert nonpareil("sample", max_prompts=2)[0] == 0
    sampling = json.loads((files / "out" / "manifest.json").read_text())["draw"]["sampling"]
    assert list(sampling) == ["max_completion_length", "temperature", "top_p", "top_k", "min_p"]


def test_an_empty_line_stops_from_yaml_and_from_a_shell(nonpareil, files):
    (files / "stop.yaml").write_text('stop: ["\\n\\n", "good"]\n')
    status, _, err = nonpareil("sample", "--config", files / "stop.yaml", max_prompts=2)
    assert status == 0, err
    sampling = json.loads((files / "out" / "manifest.json").read_text())["draw"]["sampling"]
    assert sampling["stop"] == ["\n\n", "good"]
    words = ["sample", *nonpareil.flags("sample", max_prompts=2)[1:], "--stop", "\n\n", "good"]
    status, out, err = nonpareil(*words, "--json")
    assert (status, json.loads(out.splitlines()[-1])["shards_drawn"]) == (0, 0), err


@pytest.mark.parametrize("bad", ["", 3])
def test_what_cannot_end_a_completion_is_refused(nonpareil, files, bad):
    (files / "stop.yaml").write_text(json.dumps({"stop": [bad]}))
    status, _, err = nonpareil("sample", "--config", files / "stop.yaml", max_prompts=2)
    assert (status, f"stop=[{bad!r}]: {bad!r} is no text that could end a completion" in err) == (2, True), (
        err
    )
