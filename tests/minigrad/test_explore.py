"""The explorer: its numbers are minigrad's, and the page does what it promises in a real browser."""

import json
import re

import numpy as np
import pytest
from support import oracles
from support.browser import browser

from minigrad import explore


@pytest.fixture(scope="module")
def page(tmp_path_factory):
    path = tmp_path_factory.mktemp("explorer") / "explorer.html"
    assert explore.main(["--out", str(path)]) == 0
    return path


@pytest.fixture(scope="module")
def window(tmp_path_factory):
    with browser(tmp_path_factory.mktemp("browser")) as window:
        yield window


def test_page_is_self_contained(page):
    text = page.read_text()
    assert "null;\n\nconst NAMES" not in text  # the numbers are in
    assert not re.search(r'(?:src|href)="(?!data:)|https?://|@import|fetch\(|url\(', text)
    assert page.stat().st_size < 300_000


def test_the_numbers_are_those_of_the_definition():
    numbers = explore.numbers()
    image, table = np.array(numbers["image"], float), np.array(numbers["weights"], float)
    for name in ("4,2,3,1,1,1", "8,8,5,2,2,1", "2,1,3,1,2,2", "8,1,1,2,0,1"):
        C, G, K, S, P, D = map(int, name.split(","))
        layer, edge = numbers["layers"][name], (5 - K) // 2
        dense = table[:C, :C, edge : edge + K, edge : edge + K]
        same_group = np.arange(C)[:, None] // (C // G) == np.arange(C) // (C // G)
        masked = np.where(same_group[:, :, None, None], dense, 0)
        y = oracles.conv2d(image[None, :C], masked, None, (S, S), (P, P), (D, D), 1)
        assert layer["size"] == list(y.shape[2:])
        assert layer["y"] == y.astype(int).ravel().tolist()
        assert layer["parameters"] == same_group.sum() * K * K


def test_blocks_cost_what_the_paper_says():
    numbers = explore.numbers()
    assert [b["parameters"] for b in numbers["equal_cost"]] == [69_632, 69_760, 69_888, 71_456, 70_144]
    weights = [b["parameters"] for b in numbers["equal_width"]]
    assert weights == sorted(weights, reverse=True) and weights[0] == 2 * 256 * 128 + 9 * 128**2


def test_a_folder_that_is_not_there(tmp_path, capsys):
    assert explore.main(["--out", str(tmp_path / "none" / "explorer.html")]) == 1
    assert "cannot write" in capsys.readouterr().err


def test_the_pages_arithmetic_gives_minigrads_numbers(page, window):
    window.open(page)
    result = window.script("return check()")
    numbers = json.loads(re.search(r"const data = (.*);\n", page.read_text())[1])
    assert result["different"] == 0
    assert result["layers"] == len(numbers["layers"])
    assert result["values"] == sum(len(layer["y"]) for layer in numbers["layers"].values())
    window.script("data.layers['4,2,3,1,1,1'].y[7] += 1")
    assert window.script("return check()")["different"] == 1  # the check can fail


def test_keyboard_walks_over_the_outputs(page, window):
    window.open(f"{page.as_uri()}#C=4,G=2,K=3,S=1,P=1,D=1,o=0,oh=0,ow=0")
    window.script("document.getElementById('output').focus()")
    window.press("ArrowRight", "ArrowRight", "ArrowDown", "PageDown", "ArrowLeft")
    assert window.script("return document.activeElement.getAttribute('aria-activedescendant')") == "y-1-1-1"
    here = window.script("return [...document.querySelectorAll('.here')].map(e => e.id)")
    assert here == ["y-1-1-1"]
    seen = window.script("return [...document.querySelectorAll('#image .seen')].map(e => e.id)")
    assert sorted(seen) == sorted(f"x-{c}-{h}-{w}" for c in (0, 1) for h in (0, 1, 2) for w in (0, 1, 2))
    y = window.script("return output(1, 1, 1)")
    assert f"Output (1, 1) of filter 1 is {y}.".replace("-", "−") in window.text("#say")
    assert window.script("return document.querySelectorAll('.kernel.used').length") == 2
    window.press(*["ArrowUp"] * 9)  # walking off the edge stays on it
    assert window.script("return document.activeElement.getAttribute('aria-activedescendant')") == "y-1-0-1"


def test_pointing_at_a_pixel_shows_the_outputs_that_feel_it(page, window):
    window.open(page)
    window.hover("#x-2-0-0")
    assert "lies in 4 windows" in window.text("#say")
    seen = window.script("return [...document.querySelectorAll('#output .seen')].map(e => e.id)")
    assert sorted(seen) == sorted(f"y-{o}-{i}-{j}" for o in (2, 3) for i in (0, 1) for j in (0, 1))
    window.hover("#y-3-5-5")
    assert "Output (5, 5) of filter 3" in window.text("#say")


