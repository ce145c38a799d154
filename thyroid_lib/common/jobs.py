"""Independent jobs (folds, seeds, arms, frames) side by side: joblib, or a Dask cluster by a setting."""

import contextlib
import functools
import logging
import multiprocessing
import os
import threading
import time
from collections.abc import Callable, Iterator

from thyroid_lib.common.progress import progress


def run_jobs(
    function: Callable, jobs: list[dict], *, parallel: int = 1, cluster: str = "", title: str = "jobs"
) -> list:
    """Calls a function once per job, side by side, and gives the results in the jobs' order.

    Args:
        function: of an importable module; its results must be picklable.
        jobs: keyword arguments of each call.
        parallel: processes at a time on this machine; 1 runs the jobs here, one after another.
        cluster: "" for this machine; "local:N" for a Dask cluster of N workers on this machine, or the
            address of a Dask scheduler ("tcp://head:8786") whose workers see the same folders.
        title: for the progress line.
    """
    from joblib import Parallel, delayed

    if parallel == 1 and not cluster:
        return [function(**job) for job in jobs]
    with backend(cluster) as workers:
        calls = (delayed(_tied)(function, job) for job in jobs)
        results = Parallel(n_jobs=workers or parallel, return_as="generator")(calls)
        return list(progress(results, title, len(jobs)))


def _tied(function: Callable, job: dict):
    exit_with_parent()
    return function(**job)


@functools.cache
def exit_with_parent() -> None:
    """Lets this worker process end when the process that started it is gone.

    joblib's workers would finish what they have begun, hold its folder meanwhile, and be in the way of whoever
    starts the same command again. Called within a job; a second call does nothing.
    """
    if multiprocessing.parent_process() is None:
        return
    parent = os.getppid()

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(0.5)
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


@contextlib.contextmanager
def backend(cluster: str) -> Iterator[int]:
    """Joblib on a Dask cluster while a with statement lasts; yields its number of workers, 0 without one.

    Raises:
        ImportError: Dask is not installed.
        OSError: nobody answers at the address.
    """
    if not cluster:
        yield 0
        return
    import joblib

    try:
        from dask.distributed import Client, LocalCluster
    except ImportError as error:
        words = f"cluster={cluster!r} needs Dask, which is not installed: install the extra `dask` or leave it empty"
        raise ImportError(words) from error
    kind, _, count = cluster.partition(":")
    place = contextlib.nullcontext(cluster)
    if kind == "local":  # quiet: that a worker took seconds to end is no news for a report
        quiet = {"dashboard_address": None, "silence_logs": logging.ERROR}
        place = LocalCluster(n_workers=int(count), threads_per_worker=1, **quiet)
    with place as at, Client(at, timeout=60) as client, joblib.parallel_config(backend="dask"):
        yield len(client.scheduler_info(n_workers=-1)["workers"])
