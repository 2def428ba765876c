"""Opens reports in headless Chromium and looks at what a reader would: check_report.py CHROMIUM PICTURES STUDY...

A study is a folder with report.html and findings/*.json, which say what must be there. Exits 1 at what is wrong, all of it listed.
"""

import json
import os
import pathlib
import sys

from playwright.sync_api import sync_playwright

WIDTHS = (400, 1400)
SCHEMES = ("light", "dark")
DRAWN = ("lines", "bars", "scatter", "heatmap")

# Level texts of a drawing that lie on one another, by more than a pixel; the first few.
OVERLAPS = """() => [...document.querySelectorAll('svg.chart')].flatMap(svg => {
  const texts = [...svg.querySelectorAll('text:not(.pass)')].map(text => [text.textContent, text.getBoundingClientRect(), text.hasAttribute('transform')]);
  const found = [];
  for (let i = 0; i < texts.length; i++) for (let j = i + 1; j < texts.length; j++) {
    const [a, p, aTurned] = texts[i], [b, q, bTurned] = texts[j];
    const wide = Math.min(p.right, q.right) - Math.max(p.left, q.left), high = Math.min(p.bottom, q.bottom) - Math.max(p.top, q.top);
    const slack = aTurned || bTurned ? 3 : 1;
    if (wide > slack && high > slack) found.push(`${svg.closest('figure').id}: ${JSON.stringify(a)} lies on ${JSON.stringify(b)}`);
  }
  return found.slice(0, 3);
})"""

# Words of a plot that its drawing cuts off: a picture of it would lack them.
CUT = """() => [...document.querySelectorAll('svg.chart')].flatMap(svg => {
  const whole = svg.getBoundingClientRect(), slack = 2;
  const out = [...svg.querySelectorAll('text')].filter(text => { const box = text.getBoundingClientRect();
    return box.left < whole.left - slack || box.right > whole.right + slack || box.top < whole.top - slack || box.bottom > whole.bottom + slack; });
  return out.slice(0, 3).map(text => `${svg.closest('figure').id}: ${JSON.stringify(text.textContent)} reaches out of the drawing`);
})"""

# What is wrong with what one plot shows on hover; at once, since a page that scrolls hides it.
HOVER = """name => {
  const marks = document.querySelectorAll(`figure#${name} [data-value]`), hover = document.getElementById('hover');
  if (!marks.length) return null;
  marks[marks.length >> 1].dispatchEvent(new PointerEvent('pointermove', {clientX: innerWidth - 2, clientY: innerHeight - 2, bubbles: true}));
  const box = hover.getBoundingClientRect(), inside = box.left >= 0 && box.right <= innerWidth && box.bottom <= innerHeight;
  const wrong = hover.hidden || !hover.textContent.trim() ? `${name} shows no value on hover` : inside ? null : `what ${name} shows on hover is cut off`;
  hover.hidden = true;
  return wrong;
}"""

# Elements that reach over the window's right edge, outside the boxes that scroll by themselves.
TOO_WIDE = """() => [...document.querySelectorAll('main *')].filter(one => !one.closest('.scroll') && one.getBoundingClientRect().right > innerWidth + 1)
  .slice(0, 5).map(one => one.tagName + ' ' + (one.className.baseVal ?? one.className) + ' in ' + one.closest('section')?.id)"""

# Colour against its background, as WCAG defines contrast: the least of the page's own text.
CONTRAST = """() => {
  const luminance = colour => { const [r, g, b] = colour.match(/[\\d.]+/g).slice(0, 3).map(v => { v /= 255; return v <= .03928 ? v / 12.92 : ((v + .055) / 1.055) ** 2.4; });
    return .2126 * r + .7152 * g + .0722 * b; };
  const paper = luminance(getComputedStyle(document.documentElement).backgroundColor);
  const of = one => { const ink = luminance(getComputedStyle(one).color); return (Math.max(ink, paper) + .05) / (Math.min(ink, paper) + .05); };
  return Math.min(...[...document.querySelectorAll('main p, main td, main th, figcaption, main a, dt')].map(of));
}"""


