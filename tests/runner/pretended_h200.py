"""As much of a GPU's driver as Triton needs to compile for an H200."""

from triton.backends.compiler import GPUTarget


class H200:
    """A launch would fail."""

    def get_current_target(self) -> GPUTarget:
        return GPUTarget("cuda", 90, 32)

    def get_current_device(self) -> int:
        return 0

    def get_current_stream(self, device: int) -> int:
        return 0
