"""The command line: ``python -m thyroid_lib run | check-data | train | compare | classify | export``."""

import sys
from importlib import import_module

COMMANDS = {
    "run": ("study.runner", "run the notebooks into a folder of reports (./run_all.sh)"),
    "check-data": ("data.check_data", "say what a data set holds and what keeps it from being used"),
    "train": ("training.command", "train outside a notebook, on one process or under torchrun"),
    "reference": ("study.reference", "turn a run into a reference to publish: no image of a patient"),
    "claims": ("study.claims", "put the numbers of the references into the READMEs"),
    "compare": ("study.compare", "hold a run against another one or a reference"),
    "classify": ("deploy.command", "name the lesion type in images, folders, DICOM studies"),
    "export": ("deploy.export", "write ONNX beside a classifier's weights"),
}


def main(argv: list[str] | None = None) -> int:
    """Run one command; its own ``--help`` tells its options.

    Returns:
        The command's exit status: 0 all well, 1 something failed, 2 wrong usage.
    """
    argv = sys.argv[1:] if argv is None else argv
    if not argv or argv[0] not in COMMANDS:
        print("usage: python -m thyroid_lib COMMAND ...\n", file=sys.stderr)
        for name, (_, words) in COMMANDS.items():
            print(f"  {name:<12}{words}", file=sys.stderr)
        return 0 if argv[:1] in (["-h"], ["--help"]) else 2
    return import_module(f"thyroid_lib.{COMMANDS[argv[0]][0]}").main(argv[1:])


if __name__ == "__main__":
    sys.exit(main())
