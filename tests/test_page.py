"""docs/reading/index.html: built from scripts and tables, and used in a browser."""

import ast
import importlib.util
import json
import os
import re
import shutil
import subprocess
import sys
from functools import cache
from html.parser import HTMLParser
from itertools import combinations

import pytest
from common import NAMES, ROOT

FOLDER = ROOT / "docs" / "reading"
PAGE = FOLDER / "index.html"
TEXT = {name: (ROOT / f"{name}.py").read_text().splitlines() for name in NAMES}
WHY = "what the page is made with is not installed: docs/requirements.txt"


def load_builder():
    for package in ("latex2mathml", "pygments"):
        pytest.importorskip(package, reason=WHY)
    spec = importlib.util.spec_from_file_location("build_page", FOLDER / "build.py")
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


@cache
def tables() -> dict[str, dict[str, list[tuple[str, str]]]]:
    """Of each script: the numbers of the paper's lines, with (function, code)."""
    found = {}
    for name in NAMES:
        page = (ROOT / "docs" / f"{name}.md").read_text().replace("\\|", "∣")
        lines = found[name] = {}
        for number, function, code in re.findall(
            r"\n\| (\d\.\d+) \| [^|]+ \| ([^|]+) \| ([^|]+) \|", page
        ):
            places = lines.setdefault(number, [])
            if function != "–":
                code = code.strip("`").replace("∣", "|")
                places.append((function.strip("`"), code))
    return found


@cache
def span(name: str, function: str) -> tuple[int, int]:
    """The first and the last line of a function of a script."""
    node = ast.parse("\n".join(TEXT[name]))
    for part in function.split("."):
        (node,) = [x for x in node.body if getattr(x, "name", None) == part]
    return node.lineno, node.end_lineno


class Elements(HTMLParser):
    """The tags of a page with their attributes."""

    def __init__(self, text: str):
        super().__init__()
        self.found = []
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        self.found.append((tag, dict(attributes)))


@pytest.fixture(scope="module")
def elements() -> list[tuple[str, dict]]:
    return Elements(PAGE.read_text("utf-8")).found


# ── what it is built from ───────────────────────────────────────────────────────────


def test_the_committed_page_is_that_of_the_scripts_and_tables():
    if load_builder().build() != PAGE.read_text("utf-8"):
        pytest.fail("docs/reading/index.html is stale: python docs/reading/build.py")


@pytest.fixture
def copy(tmp_path):
    """What the page is built from, to break."""
    (tmp_path / "docs").mkdir()
    for name in NAMES:
        shutil.copy(ROOT / f"{name}.py", tmp_path)
        shutil.copy(ROOT / "docs" / f"{name}.md", tmp_path / "docs")
    for part in ("reading", "experiments/figures"):
        shutil.copytree(ROOT / "docs" / part, tmp_path / "docs" / part)
    return tmp_path


def test_a_stale_page_is_found_and_written(copy):
    load_builder()

    def command(*flags):
        script = [sys.executable, str(copy / "docs/reading/build.py"), *flags]
        return subprocess.run(script, capture_output=True, text=True, cwd=copy.parent)

    (copy / "a2c.py").write_text((copy / "a2c.py").read_text() + "# one more\n")
    result = command("--check")
    assert result.returncode == 1
    assert result.stderr.startswith("docs/reading/index.html is stale: python docs/")
    assert command().returncode == 0
    page = (copy / "docs/reading/index.html").read_bytes()
    assert command("--check").returncode == 0
    assert b"# one more" in page
    (copy / "docs/ppo.md").write_text("# PPO\n\nSection 4.4.\n")
    result = command()
    assert result.returncode == 1
    assert result.stderr == "docs/ppo.md has no table | line | Algorithm … |\n"
    assert (copy / "docs/reading/index.html").read_bytes() == page


