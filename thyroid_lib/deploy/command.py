"""``python -m thyroid_lib classify`` and ``export``: the classifier from the command line (claims C11-C14)."""

import argparse
import json
import os
import sys
from collections import deque
from collections.abc import Iterator
from pathlib import Path

from thyroid_lib import frames
from thyroid_lib.classifier import Classification, Classifier, ClassifierError, backends, studies
from thyroid_lib.common.messages import printable
from thyroid_lib.deploy.clips import Clip

EXIT = "Exit status: 0 all classified, 1 at least one could not be, 2 wrong usage or unusable classifier."


def main(argv: list[str] | None = None) -> int:
    """Classifies files, folders, globs and DICOM studies; see ``--help``.

    Returns:
        Exit status: 0 all classified, 1 at least one was not, 2 wrong usage or unusable classifier.
    """
    options = _parser().parse_args(argv)
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="backslashreplace")
    try:
        return _run(options)
    except (ClassifierError, backends.BackendError) as error:
        print(f"error: {printable(error)}", file=sys.stderr)
        return 2
    except BrokenPipeError:  # the reader of our output has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except KeyboardInterrupt:
        print("stopped", file=sys.stderr)
        return 130


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m thyroid_lib classify",
        description="Name the lesion type in grey-scale thyroid ultrasound frames. Research use only.",
        epilog=EXIT,
    )
    parser.add_argument("images", nargs="+", metavar="IMAGE", help="image or DICOM files, folders, patterns")
    parser.add_argument("--classifier", required=True, metavar="DIR", help="classifier folder of a run")
    parser.add_argument("--json", action="store_true", help="one JSON object per image and line")
    parser.add_argument("--out", metavar="DIR", help="write an HTML report per image or study into DIR")
    parser.add_argument(
        "--backend", default="auto", choices=("auto", *backends.BACKENDS), help="what runs it"
    )
    parser.add_argument("--precision", default="fp32", choices=backends.PRECISIONS, help="default: fp32")
    parser.add_argument("--batch-size", type=_positive, default=16, metavar="N", help="frames per pass (16)")
    parser.add_argument("--threads", type=_positive, default=0, metavar="N", help="CPU threads")
    return parser


def _positive(text: str) -> int:
    number = int(text)
    if number < 1:
        raise ValueError(text)
    return number


def _run(options) -> int:
    paths, notes = studies.find(options.images)
    for note in notes:
        print(f"note: {printable(note)}", file=sys.stderr)
    classifier = Classifier.load(
        options.classifier, backend=options.backend, precision=options.precision, threads=options.threads
    )
    pages = None
    if options.out:
        from thyroid_lib.deploy.pages import Pages

        pages = Pages(Path(options.out), classifier)
    failed = 0
    say = print
    if len(paths) > 1 and sys.stderr.isatty():
        from tqdm import tqdm

        from thyroid_lib.common.progress import progress

        paths, say = progress(paths, "classifying", total=len(paths)), tqdm.write
    for item, result in results(classifier, studies.items(paths), options.batch_size):
        failed += isinstance(result, frames.FrameError)
        say(json.dumps(record(item, result)) if options.json else line(item, result, classifier.names))
        if not options.json:
            sys.stdout.flush()
        if pages:
            pages.add(item, result)
    if pages:
        print(f"wrote {printable(pages.close())}", file=sys.stderr)
    return 1 if failed else 0


def results(classifier: Classifier, items: Iterator, batch_size: int) -> Iterator[tuple]:
    """Each item with its Classification or FrameError, in order; after a clip's frames, the clip as a whole."""
    waiting, clip = deque(), None

    def images():
        for item in items:
            waiting.append(item)
            yield item.image

    for result in classifier.classify_many(images(), batch_size=batch_size):
        item = waiting.popleft()
        yield item, result
        if item.frames is not None:
            clip = Clip(item, classifier) if item.frame == 0 else clip
            clip.add(result)
            if item.frame == item.frames - 1:
                yield clip.item, clip.result()


def record(item, result) -> dict:
    """What ``--json`` prints of one frame or clip; `name` is what the reports of --out call the file."""
    place = {"image": item.path, "name": item.name}
    if item.frames is not None:
        place |= {"frame": item.frame} if item.frame is not None else {"clip": True, "frames": item.frames}
    if isinstance(result, frames.FrameError):
        return place | {"error": str(result), "kind": result.kind}
    return {**result.to_dict(), **place}


def line(item, result, names: dict) -> str:
    """What a terminal shows of one frame or clip: a line, and one more per warning."""
    where = printable(item.path)
    if item.name.startswith("dicom/"):
        where += f" ({item.name})"
    if item.frames is not None:
        where += (
            f" frame {item.frame + 1}" if item.frame is not None else f" whole clip, {item.frames} frames"
        )
    if isinstance(result, frames.FrameError):
        return f"{where}: error: {printable(result)}"
    return "\n".join([f"{where}: {answer(result, names)}", *(f"  ! {printable(w)}" for w in result.warnings)])


def answer(result: Classification, names: dict) -> str:
    """ "papillary carcinoma 甲状腺乳头状癌 0.81, not excluded: nodular goiter 0.12"."""
    english, chinese = names[result.lesion_type]
    text = f"{english} {chinese} {result.probabilities[result.lesion_type]:.2f}"
    others = [key for key in result.prediction_set if key != result.lesion_type]
    if others:
        listed = ", ".join(f"{names[key][0]} {result.probabilities[key]:.2f}" for key in others)
        text += f"; not excluded: {listed}"
    return printable(text)


def export_main(argv: list[str] | None = None) -> int:
    """Writes ONNX beside a classifier's weights and records how close every back-end comes to PyTorch."""
    parser = argparse.ArgumentParser(
        prog="python -m thyroid_lib export",
        description="Write model.onnx into a classifier folder, if it gives the same probabilities as PyTorch.",
    )
    parser.add_argument("classifier", metavar="CLASSIFIER_DIR")
    parser.add_argument(
        "--images",
        nargs="+",
        metavar="IMAGE",
        help="frames to check parity on; default: the crops of the run the folder lies in, else drawn phantoms",
    )
    options = parser.parse_args(argv)
    from thyroid_lib.classifier import definition as definitions
    from thyroid_lib.deploy import export

    folder = Path(options.classifier)
    try:
        definition = definitions.read(folder)
        definitions.verify(folder, definition, backends.WEIGHTS)
        crops, source = export.parity_crops(folder, definition, options.images)
        written = export.export(folder, definition, crops, source=source)
    except (ClassifierError, backends.BackendError) as error:
        print(f"error: {printable(error)}", file=sys.stderr)
        return 2
    print(f"wrote {printable(folder / backends.ONNX)}, checked on {len(crops)} crops ({source})")
    for name, found in written["parity"].items():
        verdict = "passed" if found["passed"] else "NOT within the limits: do not use"
        print(
            f"  {name:<18} largest difference of a probability {found['max_difference']:.1e}, "
            f"same type {found['same_type']:.2%}: {verdict}"
        )
    return 0 if all(found["passed"] for found in written["parity"].values()) else 1
