"""The pages as a real server gives them: what they say, and that nothing in them is more than text."""

import re
from html.parser import HTMLParser

import pytest

from tests.viewing.conftest import Running
from tests.viewing.made import HOSTILE

PATHS = (
    "/",
    *(f"/groups/{n}{page}" for n in (0, 1) for page in ("", "/table", "/group/shard-00000.parquet/0")),
    *("/groups/0/table?sort=disagreement&q=prompt&texts=1", "/groups/9", "/groups/0/table?sort=gian"),
    *("/runs/0", "/runs/0/samples", "/runs/0/samples?step=2", "/compare", "/nothing"),
)


class Elements(HTMLParser):
    """The elements of a page, with their attributes, and its text."""

    def __init__(self, page: str):
        super().__init__(convert_charrefs=True)
        self.found: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self.feed(page)

    def handle_starttag(self, tag, attrs):
        self.found.append((tag, dict(attrs)))

    def handle_data(self, data):
        self.text += data + " "


@pytest.mark.parametrize("path", PATHS)
def test_a_page_loads_nothing_foreign_and_runs_nothing_inline(running: Running, path):
    answer = running.client.get(path)
    policy = answer.headers["content-security-policy"]
    assert "default-src 'none'" in policy
    assert "unsafe" not in policy
    assert answer.headers["x-content-type-options"] == "nosniff"
    assert answer.headers["cache-control"] == "no-store"
    elements = Elements(answer.text).found
    scripts = [attributes for tag, attributes in elements if tag == "script"]
    assert [each.get("src") for each in scripts] == ["/static/view.js"]
    for tag, attributes in elements:
        assert tag not in ("style", "img", "iframe", "object", "embed", "base"), tag
        assert not [name for name in attributes if name.startswith("on") or name == "style"], attributes
        for name in ("src", "href", "action"):
            assert (attributes.get(name) or "/").startswith(("/", "#", "data:,")), attributes
    tags = [tag for tag, _ in elements]
    assert [tags.count(each) for each in ("main", "h1", "header", "footer", "title")] == [1] * 5
    labels = sum(tag in ("select", "input") and a.get("type") != "hidden" for tag, a in elements)
    assert tags.count("label") == labels  # each field has one around it


def test_texts_of_ill_will_are_shown_as_they_are(running: Running):
    page = running.get("/groups/1/group/shard-00000.parquet/0")
    text = Elements(page).text
    for each in (*HOSTILE[:3], HOSTILE[4]):
        assert each in text
    assert (
        r"right\u202eto left, \u2066isolated, z\u200bero, \x1b[31mred, \x00NUL, \ufeff, \U000e0041 tag"
        in text
    )
    assert not re.search("[\x00-\x08\x0b-\x1f\x7f\u200b\u202a-\u202e\u2066-\u2069\ufeff]", page)
    overview = Elements(running.get("/groups/1")).text
    assert HOSTILE[0] in overview  # the reward's name, and
    assert HOSTILE[1] in overview  # why it failed
    assert HOSTILE[1] in Elements(running.get("/groups/1/table")).text  # a column's name


@pytest.mark.parametrize(
    "path",
    [
        "/groups/0/table?q=%ED%A0%80",
        "/groups/0/table?q=a%00b",
        "/groups/0/table?q=%E2%80%AE%3Cscript%3E",
        "/groups/0/table?q=%25_'%22",
    ],
)
def test_a_search_for_anything_finds_nothing(running: Running, path):
    page = running.client.get(path)
    assert page.status_code == 200
    assert "No group is like that." in page.text
    assert "<script>" not in page.text
    assert "\u202e" not in page.text


