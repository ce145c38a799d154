"""JupyterLab as a newcomer meets it, in a real headless browser: open it, run notebook 07 as stored, move a slider."""

import os
import re
import shutil
import subprocess
import sys

import pytest
import small_classifier
from small_study import wait_for

from thyroid_lib.common.files import PROJECT

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
COPIED = ("notebooks", "thyroid_lib", ".ci", "run_all.sh", "pyproject.toml", "requirements.lock")


@pytest.fixture
def lab(tmp_path):
    """Its address, on a copy of the project that has crops and a classifier and nothing else."""
    for name in COPIED:
        copy = shutil.copytree if (PROJECT / name).is_dir() else shutil.copy
        copy(PROJECT / name, tmp_path / name)
    own = {"THYROID_PYTHON": sys.executable, "THYROID_REPORTS": str(tmp_path / "reports"), "PYTHONPATH": ""}
    environment = {name: value for name, value in os.environ.items() if name != "THYROID_STATUS"} | own
    command = "./run_all.sh --profile smoke --run first --only 01 --set".split()
    command += [f"01_preprocess.size={small_classifier.SIZE}"]
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    small_classifier.make(tmp_path / "reports" / "first" / "classifier")
    said = tmp_path / "lab.log"
    command = "./run_all.sh lab --no-browser --allow-root --port=0 --IdentityProvider.token=t".split()
    with said.open("w") as log:
        server = subprocess.Popen(command, cwd=tmp_path, env=environment, stderr=log)
    try:
        address = r"http://127\.0\.0\.1:\d+/lab\S*\?token="
        assert wait_for(lambda: re.search(address, said.read_text()), seconds=120), said.read_text()
        yield re.search(r"http://127\.0\.0\.1:\d+/", said.read_text())[0] + "?token=t"
    finally:
        server.terminate()
        server.wait(60)


@pytest.mark.slow
@pytest.mark.skipif(not CHROMIUM, reason="no Chromium is installed")
def test_the_explorer_runs_as_stored_and_its_slider_changes_the_answer(lab):
    sync_api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    with sync_api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        page, errors = browser.new_page(viewport={"width": 1400, "height": 1000}), []
        page.set_default_timeout(90_000)
        page.on("pageerror", lambda error: errors.append(str(error)))
        page.on("console", lambda line: errors.append(line.text) if line.type == "error" else None)
        page.goto(lab)
        page.get_by_text("| Idle").wait_for()  # there is a kernel
        page.get_by_role("heading", name="07 Explore").wait_for()  # where a newcomer with a run starts
        page.get_by_role("menuitem", name="Run", exact=True).click()
        page.get_by_text("Run All Cells", exact=True).click()
        answer = page.locator(".jp-OutputArea div[role=status]").first
        answer.wait_for()
        page.get_by_text("Opened: the run first").first.wait_for()
        assert not page.locator(".jp-Dialog, .Toastify__toast").count(), "it asks or announces something"
        answer.scroll_into_view_if_needed()  # the notebook has run on to its end
        before = answer.inner_text()
        assert re.search(r"0\.\d\d", before), before
        for slider, key in (("Closing", "Home"), ("Threshold", "End")):
            page.locator(".widget-slider", has_text=slider).locator(".noUi-handle").focus()
            page.keyboard.press(key)
        assert wait_for(lambda: page.wait_for_timeout(500) or answer.inner_text() != before, seconds=60)
        assert not page.locator("[data-mime-type='application/vnd.jupyter.stderr']").count()
        browser.close()
    assert not errors
