"""Files of videos: what is written can be watched, and no frame is lost on the way."""

import io
import json
from pathlib import Path

import av
import numpy as np
import pytest
from PIL import Image

from edge_client.videos import check_writer, encode_pixels, frames_of, save_outputs

FPS = 16


def report(*, video: bool = True) -> dict:
    return {"seed": 7, "video": {"num_frames": 9, "fps": FPS} if video else None, "warnings": []}


@pytest.fixture
def pixels() -> np.ndarray:
    """Return two videos of nine frames: a square that moves, and stands still in the middle."""
    videos = np.full((2, 9, 48, 64, 3), 200, np.uint8)
    for index, left in enumerate((0, 5, 10, 20, 20, 20, 30, 40, 50)):
        videos[0, index, 10:30, left : left + 10] = (220, 30, 30)
        videos[1, index, 20:40, left : left + 10] = (30, 30, 220)
    return videos


def test_frames_travel_without_loss_though_equal_ones_share_one(pixels):
    for png, video in zip(encode_pixels(pixels, report()), pixels, strict=True):
        assert np.array_equal(np.stack([np.asarray(frame) for frame in frames_of(png)]), video)


@pytest.mark.parametrize("fps", [1, 8, 24, 60, 120])
def test_every_frame_comes_back_at_any_speed(pixels, fps):
    told = report() | {"video": {"num_frames": 9, "fps": fps}}
    assert [len(list(frames_of(png))) for png in encode_pixels(pixels, told)] == [9, 9]


def test_each_video_carries_the_report_with_its_own_seed(pixels):
    texts = [json.loads(Image.open(io.BytesIO(png)).text["ecdiff"]) for png in encode_pixels(pixels, report())]
    assert [text["seed"] for text in texts] == [7, 8]


def test_mp4_has_every_frame_at_its_speed_and_the_report(pixels, tmp_path: Path):
    names = save_outputs(encode_pixels(pixels, report()), tmp_path / "out.mp4", report())
    assert [Path(name).name for name in names] == ["out-0.mp4", "out-1.mp4"]
    with av.open(names[1]) as container:
        stream = container.streams.video[0]
        frames = [frame.to_ndarray(format="rgb24") for frame in container.decode(stream)]
        assert (stream.average_rate, stream.codec_context.name) == (FPS, "h264")
        assert json.loads(container.metadata["comment"])["seed"] == 8
    error = np.abs(np.stack(frames).astype(int) - pixels[1]).mean()
    assert len(frames) == 9
    assert error < 4  # of 255: colours are stored at half the resolution


def test_gif_has_every_moment_of_the_video(pixels, tmp_path: Path):
    (name,) = save_outputs(encode_pixels(pixels[:1], report()), tmp_path / "out.gif", report())
    with Image.open(name) as animation:
        durations = []
        for index in range(animation.n_frames):
            animation.seek(index)
            durations.append(animation.info["duration"])
            assert (
                np.abs(np.asarray(animation.convert("RGB"))[20, 2].astype(int) - pixels[0, 0, 20, 2]).max() < 60
                or index
            )
    assert sum(durations) == pytest.approx(9 * 1000 / FPS, abs=10 * len(durations))


def test_a_picture_under_the_name_of_a_video_becomes_a_png(pixels, tmp_path: Path):
    told = report(video=False)
    (name,) = save_outputs(encode_pixels(pixels[:1, 0], told), tmp_path / "out.mp4", told)
    with Image.open(name) as picture:
        assert picture.format == "PNG"
    assert (Path(name).name, told["warnings"]) == ("out.png", ["the model makes pictures, so out.mp4 became a PNG"])


def test_an_mp4_without_its_library_is_refused_before_the_work(monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "av", None)
    with pytest.raises(ValueError, match=r"pip install 'ecdiff\[video\]', or name a .gif or an animated .png"):
        check_writer(Path("out.mp4"))
    check_writer(Path("out.gif"))
