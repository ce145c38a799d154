"""MODEL_CARD.md of a classifier folder, from its definition alone."""

from importlib.resources import files

from thyroid_lib.evaluation import task


def environment(autoescape: bool):
    """Jinja environment over the templates of `classify`; undefined names are errors."""
    import jinja2

    folder = files("thyroid_lib") / "templates" / "classify"
    loader = jinja2.FunctionLoader(lambda name: (folder / name).read_text(encoding="utf-8"))
    return jinja2.Environment(
        loader=loader,
        autoescape=autoescape,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )


def render(definition: dict) -> str:
    """Markdown text of the card.

    Args:
        definition: classifier.json.
    """
    template = environment(autoescape=False).get_template("model_card.md.j2")
    names = {entry["key"]: (entry["english"], entry["chinese"]) for entry in definition["classes"]}
    grades = task.of(names).noun == "TI-RADS group"
    return template.render(d=definition, cell=cell, flat=flat, grades=grades)


def cell(value) -> str:
    """A value as one cell of a Markdown table: one line, nothing that Markdown or HTML would act on."""
    text = f"{value:.6g}" if isinstance(value, float) else str(value)
    text = " ".join(text.split())
    for sign in "\\`*_[]<>|":
        text = text.replace(sign, "\\" + sign if sign not in "<>" else {"<": "&lt;", ">": "&gt;"}[sign])
    return text


def flat(values: dict, prefix: str = "") -> list[tuple[str, str]]:
    """Nested plain values as rows of (name, text); an interval becomes "value (low to high)"."""
    rows = []
    for key, value in values.items():
        if isinstance(value, dict) and {"value", "low", "high"} <= set(value):
            rows.append((prefix + key, interval(value)))
        elif isinstance(value, dict):
            rows += flat(value, f"{prefix}{key} / ")
        else:
            rows.append((prefix + str(key), value))
    return rows


def interval(metric: dict) -> str:
    """{"value", "low", "high", ...} as text with its 95 % interval and counts where they are known."""
    numbers = [metric[name] for name in ("value", "low", "high")]
    text = [f"{n:.3f}" if isinstance(n, int | float) else "not computed" for n in numbers]
    counts = [f"{metric[n]} {n[2:]}" for n in ("n_images", "n_patients") if metric.get(n) is not None]
    return f"{text[0]} ({text[1]} to {text[2]})" + (f", {', '.join(counts)}" if counts else "")
