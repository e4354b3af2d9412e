"""An NVIDIA GPU as a device. Nothing here touches CUDA before a method is called."""

import torch

from quire.config import MachineFacts
from quire.platform.base import Platform


class CudaPlatform(Platform):
    """The first visible GPU; CUDA_VISIBLE_DEVICES chooses which that is, until the first call."""

    name = "cuda"
    backends = ("triton", "torch")

    @classmethod
    def present(cls) -> bool:
        return torch.cuda.is_available()

    def device(self) -> torch.device:
        return torch.device("cuda", 0)

    def facts(self) -> MachineFacts:
        free, total = torch.cuda.mem_get_info(0)
        dtypes = (
            ("bfloat16", "float16", "float32")
            if torch.cuda.get_device_capability(0) >= (8, 0)
            else ("float16", "float32")
        )
        return MachineFacts("cuda", torch.cuda.get_device_name(0), total, free, dtypes)

    def synchronize(self) -> None:
        torch.cuda.synchronize()

    def supports_graphs(self) -> bool:
        return True

    def peak_memory_bytes(self) -> int:
        return torch.cuda.max_memory_allocated()

    def empty_cache(self) -> None:
        torch.cuda.empty_cache()
