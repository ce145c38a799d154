"""The answer for a clip, from the answers for its frames."""

from dataclasses import replace

import numpy as np

from thyroid_lib import frames
from thyroid_lib.classifier import Classification


class Clip:
    """Gathers the frames of one clip; probabilities are averaged over the frames that could be classified.

    Attributes:
        item: stands for the clip as a whole: no frame number.
        probabilities: list of dicts, or None where a frame failed, in the order of the frames.
    """

    def __init__(self, first, classifier):
        self.item = replace(first, frame=None, image=None)
        self.classifier = classifier
        self.probabilities = []
        self._warnings: dict[str, int] = {}
        self._failures: dict[str, int] = {}
        self._boxes = []
        self._novelty = []

    def add(self, result: Classification | frames.FrameError) -> None:
        """Takes the next frame's answer."""
        if isinstance(result, frames.FrameError):
            self.probabilities.append(None)
            self._failures[str(result)] = self._failures.get(str(result), 0) + 1
            return
        self.probabilities.append(result.probabilities)
        self._boxes.append(result.box)
        self._novelty.append(result.novelty)
        for warning in result.warnings:
            kind = warning.split(" (")[0]
            self._warnings[kind] = self._warnings.get(kind, 0) + 1

    def result(self) -> Classification | frames.FrameError:
        """The clip's answer: mean probabilities, the box around all boxes, warnings with their counts."""
        good = [found for found in self.probabilities if found is not None]
        if not good:
            reason = max(self._failures, key=self._failures.get)
            return frames.FrameError(f"none of {len(self.probabilities)} frames: {reason}", "no_frame")
        mean = {key: float(np.mean([found[key] for found in good])) for key in self.classifier.classes}
        boxes = np.array(self._boxes)
        left, top = boxes[:, :2].min(0)
        right, bottom = (boxes[:, :2] + boxes[:, 2:]).max(0)
        total = len(self.probabilities)
        notes = {**self._warnings, **{f"not classified: {text}": n for text, n in self._failures.items()}}
        best, positive, chosen = self.classifier.verdicts(mean)
        return Classification(
            image=self.item.path,
            lesion_type=best,
            probabilities=mean,
            prediction_set=chosen,
            positive=positive,
            box=(int(left), int(top), int(right - left), int(bottom - top)),
            classifier=self.classifier.id,
            warnings=[f"{count} of {total} frames: {text}" for text, count in notes.items()],
            novelty={key: float(np.median([n[key] for n in self._novelty])) for key in self._novelty[0]},
        )
