"""What the machine is: one file a kind of device; the first that is present is taken unless the user names one."""

from quire.errors import ConfigError
from quire.platform.base import Platform
from quire.platform.cpu import CpuPlatform
from quire.platform.cuda import CudaPlatform

__all__ = ["Platform", "select_platform"]

PLATFORMS: tuple[type[Platform], ...] = (CudaPlatform, CpuPlatform)


def select_platform(device: str = "auto") -> Platform:
    """The platform named `device`, or the first that is present. Raises ConfigError when the named one is absent."""
    for kind in PLATFORMS:
        if device in ("auto", kind.name):
            if kind.present():
                return kind()
            if device != "auto":
                raise ConfigError(
                    f"device {device!r} was asked for but none is visible; use --device cpu or check CUDA_VISIBLE_DEVICES"
                )
    raise ConfigError(f"device {device!r} is unknown; there are auto, {', '.join(kind.name for kind in PLATFORMS)}")