@pytest.mark.parametrize(
    ("path", "old", "new", "says"),
    [
        ("ppo.py", "loss.backward()", "sum(loss).backward()", "ppo.py has no 'loss"),
        ("trpo.py", "def line_search(", "def search(", "trpo.py has no line_search"),
        ("docs/ppo.md", "| 6.12 |", "| 6.15 |", "docs/ppo.md has no line 6.12"),
        ("docs/vmpo.md", "\n| 8.18 |", "\n| 8.19 | x | – | y |\n| 8.18 |", "8.19"),
        ("docs/a2c.md", "| R ← r_j + γR |", "| R ← r_j + R |", "4.14"),
        ("docs/reading/paper.toml", "\n6.8 ", "\n6.9 ", "6.9"),
        ("docs/reading/paper.toml", r"\hat{H}^{-1} g$ via", "g$ via", "5.14: "),
        ("docs/reading/paper.toml", r"T \in \mathbb", r"T & \mathbb", "converter"),
        ("vmpo.py", "L_π is a sum", "L_π is the sum", "0 departures: 'L_π is"),
        ("ppo.py", "5. β(a|s)", "5) β(a|s)", "places 6 departures of ppo.py"),
        ("trpo.py", "    delta: float", "    target: float", "no flag delta"),
    ],
)
def test_what_does_not_fit_together_is_refused(copy, path, old, new, says, monkeypatch):
    builder = load_builder()
    monkeypatch.setattr(builder, "ROOT", copy)
    monkeypatch.setattr(builder, "HERE", copy / "docs" / "reading")
    text = (copy / path).read_text("utf-8")
    assert old in text
    (copy / path).write_text(text.replace(old, new), "utf-8")
    with pytest.raises(builder.Mismatch, match=re.escape(says)):
        builder.build()


# ── what is in it ───────────────────────────────────────────────────────────────────


def test_each_row_of_the_tables_is_a_line_with_its_code(elements):
    lines = {a["id"]: a for tag, a in elements if a.get("class") == "line"}
    known = {f"{name}/{number}" for name in NAMES for number in tables()[name]}
    assert lines.keys() == known
    assert len(known) == 6 + 18 + 21 + 14 + 18 + 4 * 11
    for name in NAMES:
        for number, places in tables()[name].items():
            shown = json.loads(lines[f"{name}/{number}"]["data-at"])
            assert len(shown) >= len(places)
            texts = [" ".join(TEXT[name][i - 1].strip() for i in at) for at in shown]
            for function, code in places:
                first, last = span(name, function)
                pairs = zip(shown, texts, strict=True)
                hits = [at for at, text in pairs if code in text]
                assert any(first <= at[0] <= at[-1] <= last for at in hits), code
            assert all(any(code in text for _, code in places) for text in texts)


def test_the_scripts_are_in_it_whole():
    page = PAGE.read_text("utf-8")
    for name in NAMES:
        row = rf'id="{name}/L(\d+)"[^>]*>(.*?)</(?:div|summary)>'
        shown = {}
        for number, markup in re.findall(row, page):
            code = re.search(r"<code>(.*)</code>", markup)
            text = re.sub(r"<[^>]+>", "", code[1]) if code else None
            unescape = {"&lt;": "<", "&gt;": ">", "&amp;": "&"}
            for entity, character in unescape.items():
                text = text and text.replace(entity, character)
            shown[int(number)] = text
        assert list(shown) == list(range(1, len(TEXT[name]) + 1))
        for number, text in shown.items():
            line = TEXT[name][number - 1]
            assert line.startswith("# ──") if text is None else line == text


def test_it_is_one_small_file_that_loads_nothing(elements):
    page = PAGE.read_text("utf-8")
    assert len(page.encode()) < 1_500_000
    ids = [a["id"] for _, a in elements if "id" in a]
    assert len(ids) == len(set(ids))
    sources = {"src", "href", "srcset", "data", "action", "poster"}
    for tag, attributes in elements:
        for name in sources & attributes.keys():
            assert tag in {"a", "link", "img"}, (tag, attributes)
            if tag != "a":
                assert attributes[name].startswith("data:"), (tag, attributes)
        assert tag not in {"iframe", "object", "embed", "base", "form"}
    assert not re.search(r"@import|url\(|\bfetch\(|XMLHttpRequest|import\(", page)
    assert str(ROOT) not in page


def test_every_link_leads_somewhere(elements):
    ids = {a["id"] for _, a in elements if "id" in a}
    links = {a["href"] for tag, a in elements if tag == "a"}
    assert len(links) > 400
    for link in links:
        if link.startswith("#diff/"):
            assert set(link.split("/")[1:]) <= set(NAMES)
        elif link.startswith("#"):
            place = re.fullmatch(r"(\w+/[\d.]+)/(\d+)", link[1:])
            assert (place[1] if place else link[1:]) in ids, link
        elif not link.startswith("https://arxiv.org/abs/2401.13662"):
            assert (FOLDER / link).is_file(), link


