"""``python -m thyroid_lib classify``: the classifier from the command line (claims C11-C14)."""

import argparse
import itertools
import json
import os
import sys
from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np

from thyroid_lib.classifier import Classification, Classifier, ClassifierError, backends, studies
from thyroid_lib.common.messages import printable
from thyroid_lib.frames import FrameError


def main(argv: list[str] | None = None) -> int:
    """Classifies files, folders, globs and DICOM studies; see ``--help``.

    Returns:
        Exit status: 0 all classified, 1 at least one was not, 2 wrong usage or unusable classifier.
    """
    about = "Name the lesion type in grey-scale thyroid ultrasound frames. Research use only."
    exits = "Exit status: 0 all classified, 1 at least one was not, 2 wrong usage or unusable classifier."
    parser = argparse.ArgumentParser(prog="python -m thyroid_lib classify", description=about, epilog=exits)
    add = parser.add_argument
    add("images", nargs="+", metavar="IMAGE", help="image or DICOM files, folders, patterns")
    add("--classifier", required=True, metavar="DIR", help="classifier folder of a run")
    add("--json", action="store_true", help="one JSON object per image and line")
    add("--out", metavar="DIR", help="write an HTML report per image or study into DIR")
    add("--backend", default="auto", choices=("auto", *backends.BACKENDS), help="what runs it")
    add("--precision", default="fp32", choices=backends.PRECISIONS, help="default: fp32")
    add("--batch-size", type=positive, default=16, metavar="N", help="frames per pass (16)")
    add("--threads", type=positive, default=0, metavar="N", help="CPU threads")
    options = parser.parse_args(argv)
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="backslashreplace")
    try:
        return _run(options)
    except ClassifierError as error:
        print(f"error: {printable(error)}", file=sys.stderr)
        return 2
    except BrokenPipeError:  # the reader of our output has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except KeyboardInterrupt:
        print("stopped", file=sys.stderr)
        return 130


def positive(text: str) -> int:
    """The whole number above 0 that a text says; raises ValueError where it says none."""
    if (number := int(text)) < 1:
        raise ValueError(text)
    return number


def _run(options: argparse.Namespace) -> int:
    files, notes = studies.find(options.images)
    for note in notes:
        print(f"note: {printable(note)}", file=sys.stderr)
    how = {"backend": options.backend, "precision": options.precision, "threads": options.threads}
    classifier, pages, failed, say = Classifier.load(options.classifier, **how), None, False, print
    if options.out:
        from thyroid_lib.deploy.pages import Pages

        pages = Pages(Path(options.out), classifier)
    if len(files) > 1 and sys.stderr.isatty():
        from tqdm import tqdm

        from thyroid_lib.common.progress import progress

        files, say = progress(files, "classifying", total=len(files)), tqdm.write
    for item, result, parts in results(classifier, studies.items(files), options.batch_size):
        failed = failed or isinstance(result, FrameError)
        say(json.dumps(record(item, result)) if options.json else line(item, result, classifier.names))
        sys.stdout.flush()
        if pages:
            pages.add(item, result, parts)
    if pages:
        print(f"wrote {printable(pages.close())}", file=sys.stderr)
    return int(failed)


def results(classifier: Classifier, items: Iterator, batch_size: int) -> Iterator[tuple]:
    """Each item with its Classification or FrameError, in order, and the answers that it sums up.

    After a clip's frames comes the clip as a whole; the answers are those for its frames, without pixels, and for
    anything else there are none.
    """
    clip, (items, again) = [], itertools.tee(items)
    answers = classifier.classify_many((item.image for item in again), batch_size=batch_size)
    for item, result in zip(items, answers):
        yield item, result, []
        if item.frames is not None:
            clip.append(result if isinstance(result, FrameError) else result.without_pixels())
            if item.frame == item.frames - 1:
                yield replace(item, image=None, frame=None), summarize(classifier, item.path, clip), clip
                clip = []


def summarize(classifier: Classifier, path: str, answers: list) -> Classification | FrameError:
    """A clip's answer: mean probabilities, the box around all boxes, warnings with their counts.

    Args:
        classifier: that gave the answers.
        path: of the clip.
        answers: Classification or FrameError of its frames, in order; the errors count for nothing.
    """
    good = [answer for answer in answers if not isinstance(answer, FrameError)]
    failures = Counter(str(answer) for answer in answers if isinstance(answer, FrameError))
    if not good:
        return FrameError(f"none of {len(answers)} frames: {failures.most_common(1)[0][0]}", "no_frame")
    notes = Counter(warning.split(" (")[0] for answer in good for warning in answer.warnings)
    notes.update({f"not classified: {reason}": count for reason, count in failures.items()})
    mean = [np.mean([answer.probabilities[key] for answer in good]) for key in classifier.classes]
    x, y, width, height = np.array([answer.box for answer in good]).T
    left, top = int(x.min()), int(y.min())
    box = (left, top, int((x + width).max()) - left, int((y + height).max()) - top)
    warnings = [f"{count} of {len(answers)} frames: {text}" for text, count in notes.items()]
    unlike = {key: float(np.median([answer.novelty[key] for answer in good])) for key in good[0].novelty}
    return classifier.answer(mean, image=path, box=box, warnings=warnings, novelty=unlike)


def record(item: studies.Item, result: Classification | FrameError) -> dict:
    """What ``--json`` prints of one frame or clip; `name` is what the reports of --out call the file."""
    place = {"image": item.path, "name": item.name}
    if item.frames is not None:
        place |= {"frame": item.frame} if item.frame is not None else {"clip": True, "frames": item.frames}
    if isinstance(result, FrameError):
        return place | {"error": str(result), "kind": result.kind}
    return result.to_dict() | place


def line(item: studies.Item, result: Classification | FrameError, names: dict) -> str:
    """What a terminal shows of one frame or clip: a line, and one more per warning.

    "a.png: papillary carcinoma 甲状腺乳头状癌 0.81; not excluded: nodular goiter 0.12"
    """
    where = (f"{item.path} ({item.name})" if item.name.startswith("dicom/") else item.path) + item.place
    if isinstance(result, FrameError):
        return printable(f"{where}: error: {result}")
    text = f"{where}: {' '.join(names[result.lesion_type])} {result.probabilities[result.lesion_type]:.2f}"
    others = [key for key in result.prediction_set if key != result.lesion_type]
    listed = ", ".join(f"{names[key][0]} {result.probabilities[key]:.2f}" for key in others)
    text += f"; not excluded: {listed}" if others else ""
    return "\n".join([printable(text), *(f"  ! {printable(warning)}" for warning in result.warnings)])