def test_a_finger_on_a_phone(page, window):
    window.open(page, 390, 844)
    window.tap("#y-3-1-1")
    assert "Output (1, 1) of filter 3" in window.text("#say")
    window.tap("#x-2-1-1")
    assert "Pixel (1, 1) of channel 2 lies in 9 windows" in window.text("#say")
    window.tap("input[name=G][value='4']")
    assert "G=4" in window.script("return location.hash")


def test_groups_change_the_counts(page, window):
    window.open(page)
    weights = {}
    for G in (1, 2, 4):
        window.click(f"input[name=G][value='{G}']")
        weights[G] = int(re.match(r"\d+", window.text("#n-weights"))[0])
    assert weights == {1: 144, 2: 72, 4: 36}
    assert window.script("return document.querySelector('input[name=G][value=\"8\"]').disabled")
    window.click("input[name=C][value='8']")
    assert not window.script("return document.querySelector('input[name=G][value=\"8\"]').disabled")
    assert "C=8,G=4" in window.script("return location.hash")


@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
@pytest.mark.parametrize("width", [320, 360, 1200])
def test_it_fits_the_window_and_can_be_read(page, window, width, dark):
    window.open(f"{page.as_uri()}#C=8,G=8,K=5,P=2", width, 800, dark)
    assert window.overflow() <= 0
    background, ink = (
        [int(n) for n in re.findall(r"\d+", window.script(f"return getComputedStyle(document.body).{name}"))[:3]]
        for name in ("backgroundColor", "color")
    )
    assert (sum(background) < sum(ink)) == dark
    assert abs(sum(background) - sum(ink)) > 450
    assert window.errors() == []


NUMBERS = """
    const bad = [];
    for (const cell of document.querySelectorAll(".cells .c, .kernel > div")) {
      const size = parseFloat(getComputedStyle(cell).fontSize), range = document.createRange();
      if (size === 0 || !cell.textContent) continue;  // colour alone, where a number would not be legible
      range.selectNodeContents(cell);
      const text = range.getBoundingClientRect(), box = cell.getBoundingClientRect();
      const clipped = text.width > box.width + .5 || text.height > box.height + 4;
      if (size < 8 || clipped) bad.push([cell.id, cell.textContent, size]);
    }
    return bad"""
LARGE = "C=8,G=1,K=5,S=1,P=2,D=1"  # the longest sum, and the widest numbers


@pytest.mark.parametrize("width", [390, 800, 1400])
@pytest.mark.parametrize("layer", ["", LARGE, "C=8,G=2,K=1,P=2,D=1", "C=8,G=4,K=3,P=2", "C=2,G=1,K=3,P=0"])
def test_no_number_is_clipped(page, window, layer, width):
    window.open(f"{page.as_uri()}#{layer}", width, 900)
    assert window.script(NUMBERS) == []
    assert window.overflow() <= 0


@pytest.mark.parametrize("layer", ["", LARGE])
def test_the_sum_stands_above_the_fold_and_stays_in_sight(page, window, layer):
    window.open(f"{page.as_uri()}#{layer}", 1400, 900)
    bottom = "return document.getElementById('p-sum').getBoundingClientRect().bottom"
    assert 0 < window.script(bottom) < 600  # which leaves room for the outputs below
    window.script("window.scrollTo(0, 600)")
    assert window.script(bottom) > 0
    window.open(f"{page.as_uri()}#{layer}", 1400, 400)  # but it never covers half of a low window
    window.script("window.scrollTo(0, 600)")
    assert window.script(bottom) <= 0


@pytest.mark.parametrize("layer", ["", "C=8,G=2,K=1,P=2,D=1"])
def test_cells_on_a_phone_can_be_hit_and_read(page, window, layer):
    window.open(f"{page.as_uri()}#{layer}", 390, 844)
    for maps in ("image", "output"):
        cell, font = window.script(
            f"const c = document.querySelector('#{maps} .c');"
            "return [c.getBoundingClientRect().width, parseFloat(getComputedStyle(c).fontSize)]"
        )
        assert cell >= 30 and font >= 11
    window.tap("#y-3-2-2")  # lies outside of the strip at first
    assert "Output (2, 2) of filter 3" in window.text("#say")
    here = window.script(
        "const c = document.querySelector('#image .seen').getBoundingClientRect(); return [c.left, c.right]"
    )
    assert here[0] >= 0 and here[1] <= 390  # and its group's channels have moved into sight


@pytest.mark.parametrize("layer", ["", "C=2,G=1,K=3", "C=8,G=8,K=3"])
def test_no_card_is_half_empty_at_800_pixels(page, window, layer):
    window.open(f"{page.as_uri()}#{layer}", 800, 900)
    filled = window.script("""
      return ["image", "output", "weights", "product"].map(id => {
        const card = document.getElementById(`p-${id}`).getBoundingClientRect();
        const parts = [...document.querySelectorAll(`#${id}, #${id} .cells, #${id} .kernel`)];
        const inside = parts[parts.length - 1].getBoundingClientRect();
        return (inside.right - card.left) / card.width;
      })""")
    assert min(filled) > 0.8
