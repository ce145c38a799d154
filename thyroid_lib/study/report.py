"""Executed notebooks become reports: one self-contained HTML page each, and an index of the run.

A page opens with the network off and holds no script, whatever the texts in it hold: what a browser would run
or load is taken out, and the page's content policy forbids it. Every figure has an alt text and a caption; a
figure without them is an error, not an oversight.
"""

import base64
import json
import re
from collections.abc import Mapping
from datetime import datetime
from pathlib import Path
from urllib.parse import quote, unquote

import jinja2
from bs4 import BeautifulSoup

from thyroid_lib.common.files import LIBRARY, read_json, write_text
from thyroid_lib.common.messages import number
from thyroid_lib.study import profiles
from thyroid_lib.study.run import Run

TEMPLATES = LIBRARY / "templates"
ACTIVE = (
    "script, iframe, frame, object, embed, applet, form, base, portal, audio, video, template, "
    "body style, body link, body meta, body title"
)  # what a text from outside may not bring into a page
ADDRESSES = ("src", "href", "xlink:href", "poster", "data")


class ReportError(ValueError):
    """A notebook's output cannot become a report."""


def render(notebook: Path, page: Path) -> None:
    """Turn an executed ``.ipynb`` into an HTML file.

    Raises:
        ReportError: a figure has no alt text or caption.
    """
    import nbformat

    write_text(page, to_html(nbformat.read(notebook, as_version=4), page.stem))


def to_html(notebook, name: str) -> str:
    """An executed notebook as one HTML page.

    Args:
        notebook: an ``nbformat`` notebook node.
        name: the page's name, such as ``"04_finetune"``.

    Raises:
        ReportError: a figure has no alt text or caption, or a cell printed to standard error.
    """
    from nbconvert import HTMLExporter

    _check(notebook, name)
    exporter = HTMLExporter(
        template_name="report",
        extra_template_basedirs=[str(TEMPLATES)],
        embed_images=False,
        exclude_input_prompt=True,
        exclude_output_prompt=True,
    )
    css = (TEMPLATES / "report" / "report.css").read_text(encoding="utf-8")
    html, _ = exporter.from_notebook_node(notebook, {"report_css": css, "metadata": {"name": name}})
    return str(_dressed(BeautifulSoup(html, "html.parser"), name))


def _check(notebook, name: str) -> None:
    for position, cell in enumerate(notebook.cells):
        for output in cell.get("outputs", []):
            if output.output_type == "stream" and output.name == "stderr":
                raise ReportError(
                    f"{name}, cell {position} wrote to standard error: {output.text.strip()[:300]}"
                )
            if "image/png" in output.get("data", {}):
                words = output.metadata.get("image/png", {})
                lacking = [word for word in ("alt", "caption") if not str(words.get(word, "")).strip()]
                if lacking:
                    raise ReportError(
                        f"{name}, cell {position}: a figure has no {' and no '.join(lacking)}; "
                        "show figures with run.show(figure, name, caption=..., alt=...)"
                    )


def _dressed(page: BeautifulSoup, name: str) -> BeautifulSoup:
    """Add the table of contents and the page's title; drop what a reader has no use for, or a browser acts on."""
    _inert(page)
    for anchor in page.select("a.anchor-link"):
        anchor.decompose()
    title = page.find("h1")
    if title and page.title:
        page.title.string = title.get_text(strip=True)
    for cell in page.select("div.jp-CodeCell"):
        if not cell.get_text(strip=True) and not cell.find("img"):
            cell.decompose()
    for image in page.select("main img"):
        if not image.get("alt", "").strip():
            raise ReportError(f"{name}: an image has no alt text: {str(image)[:80]}")
    contents = page.new_tag("nav", attrs={"class": "contents", "aria-label": "Contents"})
    home = page.new_tag("a", href="index.html", attrs={"class": "home"})
    home.string = "← All reports of this run"
    entries = page.new_tag("ol")
    for heading in page.select("main h2[id], main h3[id]"):
        entry = page.new_tag("li", attrs={"class": heading.name})
        heading["id"] = unquote(heading["id"])  # nbconvert escapes the id itself, where only a link needs it
        link = page.new_tag("a", href=f"#{quote(heading['id'])}")
        link.string = heading.get_text(strip=True)
        entry.append(link)
        entries.append(entry)
    contents.extend([home, entries])
    frame = page.new_tag("div", attrs={"class": "page"})
    main = page.find("main")
    main.wrap(frame)
    frame.insert(0, contents)
    footer = page.new_tag("footer")
    footer.string = "Research use only. Not a medical device."
    main.append(footer)
    return page


