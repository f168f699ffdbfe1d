"""The pages in a real browser, Debian's Chromium: what one can do with them, on a desk and on a phone.

`apt install chromium chromium-driver`; `npm install axe-core` here adds its rules on accessibility.
"""

import json
import shutil
import subprocess
import threading
import time

import numpy as np
import pytest
import yaml

from jevomerge.reports.page import write_report
from jevomerge.reports.server import Pages, serve
from jevomerge.run.compare import compare
from jevomerge.search.archive import Archive, read_archive
from tests.browser import AXE, MARKS, chromium
from tests.unit.reports.test_compare import write_run
from tests.unit.reports.test_page import run  # noqa: F401

selenium = pytest.importorskip("selenium")
from selenium.webdriver import ActionChains  # noqa: E402
from selenium.webdriver.common.by import By  # noqa: E402
from selenium.webdriver.common.keys import Keys  # noqa: E402

RULES = (
    AXE.exists()
    and AXE.read_text()
    + """;const done = arguments[arguments.length - 1];
    axe.run().then((r) => done(r.violations.map((v) => [v.impact, v.id, v.nodes.map((n) => n.html.slice(0, 200))])))"""
)
needs_axe = pytest.mark.skipif(not RULES, reason="needs axe-core: npm install axe-core")
LOOKS = [(1280, "light"), (1280, "dark"), (390, "light"), (390, "dark")]
pytestmark = MARKS


@pytest.fixture(scope="module")
def chrome():
    with chromium(browser="ALL", performance="ALL") as browser:
        yield browser


@pytest.fixture
def pages(run, tmp_path):  # noqa: F811
    """{name: page}: weights and a path, several goals, and several seeds; texts are Japanese here and there."""
    for seed in (1, 2, 3):
        write_run(tmp_path / str(seed), seed, name="種")
        config = yaml.safe_load((tmp_path / str(seed) / "config.yaml").read_text())
        (tmp_path / str(seed) / "config.yaml").write_text(yaml.safe_dump(config | {"seed": seed}))
    compare([tmp_path / str(seed) for seed in (1, 2, 3)], tmp_path / "compare.html")
    return {
        "run": write_report(run),
        "front": write_report(several_goals(run, tmp_path / "front")),
        "seeds": tmp_path / "compare.html",
    }


def several_goals(run, folder):  # noqa: F811
    """The run as a search for a front of three goals, of merges alone."""
    shutil.copytree(run, folder)
    for name in ("result.json", "heldout.json"):
        (folder / name).unlink()
    config = yaml.safe_load((folder / "config.yaml").read_text())
    del config["path"]
    config["tasks"] = [config["tasks"][0] | {"name": name} for name in ("算数", "words", "sums")]
    config["search"] |= {"strategy": "nsga2"}
    (folder / "config.yaml").write_text(yaml.safe_dump(config))
    environment = json.loads((folder / "environment.json").read_text())
    (folder / "environment.json").write_text(json.dumps(environment | {"genes": environment["genes"][:2]}))
    records, rng = read_archive(folder / "evaluations.jsonl"), np.random.default_rng(0)
    (folder / "evaluations.jsonl").unlink()
    with Archive(folder / "evaluations.jsonl") as archive:
        for r in records:
            scores = {task["name"]: rng.random(4).round().tolist() for task in config["tasks"]}
            archive.append([r | {"genome": r["genome"][:2], "scores": scores}])
    return folder


def open_page(chrome, page, width=1280, scheme="light"):
    chrome.execute_cdp_cmd(
        "Emulation.setDeviceMetricsOverride",
        {"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": width < 500},
    )
    media = [{"name": "prefers-color-scheme", "value": scheme}]
    chrome.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": media})
    for kind in ("browser", "performance"):
        chrome.get_log(kind)
    chrome.get(page if isinstance(page, str) else page.as_uri())
    drawn = "return [...document.querySelectorAll('.chart')].every((c) => c.querySelector('svg .mark-group'))"
    until(lambda: chrome.execute_script(drawn))


