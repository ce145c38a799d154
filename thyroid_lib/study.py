"""The study: the numbered notebooks as stages of one run."""

from .runfolder import Run, open_run

__all__ = ["Run", "open_run"]
