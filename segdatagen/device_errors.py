"""What a device says when its memory is full, under whichever name, and when it will not work again in this process.

It knows torch's errors, and neither batches nor actors.
"""

from segdatagen.errors import SegdatagenError

NO_MEMORY = ("out of memory", "CUBLAS_STATUS_ALLOC_FAILED", "CUDNN_STATUS_ALLOC_FAILED", "can't allocate memory")
"""In the messages of torch, cuBLAS, cuDNN and torch's allocator of the CPU."""


class DeviceLost(SegdatagenError):
    """A device answers nothing any more in this process: another process may still use it."""


def is_out_of_memory(error: BaseException) -> bool:
    """Whether fewer rows at once might do."""
    import torch

    if isinstance(error, torch.OutOfMemoryError):
        return True
    return isinstance(error, RuntimeError) and any(words in str(error) for words in NO_MEMORY)


def raise_if_lost(error: BaseException) -> None:
    """Raise DeviceLost for an error after which every call to the device of this process fails, as CUDA's do."""
    import torch

    if isinstance(error, torch.AcceleratorError) and not is_out_of_memory(error):
        sentence = str(error).splitlines()[0]
        raise DeviceLost(f"the device is lost to this process ({sentence}): start again") from error
