import html.parser
import json
import re
import shutil
import tempfile
import time

import pytest
from run_folder import draw, response, result, write

from extratime.evaluate.report.page import report

HOSTILE = "</script><script>document.title='owned'</script><img src=x onerror=\"document.title='owned'\"><!-- ="


class Elements(html.parser.HTMLParser):
    def __init__(self, text):
        super().__init__()
        self.found = []
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.found.append((tag, dict(attrs)))


@pytest.fixture(scope="module")
def hostile(tmp_path_factory):
    """Markup wherever a model, a server or a recipe may have put it."""
    folder = tmp_path_factory.mktemp("runs") / "<b>run"
    cells = [f"self_consistency@{b}#0" for b in (1, 2)] + ["<i>x</i>@1#0"]
    responses = [response(f"{i}", i % 2, HOSTILE, text=f"{HOSTILE}{i} \ud800") for i in range(4)]
    records = [
        result(f"t/{n}", cell, float(n), [("0", 0.25), (f"{n}", 0.5)], response=f"{n}", answer=HOSTILE, why=HOSTILE)
        | {"question": f"{HOSTILE} {n}?", "gold": HOSTILE}
        for n in (0, 1)
        for cell in cells
    ]
    records[-1] |= {"score": None, "outcome": "failed", "error": HOSTILE}
    write(folder, records, responses)
    (folder / "recipe.yaml").write_text(f"model: |\n  {HOSTILE}\nstrategies: []\n")
    return report(folder)


def test_the_page_is_one_file_without_addresses_whose_policy_admits_its_own_script_alone(hostile):
    text = hostile.read_text()
    found = Elements(text).found
    assert not [tag for tag, attrs in found if tag in ("img", "link", "iframe", "b", "i") or "src" in attrs]
    assert not [name for _, attrs in found for name in attrs if name.startswith("on") or name in ("href", "style")]
    scripts = [attrs for tag, attrs in found if tag == "script"]
    assert [s.get("type") for s in scripts] == ["application/json", *["application/octet-stream"] * 2, "module"]
    (policy,) = [a["content"] for tag, a in found if a.get("http-equiv") == "Content-Security-Policy"]
    assert policy.startswith("default-src 'none'; script-src 'sha256-") and "unsafe" not in policy
    assert not re.findall(r"(?<!/)\b(?:https?|wss?):(?!//www\.w3\.org/2000/svg)", text.split('id="data"')[0])


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs") / "demo"
    draw(folder, problems=30, budgets=(1, 4))
    report(folder)
    return folder


@pytest.fixture(scope="module")
def chromium():
    if not (shutil.which("chromium") and shutil.which("chromedriver")):
        pytest.skip("chromium or chromedriver is not installed; `apt-get install chromium chromium-driver`")
    webdriver = pytest.importorskip("selenium.webdriver", reason="selenium is not installed")
    options = webdriver.ChromeOptions()
    options.binary_location = shutil.which("chromium")
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as profile:
        for flag in ("headless", "no-sandbox", "disable-gpu", "no-first-run", "disable-background-networking"):
            options.add_argument(f"--{flag}")
        for flag in ("disable-component-update", "disable-sync", f"user-data-dir={profile}"):
            options.add_argument(f"--{flag}")
        options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
        browser = webdriver.Chrome(options=options, service=webdriver.ChromeService(shutil.which("chromedriver")))
        yield browser
        browser.quit()


def visit(browser, page, width=1280, scheme="light"):
    size = {"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": width < 600}
    browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
    media = {"features": [{"name": "prefers-color-scheme", "value": scheme}]}
    browser.execute_cdp_cmd("Emulation.setEmulatedMedia", media)
    for log in ("browser", "performance"):
        browser.get_log(log)
    browser.get(page.resolve().as_uri())
    return browser


def quiet(browser):
    """No message in the console, and nothing fetched but the page."""
    assert browser.get_log("browser") == []
    messages = [json.loads(entry["message"])["message"] for entry in browser.get_log("performance")]
    asked = [m["params"]["request"]["url"] for m in messages if m["method"] == "Network.requestWillBeSent"]
    return [url for url in asked if not url.startswith("file://")] == [] and len(asked) == 1


def select(browser, css):
    return browser.find_elements("css selector", css)


def texts(browser, css):
    return [element.text for element in select(browser, css)]


def wait(condition, seconds=20.0):
    end = time.monotonic() + seconds
    while not (found := condition()):
        assert time.monotonic() < end, "the page did not get there"
        time.sleep(0.05)
    return found


def test_a_click_on_a_column_sorts_by_it_and_a_second_turns_it_round(chromium, folder):
    browser = visit(chromium, folder / "index.html")
    board = json.loads((folder / "leaderboard.json").read_text())["rows"]
    rows = [r for r in board if r["task"] == "all tasks"]
    column = "#board tbody [data-key=%s]"

    def state(key):
        return select(browser, f"#board th[data-key={key}]")[0].get_attribute("aria-sort")

    assert state("accuracy") == "descending"
    shown = [float(text.split()[0]) for text in texts(browser, column % "accuracy")]
    assert shown == sorted((round(100 * r["accuracy"], 1) for r in rows), reverse=True)
    for way in (False, True):
        select(browser, "#board th[data-key=budget] button")[0].click()
        assert [int(x) for x in texts(browser, column % "budget")] == sorted((r["budget"] for r in rows), reverse=way)
        assert (state("budget"), state("accuracy")) == ("descending" if way else "ascending", "none")
    for way in (-1, 1):  # what is not known stays last
        select(browser, "#board th[data-key=p_holm] button")[0].click()
        unknown = [x == "–" for x in texts(browser, column % "p_holm")]
        assert any(unknown) and unknown == sorted(unknown), way
    assert quiet(browser)


