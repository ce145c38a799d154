"""The answer for a clip, from the answers for its frames."""

from collections import Counter

import numpy as np

from thyroid_lib import frames
from thyroid_lib.classifier import Classification, Classifier


def summarize(
    classifier: Classifier, path: str, answers: list[Classification | frames.FrameError]
) -> Classification | frames.FrameError:
    """The clip's answer: mean probabilities, the box around all boxes, warnings with their counts.

    Args:
        classifier: that gave the answers.
        path: of the clip.
        answers: of its frames, in order, with or without pixels; those that could not be classified count for nothing.
    """
    good = [answer for answer in answers if not isinstance(answer, frames.FrameError)]
    failures = Counter(str(answer) for answer in answers if isinstance(answer, frames.FrameError))
    if not good:
        reason = failures.most_common(1)[0][0]
        return frames.FrameError(f"none of {len(answers)} frames: {reason}", "no_frame")
    notes = Counter(warning.split(" (")[0] for answer in good for warning in answer.warnings)
    notes.update({f"not classified: {reason}": count for reason, count in failures.items()})
    mean = {key: float(np.mean([answer.probabilities[key] for answer in good])) for key in classifier.classes}
    x, y, width, height = np.array([answer.box for answer in good]).T
    left, top = int(x.min()), int(y.min())
    return Classification(
        image=path,
        **classifier.verdicts(mean),
        probabilities=mean,
        box=(left, top, int((x + width).max()) - left, int((y + height).max()) - top),
        classifier=classifier.id,
        warnings=[f"{count} of {len(answers)} frames: {text}" for text, count in notes.items()],
        novelty={key: float(np.median([answer.novelty[key] for answer in good])) for key in good[0].novelty},
    )
