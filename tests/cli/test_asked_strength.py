"""`distill --at_win_rate` and `--at_n`: the policy of an asked win rate, written and measured beside the trained one."""

import json


def last_json(output):
    return json.loads(output.strip().splitlines()[-1])


def test_it(nonpareil, files):
    status, out, err = nonpareil(
        "distill",
        "--json",
        at_win_rate=0.6,
        learning_rate=0.05,
        max_steps=8,
        num_reference_samples_eval=8,
        num_generations_eval=8,
    )
    print(err)
    print(
        json.dumps(last_json(out)["at_strength"], indent=1),
        last_json(out)["evaluation"]["comparison"]["win_rate"],
    )
    import os

    os.system(f"find {files}/out | sort; cat {files}/out/at*/strength.json")
    assert 0