def expected(study):
    """Names of the exhibits that are drawn, and of all."""
    exhibits = [e for path in sorted((study / "findings").glob("*.json")) for e in json.loads(path.read_text())["exhibits"]]
    return [e["name"] for e in exhibits if e["body"]["kind"] in DRAWN], [e["name"] for e in exhibits]


def check(page, study, scheme):
    """What is wrong with the open page."""
    wrong = []
    drawn, exhibits = expected(study)
    for name in exhibits:
        if page.locator(f"figure#{name}").count() != 1:
            wrong.append(f"exhibit {name} is not there once")
    for name in drawn:
        box = page.locator(f"figure#{name} svg.chart").bounding_box()
        if box is None or box["width"] < 200 or box["height"] < 60:
            wrong.append(f"the plot of {name} is not seen: {box}")
    for link in page.locator("a[href^='./exhibits/']").evaluate_all("links => links.map(link => link.getAttribute('href'))"):
        if not (study / link).is_file():
            wrong.append(f"{link} is linked and not there")
    if page.evaluate("document.documentElement.scrollWidth > document.documentElement.clientWidth"):
        wrong.append("the page is wider than the window: " + "; ".join(page.evaluate(TOO_WIDE)))
    wrong += page.evaluate(OVERLAPS)
    wrong += page.evaluate(CUT)
    if (contrast := page.evaluate(CONTRAST)) < 4.5:
        wrong.append(f"text has a contrast of {contrast:.2f} to the page, under 4.5")
    dark = page.evaluate("getComputedStyle(document.documentElement).backgroundColor.match(/\\d+/g).every(v => v < 64)")
    if dark != (scheme == "dark"):
        wrong.append(f"the page is not {scheme}")
    return wrong + hovered(page, drawn)


def hovered(page, drawn):
    """A value in each plot shows when the pointer is on it, whole in the window."""
    return [one for name in drawn if (one := page.evaluate(HOVER, name))]


def look(browser, study, pictures):
    wrong = []
    for scheme in SCHEMES:
        for width in WIDTHS:
            context = browser.new_context(viewport={"width": width, "height": 900}, color_scheme=scheme, offline=True)
            page = context.new_page()
            said = []
            page.on("console", lambda message: said.append(f"console {message.type}: {message.text}"))
            page.on("pageerror", lambda error: said.append(f"script error: {error}"))
            page.on("dialog", lambda dialog: (said.append(f"dialog: {dialog.message}"), dialog.dismiss()))
            address = (study / "report.html").resolve().as_uri()
            page.on("request", lambda request: said.append(f"request: {request.url}") if request.url != address and not request.url.startswith("data:") else None)
            page.goto(address)
            title = page.title()
            found = said + check(page, study, scheme)
            if page.title() != title or title == "run":
                found.append("words of a finding were run as a script")
            wrong += [f"{study} at {width} px, {scheme}: {one}" for one in found]
            page.evaluate("scrollTo(0, 0)")
            page.screenshot(path=pictures / f"{study.name}-{width}-{scheme}.png", full_page=True)
            if (scheme, width) == (SCHEMES[0], WIDTHS[-1]):
                page.pdf(path=pictures / f"{study.name}.pdf", format="A4", print_background=True)
            context.close()
    return wrong


def main():
    chromium, pictures, *studies = sys.argv[1:]
    pictures = pathlib.Path(pictures)
    pictures.mkdir(parents=True, exist_ok=True)
    wrong = []
    with sync_playwright() as playwright:
        arguments = ["--no-sandbox"] if os.geteuid() == 0 else []
        browser = playwright.chromium.launch(executable_path=chromium, args=arguments)
        for study in studies:
            wrong += look(browser, pathlib.Path(study), pictures)
        browser.close()
    for one in wrong:
        print(f"error: {one}", file=sys.stderr)
    print(f"{len(studies)} reports at {len(WIDTHS)} widths, {' and '.join(SCHEMES)}: {len(wrong)} faults; pictures in {pictures}")
    sys.exit(1 if wrong else 0)


if __name__ == "__main__":
    main()
