"""What is claimed, and where it is kept: ``python -m thyroid_lib claims`` renders docs/claims.yaml.

No number in the README is typed: each is read from ``reports/reference/<profile>/metrics.json`` and stands between two
markers, with the key and the notebook's section in docs/claims.md. Where there is no reference yet, a sentence says so.
"""

import argparse
import sys
from collections.abc import Mapping
from functools import cache
from html import escape
from pathlib import Path

import yaml

from thyroid_lib.common.files import PROJECT, read_json, write_text
from thyroid_lib.study.compare import leaves

SOURCE, TABLE, DRAWING = "docs/claims.yaml", "docs/claims.md", "docs/results.svg"
READMES = {"en": "README.md", "zh": "README.zh-CN.md"}
BEGIN, END = "<!-- results: written by python -m thyroid_lib claims -->", "<!-- results end -->"
WORDS = {
    "en": {
        "head": "| | value (95 % interval) | images / patients |",
        "simulated": "simulated",
        "absent": "No reference results of the profile `{profile}` are published in this state of the repository; "
        "`{command}` computes them.",
        "not_computed": "not computed in this reference",
        "reference": "Reports, every number and every prediction: [{folder}]({folder}).",
        "drawn": "Macro AUROC of the quick reference run, simulated images: {said}",
        "where": "Which key and which section each number comes from: [docs/claims.md](docs/claims.md).",
    },
    "zh": {
        "head": "| | 数值（95 % 区间） | 图像数 / 患者数 |",
        "simulated": "模拟",
        "absent": "本仓库当前状态尚未发布 `{profile}` 配置的参考结果；运行 `{command}` 即可得到。",
        "not_computed": "此参考结果中未计算",
        "reference": "报告、全部数值与全部预测：[{folder}]({folder})。",
        "drawn": "quick 参考运行（模拟图像）的宏平均 AUROC：{said}",
        "where": "每个数值对应的键与笔记本章节见 [docs/claims.md](docs/claims.md)。",
    },
}
COMMANDS = {
    "quick": "./run_all.sh",
    "open_data": "./run_all.sh --profile open_data --pretrain-data busi:PATH --finetune-data ddti:PATH",
}


def source(project: Path = PROJECT) -> dict:
    """The content of docs/claims.yaml: ``claims`` and ``results``."""
    return yaml.safe_load((project / SOURCE).read_text(encoding="utf-8"))


def reference_of(profile: str, project: Path = PROJECT) -> dict[str, object] | None:
    """Every metric of a profile's reference by its key; ``None`` where there is none."""
    folder = project / "reports" / "reference" / profile
    if not (folder / "metrics.json").is_file():
        return None
    return dict(leaves(read_json(folder / "metrics.json")))


def results(language: str, project: Path = PROJECT) -> str:
    """The README's results: a table for each profile, in Markdown, without the markers.

    Args:
        language: "en" or "zh".
        project: the checkout.
    """
    words, parts = WORDS[language], []
    for block in source(project)["results"]:
        metrics = reference_of(block["profile"], project)
        parts.append(block[language] + ("：" if language == "zh" else ":"))
        if metrics is None:
            command = COMMANDS.get(block["profile"], f"./run_all.sh --profile {block['profile']}")
            parts.append(words["absent"].format(profile=block["profile"], command=command))
            continue
        rows = [f"| {row[language]} | {_value(metrics.get(row['key']), words)} |" for row in block["rows"]]
        if any(row.get("drawn") for row in block["rows"]):
            said = "; ".join(f"{label} {text}" for label, text, _ in _drawn(block, metrics, language))
            parts.append(f"![{words['drawn'].format(said=said)}]({DRAWING})")
        parts.append("\n".join([words["head"], "|---|---|---|", *rows]))
        parts.append(words["reference"].format(folder=f"reports/reference/{block['profile']}"))
    return "\n\n".join([*parts, words["where"]])