def until(holds, seconds=30):
    end = time.monotonic() + seconds
    while not (found := holds()):
        assert time.monotonic() < end, "it takes too long"
        time.sleep(0.05)
    return found


def reached(chrome):
    """What the page asked the network for."""
    events = [json.loads(entry["message"])["message"] for entry in chrome.get_log("performance")]
    urls = [e["params"]["request"]["url"] for e in events if e["method"] == "Network.requestWillBeSent"]
    return [url for url in urls if not url.startswith(("file:", "data:"))]


@pytest.mark.parametrize(("width", "scheme"), LOOKS)
def test_everything_is_there_and_fits(chrome, pages, width, scheme):
    for name, page in pages.items():
        open_page(chrome, page, width, scheme)
        assert chrome.get_log("browser") == []
        assert reached(chrome) == []
        assert chrome.execute_script("return document.documentElement.scrollWidth") == width, name
        beyond = """return [...document.querySelectorAll(".chart svg text")]
            .map((t) => [t.textContent, t.getBoundingClientRect()])
            .filter(([, box]) => box.width && (box.left < -1 || box.right > innerWidth + 1)).map(([text]) => text)"""
        assert chrome.execute_script(beyond) == [], name
        ink, paper = chrome.execute_script(
            """const colour = (e, what) => getComputedStyle(e)[what].match(/\\d+/g).slice(0, 3).map(Number);
            const text = document.querySelector(".chart svg text");
            return [colour(text, "fill"), colour(document.body, "backgroundColor")]"""
        )
        assert (np.mean(paper) < 128) == (scheme == "dark")
        assert abs(np.mean(ink) - np.mean(paper)) > 80  # also in a chart


@needs_axe
@pytest.mark.parametrize(("width", "scheme"), LOOKS)
def test_axe_reports_nothing_serious(chrome, pages, width, scheme):
    for page in pages.values():
        open_page(chrome, page, width, scheme)
        found = chrome.execute_async_script(RULES)
        assert [f for f in found if f[0] in ("serious", "critical")] == []


@needs_axe
def test_axe_finds_what_is_bad(chrome, tmp_path):
    bad = (
        "<html><body style='background:#fff'><img src='data:image/png;base64,'><p style='color:#ddd'>words to read</p>"
    )
    (tmp_path / "bad.html").write_text(bad)
    chrome.get((tmp_path / "bad.html").as_uri())
    found = [violation[1] for violation in chrome.execute_async_script(RULES)]
    assert {"image-alt", "color-contrast"} <= set(found)


@pytest.mark.parametrize("width", [1280, 390])
def test_marks_say_what_they_are(chrome, pages, width):
    open_page(chrome, pages["run"], width)
    records = read_archive(pages["run"].parent / "evaluations.jsonl")
    dots = chrome.find_elements(By.CSS_SELECTOR, "#fitness .mark-symbol.role-mark path")
    number = 5
    chrome.execute_script("arguments[0].scrollIntoView({block: 'center'})", dots[number])
    ActionChains(chrome).move_to_element(dots[number]).perform()
    tip = until(lambda: chrome.find_element(By.ID, "tip").text)
    assert "evaluation" in tip
    shown = dict(zip(*[iter(tip.split("\n"))] * 2, strict=True))
    assert shown["fitness"] == f"{records[int(shown['evaluation'])]['fitness']:.4f}"
    box = chrome.execute_script(
        "const b = document.getElementById('tip').getBoundingClientRect(); return [b.left, b.right]"
    )
    assert 0 <= box[0] < box[1] <= width


