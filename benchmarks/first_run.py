"""Where the time of a first run goes: `./run_all.sh` in an empty clone with an empty cache, installation included.

    python benchmarks/first_run.py                   # about eight minutes on two quiet CPU cores
    python benchmarks/first_run.py --profile smoke   # two minutes; its numbers mean nothing

Clones the checkout's last commit into a temporary folder, runs the README's command there, and reads from the executed
notebooks how long each cell took.

Writes benchmarks/results/first_run.json: seconds in all, of the installation, of each notebook and its slowest parts.
"""

import argparse
import os
import subprocess
import tempfile
import time
from pathlib import Path

import turns

from thyroid_lib.common.files import PROJECT, read_json

LEAST = 2.0  # seconds below which a part is not listed


def parts(notebook: Path) -> dict[str, float]:
    """Seconds of the cells of an executed notebook, the slowest first: section, and the cell's name in it."""
    section, found = "", {}
    for cell in read_json(notebook)["cells"]:
        if cell["cell_type"] == "markdown":
            section = next(
                (line.lstrip("# ") for line in cell["source"] if line.startswith("#")), section
            ).strip()
        seconds = cell["metadata"].get("papermill", {}).get("duration") or 0
        if seconds >= LEAST:
            found[f"{section} / {cell['id']}"] = round(seconds, 1)
    return dict(sorted(found.items(), key=lambda part: -part[1]))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--profile", default="quick")
    options = parser.parse_args()
    own = ("THYROID", "PYTHON", "VIRTUAL_ENV", "CONDA")
    with tempfile.TemporaryDirectory() as folder:
        clone, cache = Path(folder, "clone"), Path(folder, "cache")
        subprocess.run(["git", "clone", "-q", PROJECT, clone], check=True)
        environment = {name: value for name, value in os.environ.items() if not name.startswith(own)}
        environment["THYROID_CACHE"] = str(cache)
        begin = time.monotonic()
        subprocess.run(["./run_all.sh", "--profile", options.profile], cwd=clone, env=environment, check=True)
        seconds = time.monotonic() - begin
        run = clone / "reports" / options.profile
        facts = read_json(run / "run.json")
        stages = {
            stage: {"seconds": about["seconds"], "parts": parts(run / f"{stage}.ipynb")}
            for stage, about in facts["stages"].items()
        }
    rest = seconds - sum(stage["seconds"] for stage in stages.values())
    found = {"profile": options.profile, "seconds": round(seconds), "installation_and_start": round(rest)}
    found |= {"stages": stages, "commit": facts["environment"]["git_commit"]}
    turns.report("first_run", found, smoke=options.profile != "quick")


if __name__ == "__main__":
    main()