def test_the_differences_are_those_of_diff():
    page = PAGE.read_text("utf-8")
    found = json.loads(re.search(r'id="differences">(.*?)</script>', page)[1])
    assert list(found) == ["/".join(pair) for pair in combinations(NAMES, 2)]
    for pair, hunks in found.items():
        one, other = pair.split("/")
        files = [ROOT / f"{name}.py" for name in (one, other)]
        output = subprocess.run(["diff", "-d", *files], capture_output=True, text=True)
        count = sum(line.startswith(("<", ">")) for line in output.stdout.splitlines())
        sizes = [a2 - a1 + b2 - b1 + 2 for a1, a2, b1, b2, *_ in hunks]
        assert sum(sizes) == count
        assert f'<a href="#diff/{one}/{other}">{count}</a>' in page
        a, b = 0, 0
        for a1, a2, b1, b2, where, labels in [*hunks, [10**6, 0, 10**6, 0, "x", []]]:
            assert TEXT[one][a : a1 - 1] == TEXT[other][b : b1 - 1]
            a, b = a2, b2
            assert where
            for label in labels:  # the code of the paper's line is in the hunk
                name, number = label.split("/")
                first, last = (a1, a2) if name == one else (b1, b2)
                text = " ".join(x.strip() for x in TEXT[name][first - 2 : last + 1])
                quote = rf"\bAlgs?\. (\d\.\d+, )*{re.escape(number)}[,:]"
                quoted = re.search(quote, text)
                code = any(code in text for _, code in tables()[name][number])
                assert code or quoted, label
    labels = {label for hunk in found["a2c/ppo"] for label in hunk[5]}
    assert {"a2c/4.16", "a2c/4.17", "ppo/6.12", "ppo/6.13"} <= labels
    assert not {"a2c/4.10", "ppo/6.7", "ppo/7.7"} & labels


def luminance(colour: str) -> float:
    digits = colour.lstrip("#")
    digits = "".join(2 * x for x in digits) if len(digits) == 3 else digits
    parts = [int(digits[i : i + 2], 16) / 255 for i in (0, 2, 4)]
    parts = [x / 12.92 if x <= 0.04045 else ((x + 0.055) / 1.055) ** 2.4 for x in parts]
    return sum(w * x for w, x in zip((0.2126, 0.7152, 0.0722), parts, strict=True))


def test_the_colours_contrast():
    """WCAG AA: 4.5 between every text and all grounds that it can stand on."""
    style = (FOLDER / "page.css").read_text()
    themes = re.findall(r"color-scheme: (light|dark);\n((?:\s+--.*\n)+)", style)
    assert [theme for theme, _ in themes] == ["light", "dark", "dark", "light"]
    assert themes[1][1].split() == themes[2][1].split()
    for theme, block in themes:
        colours = dict(re.findall(r"--(\w+): (#\w{3,6});", block))
        grounds = ["ground", "raised", "lit", "lit2", "hover", "add", "del"]
        texts = ["ink", "soft", "link", "mark", *"kscdqfma"]
        known = [(t, g) for t in texts for g in grounds if g in colours]
        for text, ground in [*known, ("link", "chip")]:
            pair = sorted([luminance(colours[text]), luminance(colours[ground])])
            ratio = (pair[1] + 0.05) / (pair[0] + 0.05)
            assert ratio >= 4.5, (theme, text, ground, round(ratio, 2))


# ── in a browser ────────────────────────────────────────────────────────────────────

ARGUMENTS = ["--headless=new", "--no-sandbox", "--disable-gpu", "--no-first-run"]
ARGUMENTS += ["--disable-background-networking", "--disable-component-update"]
ARGUMENTS += ["--disable-sync", "--disable-dev-shm-usage", "--window-size=1280,800"]