def table(project: Path = PROJECT) -> str:
    """docs/claims.md: the invention's claims with their places, then the README's numbers with their keys."""
    content = source(project)
    lines = [
        "# Claims, and where each is kept",
        "",
        "Written by `python -m thyroid_lib claims` from [claims.yaml](claims.yaml) and `reports/reference/`; "
        "`tests/study/test_claims.py` holds every name and number in it against the code, the tests, the notebooks "
        "and the reference files.",
        "",
        "## What the invention says",
        "",
        "| claim | paragraphs | what it says | code | tests | shown in |",
        "|---|---|---|---|---|---|",
    ]
    for claim in content["claims"]:
        code = "<br>".join(f"`{name.removeprefix('thyroid_lib.')}`" for name in claim["code"])
        tests = "<br>".join(
            f"[{test.partition('::')[2].removeprefix('test_').replace('_', ' ')}](../tests/{test.partition('::')[0]})"
            for test in claim["tests"]
        )
        place = f"[{claim['notebook']}](../notebooks/{claim['notebook']}.ipynb), {claim['section']}"
        lines.append(
            f"| {claim['id']} | {claim['paragraphs']} | {claim['says']} | {code} | {tests} | {place} |"
        )
    lines += ["", "## What the README says", ""]
    for block in content["results"]:
        metrics = reference_of(block["profile"], project)
        lines += [
            f"Profile `{block['profile']}`, keys of `reports/reference/{block['profile']}/metrics.json`:",
            "",
        ]
        lines += [
            "| README | value (95 % interval) | images / patients | key | shown in |",
            "|---|---|---|---|---|",
        ]
        for row in block["rows"]:
            value = (
                "no reference yet | –" if metrics is None else _value(metrics.get(row["key"]), WORDS["en"])
            )
            lines.append(f"| {row['en']} | {value} | `{row['key']}` | {row['notebook']}, {row['section']} |")
        lines.append("")
    return "\n".join(lines)


def drawing(project: Path = PROJECT) -> str | None:
    """The README's figure of results as SVG, readable on light and dark pages; ``None`` without its reference."""
    for block in source(project)["results"]:
        metrics = reference_of(block["profile"], project)
        rows = _drawn(block, metrics, "en") if metrics else []
        if rows:
            return _svg(rows)
    return None


def write(project: Path = PROJECT, check: bool = False) -> list[str]:
    """Writes the READMEs' results, docs/claims.md and the drawing.

    Args:
        project: the checkout;  check: change nothing.

    Returns:
        Names of the files that were not up to date.

    Raises:
        ValueError: a README lacks the markers.
    """
    wanted: dict[str, str | None] = {TABLE: table(project), DRAWING: drawing(project)}
    for language, name in READMES.items():
        text = (project / name).read_text(encoding="utf-8")
        before, begin, rest = text.partition(BEGIN)
        _, end, after = rest.partition(END)
        if not begin or not end:
            raise ValueError(
                f"{name}: expected '{BEGIN}' and '{END}', one is missing; put them where results belong"
            )
        wanted[name] = f"{before}{BEGIN}\n{results(language, project)}\n{END}{after}"
    stale = []
    for name, text in wanted.items():
        path = project / name
        old = path.read_text(encoding="utf-8") if path.is_file() else None
        if old != text:
            stale.append(name)
            if check:
                continue
            if text is None:
                path.unlink()
            else:
                write_text(path, text)
    return stale


def main(argv: list[str] | None = None) -> int:
    """``python -m thyroid_lib claims [--check]``.

    Returns:
        0 when everything is (now) up to date, 1 when --check found something stale, 2 when a marker is missing.
    """
    parser = argparse.ArgumentParser(
        prog="python -m thyroid_lib claims",
        description="Put the numbers of reports/reference into the READMEs.",
    )
    parser.add_argument("--check", action="store_true", help="only say what is out of date")
    options = parser.parse_args(argv)
    try:
        stale = write(check=options.check)
    except ValueError as error:
        print(error, file=sys.stderr)
        return 2
    for name in stale:
        print(f"{name}: {'out of date; run python -m thyroid_lib claims' if options.check else 'written'}")
    return int(bool(stale) and options.check)


