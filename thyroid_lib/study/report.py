"""Executed notebooks become reports: one self-contained HTML page each, and an index of the run.

A page opens with the network off and holds no script, whatever the texts in it hold: what a browser would run
or load is taken out, and the page's content policy forbids it. Every figure has an alt text and a caption; a
figure without them is an error, not an oversight.
"""

import base64
import io
import re
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from urllib.parse import unquote

from bs4 import BeautifulSoup
from PIL import Image

from thyroid_lib.common.files import write_text
from thyroid_lib.common.templates import TEMPLATES
from thyroid_lib.common.templates import render as fill
from thyroid_lib.study import profiles
from thyroid_lib.study.run import Run

ACTIVE = (
    "script, iframe, frame, object, embed, applet, form, base, portal, audio, video, template, "
    "body style, body link, body meta, body title"
)  # what a text from outside may not bring into a page
ADDRESSES = ("src", "href", "xlink:href", "poster", "data")


class ReportError(ValueError):
    """A notebook's output cannot become a report."""


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
        template_name="report", extra_template_basedirs=[str(TEMPLATES)], embed_images=False,
        exclude_input_prompt=True, exclude_output_prompt=True,
    )  # fmt: skip
    html, _ = exporter.from_notebook_node(notebook, {"metadata": {"name": name}})
    return str(_dressed(BeautifulSoup(html, "html.parser"), name))


def _check(notebook, name: str) -> None:
    for position, cell in enumerate(notebook.cells):
        where = f"{name}, cell {position}"
        for output in cell.get("outputs", []):
            if output.output_type == "stream" and output.name == "stderr":
                raise ReportError(f"{where} wrote to standard error: {output.text.strip()[:300]}")
            if "image/png" in output.get("data", {}):
                words = output.metadata.get("image/png", {})
                lacking = [word for word in ("alt", "caption") if not str(words.get(word, "")).strip()]
                if lacking:
                    advice = "show figures with run.show(figure, name, caption=..., alt=...)"
                    raise ReportError(f"{where}: a figure has no {' and no '.join(lacking)}; {advice}")


def _dressed(page: BeautifulSoup, name: str) -> BeautifulSoup:
    """Add the table of contents and the page's title; drop what a reader has no use for, or a browser acts on."""
    _inert(page)
    for anchor in page.select("a.anchor-link"):
        anchor.decompose()
    if (title := page.find("h1")) and page.title:
        page.title.string = title.get_text(strip=True)
    for cell in page.select("div.jp-CodeCell"):
        if not cell.get_text(strip=True) and not cell.find("img"):
            cell.decompose()
    for image in page.select("main img"):
        if not image.get("alt", "").strip():
            raise ReportError(f"{name}: an image has no alt text: {str(image)[:80]}")
    headings = page.select("main h2[id], main h3[id]")
    for heading in headings:
        heading["id"] = unquote(heading["id"])  # nbconvert escapes the id itself, where only a link needs it
    entries = [{"name": one.name, "id": one["id"], "text": one.get_text(strip=True)} for one in headings]
    main = page.find("main")
    frame = main.wrap(page.new_tag("div", attrs={"class": "page"}))
    frame.insert(0, BeautifulSoup(fill("index/contents.html.j2", headings=entries), "html.parser"))
    main.append(BeautifulSoup("<footer>Research use only. Not a medical device.</footer>", "html.parser"))
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
    facts = run.facts
    pages = [page for stage in profiles.STAGES if (page := run.dir / f"{stage.name}.html").exists()]
    stages = [_card(page) | facts.get("stages", {}).get(page.stem, {}) for page in pages]
    files = [name for name in ("metrics.json", "predictions.csv", "run.json") if (run.dir / name).exists()]
    known = {"run": facts, "metrics": run.metrics, "is_simulated": is_simulated}
    page = fill("index/run.html.j2", name=run.dir.name, stages=stages, files=files, **known)
    write_text(run.dir / "index.html", page)
    write_list(run.dir.parent)
    return run.dir / "index.html"


def _card(page: Path) -> dict:
    """A report as an index shows it: title, first sentence, the figure in its middle."""
    soup = BeautifulSoup(page.read_text(encoding="utf-8"), "html.parser")
    title, images = soup.find("h1"), soup.select("main figure img")
    paragraph = soup.select_one("main h1 ~ p") or soup.select_one("main p")
    figure = images[len(images) // 2] if images else {}
    return {
        "name": page.stem,
        "title": title.get_text(strip=True) if title else page.stem,
        "summary": re.split(r"(?<=[.?]) ", paragraph.get_text(" ", strip=True))[0] if paragraph else "",
        "thumbnail": _thumbnail(figure["src"]) if figure else "",
        "alt": figure.get("alt", ""),
    }


def is_simulated(facts: Mapping) -> bool:
    """Whether a run was tested on frames of the phantom simulator, whatever its network was pre-trained on."""
    parameters = facts.get("parameters", {}).values()
    given = {name: spec for values in parameters for name, spec in values.items()}
    tested = [spec for name in ("finetune_data", "external_data") if (spec := given.get(name))]
    return any(str(spec).startswith("phantom:") for spec in tested or [given.get("pretrain_data")])


def write_list(reports: Path) -> None:
    """Write the index of a folder of runs."""
    runs = []
    for path in sorted(reports.glob("*/run.json"), key=lambda path: -path.stat().st_mtime):
        run = Run(path.parent)
        with suppress(ValueError):  # damaged
            runs += [(run.dir.name, run.facts, run.metrics)] * (run.dir / "index.html").exists()
    write_text(reports / "index.html", fill("index/runs.html.j2", runs=runs, is_simulated=is_simulated))


def _thumbnail(source: str, width: int = 480) -> str:
    """A small copy of an embedded picture as a data address, at most three quarters as high as wide."""
    image = picture(source)
    small = image.resize((width, max(1, round(image.height * width / image.width))), Image.Resampling.LANCZOS)
    return address(small.crop((0, 0, width, min(small.height, round(width * 0.75)))), "jpeg", quality=95)


def picture(source: str) -> Image.Image:
    """The RGB picture of a data address."""
    return Image.open(io.BytesIO(base64.b64decode(source.partition("base64,")[2]))).convert("RGB")


def address(image: Image.Image, kind: str, **options) -> str:
    """A picture as a data address; the options are those of Pillow's writer of that kind."""
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return f"data:image/{kind};base64,{base64.b64encode(buffer.getvalue()).decode('ascii')}"
