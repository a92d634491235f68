"""The page in a real browser, as one visitor meets it."""

import io
import re

import pytest
from skimage import data

from transformers_apt.app.handlers import Setting

playwright = pytest.importorskip("playwright.sync_api", reason="needs playwright, of the extra 'dev'")
expect = playwright.expect

WAIT = 20_000


@pytest.fixture
def visit(browser, served):
    """Open the page at a width; in the end, nothing may have failed or been loaded from elsewhere."""
    contexts, errors, elsewhere = [], [], []

    def visit(width=1280):
        contexts.append(browser.new_context(viewport={"width": width, "height": 900}))
        page = contexts[-1].new_page()
        page.set_default_timeout(WAIT)
        page.on("pageerror", lambda error: errors.append(str(error)))
        page.on("request", lambda request: elsewhere.append(request.url))
        page.goto(served.address)
        expect(page.locator("#a-facts")).to_contain_text("Vision patches", timeout=WAIT)
        return page

    yield visit
    for context in contexts:
        context.close()
    assert errors == []
    assert [url for url in elsewhere if not url.startswith((served.address, "data:", "blob:"))] == []


@pytest.fixture(scope="module")
def coffee():
    from PIL import Image

    file = io.BytesIO()
    Image.fromarray(data.coffee()).resize((300, 200)).save(file, "JPEG")
    return {"name": "my coffee.jpg", "mimeType": "image/jpeg", "buffer": file.getvalue()}


def _choose(page, file):
    remove = page.get_by_label("Remove Image")
    if remove.count():
        remove.click()
    page.locator("#photo input[type=file]").set_input_files(file)


def _kept(page, name):
    """Vision patches kept, and of how many."""
    found = re.search(r"Vision patches\s+([\d,]+) of ([\d,]+)", page.locator(f"#{name}-facts").inner_text())
    return tuple(int(number.replace(",", "")) for number in found.groups())


def test_upload_move_alpha_and_ask(visit, coffee):
    page = visit()
    expect(page.locator(".apt-head")).to_contain_text("Answers come from a <test> model.")
    _choose(page, coffee)
    expect(page.locator("#notice")).to_contain_text("my coffee.jpg, 300 × 200 px", timeout=WAIT)
    full = _kept(page, "b")[1]
    assert _kept(page, "b") == (full, full)
    before, total = _kept(page, "a")
    assert total == full and before < full
    page.locator("#a-method input").click()
    page.get_by_role("option", name=re.compile("^budget")).click()
    expect(page.locator("#a-facts")).not_to_contain_text(f"{before} of {full}", timeout=WAIT)
    alpha = page.locator("#a-share input[type=number]")
    alpha.fill("0.3")
    alpha.press("Enter")
    expect(page.locator("#a-facts")).to_contain_text(f"of {full}30%", timeout=WAIT)
    before = _kept(page, "a")[0]
    assert before <= round(0.3 * full)
    alpha.fill("0.6")
    alpha.press("Enter")
    expect(page.locator("#a-facts")).not_to_contain_text(f"{before} of {full}", timeout=WAIT)
    after = _kept(page, "a")[0]
    assert before < after <= round(0.6 * full) and _kept(page, "b") == (full, full)
    legend = page.locator("#a-legend").inner_text()
    assert sum(int(count) for count in re.findall(r"px: (\d+)", legend)) == after
    for tab, picture in (("Tiling", "#a-tiling img"), ("Model's view", "#a-seen img")):
        page.get_by_role("tab", name=tab).first.click()
        expect(page.locator(picture)).to_be_visible()
        page.wait_for_function("found => document.querySelector(found).naturalWidth > 100", arg=picture)
    page.locator("#question textarea, #question input").fill("What is this?")
    page.locator("#ask").click()
    for name, patches in (("a", after), ("b", full)):
        expect(page.locator(f"#times-{name}")).to_contain_text(re.compile(r"In all\s*[\d.]+ m?s\s*$"), timeout=WAIT)
        times = page.locator(f"#times-{name}").inner_text()
        assert re.search(rf"Vision patches\s+{patches}\b", times) and "First token after" in times
        assert page.locator(f"#answer-{name} textarea").input_value()


