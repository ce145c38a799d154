"""Licences of everything in requirements.lock, from the packages' own metadata; docs/licences.md lists them.

python tests/licences.py      writes the page anew, after the lock has changed; tests/licences.yaml says what is allowed
"""

import re
from importlib import metadata
from pathlib import Path

import yaml

ROOT = Path(__file__).resolve().parent.parent
PAGE = ROOT / "docs" / "licences.md"
KNOWN = yaml.safe_load(Path(__file__).with_suffix(".yaml").read_text(encoding="utf-8"))
FREE, CONDITIONAL = set(KNOWN["free"]), KNOWN["conditional"]
OPENING = """# Licences of the dependencies

Everything in `requirements.lock`, by what each package says of itself. `python tests/licences.py` writes this page;
`tests/project/test_security.py` fails where a licence is not among those allowed, or the page is not current.

"""


def locked() -> list[str]:
    """Names of the packages in the lock."""
    lines = (ROOT / "requirements.lock").read_text(encoding="utf-8").splitlines()
    return sorted({re.match(r"[a-z0-9._-]+", line)[0] for line in lines if re.match(r"[a-z0-9]", line)})


def licence(name: str) -> str:
    """A package's licence in SPDX words, from its installed metadata; "" where it says nothing."""
    try:
        about = metadata.metadata(name)
    except metadata.PackageNotFoundError:
        return KNOWN["elsewhere"].get(name, "")
    classified = [
        c.split(" :: ")[-1] for c in about.get_all("Classifier") or [] if c.startswith("License ::")
    ]
    text = about.get("License-Expression") or "; ".join(classified) or (about.get("License") or "").strip()
    text = text.partition("\n")[0].strip()
    spdx = next((spdx for pattern, spdx in KNOWN["words"].items() if re.fullmatch(pattern, text)), text)
    return KNOWN["unstated"].get(name, spdx)


def refused(name: str, text: str) -> str:
    """Why a licence is not allowed; "" where it is."""
    words = set(re.split(r" AND | OR | WITH |[()]", text)) - {""}
    for word in sorted(words - FREE):
        names, _ = CONDITIONAL.get(word, ("", ""))
        if not re.fullmatch(names, name):
            return f"{name}: {text or 'no licence stated'}"
    return "" if words else f"{name}: no licence stated"


def page() -> str:
    """The page's text."""
    grouped: dict[str, list[str]] = {}
    for name in locked():
        grouped.setdefault(licence(name), []).append(name)
    lines = ["| licence | packages |", "|---|---|"]
    for text, names in sorted(grouped.items(), key=lambda item: (-len(item[1]), item[0])):
        why = CONDITIONAL.get(text, ("", ""))[1]
        lines.append(f"| {text}{f' ({why})' if why else ''} | {', '.join(names)} |")
    return OPENING + "\n".join(lines) + "\n"


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
