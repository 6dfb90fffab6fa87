"""The site as a reader sees it, in headless Chromium: `make docs-check`."""

import functools
import html.parser
import http.server
import os
import pathlib
import shutil
import threading
import urllib.parse

import pytest

playwright = pytest.importorskip(
    "playwright.sync_api", reason="playwright is not installed."
)

DOCS = pathlib.Path(__file__).parents[1]
SITE = pathlib.Path(os.environ.get("SITE", DOCS.parent / "site"))
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
WIDTHS = (1280, 390)
SCHEMES = ("light", "dark")
PAGES = sorted(
    path.relative_to(SITE).as_posix()
    for path in SITE.rglob("*.html")
    if "_static" not in path.parts
)
QUESTIONS = [
    [part.strip() for part in line.split("|")]
    for line in (DOCS / "checks/questions.txt").read_text().splitlines()
    if not line.startswith("#")
]

# What sticks out of the window, but for what scrolls within itself.
TOO_WIDE = """() => {
  const width = document.documentElement.clientWidth;
  const scrolls = (e) => {
    for (; e; e = e.parentElement)
      if (getComputedStyle(e).overflowX !== "visible") return true;
    return false;
  };
  const main = document.querySelector("article, main");
  const found = [...main.querySelectorAll("*")].filter((e) => {
    const box = e.getBoundingClientRect();
    return box.width && box.right > width + 1 && !scrolls(e.parentElement);
  });
  const names = found.map((e) => e.tagName + ": " + e.textContent.slice(0, 60));
  if (document.documentElement.scrollWidth > width + 1)
    names.push("the page is " + document.documentElement.scrollWidth + " wide");
  return names;
}"""

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(CHROMIUM is None, reason="There is no Chromium."),
    pytest.mark.skipif(not PAGES, reason="There is no site: `make docs`."),
]


class Quiet(http.server.SimpleHTTPRequestHandler):
    def log_message(self, *args):
        pass


@pytest.fixture(scope="module")
def address():
    handler = functools.partial(Quiet, directory=SITE)
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


@pytest.fixture(scope="module")
def browser():
    with playwright.sync_playwright() as engine:
        browser = engine.chromium.launch(
            executable_path=CHROMIUM, args=["--no-sandbox"]
        )
        yield browser
        browser.close()


@pytest.fixture(scope="module", params=SCHEMES)
def windows(request, browser):
    """A wide and a narrow window, and what their consoles say."""
    said, opened = [], {}
    for width in WIDTHS:
        window = browser.new_page(
            viewport={"width": width, "height": 900},
            color_scheme=request.param,
        )
        window.on("pageerror", lambda error: said.append(str(error)))
        window.on("requestfailed", lambda r: said.append(f"failed: {r.url}"))
        window.on(
            "console",
            lambda m: said.append(m.text) if m.type == "error" else None,
        )
        opened[width] = window
    yield opened, said, request.param
    for window in opened.values():
        window.close()


@pytest.mark.parametrize("page", PAGES)
def test_a_page_fits_the_window_and_the_console_is_silent(
    page, windows, address
):
    opened, said, scheme = windows
    del said[:]
    wide = {}
    for width, window in opened.items():
        window.goto(f"{address}/{page}")
        assert window.locator("html").get_attribute("data-theme") == scheme
        wide[width] = window.evaluate(TOO_WIDE)
        folder = os.environ.get("SCREENSHOTS")
        if folder:
            name = f"{page.replace('/', '-')[:-5]}-{width}-{scheme}.png"
            window.screenshot(path=pathlib.Path(folder) / name, full_page=True)
    assert wide == {width: [] for width in WIDTHS}
    assert said == []


class Links(html.parser.HTMLParser):
    """The targets of a page's links, and the names that links may lead to."""

    def __init__(self, text):
        super().__init__()
        self.targets, self.names, self.pictures = set(), set(), []
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        attrs = dict(attrs)
        self.names |= {attrs["id"]} if attrs.get("id") else set()
        target = attrs.get("href" if tag in ("a", "link") else "src")
        self.targets |= {target} if target else set()
        self.pictures += [attrs.get("alt")] if tag == "img" else []


@pytest.fixture(scope="module")
def parsed():
    return {page: Links((SITE / page).read_text()) for page in PAGES}


def local(page, target):
    """The path and the name that a link leads to, `None` if elsewhere."""
    url = urllib.parse.urlsplit(target)
    if url.scheme or url.netloc:
        return None
    path = urllib.parse.unquote(url.path)
    joined = os.path.normpath(os.path.join(os.path.dirname(page), path))
    return (joined if path else page), url.fragment


def test_no_link_is_dead(parsed):
    dead = set()
    for page, links in parsed.items():
        for target in links.targets:
            found = local(page, target)
            if found is None:
                continue
            path, name = found
            exists = (SITE / path).exists()
            has_name = not name or path not in parsed
            if not exists or not (has_name or name in parsed[path].names):
                dead.add((page, target))
    assert dead == set()


def test_nothing_is_fetched_from_elsewhere(parsed):
    """A reader without a network, or behind a wall, sees the same page."""
    tags = ("<script", "<link", "<img")
    found = []
    for page in PAGES:
        text = (SITE / page).read_text()
        parts = [p for tag in tags for p in text.split(tag)[1:]]
        found += [
            (page, part.partition(">")[0])
            for part in parts
            if "//" in part.partition(">")[0].replace("canonical", "")
        ]
    assert found == []


def test_every_picture_says_what_it_shows(parsed):
    bare = [page for page, links in parsed.items() if not all(links.pictures)]
    assert bare == []


def clicks(parsed, most):
    """The pages within so many clicks of the first."""
    reached = {"index.html"}
    for _ in range(most):
        for page in list(reached):
            found = [local(page, t) for t in parsed[page].targets]
            reached |= {f[0] for f in found if f and f[0] in parsed}
    return reached


@pytest.mark.parametrize("question, words, page", QUESTIONS)
def test_a_question_is_answered_within_two_clicks_and_by_the_search(
    question, words, page, parsed, browser, address
):
    assert page in clicks(parsed, 2)
    window = browser.new_page()
    query = urllib.parse.urlencode({"q": words})
    window.goto(f"{address}/search.html?{query}")
    window.wait_for_selector("#search-results ul.search li a")
    window.wait_for_function(
        "!document.querySelector('#search-results h2')"
        ".textContent.includes('Searching')"
    )
    found = window.eval_on_selector_all(
        "#search-results ul.search li > a",
        "links => links.map(a => a.getAttribute('href'))",
    )
    window.close()
    pages = list(dict.fromkeys(local("search.html", f)[0] for f in found))
    assert page in pages[:5]