@pytest.mark.parametrize(
    ("path", "status", "says"),
    [
        ("/groups/0/table?sort=gian", 400, "no field is called 'gian' here; did you mean 'gain'?"),
        ("/groups/0/table?reward=frist", 400, "no reward is called 'frist' here; did you mean 'first'?"),
        ("/groups/0/table?page=0", 400, "page='0' must be a whole number from 1"),
        ("/groups/0/table?page=" + "9" * 5000, 400, "must be a whole number from 0"),
        ("/groups/0/table?field=gain&op=like&value=1", 400, "op='like' must be one of"),
        ("/groups/0/table?field=gain&op=is&value=nan", 400, "gain of the best: 'nan' is no number"),
        ("/groups/0/group/shard-00000.parquet/7", 400, "has no row 7: it has 2"),
        ("/groups/0/group/..%2F..%2Fsecret/0", 404, "no such page"),
        ("/groups/0/group/%ED%A0%80/0", 404, "no file is called"),
        (
            "/groups/0/group/shard-00000.parquet/0?winner=9",
            400,
            "the group has no completion 9; it has 4, from 0",
        ),
        ("/groups/7", 404, "no such folder of groups is shown"),
        ("/runs/0/samples?step=99", 400, "no completions of step 99 are there"),
        ("/runs/0/samples?step=x", 400, "step='x' must be a whole number"),
        ("/static/../app.py", 404, ""),
        ("/compare?a=5", 400, "5 is none of the 3 folders"),
    ],
)
def test_an_address_that_cannot_be_is_told_in_a_line(running: Running, path, status, says):
    answer = running.client.get(path)
    assert answer.status_code == status
    assert says in Elements(answer.text).text


def test_only_names_of_this_machine_are_answered(running: Running):
    def status(host: str) -> int:
        return running.client.get("/groups/0", headers={"host": host}).status_code

    port = running.address.rpartition(":")[2]
    assert [
        status(host) for host in (f"localhost:{port}", "127.0.0.1", "[::1]:80", "MY-MACHINE:1", "10.0.0.7")
    ] == [200] * 5
    assert [
        status(host)
        for host in ("evil.example", f"evil.example:{port}", "127.0.0.1.evil.example", "localhost.x")
    ] == [400] * 4
    assert "my-machine" not in running.client.get("/", headers={"host": "evil.example"}).text


def test_nothing_can_be_written(running: Running):
    for method in ("POST", "PUT", "DELETE", "PATCH", "OPTIONS"):
        assert running.client.request(method, "/groups/0").status_code == 405
    for path in ("/docs", "/openapi.json", "/redoc"):
        assert running.client.get(path).status_code == 404


def test_the_overview_has_the_figures_worked_by_hand(running: Running):
    text = " ".join(Elements(running.get("/groups/0")).text.split())
    assert "groups 4 of 4, 6 completions" in text
    # Gains 1.5, 0, 1 and 3 over four groups; one all equal, one tied at the top; two nulls of 18; five of 18 cut.
    assert "gain of the best 1.375" in text
    assert "all equal 25.0% 1 of 4" in text
    assert "tied at the top 25.0% 1 of 4" in text
    assert "nulls 11.1% 2 of 18" in text
    assert "cut 27.8% 5 of 18" in text
    assert "first the judge <b>timed out</b> 2" in text


def test_a_groups_page_ranks_all_completions_and_leads_to_its_neighbours(running: Running):
    page = running.get("/groups/0/group/shard-00001.parquet/0", sort="gain")
    text = " ".join(Elements(page).text.split())
    ranks = re.findall(r"(Rank \d|No reward) reward (\S+) ·", text)
    assert ranks == [("Rank 1", "3.000")] * 2 + [("Rank 3", "1.000")] * 2 + [("No reward", "–")] * 2
    assert "Group 3 of 4" in text  # gains 3, 1.5, 1, 0
    hrefs = {a.get("rel"): a["href"] for tag, a in Elements(page).found if tag == "a" and a.get("rel")}
    assert "/group/shard-00000.parquet/0?sort=gain" in hrefs["prev"]
    assert "/group/shard-00000.parquet/1?sort=gain" in hrefs["next"]
    other = Elements(running.get("/groups/0/group/shard-00001.parquet/0", reward="second")).text
    assert re.findall(r"Rank \d", other) == ["Rank 1", "Rank 1", "Rank 3", "Rank 3", "Rank 3", "Rank 6"]


def test_a_training_runs_pages(running: Running):
    page = running.get("/runs/0")
    text = " ".join(Elements(page).text.split())
    assert "Up to step 3." in text
    assert "reward 1.5000 3" in text
    assert page.count("<svg") == 3  # reward, loss, kl; a text is no metric
    assert "good at step 3" in running.get("/runs/0/samples")
    assert "Step 1" in running.get("/runs/0/samples", step=2)
    assert running.client.get("/runs/0/state").json() != running.client.get("/runs/1/state").json()


def test_folders_are_compared_prompt_by_prompt(running: Running):
    text = " ".join(Elements(running.get("/compare", a=0, b=2)).text.split())
    assert "4 prompts are in both" in text
    assert "higher on 0 prompts, lower on 0, equal on 4" in text
    assert "No prompt_id is in both folders" not in text
