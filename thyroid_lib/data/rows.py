"""Rows of a large array on disk, read as they are needed.

A memory map would do, but its pages count as resident memory until the kernel takes them back, and a file
that is cut short under it kills the process. Reading rows keeps memory flat and makes that an error.
"""

import mmap

import numpy as np
import torch

RESIDENT_SHARE = 0.25  # of a GPU's free memory that crops may take


class DataVanished(RuntimeError):
    """The crops on disk are no longer what they were when they were opened."""


class RowReader:
    """Reads rows of a uint8 array (N, S, S): of a memory map from its file, of an array from memory.

    Attributes:
        images: the array itself.
        where: in words, where the rows come from.
    """

    def __init__(self, images: np.ndarray):
        self.images, self._file, self._resident = images, None, None
        self.where = "read by row from one file"
        if isinstance(images, np.memmap) and isinstance(images.base, mmap.mmap) and images.flags.c_contiguous:
            try:
                self._file = open(images.filename, "rb", buffering=0)
            except OSError as error:
                raise DataVanished(f"Expected the crops in {images.filename}; {error.strerror}.") from error

    def keep_on(self, device: torch.device) -> None:
        """Copies all rows to a GPU once, if they take no more than a quarter of its free memory."""
        limit = RESIDENT_SHARE * torch.cuda.mem_get_info(device)[0] if device.type == "cuda" else float("inf")
        if self.images.nbytes > limit:
            return
        whole = torch.empty(self.images.shape, dtype=torch.uint8, device=device)
        for rows in np.split(np.arange(len(whole)), range(1024, len(whole), 1024)):
            whole[rows[0] : rows[-1] + 1] = torch.from_numpy(self.read(rows))
        self._resident, self.where = whole, f"resident on {device}"

    def tensor(self, rows: np.ndarray, device: torch.device) -> torch.Tensor:
        """The rows as a uint8 tensor (n, S, S) on the device."""
        if self._resident is not None:
            return self._resident[torch.from_numpy(np.asarray(rows)).to(device, non_blocking=True)]
        images = torch.from_numpy(self.read(rows))
        if device.type == "cuda":
            return images.pin_memory().to(device, non_blocking=True)
        return images.to(device)

    def read(self, rows: np.ndarray) -> np.ndarray:
        """The rows as a new uint8 array (n, S, S).

        Raises:
            DataVanished: the file is shorter than it was.
        """
        if self._file is None:
            return np.ascontiguousarray(self.images[rows])
        out = np.empty((len(rows), *self.images.shape[1:]), np.uint8)
        size, start = int(np.prod(out.shape[1:])), self.images.offset
        for i, row in enumerate(rows):
            try:
                self._file.seek(start + int(row) * size)
                got = self._file.readinto(out[i].reshape(-1))
            except OSError as error:
                raise DataVanished(f"Cannot read {self.images.filename}: {error.strerror}.") from error
            if got != size:
                raise DataVanished(
                    f"Expected {len(self.images)} crops in {self.images.filename}; the file ends before "
                    f"row {row}. Build the crops again (notebook 01) and start the same command again."
                )
        return out

    def __del__(self):
        if getattr(self, "_file", None) is not None:
            self._file.close()