def _inert(page: BeautifulSoup) -> None:
    """Takes out whatever runs, loads or submits; pictures and links stay where they can do no harm."""
    for element in page.select(ACTIVE):
        element.decompose()
    for element in page.find_all(True):
        picture = element.name in ("img", "image", "link")
        for name in list(element.attrs):
            address = re.sub(r"[\x00-\x20]", "", str(element[name])).lower()
            scheme = (re.match(r"[a-z][a-z0-9+.-]*:", address) or [""])[0]
            if name in ADDRESSES:
                unsafe = scheme != "data:" if picture else scheme not in ("", "http:", "https:", "mailto:")
            else:
                unsafe = name.startswith("on") or name in ("srcset", "srcdoc", "ping", "background")
            if unsafe:
                del element[name]
        if picture and not set(ADDRESSES) & set(element.attrs):
            element.decompose()


def write_index(run: Run) -> Path:
    """Write ``index.html`` of a run and of the folder that holds the runs.

    Returns:
        The path of the run's index.
    """
    facts, metrics = read_json(run.dir / "run.json"), run.metrics
    stages = []
    for stage in profiles.STAGES:
        page = run.dir / f"{stage.name}.html"
        if page.exists():
            soup = BeautifulSoup(page.read_text(encoding="utf-8"), "html.parser")
            images = soup.select("main figure img")
            thumbnail = _thumbnail(images[len(images) // 2]["src"]) if images else ""
            paragraph = soup.select_one("main h1 ~ p") or soup.select_one("main p")
            stages.append(
                {
                    "name": stage.name,
                    "title": soup.find("h1").get_text(strip=True) if soup.find("h1") else stage.name,
                    "summary": _first_sentence(paragraph.get_text(" ", strip=True)) if paragraph else "",
                    "thumbnail": thumbnail,
                    "alt": images[len(images) // 2]["alt"] if images else "",
                    "current": stage.name in facts.get("stages", {}),
                    **facts.get("stages", {}).get(stage.name, {}),
                }
            )
    page = (
        _environment()
        .get_template("run.html.j2")
        .render(
            run=facts,
            name=run.dir.name,
            stages=stages,
            headline=headline(metrics),
            data={
                role: facts for role, facts in metrics.get("01_preprocess", {}).items() if "title" in facts
            },
            simulated=is_simulated(facts),
            environment=facts.get("environment", {}),
            files=[
                name for name in ("metrics.json", "predictions.csv", "run.json") if (run.dir / name).exists()
            ],
            css=(TEMPLATES / "report" / "report.css").read_text(encoding="utf-8"),
        )
    )
    write_text(run.dir / "index.html", page)
    write_list(run.dir.parent)
    return run.dir / "index.html"


def headline(metrics: Mapping) -> list[dict]:
    """The numbers an index opens with: each a label and a metric of notebook 05, or of 04 without it."""
    return list(metrics.get("05_evaluate", {}).get("headline", {}).values())


def is_simulated(facts: Mapping) -> bool:
    """Whether any data source of a run is the phantom simulator."""
    parameters = facts.get("parameters", {}).values()
    specs = [value for values in parameters for name, value in values.items() if name.endswith("_data")]
    return any(str(spec).startswith("phantom:") for spec in specs)


def write_list(reports: Path) -> None:
    """Write the index of a folder of runs."""
    runs = []
    for path in sorted(reports.glob("*/run.json"), key=lambda path: -path.stat().st_mtime):
        try:
            facts = read_json(path)
        except ValueError:
            continue
        if (path.parent / "index.html").exists():
            times = [stage.get("finished", "") for stage in facts.get("stages", {}).values()]
            metrics = read_json(path.parent / "metrics.json")
            runs.append(
                {
                    "name": path.parent.name,
                    "profile": facts.get("profile", ""),
                    "finished": max(times, default=""),
                    "simulated": is_simulated(facts),
                    "headline": headline(metrics)[:1],
                }
            )
    css = (TEMPLATES / "report" / "report.css").read_text(encoding="utf-8")
    write_text(reports / "index.html", _environment().get_template("runs.html.j2").render(runs=runs, css=css))


def _environment() -> jinja2.Environment:
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(TEMPLATES / "index"),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=jinja2.StrictUndefined,
    )
    environment.filters["number"] = number
    environment.filters["when"] = lambda text: (
        datetime.fromisoformat(text).strftime("%Y-%m-%d %H:%M UTC") if text else "–"
    )
    environment.filters["json"] = lambda value: json.dumps(value, ensure_ascii=False)
    return environment


def _first_sentence(text: str) -> str:
    return re.split(r"(?<=[.?]) ", text, maxsplit=1)[0]


def _thumbnail(source: str, width: int = 480) -> str:
    """A small copy of an embedded PNG as a data address."""
    import cv2
    import numpy as np

    encoded = np.frombuffer(base64.b64decode(source.partition("base64,")[2]), np.uint8)
    image = cv2.imdecode(encoded, cv2.IMREAD_COLOR)
    height = max(1, round(image.shape[0] * width / image.shape[1]))
    small = cv2.resize(image, (width, height), interpolation=cv2.INTER_AREA)[: round(width * 0.75)]
    return "data:image/jpeg;base64," + base64.b64encode(cv2.imencode(".jpg", small)[1]).decode("ascii")
