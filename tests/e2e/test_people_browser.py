"""The page where people judge in a real browser, Debian's Chromium: by keyboard, on a desk and on a phone.

`apt install chromium chromium-driver`; `npm install axe-core` here adds its rules on accessibility.
"""

import threading
import time

import numpy as np
import pytest

from jevomerge.fitness.human.output import as_picture, as_text
from jevomerge.fitness.human.page import Page
from jevomerge.fitness.human.round import Round
from jevomerge.fitness.human.votes import Votes
from tests.browser import AXE, MARKS, chromium

selenium = pytest.importorskip("selenium")
from selenium.webdriver.common.by import By  # noqa: E402
from selenium.webdriver.common.keys import Keys  # noqa: E402
from selenium.webdriver.support.ui import WebDriverWait  # noqa: E402

LOOKS = [(width, scheme) for width in (1280, 390) for scheme in ("light", "dark")]
pytestmark = MARKS
TEXTS = [
    "Once upon a time there was a <b>girl</b> who lived by the sea.\n\nShe had a boat & no oars.",
    "昔々あるところに、海のそばに住む女の子がいました。毎日、船を見て過ごしました。",
    "supercalifragilistic" * 12,
]


@pytest.fixture(scope="module")
def chrome():
    with chromium(browser="ALL") as browser:
        yield browser


PICTURES = [np.full((768, 512, 3), grey, np.uint8) for grey in (40, 200)]


@pytest.fixture
def asked(request):
    """A page with questions about three texts, or two pictures, the votes that come in, and the thread that waits."""
    outputs = list(map(as_picture, PICTURES)) if getattr(request, "param", "") == "pictures" else map(as_text, TEXTS)
    votes, made = Votes(), {f"candidate {i}": [output] for i, output in enumerate(outputs)}
    prompt = as_text("Tell me a story about the sea, in one or two sentences.")
    round = Round("generation 0", "style", "search", [prompt], made, votes, limit=3, asked="Which story is kinder?")
    with Page(["Ann"]) as page:
        thread = threading.Thread(target=page.ask, args=(round,))
        thread.start()
        yield page.links["Ann"], votes, thread
        round.limit = 0
        thread.join(10)


def look(chrome, width, scheme="light"):
    chrome.execute_cdp_cmd(
        "Emulation.setDeviceMetricsOverride",
        {"width": width, "height": 844, "deviceScaleFactor": 1, "mobile": width < 500},
    )
    feature = {"name": "prefers-color-scheme", "value": scheme}
    chrome.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": [feature]})


def wait(chrome, what):
    WebDriverWait(chrome, 20).until(what)


def ready(chrome):
    return chrome.execute_script("return id !== null")


def test_votes_by_keyboard_and_by_button(asked, chrome):
    link, votes, thread = asked
    look(chrome, 1280)
    chrome.get(link)
    body = chrome.find_element(By.TAG_NAME, "body")
    shown = []
    for key in (Keys.ARROW_LEFT, Keys.ARROW_DOWN, None):
        wait(chrome, ready)
        assert chrome.find_element(By.TAG_NAME, "h1").text == "Which story is kinder?"
        shown.append([chrome.find_element(By.ID, side).text for side in ("left", "right")])
        if key is None:
            chrome.find_element(By.CSS_SELECTOR, "[data-choice=right]").click()
        else:
            body.send_keys(key)
        wait(chrome, lambda _: len(votes.all) == len(shown))
    thread.join(10)
    assert not thread.is_alive()
    assert [v["choice"] for v in votes.all] == ["left", "tie", "right"]
    assert shown == [[v["left"]["text"], v["right"]["text"]] for v in votes.all]  # as text: nothing is markup
    wait(chrome, lambda c: "The next ones are being made" in c.find_element(By.ID, "state").text)
    assert not chrome.find_element(By.ID, "question").is_displayed()
    assert [line for line in chrome.get_log("browser") if line["level"] == "SEVERE"] == []


def test_a_wrong_link_and_the_end_are_said(chrome):
    with Page(["Ann"]) as page:
        chrome.get(page.links["Ann"] + "x")
        wait(chrome, lambda c: "This link is not one" in c.find_element(By.ID, "state").text)
    wait(chrome, lambda c: "The program has ended" in c.find_element(By.ID, "state").text)


@pytest.mark.parametrize("asked", ["texts", "pictures"], indirect=True)
@pytest.mark.parametrize(("width", "scheme"), LOOKS)
def test_it_fits_and_is_accessible(width, scheme, asked, chrome, tmp_path):
    link, _, _ = asked
    look(chrome, width, scheme)
    chrome.get(link)
    chrome.refresh()  # a link that differs in its token alone is not loaded anew
    wait(chrome, ready)
    time.sleep(0.2)
    pictures = chrome.find_elements(By.TAG_NAME, "img")
    assert [p.get_attribute("alt") for p in pictures] == ["Picture A", "Picture B"][: len(pictures)]
    for picture in pictures:
        assert picture.get_property("naturalWidth") == 512
        assert picture.rect["height"] / picture.rect["width"] == pytest.approx(1.5, abs=0.02)
        assert picture.rect["height"] <= 0.81 * chrome.execute_script("return innerHeight")
    chrome.save_screenshot(str(tmp_path / f"{width}_{scheme}.png"))
    assert chrome.execute_script("return document.documentElement.scrollWidth <= innerWidth")
    for button in chrome.find_elements(By.TAG_NAME, "button"):
        assert button.rect["height"] >= 44
        assert button.rect["x"] >= 0
    background = chrome.execute_script("return getComputedStyle(document.body).backgroundColor")
    assert (sum(map(int, background[4:-1].split(","))) < 300) == (scheme == "dark")
    if AXE.exists():
        chrome.execute_cdp_cmd("Page.setBypassCSP", {"enabled": True})
        chrome.execute_script(AXE.read_text())
        found = chrome.execute_async_script(
            "const done = arguments[arguments.length - 1];"
            "axe.run().then((r) => done(r.violations.map((v) => [v.impact, v.id, v.nodes[0].html])))"
        )
        assert found == []