def test_all_that_is_drawn_is_read_by_keyboard(chrome, pages):
    """Beneath each chart its numbers, which a key opens and another one scrolls."""
    open_page(chrome, pages["run"])
    records = read_archive(pages["run"].parent / "evaluations.jsonl")
    summary = chrome.find_element(By.CSS_SELECTOR, "#fitness + details summary")
    assert summary.accessible_name.startswith("Numbers: Fitness of every candidate")
    chrome.find_element(By.CSS_SELECTOR, "#fitness input").send_keys(Keys.TAB)
    assert chrome.switch_to.active_element == summary
    summary.send_keys(Keys.ENTER)
    tables = until(lambda: chrome.find_elements(By.CSS_SELECTOR, "#fitness + details table"))
    assert [t.find_element(By.TAG_NAME, "caption").text for t in tables] == ["candidates", "means", "references"]
    rows = chrome.execute_script(
        "return [...arguments[0].tBodies[0].rows].map((row) => [...row.cells].map((cell) => cell.textContent))",
        tables[0],
    )
    assert [row[2] for row in rows] == ["–" if r["fitness"] is None else f"{r['fitness']:.4f}" for r in records]
    summary.send_keys(Keys.TAB)
    assert chrome.switch_to.active_element == chrome.find_element(By.CSS_SELECTOR, "#fitness + details .scroll")
    for name, page in pages.items():  # each chart, of its marks all
        open_page(chrome, page, 390)
        for details in chrome.find_elements(By.CSS_SELECTOR, ".chart + details"):
            details.find_element(By.TAG_NAME, "summary").send_keys(Keys.ENTER)
            until(lambda own=details: own.find_elements(By.CSS_SELECTOR, "tbody td"))
        charts = chrome.find_elements(By.CSS_SELECTOR, ".chart")
        assert len(chrome.find_elements(By.CSS_SELECTOR, ".chart + details")) == len(charts) > 0, name
        assert chrome.execute_script("return document.documentElement.scrollWidth") == 390, name
        if RULES:
            assert [f for f in chrome.execute_async_script(RULES) if f[0] in ("serious", "critical")] == [], name


def test_charts_are_zoomed_and_filtered(chrome, pages):
    open_page(chrome, pages["run"])
    ticks = lambda: sorted(  # noqa: E731
        label.text for label in chrome.find_elements(By.CSS_SELECTOR, "#fitness .role-axis-label text")
    )
    before = ticks()
    chart = chrome.find_element(By.CSS_SELECTOR, "#fitness svg")
    chrome.execute_script("arguments[0].scrollIntoView({block: 'center'})", chart)
    wheel = """const box = arguments[0].getBoundingClientRect();
        const at = {clientX: box.x + box.width / 2, clientY: box.y + box.height / 2, bubbles: true, cancelable: true};
        const target = document.elementFromPoint(at.clientX, at.clientY);
        const event = new WheelEvent("wheel", {...at, deltaY: -300, ctrlKey: arguments[1]});
        target.dispatchEvent(event);
        return event.defaultPrevented"""
    assert not chrome.execute_script(wheel, chart, False)  # the page scrolls
    assert ticks() == before
    assert chrome.execute_script(wheel, chart, True)
    until(lambda: ticks() != before)
    ActionChains(chrome).move_to_element(chart).double_click().perform()
    until(lambda: ticks() == before)
    choice = chrome.find_element(By.CSS_SELECTOR, "#fitness input[value='seconds of search']")
    choice.send_keys(Keys.SPACE)
    until(lambda: ticks() != before)
    lines = lambda: len(chrome.find_elements(By.CSS_SELECTOR, "#parallel .mark-line path"))  # noqa: E731
    assert lines() == 39
    slider = chrome.find_element(By.CSS_SELECTOR, "#parallel input[type=range]")
    slider.send_keys(Keys.END)
    until(lambda: lines() <= 2)


def test_tables_are_sorted_and_commands_copied(chrome, pages):
    open_page(chrome, pages["run"])
    chrome.execute_cdp_cmd(
        "Browser.grantPermissions", {"permissions": ["clipboardReadWrite", "clipboardSanitizedWrite"]}
    )
    column = lambda k: [  # noqa: E731
        row.find_elements(By.TAG_NAME, "td")[k].text
        for row in chrome.find_elements(By.CSS_SELECTOR, "#table-candidates tbody tr")
    ]
    fitness = column(2)
    assert fitness == sorted(fitness, key=float, reverse=True)
    button = chrome.find_element(By.CSS_SELECTOR, "#table-candidates th button")
    button.send_keys(Keys.ENTER)
    assert column(0) == sorted(column(0), key=int, reverse=True)
    button.send_keys(Keys.ENTER)
    assert column(0) == sorted(column(0), key=int)
    assert chrome.find_element(By.CSS_SELECTOR, "#table-candidates th").get_attribute("aria-sort") == "ascending"
    copy = chrome.find_element(By.CSS_SELECTOR, "#table-candidates .copy")
    command = chrome.find_element(By.CSS_SELECTOR, "#table-candidates .command").text
    copy.click()
    read = "navigator.clipboard.readText().then(arguments[0], (error) => arguments[0](String(error)))"
    until(lambda: chrome.execute_async_script(read) == command)