def test_the_task_and_the_axis_change_what_is_drawn(chromium, folder):
    browser = visit(chromium, folder / "index.html")
    board = json.loads((folder / "leaderboard.json").read_text())["rows"]
    before = select(browser, "#chart svg")[0].get_attribute("outerHTML")
    select(browser, "#axes button")[1].click()
    assert select(browser, "#chart svg")[0].get_attribute("outerHTML") != before
    assert "FLOPs" in select(browser, "#chart text.axis")[0].text
    select(browser, "#tasks button")[2].click()
    hard = [r for r in board if r["task"] == "sums_hard"]
    assert len(texts(browser, "#board tbody tr")) == len(select(browser, "#chart .line circle")) == len(hard)
    assert texts(browser, ".problem .id") == [f"sums_hard/{i}" for i in range(30)]
    select(browser, "#legend button")[0].click()
    assert len(select(browser, "#chart .line circle")) == len(hard) - 2
    select(browser, "#all-columns")[0].click()
    assert len(select(browser, "#board thead th")) == 27
    assert quiet(browser)


def test_an_opened_problem_shows_what_was_drawn_and_why_the_answer_won(chromium, folder):
    browser = visit(chromium, folder / "index.html")
    assert not select(browser, ".candidate")
    lines = [json.loads(line) for line in (folder / "results" / "0-of-1.jsonl").read_text().splitlines()]
    drawn = [json.loads(line) for line in (folder / "responses" / "0-of-1.jsonl").read_text().splitlines()]
    text = {r["id"]: r["text"] for r in drawn}
    scored = [r for r in lines if r["cell"] == "best_of_n(self_eval)@4#0" and r["task"] == "sums_easy"]
    record = next(r for r in scored if text[r["pool"][0][0]] != text[r["response"]])
    problem = select(browser, f"[data-problem='{record['problem']}']")[0]
    problem.find_element("css selector", "summary").click()
    wait(lambda: select(browser, ".chip"))
    assert record["question"] == select(browser, ".prompt")[0].get_attribute("textContent")
    browser.execute_script("document.querySelector('.chip[title^=\"best_of_n(self_eval), budget 4\"]').click();")
    assert record["why"] in select(browser, ".because")[0].text
    assert select(browser, ".because b")[0].text == record["answer"]
    shown = [e.get_attribute("textContent") for e in select(browser, ".candidate .response")]
    assert sorted(shown) == sorted(text[name] for name, _ in record["pool"])
    assert shown[0] == text[record["response"]] and len(select(browser, ".candidate.chosen")) == 1
    counted = sum(int(cell.text) for cell in select(browser, ".votes td:nth-child(2)"))
    assert counted == len(record["pool"])
    assert quiet(browser)


def test_problems_come_in_portions_and_can_be_searched(chromium, folder):
    browser = visit(chromium, folder / "index.html")
    assert len(select(browser, ".problem")) == 50
    select(browser, "#more")[0].click()
    assert len(select(browser, ".problem")) == 60
    select(browser, "#search")[0].send_keys("sums_hard/2")
    assert texts(browser, ".problem .id") == [f"sums_hard/{i}" for i in (2, *range(20, 30))]
    assert quiet(browser)


def test_markup_of_a_model_is_text(chromium, hostile):
    browser = visit(chromium, hostile)
    title = browser.title
    for problem in select(browser, ".problem summary"):
        problem.click()
    wait(lambda: len(select(browser, ".candidate")) >= 4)
    for chip in select(browser, ".chip"):
        browser.execute_script("arguments[0].click()", chip)
    assert browser.title == title == "<b>run · extratime"
    assert not select(browser, "img") and "x" not in texts(browser, "i")
    shows = "return document.querySelector(arguments[0]).textContent.includes(arguments[1])"
    for place in (".response", ".prompt", ".gold", ".because", ".votes", "#warnings", "#recipe"):
        assert browser.execute_script(shows, place, HOSTILE), place
    assert "1 failed" in select(browser, "#board")[0].text
    assert quiet(browser)


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [1280, 390])
def test_nothing_sticks_out_and_text_stands_out(chromium, folder, width, scheme):
    browser = visit(chromium, folder / "index.html", width, scheme)
    select(browser, ".problem summary")[0].click()
    wait(lambda: select(browser, ".candidate"))
    assert browser.execute_script("return document.documentElement.scrollWidth") <= width
    contrast = """
      const rgb = (e, key) => getComputedStyle(e)[key].match(/[\\d.]+/g).slice(0, 3).map((x) => x / 255);
      const light = (c) => c.map((x) => x <= 0.03928 ? x / 12.92 : ((x + 0.055) / 1.055) ** 2.4)
        .reduce((sum, x, i) => sum + x * [0.2126, 0.7152, 0.0722][i], 0);
      const paper = light(rgb(document.body, "backgroundColor"));
      return ["body", ".facts", ".note", "#board small", "#tasks button", ".mark", ".badge", ".kicker"].map((css) => {
        const ink = light(rgb(document.querySelector(css), "color"));
        return (Math.max(ink, paper) + 0.05) / (Math.min(ink, paper) + 0.05);
      });"""
    assert min(browser.execute_script(contrast)) >= 4.5
    assert quiet(browser)
