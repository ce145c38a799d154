"""Memory that is used again and again stays with the process."""

import ctypes
import warnings

# A worker process that keeps its memory looks to joblib as if it leaked, and joblib replaces it by a new one between
# two jobs. No job is lost by that, so it is no news; a job that fails says so itself.
warnings.filterwarnings("ignore", "A worker stopped while some jobs were given to the executor", UserWarning)


def keep_memory() -> bool:
    """Lets glibc keep freed memory for the next step instead of handing it back to the kernel.

    Every training step allocates the same activations again, every frame the same pictures; each page handed back
    is zeroed and mapped anew. That takes about a tenth of a training step on a CPU, and a fifth of the time to cut
    a frame, more where several processes ask the kernel at once. Lasts as long as the process.

    Returns:
        Whether it was done; False on systems with another C library.
    """
    trim_threshold, top_pad, mmap_max = -1, -2, -4  # names of malloc.h
    try:
        mallopt = ctypes.CDLL("libc.so.6").mallopt
    except (OSError, AttributeError):  # another system, or another C library
        return False
    # -1 is "never"; any other limit is met by larger batches, which then map all their memory anew at every step
    wanted = ((mmap_max, 0), (trim_threshold, -1), (top_pad, 64 * 2**20))
    return all([mallopt(name, value) == 1 for name, value in wanted])