def test_without_scripts_there_are_words_and_tables(chrome, pages):
    chrome.execute_cdp_cmd("Emulation.setScriptExecutionDisabled", {"value": True})
    try:
        chrome.get(pages["run"].as_uri())
        text = chrome.find_element(By.TAG_NAME, "main").text
    finally:
        chrome.execute_cdp_cmd("Emulation.setScriptExecutionDisabled", {"value": False})
    assert "75 % (3 of 4), 50 points above the best source" in text
    assert "jevomerge export" in text
    assert "A chart needs JavaScript" in text


def test_japanese_is_drawn_with_a_font_for_it(chrome, pages):
    fonts = subprocess.run(["fc-list", ":lang=ja", "family"], capture_output=True, text=True).stdout
    if not fonts.strip():
        pytest.skip("needs a Japanese font")
    open_page(chrome, pages["front"])
    chrome.execute_cdp_cmd("DOM.enable", {})
    chrome.execute_cdp_cmd("CSS.enable", {})
    root = chrome.execute_cdp_cmd("DOM.getDocument", {})["root"]["nodeId"]
    for selector in ("#table-candidates th:nth-child(4)", "h3"):
        node = chrome.execute_cdp_cmd("DOM.querySelector", {"nodeId": root, "selector": selector})["nodeId"]
        used = chrome.execute_cdp_cmd("CSS.getPlatformFontsForNode", {"nodeId": node})["fonts"]
        assert any(font["familyName"] in fonts for font in used), used


def test_a_live_page_follows_its_run_and_keeps_what_one_has_done(chrome, tmp_path):
    write_run(tmp_path / "run", 1, finished=False)
    server = serve(Pages([tmp_path / "run"]), 0)
    threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
    try:
        open_page(chrome, f"http://127.0.0.1:{server.server_port}/")
        rows = lambda: len(chrome.find_elements(By.CSS_SELECTOR, "#table-candidates tbody tr"))  # noqa: E731
        assert rows() == 6
        chrome.find_element(By.CSS_SELECTOR, "#table-candidates th button").send_keys(Keys.ENTER)
        chrome.find_element(By.CSS_SELECTOR, "#fitness input[value=tokens]").send_keys(Keys.SPACE)
        chrome.find_element(By.CSS_SELECTOR, "#fitness + details summary").send_keys(Keys.ENTER)
        with Archive(tmp_path / "run" / "evaluations.jsonl") as archive:
            archive.append([archive.records[-1] | {"member": 3, "fitness": 0.5}])
        until(
            lambda: chrome.execute_script("return document.querySelectorAll('#table-candidates tbody tr').length") == 7
        )
        first = chrome.find_element(By.CSS_SELECTOR, "#table-candidates tbody td").text
        assert first == "7"  # sorted as before, by number
        assert chrome.find_element(By.CSS_SELECTOR, "#fitness input[value=tokens]").is_selected()
        dots = "#fitness .mark-symbol.role-mark path"
        until(lambda: len(chrome.find_elements(By.CSS_SELECTOR, dots)) >= 7)
        numbers = "#fitness + details table:first-of-type tbody tr"
        until(lambda: len(chrome.find_elements(By.CSS_SELECTOR, numbers)) >= 7)
        assert all(url.startswith(f"http://127.0.0.1:{server.server_port}/") for url in reached(chrome))
    finally:
        server.shutdown()
        server.server_close()
    until(lambda: "Nobody serves this page any more" in chrome.find_element(By.CSS_SELECTOR, "p.note").text)