def _value(metric: object, words: Mapping[str, str]) -> str:
    """Two cells of a table: the value with its interval, and on how much."""
    from thyroid_lib.common.messages import number

    if metric is None:
        return f"{words['not_computed']} | –"
    if isinstance(metric, Mapping):
        if metric.get("value") is None:
            return f"{metric.get('reason') or words['not_computed']} | –"
        return f"{number(metric)} | {metric['n_images']} / {metric['n_patients']}"
    return f"{number(metric)} | –"


def _drawn(block: dict, metrics: Mapping, language: str) -> list[tuple[str, str, dict]]:
    from thyroid_lib.common.messages import number

    chosen = [(row[language], metrics.get(row["key"])) for row in block["rows"] if row.get("drawn")]
    return [
        (label, number(m), m) for label, m in chosen if isinstance(m, Mapping) and m.get("value") is not None
    ]


@cache
def _style() -> str:
    return (
        "<style>svg{font-family:system-ui,-apple-system,'Segoe UI',Roboto,sans-serif;font-size:14px}"
        ".paper{fill:#fff;stroke:#d5dbe3}.ink{fill:#1b2430}.muted{fill:#5b6776}.grid{stroke:#d5dbe3}"
        ".chance{stroke:#5b6776;stroke-dasharray:3 3}.line{stroke:#0072b2;stroke-width:3}.dot{fill:#0072b2}"
        "@media(prefers-color-scheme:dark){.paper{fill:#0d1117;stroke:#30363d}.ink{fill:#e6edf3}.muted{fill:#9da7b3}"
        ".grid{stroke:#30363d}.chance{stroke:#9da7b3}.line{stroke:#58a6ff}.dot{fill:#58a6ff}}</style>"
    )


def _svg(rows: list[tuple[str, str, dict]]) -> str:
    """A forest plot: one line per row, its interval, and the numbers in words."""
    left, right, top, step = 440, 700, 64, 34
    low = min(0.4, *(metric["low"] for _, _, metric in rows))
    at = {x: left + (right - left) * (x - low) / (1 - low) for x in (0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0)}
    height = top + step * len(rows) + 34
    words = "; ".join(f"{label}: {text}" for label, text, _ in rows)
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 900 {height}" role="img" aria-labelledby="t d">',
        '<title id="t">Macro AUROC with 95 % intervals, simulated images</title>',
        f'<desc id="d">{escape(words)}</desc>',
        _style(),
        f'<rect class="paper" x="0.5" y="0.5" width="899" height="{height - 1}" rx="8"/>',
        '<text class="ink" x="20" y="32" font-weight="600">Macro AUROC, 95 % intervals over patients</text>',
        '<text class="muted" x="880" y="32" text-anchor="end">simulated images</text>',
    ]
    bottom = top + step * len(rows)
    for value, x in at.items():
        kind = "chance" if value == 0.5 else "grid"
        parts.append(f'<line class="{kind}" x1="{x:.1f}" y1="{top - 16}" x2="{x:.1f}" y2="{bottom - 8}"/>')
        parts.append(
            f'<text class="muted" x="{x:.1f}" y="{bottom + 12}" text-anchor="middle">{value:.1f}</text>'
        )
    for place, (label, text, metric) in enumerate(rows):
        y = top + step * place
        x1, x, x2 = (left + (right - left) * (metric[k] - low) / (1 - low) for k in ("low", "value", "high"))
        parts += [
            f'<text class="ink" x="20" y="{y + 5}">{escape(label)}</text>',
            f'<line class="line" x1="{x1:.1f}" y1="{y}" x2="{x2:.1f}" y2="{y}"/>',
            f'<circle class="dot" cx="{x:.1f}" cy="{y}" r="5.5"/>',
            f'<text class="ink" x="720" y="{y + 5}">{escape(text)}</text>',
        ]
    return "\n".join([*parts, "</svg>", ""])