class Browser:
    """Chromium on the page, with what the tests ask of it."""

    def __init__(self, driver):
        self.driver, self.url = driver, PAGE.as_uri()
        self.js = driver.execute_script

    def open(self, address: str) -> None:
        self.driver.get("about:blank")
        self.driver.get(f"{self.url}#{address}")

    def size(self, width: int, height: int) -> None:
        size = {"width": width, "height": height, "deviceScaleFactor": 1}
        size |= {"mobile": False}
        self.driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)

    @property
    def address(self) -> str:
        return self.js("return location.hash.slice(1)")

    def id(self, name: str):
        return self.js("return document.getElementById(arguments[0])", name)

    def click(self, name: str, inside: str) -> None:
        path = name.replace("/", r"\/").replace(".", r"\.")
        self.driver.find_element("css selector", f"#{path}{inside}").click()

    def all(self, selector: str) -> list:
        return self.js("return [...document.querySelectorAll(arguments[0])]", selector)

    def lit(self, name: str, kinds: str = ".on, .near") -> set[str]:
        """What is lit in a view: numbers of the paper, L and a number of the script."""
        find = """return [...document.getElementById(arguments[0])
            .querySelectorAll(arguments[1])].map(x => x.id.split("/")[1])"""
        return set(self.js(find, name, kinds))

    def seen(self, *names: str) -> bool:
        """Whether elements are in view, with nothing over them."""
        look = """return arguments[0].every(name => {
            const element = document.getElementById(name);
            const box = element.getBoundingClientRect();
            const pane = element.closest(".paper, .code").getBoundingClientRect();
            const x = Math.max(box.left, pane.left) + 120;
            const heights = [box.top + 2, Math.min(box.bottom, box.top + 40) - 2];
            return box.height > 0 && heights.every(
                y => element.contains(document.elementFromPoint(x, y)));});"""
        return self.js(look, names)

    def press(self, *keys) -> None:
        from selenium.webdriver import ActionChains

        ActionChains(self.driver).send_keys(*keys).perform()

    def wait(self, condition, seconds: float = 5) -> None:
        from selenium.webdriver.support.ui import WebDriverWait

        WebDriverWait(self.driver, seconds, 0.02).until(lambda _: condition())


@pytest.fixture(scope="module")
def chromium(tmp_path_factory):
    names = ("chromium", "chromium-browser", "google-chrome")
    binary = next(filter(None, map(shutil.which, names)), None)
    server = shutil.which("chromedriver")
    if not (binary and server):
        assert "CI" not in os.environ, "CI tests the page in Chromium"
        pytest.skip("needs Chromium: apt install chromium chromium-driver")
    pytest.importorskip("selenium", reason=WHY)
    from selenium.webdriver import Chrome, ChromeOptions
    from selenium.webdriver.chrome.service import Service

    options = ChromeOptions()
    options.binary_location = binary
    folder = tmp_path_factory.mktemp("chromium")
    for argument in [*ARGUMENTS, f"--user-data-dir={folder}"]:
        options.add_argument(argument)
    logs = {"browser": "ALL", "performance": "ALL"}
    options.set_capability("goog:loggingPrefs", logs)
    driver = Chrome(options=options, service=Service(server))
    driver.get("about:blank")
    driver.get_log("performance")  # of the empty tab
    yield driver
    driver.quit()


@pytest.fixture
def browser(chromium):
    """The page in Chromium; in the end its console is empty and nothing was loaded."""
    browser = Browser(chromium)
    browser.size(1280, 800)
    browser.open("ppo")
    yield browser
    for entry in chromium.get_log("browser"):
        pytest.fail(entry["message"])
    requests = []
    for entry in chromium.get_log("performance"):
        message = json.loads(entry["message"])["message"]
        if message["method"] == "Network.requestWillBeSent":
            requests.append(message["params"]["request"]["url"].split("#")[0][:200])
    assert browser.url in requests
    others = {url for url in requests if not url.startswith(("data:", "about:"))}
    assert others == {browser.url}


def places(name: str, number: str) -> list[set[int]]:
    """The lines of code of a line of the paper, found without the page."""
    found = []
    for function, code in tables()[name][number]:
        first, last = span(name, function)
        for length in range(1, 6):
            for i in range(first, last - length + 2):
                lines = range(i, i + length)
                if code in " ".join(TEXT[name][x - 1].strip() for x in lines):
                    found.append(set(lines))
            if found and code in " ".join(TEXT[name][x - 1].strip() for x in found[-1]):
                break
    return found


