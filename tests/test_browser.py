"""The report in a real browser: nothing is asked for, everything is seen, and it can be read."""

import re
import time

import browser
import pytest

from pyro_animacy.criticism.criticise import SECTIONS, criticise

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(browser.PROGRAM is None, reason="no Chromium or Chrome on PATH"),
]
PHONE = {"width": 390, "height": 844, "deviceScaleFactor": 1, "mobile": True}
DESKTOP = {"width": 1200, "height": 900, "deviceScaleFactor": 1, "mobile": False}
# Of every element with text of its own: its colour, and the first background behind it.
COLOURS = """
[...document.querySelectorAll('body *')].filter(e => e.checkVisibility()
    && [...e.childNodes].some(n => n.nodeType === 3 && n.textContent.trim())).map(e => {
  const background = x => getComputedStyle(x).backgroundColor;
  let behind = e;
  while (background(behind) === 'rgba(0, 0, 0, 0)') behind = behind.parentElement;
  return [getComputedStyle(e).color, background(behind), e.outerHTML.slice(0, 80)];
})
"""


@pytest.fixture(scope="module")
def report(tiny_run, tiny_data, tmp_path_factory):
    """The report of the tiny run, of all sections."""
    out = tmp_path_factory.mktemp("report") / "report.html"
    heldout = tiny_run.heldout(tiny_data)
    return criticise(tiny_run, heldout, out=out, draws=20, new=False, progress=False)


@pytest.fixture(scope="module")
def page(report, tmp_path_factory):
    """The report, opened in a browser that only this module uses."""
    chromium = browser.Browser(tmp_path_factory.mktemp("profile"))
    try:
        chromium("Emulation.setDeviceMetricsOverride", **DESKTOP)
        chromium.open(report.as_uri())
        yield chromium
    finally:
        chromium.close()


def luminance(colour):
    """Relative luminance of "rgb(r, g, b)" (WCAG 2.2)."""
    share = [int(x) / 255 for x in re.findall(r"\d+", colour)[:3]]
    linear = [s / 12.92 if s <= 0.04045 else ((s + 0.055) / 1.055) ** 2.4 for s in share]
    return sum(w * x for w, x in zip((0.2126, 0.7152, 0.0722), linear, strict=True))


def contrast(one, other):
    low, high = sorted(map(luminance, (one, other)))
    return (high + 0.05) / (low + 0.05)


def test_contrast_of_black_and_white_is_21():
    assert contrast("rgb(0, 0, 0)", "rgb(255, 255, 255)") == pytest.approx(21)
    assert contrast("rgb(119, 119, 119)", "rgb(255, 255, 255)") == pytest.approx(4.48, abs=0.01)


def test_nothing_is_asked_for_and_nothing_complains(page, report):
    urls = [sent["request"]["url"] for sent in page.of("Network.requestWillBeSent")]
    assert report.as_uri() in urls
    assert all(url == report.as_uri() or url.startswith("data:image/") for url in urls)
    assert not page.of("Runtime.exceptionThrown")
    assert not [said for said in page.of("Runtime.consoleAPICalled") if said["type"] != "log"]
    entries = [said["entry"] for said in page.of("Log.entryAdded")]
    assert not [entry for entry in entries if entry["level"] in ("error", "warning")]


def test_every_image_is_decoded_and_described(page):
    page.value("Promise.all([...document.images].map(i => i.decode()))")
    images = page.value("[...document.images].map(i => [i.naturalWidth, i.alt])")
    assert len(images) > 20
    assert all(width > 0 and alt.strip() for width, alt in images)


def test_every_link_leads_somewhere(page):
    anchors = page.value("[...document.links].map(a => a.getAttribute('href'))")
    assert {f"#{key}" for key in SECTIONS} <= set(anchors)
    for anchor in anchors:
        assert page.value(f"document.querySelectorAll('{anchor}').length") == 1, anchor


def shots(page, image, count):
    """Screenshots of the first image whose source begins so, 0.3 seconds apart."""
    place = page.value(
        "(i => { i.scrollIntoView({behavior: 'instant'}); const r = i.getBoundingClientRect();"
        "return {x: r.x + scrollX, y: r.y + scrollY, width: r.width, height: r.height}})"
        f"(document.querySelector('img[src^=\"data:image/{image}\"]'))"
    )
    taken = []
    for _ in range(count):
        taken.append(page.screenshot(**place))
        time.sleep(0.3)
    return taken


def test_animations_move_and_figures_do_not(page):
    assert len(set(shots(page, "gif", 8))) > 1
    assert len(set(shots(page, "png", 3))) == 1


def test_a_phone_scrolls_down_only(page):
    page("Emulation.setDeviceMetricsOverride", **PHONE)
    try:
        width = page.value("document.documentElement.scrollWidth")
        wide = page.value(
            "[...document.querySelectorAll('body *')].filter(e => e.checkVisibility()"
            "&& !e.closest('.scroll') && e.getBoundingClientRect().right > 391)"
            ".map(e => e.outerHTML.slice(0, 80))"
        )
    finally:
        page("Emulation.setDeviceMetricsOverride", **DESKTOP)
    assert width == 390
    assert wide == []


@pytest.mark.parametrize("width", [1200, 1000, 800])
def test_tables_fit_their_boxes_at_width(page, width):
    page("Emulation.setDeviceMetricsOverride", **{**DESKTOP, "width": width})
    page.value("document.querySelectorAll('details:not([open])').forEach(d => {"
               "d.dataset.folded = ''; d.open = true})")  # fmt: skip
    try:
        count = page.value("document.querySelectorAll('.scroll').length")
        wide = page.value(
            "[...document.querySelectorAll('.scroll')].filter(e => e.scrollWidth > e.clientWidth)"
            ".map(e => `${e.ariaLabel}: ${e.scrollWidth} in ${e.clientWidth}`)"
        )
    finally:
        page.value("document.querySelectorAll('[data-folded]').forEach(d => {"
                   "delete d.dataset.folded; d.open = false})")  # fmt: skip
        page("Emulation.setDeviceMetricsOverride", **DESKTOP)
    assert count > 10
    assert wide == []


@pytest.mark.parametrize(("media", "scheme"), [("", "light"), ("", "dark"), ("print", "light")])
def test_text_stands_out_from_its_background(page, media, scheme):
    page.media(media, scheme)
    try:
        found = page.value(COLOURS)
    finally:
        page.media()
    assert len(found) > 100
    dim = [(contrast(*colours), text) for *colours, text in found if contrast(*colours) < 4.5]
    assert dim == []
    dark = luminance(found[0][1]) < 0.1
    assert dark == (scheme == "dark")


def test_print_shows_what_the_screen_folds_away(page):
    hidden = (  # after two frames, when what is visible has been found anew
        "new Promise(done => requestAnimationFrame(() => requestAnimationFrame(done))).then(() =>"
        "[...document.querySelectorAll('details:not([open])')].map(d => "
        "[...d.children].slice(1).every(e => e.checkVisibility()"
        "&& e.getBoundingClientRect().height > 0)))"
    )
    assert not any(page.value(hidden))
    page.media("print")
    try:
        shown = page.value(hidden)
    finally:
        page.media()
    assert len(shown) > 3
    assert all(shown)
