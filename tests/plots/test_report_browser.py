"""The report in a real headless Chromium, from ``file://``: clicks, keys, focus and what is announced."""

from __future__ import annotations

import dataclasses
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from run_files import sample_rows, write_evaluation

from vniah.plots.published import read_published
from vniah.plots.report import build_page
from vniah.runs.read import read_run

CHROMIUM = next(
    (found for name in ("chromium", "chromium-browser", "google-chrome") if (found := shutil.which(name))), None
)
DRIVER = shutil.which("chromedriver")
HOSTILE = '</script><script>document.title="owned"</script><img src=x onerror="document.title=1">'


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    webdriver = pytest.importorskip("selenium.webdriver", reason="selenium is not installed")
    if CHROMIUM is None or DRIVER is None:
        pytest.skip("no chromium and chromedriver here (Debian: apt install chromium chromium-driver)")
    options = webdriver.ChromeOptions()
    options.binary_location = CHROMIUM
    for switch in (
        "--headless=new",
        "--no-sandbox",
        "--disable-gpu",
        "--disable-dev-shm-usage",
        "--window-size=1200,900",
    ):
        options.add_argument(switch)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    driver = webdriver.Chrome(options=options, service=webdriver.ChromeService(DRIVER))
    yield driver
    driver.quit()


@pytest.fixture
def page(browser: Any, tmp_path: Path) -> Any:
    """Two runs with pictures (cat red, dog blue) and a published grid."""
    first = read_run(write_evaluation(tmp_path / "a", sample_rows(wrong=HOSTILE), model="me/first"))
    second = read_run(write_evaluation(tmp_path / "b", sample_rows(lambda *_: True), model="me/second"))
    images = {"cat": Image.new("RGB", (40, 30), "red"), "dog": Image.new("RGB", (40, 30), "blue")}
    file = tmp_path / "report.html"
    text = build_page([first, second, read_published("LongVA-7B")], pictures=[images, images, {}])
    file.write_text(text, encoding="utf-8")
    browser.get(file.as_uri())
    return browser


def css(page: Any, selector: str) -> Any:
    return page.find_element("css selector", selector)


def text_of(page: Any, selector: str) -> str:
    """The text as it is in the document; the status is there for screen readers and not to be seen."""
    return str(css(page, selector).get_attribute("textContent"))


def focused(page: Any) -> str:
    return str(page.execute_script("const e = document.activeElement; return e.dataset.place || e.id || e.tagName"))


def press(page: Any, *keys: str) -> None:
    page.switch_to.active_element.send_keys(*keys)


def focus_first_cell(page: Any) -> None:
    page.execute_script("document.querySelector('table[role=grid] td[tabindex=\"0\"]').focus()")


def test_a_click_shows_the_right_needles_predictions_and_controls(page: Any) -> None:
    css(page, 'table[data-run="0"] td[data-place="16/50"]').click()
    assert css(page, "#detail-title").text == "16 frames, depth 50 %"
    cat, dog = page.find_elements("css selector", ".needle")
    assert "Find the frame of a dog. What is it?" in dog.text and "Answer: dog" in dog.text
    assert "frame 9 of 17" in dog.text
    first, second = dog.find_elements("css selector", "table")
    cells = [cell.text for cell in first.find_elements("css selector", "td")]
    assert first.find_element("css selector", "caption").text == "first"
    assert cells[0] == "✗ wrong" and cells[1] == HOSTILE
    assert cells[2] == "sum -4.250\n-0.250 for id 7\n-4.000 for id 8, argmax 9"
    assert cells[3] == f"✗ wrong {HOSTILE}"
    assert [cell.text for cell in second.find_elements("css selector", "td")][:2] == ["✓ right", "dog"]
    assert dog.find_element("css selector", "img").get_attribute("alt") == "The frame of needle dog"
    summary = [item.text for item in page.find_elements("css selector", "#detail-body li")]
    assert summary == ["first: 0 of 2 right", "second: 2 of 2 right", "LongVA (published): not scored"]
    assert "Needle cat" in cat.text


def test_a_needles_own_picture_is_shown(page: Any) -> None:
    css(page, 'table[data-run="1"] td[data-place="4/0"]').click()
    centre = """
        const done = arguments[1], image = document.querySelectorAll('.needle img')[arguments[0]];
        image.decode().then(() => {
          const canvas = document.createElement('canvas'); canvas.width = canvas.height = 1;
          const context = canvas.getContext('2d'); context.drawImage(image, 0, 0, 1, 1);
          done([...context.getImageData(0, 0, 1, 1).data.slice(0, 3)]);
        });"""
    red, _, blue = page.execute_async_script(centre, 0)
    assert red > 200 and blue < 60, "the cat is red"
    red, _, blue = page.execute_async_script(centre, 1)
    assert blue > 200 and red < 60, "the dog is blue"


