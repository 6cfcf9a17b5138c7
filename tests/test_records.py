"""Records that pass between floors."""

from nonpareil.records import Group


def group(texts: list[str], **scores) -> Group:
    ids = [[len(text), 2] for text in texts]
    logprobs = [[-1.0, -len(text) / 2] for text in texts]
    return Group("p-0", "a prompt", [1, 5], texts, ids, ["stop"] * len(texts), logprobs, **scores)


def test_a_joined_group_holds_both_and_leaves_them_as_they_were():
    ours = group(["a", "bb"], rewards_by_name={"x": [1.0, None], "y": [3.0, 4.0]}, rewards=[4.0, None])
    theirs = group(["ccc"], rewards_by_name={"x": [5.0]}, rewards=[5.0])
    joined = ours.joined(theirs)
    assert joined == group(
        ["a", "bb", "ccc"],
        rewards_by_name={"x": [1.0, None, 5.0], "y": [3.0, 4.0, None]},
        rewards=[4.0, None, 5.0],
    )
    assert (len(ours), len(theirs), len(ours.rewards), ours.rewards_by_name["x"]) == (2, 1, 2, [1.0, None])


def test_a_joined_group_is_scored_where_one_of_them_is():
    assert group(["a"]).joined(group(["bb"])).rewards is None
    assert group([]).joined(group(["bb"], rewards=[2.0])).rewards == [2.0]
    assert group(["a"]).joined(group(["bb"], rewards=[2.0])).rewards == [None, 2.0]