@pytest.mark.parametrize("name", NAMES)
def test_a_click_on_pseudocode_lights_its_code(browser, name):
    browser.open(name)
    for number in tables()[name]:
        browser.click(f"{name}/{number}", " .go")
        expected = places(name, number)
        rows = {f"L{x}" for lines in expected for x in lines}
        assert browser.address == f"{name}/{number}"
        assert browser.lit(name) == rows | {number}
        first = {f"L{x}" for x in expected[0]} if expected else set()
        assert browser.lit(name, ".on") == first | {number}  # it is lit most
        assert browser.seen(f"{name}/{number}", *(f"{name}/{row}" for row in first))


@pytest.mark.parametrize("name", NAMES)
def test_a_click_on_code_lights_its_pseudocode(browser, name):
    browser.open(name)
    browser.all(f"#{name} .unfold")[0].click()
    lines = {number: places(name, number) for number in tables()[name]}
    rows = {x for found in lines.values() for at in found for x in at}
    assert len(rows) >= 10
    for row in sorted(rows):
        browser.click(f"{name}/L{row}", " > a")
        here = {n for n, found in lines.items() if any(row in at for at in found)}
        assert browser.address == f"{name}/L{row}"
        assert browser.lit(name, ".line.on, .line.near") == here
        assert f"L{row}" in browser.lit(name, ".code .on")
        first = min(here, key=lambda x: tuple(map(int, x.split("."))))
        assert browser.seen(f"{name}/{first}", f"{name}/L{row}")


def test_a_click_on_a_quote_lights_what_it_quotes(browser):
    for name, number in (("ppo", "6.12"), ("vmpo", "8.10"), ("trpo", "5.5")):
        browser.open(name)
        quotes = [x for x in browser.all(f"#{name} i.q") if number in x.text]
        assert len(quotes) == 1
        quotes[0].click()
        assert browser.address == f"{name}/{number}"
        assert browser.seen(f"{name}/{number}")


def test_an_address_can_be_sent(browser):
    third = sorted(places("ppo", "6.12")[2])
    browser.open("ppo/6.12/3")
    assert browser.lit("ppo", ".code .on") == {f"L{x}" for x in third}
    assert browser.seen("ppo/6.12")
    assert browser.seen(f"ppo/L{third[0]}")
    browser.open("vmpo/eq22")
    browser.wait(lambda: browser.seen("vmpo/eq22"))
    (first, *_) = sorted(places("vmpo", "8.13")[0])
    assert browser.seen(f"vmpo/L{first}")
    assert "8.13" in browser.lit("vmpo", ".near")
    browser.open("trpo/L20")  # a line that nothing of the paper is about
    assert browser.lit("trpo") == {"L20"}
    assert browser.seen("trpo/L20")
    browser.open("nothing/of/this")
    assert [x.get_attribute("id") for x in browser.all(".view.shown")] == ["reinforce"]
    browser.open("trpo/5.2")
    browser.click("trpo/5.6", " .go")
    browser.click("trpo/5.9", " .go")
    browser.driver.back()
    browser.wait(lambda: "5.6" in browser.lit("trpo"))
    browser.driver.back()
    browser.wait(lambda: "5.2" in browser.lit("trpo"))
    browser.js("location.hash = 'a2c/4.12'")
    browser.wait(lambda: "4.12" in browser.lit("a2c"))
    browser.driver.back()
    browser.wait(lambda: not browser.id("a2c").is_displayed())


def test_the_plumbing_is_folded_until_wanted(browser):
    def closed():
        return {x.text for x in browser.all("#ppo details:not([open]) summary span")}

    lines = (ROOT / "ppo.py").read_text().splitlines()
    setting = next(i for i, x in enumerate(lines, 1) if "env_id: str" in x)
    plumbing = closed()
    assert {"configuration", "environments", "training", "command line"} <= plumbing
    summary = {x.text for x in browser.all("#ppo summary span")}
    kept = {"networks", "advantage", "loss", "update", "rollout"}
    assert summary - plumbing == kept
    assert not browser.id(f"ppo/L{setting}").is_displayed()
    (first, *_) = places("ppo", "6.3")[0]
    browser.js("location.hash = 'ppo/6.3'")
    browser.wait(lambda: browser.seen(f"ppo/L{first}"))
    assert closed() == plumbing - {"training"}
    browser.all("#ppo .unfold")[0].click()
    assert not closed()
    browser.all("#ppo .unfold")[0].click()
    assert closed() == plumbing
    browser.all("#ppo summary")[1].click()
    assert browser.id(f"ppo/L{setting}").is_displayed()