def test_a_prediction_with_markup_stays_text(page: Any) -> None:
    title = page.title
    for place in ("16/0", "16/control"):
        css(page, f'table[data-run="0"] td[data-place="{place}"]').click()
        assert HOSTILE in text_of(page, "#detail-body")
    assert page.title == title
    assert page.find_elements("css selector", "img[src=x]") == []
    assert [entry for entry in page.get_log("browser") if entry["level"] == "SEVERE"] == []


def test_the_grid_is_one_tab_stop_walked_by_arrows_and_opened_by_enter(page: Any) -> None:
    keys = pytest.importorskip("selenium.webdriver").Keys
    assert len(page.find_elements("css selector", 'table[data-run="0"] td[tabindex="0"]')) == 1
    focus_first_cell(page)
    assert focused(page) == "4/0"
    press(page, keys.ARROW_RIGHT)
    press(page, keys.ARROW_DOWN)
    assert focused(page) == "8/50"
    press(page, keys.HOME)
    assert focused(page) == "4/50"
    press(page, keys.ARROW_LEFT)
    assert focused(page) == "4/50", "the first column is the first"
    press(page, keys.END)
    press(page, keys.ARROW_RIGHT)
    assert focused(page) == "16/50"
    press(page, keys.PAGE_DOWN)
    assert focused(page) == "16/control"
    press(page, keys.CONTROL, keys.HOME)
    assert focused(page) == "4/0"
    press(page, keys.ARROW_DOWN)
    press(page, keys.ENTER)
    assert focused(page) == "detail-title"
    assert css(page, "#detail-title").text == "4 frames, depth 50 %"
    assert (
        text_of(page, "#status") == "first: 4 frames, depth 50 %, 2 of 2 correct, 95 % 0.34 to 1.00. 2 needles below."
    )
    chosen = page.find_elements("css selector", '[aria-selected="true"]')
    assert [cell.get_attribute("data-place") for cell in chosen] == ["4/50"]
    press(page, keys.ESCAPE)
    assert focused(page) == "4/50"
    press(page, keys.ARROW_DOWN)
    press(page, keys.SPACE)
    assert css(page, "#detail-title").text == "4 frames, depth 100 %"
    press(page, keys.ESCAPE)
    press(page, keys.TAB)
    assert page.execute_script("return document.activeElement.closest('table').dataset.run") == "1"


def test_screen_readers_are_told_roles_names_and_state(page: Any) -> None:
    cell = css(page, 'table[data-run="0"] td[data-place="16/100"]')
    assert (cell.aria_role, cell.accessible_name) == (
        "gridcell",
        "16 frames, depth 100 %, 2 of 2 correct, 95 % 0.34 to 1.00",
    )
    grid = css(page, 'table[data-run="0"]')
    assert (grid.aria_role, grid.accessible_name) == ("grid", "first")
    assert css(page, "#status").get_attribute("aria-live") == "polite"
    assert css(page, "html").get_attribute("lang") == "en"
    assert css(page, 'table[data-run="0"] th[role="rowheader"]').aria_role == "rowheader"


def test_a_published_cell_says_that_only_its_mean_is_known(page: Any) -> None:
    css(page, 'table[data-run="2"] td[data-place="2000/60"]').click()
    items = [item.text for item in page.find_elements("css selector", "#detail-body li")]
    assert items[2] == "LongVA (published): 2 of 5 right (only the mean is known, not which needles)"
    assert page.find_elements("css selector", ".needle") == []


def test_frames_and_tokens_are_not_mixed_up(browser: Any, tmp_path: Path) -> None:
    """Both grids have the place 4/0; text NIAH's control asked for another number."""
    frames = read_run(write_evaluation(tmp_path / "a", sample_rows(), model="me/first"))
    cats = frames.cells[frames.cells["needle"] == "cat"]
    tokens = dataclasses.replace(
        frames,
        task="text_niah_0",
        unit="tokens",
        cells=cats.assign(needle=[f"cat {None if cell.control else cell.depth_percent}" for cell in cats.itertuples()]),
    )
    file = tmp_path / "report.html"
    file.write_text(build_page([frames, tokens]), encoding="utf-8")
    browser.get(file.as_uri())
    css(browser, 'table[data-run="0"] td[data-place="4/0"]').click()
    assert [card.text for card in browser.find_elements("css selector", ".needle h3")] == ["Needle cat", "Needle dog"]
    css(browser, 'table[data-run="1"] td[data-place="4/0"]').click()
    assert [card.text for card in browser.find_elements("css selector", ".needle h3")] == ["Needle cat 0"]
    assert text_of(browser, ".needle tr:last-child td").endswith("(asked for cat None)")


def test_it_fits_a_narrow_window(page: Any) -> None:
    page.set_window_size(500, 900)
    css(page, 'table[data-run="0"] td[data-place="4/0"]').click()
    wide = page.execute_script("return document.documentElement.scrollWidth - document.documentElement.clientWidth")
    page.set_window_size(1200, 900)
    assert wide <= 0, "grids scroll in their own boxes"
