"""GPUs and the networks between them, by their makers' data sheets, and what of it a training is expected to reach."""

from __future__ import annotations

from dataclasses import dataclass

GPUS_PER_HOST = 8
GIB = 2**30
LINE_RATE_SHARE = 0.8  # of what a link could carry, collectives over large messages do


@dataclass(frozen=True)
class Gpu:
    """`memory_bytes` is what torch says the card has; operations per second are dense ones."""

    name: str
    memory_bytes: float
    peak_flops: float  # in bfloat16
    peak_float32_flops: float
    share_of_peak: float  # that a training step reaches, assumed
    memory_bytes_per_s: float
    nvlink_bytes_per_s: float  # one way

    def peak(self, bytes_each: int) -> float:
        """Operations per second on numbers of 2 or 4 bytes."""
        return self.peak_flops if bytes_each == 2 else self.peak_float32_flops

    def flops(self, bytes_each: int) -> float:
        """As many as are expected."""
        return self.peak(bytes_each) * self.share_of_peak


@dataclass(frozen=True)
class Fabric:
    """The network between hosts."""

    name: str
    about: str
    bytes_per_s: float | None  # of a whole host, one way; None: there is only one host

    def rate(self, gpu: Gpu, gpus: int) -> float:
        """Bytes per second at which a ring over so many GPUs moves; 0 where there is no such network."""
        nvlink = gpu.nvlink_bytes_per_s * LINE_RATE_SHARE
        if gpus <= GPUS_PER_HOST:
            return nvlink
        # A ring enters and leaves each host once: all of its links carry the ring's one stream.
        return 0.0 if self.bytes_per_s is None else min(nvlink, self.bytes_per_s * LINE_RATE_SHARE)


GPUS = {
    gpu.name: gpu
    for gpu in (
        Gpu("a100-40", 39.4 * GIB, 312e12, 19.5e12, 0.5, 1.555e12, 300e9),
        Gpu("a100-80", 79.1 * GIB, 312e12, 19.5e12, 0.5, 2.039e12, 300e9),
        Gpu("h100", 79.1 * GIB, 989e12, 67e12, 0.4, 3.35e12, 450e9),
        Gpu("h200", 139.8 * GIB, 989e12, 67e12, 0.4, 4.8e12, 450e9),
    )
}
FABRICS = {
    fabric.name: fabric
    for fabric in (
        Fabric("nvlink", "NVLink", None),
        Fabric("8xhdr", "8 x HDR", 200e9),
        Fabric("4x100gb", "4 x 100 Gb", 50e9),
        Fabric("1x100gb", "1 x 100 Gb", 12.5e9),
    )
}