def test_another_method_brings_its_own_alpha(visit):
    page = visit()
    page.locator("#b-method input").click()
    page.get_by_role("option", name=re.compile("^v2")).click()
    expect(page.locator("#b-multiple")).to_be_visible()
    expect(page.locator("#b-share")).to_be_hidden()
    full = _kept(page, "a")[1]
    expect(page.locator("#b-facts")).not_to_contain_text(f"{full:,} of {full:,}", timeout=WAIT)


def test_the_recommended_thresholds_can_be_set(visit, coffee, bench, put):
    def kept(*thresholds):
        look = bench.look(
            put(coffee["buffer"], "coffee.jpg"), Setting("v1", "upsample_mse", 0.3, 1.0, thresholds, "2")
        )
        return f"Vision patches{look.view.layout.num_patches} of"

    page = visit()
    fields = [page.locator(f"#a-{name} input") for name in ("fine", "coarse")]
    _choose(page, coffee)
    expect(page.locator("#notice")).to_contain_text("my coffee.jpg", timeout=WAIT)
    for method, shown in (("budget", False), ("v1", True)):
        page.locator("#a-method input").click()
        page.get_by_role("option", name=re.compile(f"^{method}")).click()
        for field in fields:
            expect(field).to_be_visible() if shown else expect(field).to_be_hidden()
    expect(page.locator("#a-facts")).to_contain_text(kept(None, None), timeout=WAIT)
    for field in fields:
        expect(field).to_have_value("16")
        field.fill("36")
    expect(page.locator("#a-facts")).to_contain_text(kept(36, 36), timeout=WAIT)
    fields[0].fill("")  # the map's own again
    expect(page.locator("#a-facts")).to_contain_text(kept(None, 36), timeout=WAIT)
    assert kept(None, 36) != kept(36, 36) != kept(None, None)
    page.locator("#a-importance input").click()
    page.get_by_role("option", name="entropy").click()
    for field, own in zip(fields, ("3", "2"), strict=True):
        expect(field).to_have_value(own)


def test_a_bad_file_is_one_message_and_the_page_goes_on(visit, coffee):
    page = visit()
    _choose(page, {"name": "broken.jpg", "mimeType": "image/jpeg", "buffer": b"no image"})
    expect(page.get_by_role("alert").filter(has_text="broken.jpg cannot be read as an image")).to_have_count(1)
    expect(page.locator("#a-facts")).not_to_contain_text("Vision patches")
    assert "Traceback" not in page.content()
    _choose(page, {"name": "large.png", "mimeType": "image/png", "buffer": b"0" * 3_000_001})
    expect(page.locator(".toast-body")).to_contain_text("maximum allowed size")
    _choose(page, coffee)
    expect(page.locator("#notice")).to_contain_text("my coffee.jpg", timeout=WAIT)
    expect(page.locator("#a-facts")).to_contain_text("Vision patches")


def test_an_example_brings_its_question_at_a_phones_width(visit):
    page = visit(390)
    expect(page.locator("#b-facts")).to_contain_text("Vision patches", timeout=WAIT)  # then nothing moves any more
    page.locator("#examples button").nth(1).click()
    expect(page.locator("#notice")).to_contain_text("page.png", timeout=WAIT)
    assert page.evaluate("document.documentElement.scrollWidth") <= 390
    for part in ("#photo", "#a-method", "#a-fine", "#a-facts", "#a-tiling", "#question", "#ask", "#answer-b"):
        box = page.locator(part).bounding_box()
        assert box["x"] >= 0 and box["x"] + box["width"] <= 390, part
    first, second = (page.locator(f"#{name}-tiling").bounding_box() for name in "ab")
    assert second["y"] > first["y"] + first["height"] - 1  # below each other


def _looks_alike(page):
    """Of both settings, where tabs begin, and the page's own width."""
    tops = [page.locator(".apt-panel .tab-wrapper").nth(place).bounding_box()["y"] for place in (0, 1)]
    return tops, page.locator(".gradio-container").bounding_box()["width"]