def test_what_the_mouse_points_at_is_lit(browser):
    from selenium.webdriver import ActionChains

    browser.open("ppo/6.5")
    hand = ActionChains(browser.driver, duration=60)
    hand.move_to_element(browser.id("ppo/6.3")).perform()
    rows = {f"L{x}" for at in places("ppo", "6.3") for x in at}
    browser.wait(lambda: rows <= browser.lit("ppo"))
    assert all(browser.seen(f"ppo/{row}") for row in rows)  # in a fold, opened for it
    assert browser.address == "ppo/6.5"
    hand.move_to_element(browser.all("h1")[0]).perform()
    browser.wait(lambda: not rows & browser.lit("ppo"))
    assert "6.5" in browser.lit("ppo")
    assert not browser.id(f"ppo/{max(rows)}").is_displayed()
    (row,) = places("ppo", "6.5")[0]
    browser.open("ppo/6.5")
    hand.move_to_element(browser.id(f"ppo/L{row + 2}")).perform()
    browser.wait(lambda: "6.7" in browser.lit("ppo", ".near"))


def test_the_keyboard_reaches_everything(browser):
    from selenium.webdriver.common.keys import Keys

    active = "return document.activeElement.getAttribute('href') || ''"
    for _ in range(30):
        browser.press(Keys.TAB)
        if browser.js(active) == "#ppo/6.1":
            break
    assert browser.js(active) == "#ppo/6.1"
    outline = "return getComputedStyle(document.activeElement).outlineStyle"
    assert browser.js(outline) == "solid"
    assert "L" in "".join(browser.lit("ppo"))  # focused is lit
    browser.press(Keys.END, Keys.HOME, *[Keys.ARROW_DOWN] * 11)
    assert browser.js(active) == "#ppo/6.12"
    assert browser.address == "ppo/6.12"
    expected = places("ppo", "6.12")
    for place in (1, 2, 3, 0):
        browser.press(Keys.ARROW_RIGHT)
        assert browser.lit("ppo", ".code .on") == {f"L{x}" for x in expected[place]}
    browser.press(Keys.ARROW_LEFT, Keys.ENTER, Keys.ENTER)
    assert browser.address == "ppo/6.12/2"
    spoken = browser.id("spoken").get_attribute("textContent")
    assert "6.12: dθ ←" in spoken
    assert f"line {min(expected[1])}, place 2 of 4" in spoken
    (current,) = browser.all("#ppo .go[aria-current]")
    assert current.get_attribute("href").endswith("#ppo/6.12")
    browser.press(Keys.ESCAPE)
    assert browser.address == "ppo"
    assert not browser.lit("ppo")
    for _ in range(12):  # and the way back
        browser.press(Keys.TAB)
        if "/L" in browser.js(active):
            break
    browser.press(Keys.ARROW_DOWN)
    row = re.fullmatch(r"#ppo/L(\d+)", browser.js(active))
    assert row
    assert browser.address == f"ppo/L{row[1]}"
    assert browser.seen(f"ppo/L{row[1]}")
    assert browser.lit("ppo", ".line.on, .line.near")


