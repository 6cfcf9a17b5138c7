"""The pages in a real Chromium: keys, live pages, contrast, a phone's width, bundles from disk, no errors."""

import shutil
from pathlib import Path

import pytest

from tests.viewing.conftest import Running
from tests.viewing.made import group, training_run, two_shards, write

pytestmark = pytest.mark.browser
PATHS = [
    "/",
    "/groups/0",
    "/groups/0/table",
    "/groups/1/group/shard-00000.parquet/0",
    "/runs/0",
    "/runs/0/samples",
    "/compare",
]

CONTRAST = """() => {
  const canvas = document.createElement("canvas").getContext("2d", { willReadFrequently: true });
  const rgb = (colour) => { canvas.clearRect(0, 0, 1, 1); canvas.fillStyle = colour; canvas.fillRect(0, 0, 1, 1);
    return [...canvas.getImageData(0, 0, 1, 1).data]; };
  const light = (c) => c.slice(0, 3).map((v) => (v /= 255) <= 0.03928 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4)
    .reduce((sum, v, i) => sum + v * [0.2126, 0.7152, 0.0722][i], 0);
  const low = [];
  const walker = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
  while (walker.nextNode()) {
    const element = walker.currentNode.parentElement;
    if (!walker.currentNode.data.trim() || !element.checkVisibility()) continue;
    if (element.closest("svg, .hidden, .skip")) continue;
    let behind = element, page = [0, 0, 0, 0];
    for (; behind && page[3] < 255; behind = behind.parentElement)
      page = rgb(getComputedStyle(behind).backgroundColor);
    if (page[3] < 255) page = rgb(getComputedStyle(document.body).backgroundColor);
    const [a, b] = [light(rgb(getComputedStyle(element).color)), light(page)].sort((x, y) => y - x);
    if ((a + 0.05) / (b + 0.05) < 4.5) low.push(element.outerHTML.slice(0, 120));
  }
  return low;
}"""


@pytest.fixture(scope="module")
def browser():
    playwright = pytest.importorskip("playwright.sync_api", reason="tests in a browser need playwright")
    path = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
    if path is None:
        pytest.skip("tests in a browser need a Chromium on PATH")
    with playwright.sync_playwright() as started:
        opened = started.chromium.launch(executable_path=path, args=["--no-sandbox"])
        yield opened
        opened.close()


def open_page(browser, scheme="light", width=1280):
    page = browser.new_context(color_scheme=scheme, viewport={"width": width, "height": 900}).new_page()
    page.errors = []
    page.on("console", lambda message: page.errors.append(message.text) if message.type == "error" else None)
    page.on("pageerror", lambda error: page.errors.append(str(error)))
    return page


@pytest.mark.parametrize(("scheme", "width"), [("light", 1280), ("dark", 1280), ("light", 360)])
def test_pages_are_whole_in_light_and_dark_and_on_a_phone(running: Running, browser, scheme, width):
    page = open_page(browser, scheme, width)
    for path in PATHS:
        assert page.goto(running.address + path).ok
        assert page.evaluate("window.hacked") is None
        assert page.evaluate(
            "document.documentElement.scrollWidth <= document.documentElement.clientWidth"
        ), path
        assert (
            page.evaluate("getComputedStyle(document.body).maxWidth") == "1216px"
        )  # the style sheet was taken
        assert page.evaluate(CONTRAST) == [], path
    assert page.errors == []


def test_keys_go_through_rows_groups_and_completions(running: Running, browser):
    page = open_page(browser)
    page.goto(running.address + "/groups/0/table?sort=gain")
    for key in "jj":
        page.keyboard.press(key)
    assert page.evaluate("document.activeElement.textContent") == "prompt number 0"
    page.keyboard.press("Enter")
    page.wait_for_url("**/group/shard-00000.parquet/0?**")
    page.keyboard.press("j")
    page.wait_for_url("**/group/shard-00001.parquet/0?**")
    page.keyboard.press("k")
    page.wait_for_url("**/group/shard-00000.parquet/0?**")
    page.keyboard.press("n")
    page.keyboard.press("n")
    assert page.evaluate("document.activeElement.id") == "draw-2"
    page.keyboard.press("u")
    page.wait_for_url("**/groups/0/table?sort=gain**")
    page.keyboard.press("/")
    page.keyboard.type("jk 2")  # into the box, where keys are letters
    assert page.input_value("#search") == "jk 2"


def test_a_page_follows_a_folder_that_grows(running: Running, browser):
    page = open_page(browser)
    page.goto(running.address + "/groups/2")
    page.wait_for_selector("text=best of N >> visible=true", timeout=60_000)
    write(running.folder / "again", 2, [group(9, [1, 2, 3, 4])])
    page.wait_for_selector(".tiles > div:first-child dd:text-is('5')", timeout=30_000)
    page.goto(running.address + "/runs/1")
    training_run(running.folder / "other", 7)
    page.wait_for_selector("text=Up to step 7", timeout=30_000)
    assert page.errors == []


def test_a_bundle_is_read_from_disk(browser, tmp_path: Path):
    from nonpareil.viewing.bundle import write_bundle
    from nonpareil.viewing.site import Site

    write_bundle(Site.of([("mine", two_shards(tmp_path / "groups"))]), tmp_path / "out", "sort=gain", 2)
    page = open_page(browser)
    page.goto((tmp_path / "out" / "index.html").as_uri())
    assert page.evaluate("getComputedStyle(document.body).maxWidth") == "1216px"
    page.click("nav a:has-text('Groups')")
    page.wait_for_url("**/groups.html")
    page.keyboard.press("j")
    page.keyboard.press("Enter")
    page.wait_for_url("**/group-00001.html")
    page.keyboard.press("j")
    page.wait_for_url("**/group-00002.html")
    assert page.errors == []
