"""Files of video, and .m4a, written with PyAV: the sound that is asked for beside pictures of grey."""

from __future__ import annotations

from pathlib import Path

import av
import numpy as np
from numpy.typing import NDArray

CODECS = {".avi": "libmp3lame", ".m4a": "aac", ".mkv": "aac", ".mov": "alac", ".mp4": "aac", ".webm": "libopus"}
LAYOUTS = {1: "mono", 2: "stereo", 6: "5.1"}


def write_film(
    path: Path, samples: NDArray[np.float64], rate: int, channels: int = 1, codec: str | None = None,
    pictures: bool | None = None,
) -> Path:  # fmt: skip
    """`samples` in every channel, in the codec that such files mostly have. Returns the path."""
    path.parent.mkdir(parents=True, exist_ok=True)
    layout = LAYOUTS[channels]
    with av.open(str(path), "w") as container:
        sound = container.add_stream(codec or CODECS[path.suffix], rate=rate, layout=layout)
        if path.suffix not in (".m4a", ".webm") if pictures is None else pictures:
            video = container.add_stream("mpeg4", rate=5)
            video.width = video.height = 16
            for number in range(int(len(samples) / rate * 5)):
                frame = av.VideoFrame.from_ndarray(np.full((24, 16), 128, np.uint8), format="yuv420p")
                frame.pts = number
                container.mux(video.encode(frame))
            container.mux(video.encode(None))
        whole = av.AudioFrame.from_ndarray(np.tile(samples.astype(np.float32), (channels, 1)), "fltp", layout)
        whole.rate, whole.pts = rate, 0
        cut = av.AudioResampler(sound.format, layout, rate, frame_size=sound.codec_context.frame_size or 1024)
        for frame in [*cut.resample(whole), *cut.resample(None)]:
            container.mux(sound.encode(frame))
        container.mux(sound.encode(None))
    return path