def test_two_scripts_are_compared(browser):
    from selenium.webdriver.support.ui import Select

    browser.open("diff")
    assert browser.id("one").get_attribute("value") == "a2c"
    assert browser.id("other").get_attribute("value") == "ppo"
    Select(browser.id("one")).select_by_visible_text("PPO")
    Select(browser.id("other")).select_by_visible_text("V-MPO")
    assert browser.address == "diff/ppo/vmpo"
    command = ["diff", "-d", str(ROOT / "ppo.py"), str(ROOT / "vmpo.py")]
    output = subprocess.run(command, capture_output=True, text=True).stdout.splitlines()
    texts = """return [...document.querySelectorAll(arguments[0])]
        .map(x => x.querySelector("code").textContent)"""
    for sign, rows in (("<", ".changed:not(.new)"), (">", ".changed.new")):
        lines = [line[2:] for line in output if line.startswith(sign)]
        shown = browser.js(texts, f"#hunks {rows}")
        assert len(shown) == len(lines)
        assert set(shown) == set(lines)
    equal = """return [...document.querySelectorAll(".sides")].map(box =>
        [...box.children].map(side => [...side.children]
            .filter(row => !/changed|fill/.test(row.className))
            .map(row => [row.textContent, row.getBoundingClientRect().top])))"""
    boxes = browser.js(equal)
    assert len(boxes) > 4
    assert all(left and left == right for left, right in boxes)  # at one height
    buttons = browser.all("#hunks .equal")
    count = int(re.search(r"\d+", buttons[1].text)[0])
    buttons[1].click()
    assert len(browser.all("#hunks .same .r")) == count
    for button in (buttons[0], *buttons[2:]):
        button.click()
    left = "#hunks .side:first-child .r:not(.fill), #hunks .same .r"
    numbers = [int(row.get_attribute("data-n")) for row in browser.all(left)]
    assert numbers == list(range(1, len(TEXT["ppo"]) + 1))
    (label,) = browser.all('#hunks a[href="#vmpo/8.14"]')[:1]
    assert label.text == "V-MPO 8.14"
    label.click()
    browser.wait(lambda: "8.14" in browser.lit("vmpo"))
    browser.open("diff/a2c/ppo/4")
    browser.id("swap").click()
    assert browser.address == "diff/ppo/a2c"


def test_choices_and_curves_lead_back(browser):
    browser.open("choices")
    (row,) = places("vmpo", "8.12")[0]
    browser.all('#choices a[href="#vmpo/8.12"]')[0].click()
    browser.wait(lambda: browser.seen(f"vmpo/L{row}"))
    browser.open("choices")
    flag = next(x for x in browser.all("#choices .flag") if "--epsilon" in x.text)
    assert flag.text == "--epsilon 0.2"
    flag.click()
    row = next(i for i, x in enumerate(TEXT["ppo"], 1) if x.startswith("    epsilon: "))
    browser.wait(lambda: browser.seen(f"ppo/L{row}"))
    for name in (*NAMES, "curves"):
        images = browser.all(f"#{name} img")
        assert images
        assert all(browser.js("return arguments[0].naturalWidth", x) for x in images)
        assert all(x.get_attribute("alt") for x in images)


@pytest.mark.parametrize(("width", "height"), [(1280, 800), (390, 844)])
@pytest.mark.parametrize("view", [*NAMES, "diff/trpo/vmpo", "choices", "curves"])
def test_nothing_is_wider_than_the_window(browser, view, width, height):
    browser.size(width, height)
    browser.open(view)
    wide = "const e = document.scrollingElement; return [e.scrollWidth, e.scrollHeight]"
    assert browser.js(wide) == [width, height]
    for pane in browser.all(".view.shown .paper, .view.shown.wide"):
        scrolled, inner = browser.js(
            "return [arguments[0].scrollWidth, arguments[0].clientWidth]", pane
        )
        assert scrolled <= inner
    if view in NAMES and width < 1000:  # both are in view, one above the other
        number = list(tables()[view])[-1]
        browser.open(f"{view}/{number}")
        browser.wait(lambda: browser.seen(f"{view}/{number}"))
        assert browser.seen(f"{view}/L{min(places(view, number)[0])}")


def test_light_and_dark(browser):
    def ground():
        html = "document.documentElement"
        colour = browser.js(f"return getComputedStyle({html}).backgroundColor")
        return sum(map(int, re.findall(r"\d+", colour)[:3]))

    def system(scheme):
        features = [{"name": "prefers-color-scheme", "value": scheme}]
        browser.driver.execute_cdp_cmd(
            "Emulation.setEmulatedMedia", {"features": features}
        )

    system("dark")
    assert ground() < 200
    system("light")
    assert ground() > 600
    button = browser.id("theme")
    button.click()
    assert button.text == "Theme: light"
    button.click()
    assert ground() < 200
    browser.open("a2c")
    assert ground() < 200  # it is kept
    browser.id("theme").click()
    assert ground() > 600