def test_an_answer_goes_with_its_photo_setting_and_question_and_the_page_keeps_its_shape(visit, coffee):
    page = visit()
    widths = set()

    def ask():
        page.locator("#ask").click()
        for name in "ab":
            expect(page.locator(f"#times-{name}")).to_contain_text(
                re.compile(r"In all\s*[\d.]+ m?s\s*$"), timeout=WAIT
            )
            expect(page.locator(f"#answer-{name} textarea")).not_to_have_value("", timeout=WAIT)

    def look(*grey):
        for name in "ab":
            for part in ("answer", "times"):
                classes = expect(page.locator(f"#{part}-{name}.apt-stale"))
                classes.to_have_count(int(name in grey), timeout=WAIT)
        (left, right), width = _looks_alike(page)
        assert left == right
        widths.add(width)

    ask()
    look()
    question = page.locator("#question textarea, #question input")
    asked = question.input_value()
    right = page.locator("#hint [data-question]")
    expect(right).to_have_text("Right is: 2787")
    question.fill("Read the code twice.")
    look("a", "b")
    expect(right).to_have_class("apt-stale")
    question.fill(f" {asked} ")  # which is asked as it was
    look()
    expect(right).not_to_have_class("apt-stale")
    alpha = page.locator("#a-share input[type=number]")
    page.locator("#a-method input").click()
    page.get_by_role("option", name=re.compile("^budget")).click()
    look("a")
    alpha.fill("0.01")  # a warning on one side
    alpha.press("Enter")
    expect(page.locator("#a-facts")).to_contain_text("smallest alpha that can be met", timeout=WAIT)
    look("a")
    ask()
    look()
    _choose(page, coffee)
    expect(page.locator("#notice")).to_contain_text("my coffee.jpg", timeout=WAIT)
    look("a", "b")
    ask()
    look()
    page.get_by_label("Remove Image").click()
    expect(page.locator("#notice")).to_contain_text("Drop a photo", timeout=WAIT)
    look("a", "b")
    assert len(widths) == 1


def test_a_loupe_follows_the_pointer_on_both_sides(visit):
    page = visit()
    page.get_by_role("tab", name="Model's view").first.click()
    for name in "ab":  # the tab of the other side opens with it
        expect(page.locator(f"#{name}-seen img")).to_be_visible()
        page.wait_for_function("found => document.querySelector(found).naturalWidth > 100", arg=f"#{name}-seen img")
    loupes = page.locator(".apt-loupe")
    expect(loupes.first).to_be_hidden()
    page.locator("#b-seen img").hover(position={"x": 60, "y": 80})
    for place, name in enumerate("ab"):
        expect(loupes.nth(place)).to_be_visible()
        shown = loupes.nth(place).evaluate("loupe => [loupe.style.backgroundImage, loupe.style.backgroundSize]")
        image = page.locator(f"#{name}-seen img").evaluate("one => [one.src, one.naturalWidth, one.naturalHeight]")
        assert shown == [f'url("{image[0]}")', f"{2 * image[1]}px {2 * image[2]}px"], (
            "at twice the picture's own pixels"
        )
    box, lens = page.locator("#a-seen img").bounding_box(), loupes.first.bounding_box()
    assert abs(lens["y"] + lens["height"] / 2 - box["y"] - 80) < 2, "at the same place of the other picture"
    page.mouse.move(5, 5)
    expect(loupes.first).to_be_hidden()


def test_a_threshold_below_0_is_refused_in_the_panel(visit):
    page = visit()
    page.locator("#a-fine input").fill("-5")
    expect(page.locator("#a-facts")).to_contain_text("A threshold of -5 keeps nothing whole", timeout=WAIT)
    page.locator("#a-method input").click()
    page.get_by_role("option", name=re.compile("^fit")).click()
    expect(page.locator("#a-most input")).to_be_visible()
    page.locator("#a-fine input").fill("16")
    page.locator("#a-most input").fill("20")
    expect(page.locator("#a-facts")).to_contain_text(re.compile(r"Language tokens\s*(1\d|20|\d) of"), timeout=WAIT)
