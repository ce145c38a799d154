"""Licences of everything in requirements.lock, from the packages' own metadata; docs/licences.md lists them.

python tests/licences.py      writes the page anew, after the lock has changed
"""

import re
from importlib import metadata
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
PAGE = ROOT / "docs" / "licences.md"
ELSEWHERE = {  # only on some systems, so their metadata cannot always be read
    "appnope": "BSD-2-Clause",
    "atheris": "Apache-2.0",
    "colorama": "BSD-3-Clause",
    "httpx2-jsfetch": "BSD-3-Clause",
    "pywinpty": "MIT",
}
UNSTATED = {  # packages whose metadata names no licence
    "atheris": "Apache-2.0",  # the LICENSE of its repository
    "cuda-toolkit": "NVIDIA proprietary",  # an empty package that names the others
}
WORDS = {  # how packages write it -> SPDX
    r"BSD License|BSD": "BSD",
    r"3-Clause BSD License": "BSD-3-Clause",
    r"2-clause BSD License": "BSD-2-Clause",
    r"MIT License": "MIT",
    r"Apache Software License|Apache License, Version 2\.0|Apache 2\.0": "Apache-2.0",
    r"Python Software Foundation License|PSF-2\.0": "PSF-2.0",
    r"ISC License \(ISCL\)": "ISC",
    r"Mozilla Public License 2\.0 \(MPL 2\.0\)": "MPL-2.0",
    r"LicenseRef-NVIDIA-Proprietary|NVIDIA Proprietary Software": "NVIDIA proprietary",
    r"GNU General Public License v3 \(GPLv3\); Other/Proprietary License": "GPL-3.0",
}
FREE = set(
    "MIT MIT-0 MIT-CMU BSD BSD-2-Clause BSD-3-Clause 0BSD Apache-2.0 ISC PSF-2.0 MPL-2.0 Zlib CC0-1.0 BSL-1.0 "
    "LLVM-exception".split()
)  # what may be used and passed on with this project; MPL-2.0 asks that changes to its own files be shown
CONDITIONAL = {
    "NVIDIA proprietary": (
        r"nvidia-.*|cuda-.*",
        "fetched by PyTorch for GPUs; not passed on with this project",
    ),
    "GPL-3.0": (
        r"pylibjpeg-libjpeg",
        "optional extra `dicom`; passing on a program together with it brings the GPL's terms",
    ),
}  # licence -> which packages may have it, and why that is no obstacle
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
        return ELSEWHERE.get(name, "")
    classified = [
        c.split(" :: ")[-1] for c in about.get_all("Classifier") or [] if c.startswith("License ::")
    ]
    text = about.get("License-Expression") or "; ".join(classified) or (about.get("License") or "").strip()
    text = text.partition("\n")[0].strip()
    spdx = next((spdx for pattern, spdx in WORDS.items() if re.fullmatch(pattern, text)), text)
    return spdx or UNSTATED.get(name, "")


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
