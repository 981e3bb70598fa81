"""Videos in and out: what the file says of times, sizes and turns, and files that are none."""

import os
from fractions import Fraction

import numpy as np
import pytest
from bright_rectangles import rectangles
from clips import SIZE, moving, write_clip, write_sound
from PIL import Image

from ovd_d2.errors import OVDError
from ovd_d2.files.videos import refuse_videos
from ovd_d2.inference.video_files import VideoSource, VideoWriter

av = pytest.importorskip("av")


def read(path, **options):
    with VideoSource(str(path), **options) as video:
        return list(video), video


@pytest.mark.parametrize(
    ("name", "codec", "rate"),
    [("a.mp4", "libx264", 25), ("a.mkv", "mpeg4", 10), ("a.avi", "mjpeg", 12),
     ("a.webm", "libvpx-vp9", 30), ("a.ts", "libx264", Fraction(30000, 1001))],
)  # fmt: skip
def test_frames_numbers_and_times(tmp_path, name, codec, rate):
    frames = list(moving(6))
    images, video = read(write_clip(tmp_path / name, frames, rate=rate, codec=codec))
    assert (video.rate, video.name, video.is_live, video.damaged) == (rate, "a", False, 0)
    assert video.length == pytest.approx(6, abs=1)
    assert [image.number for image in images] == list(range(6))
    wanted = pytest.approx([k / rate for k in range(6)], abs=1.1e-3)
    assert [image.seconds for image in images] == wanted
    for image, frame in zip(images, frames):
        assert image.pixels.shape == frame.shape and image.pixels.dtype == np.uint8
        found, wanted = rectangles(image.pixels, least=6), rectangles(frame, least=6)
        assert found.pred_classes.tolist() == wanted.pred_classes.tolist() == [0, 1]
        apart = found.pred_boxes.get_centers() - wanted.pred_boxes.get_centers()
        assert apart.abs().max() <= 1  # the box moves by 2 pixels a frame
        assert found.scores.tolist() == pytest.approx([0.8, 0.5], abs=0.1)  # blue is blue


def test_frames_at_uneven_times(tmp_path):
    times = [0.0, 0.04, 0.5, 0.51, 2.0]
    images, _ = read(write_clip(tmp_path / "a.mkv", moving(5), times=times))
    assert [image.seconds for image in images] == pytest.approx(times)


@pytest.mark.parametrize("rotation", [0, 90, 180, -90])
def test_a_turned_video_stands_upright(tmp_path, rotation):
    frame = np.zeros((*SIZE, 3), np.uint8)
    frame[:20, :30] = 255  # top left
    images, _ = read(write_clip(tmp_path / "a.mp4", [frame] * 3, rotation=rotation))
    wanted = np.rot90(frame, rotation // 90)
    for image in images:
        assert image.pixels.shape == wanted.shape and image.pixels.flags.c_contiguous
        assert np.abs(image.pixels.astype(int) - wanted).mean() < 5


def two_sizes(folder):
    """A stream whose frames become larger and turn."""
    parts = [write_clip(folder / f"{k}.ts", moving(5, size)) for k, size in
             enumerate((SIZE, (120, 80)))]  # fmt: skip
    path = folder / "two.ts"
    path.write_bytes(b"".join(part.read_bytes() for part in parts))
    return path


def test_frames_of_two_sizes_and_times_that_begin_anew(tmp_path):
    images, video = read(two_sizes(tmp_path))
    assert [image.pixels.shape[:2] for image in images] == [SIZE] * 5 + [(120, 80)] * 5
    seconds = np.array([image.seconds for image in images])
    assert (np.diff(seconds) > 0).all() and seconds[-1] < 2


def test_damaged_packets_in_the_middle_cost_their_frames(tmp_path):
    path = write_clip(tmp_path / "a.avi", moving(30), codec="mjpeg")
    content = bytearray(path.read_bytes())
    content[len(content) // 2 : len(content) // 2 + 3000] = bytes(3000)
    path.write_bytes(content)
    images, _ = read(path)
    assert 15 <= len(images) <= 30
    assert all(image.pixels.shape == (*SIZE, 3) for image in images)


def test_a_truncated_file_gives_what_is_there(tmp_path):
    whole = write_clip(tmp_path / "a.mkv", moving(60))
    content = whole.read_bytes()
    (tmp_path / "b.mkv").write_bytes(content[: len(content) * 2 // 3])
    images, _ = read(tmp_path / "b.mkv")
    assert 10 < len(images) < 60


def bad_sources(folder):
    """name -> (source, what is said)."""
    write_clip(folder / "good.mp4", moving(5))
    content = (folder / "good.mp4").read_bytes()
    (folder / "cut.mp4").write_bytes(content[: len(content) // 2])  # the index is at the end
    (folder / "empty.mp4").write_bytes(b"")
    (folder / "text.mp4").write_text("this is no video\n" * 50)
    Image.new("RGB", (9, 9)).save(folder / "picture.png")
    write_sound(folder / "sound.m4a")
    os.mkfifo(folder / "pipe.mp4")
    return {
        "missing": (folder / "z.mp4", "There is no video"),
        "folder": (folder, "is a folder"),
        "cut": (folder / "cut.mp4", "Cannot read the video"),
        "empty": (folder / "empty.mp4", "Cannot read the video"),
        "text": (folder / "text.mp4", "Cannot read the video"),
        "image": (folder / "picture.png", "give it to `ovd predict`"),
        "sound": (folder / "sound.m4a", "holds sound alone"),
        "pipe": (folder / "pipe.mp4", "a pipe or a device"),
        "camera": ("77", "There is no camera 77"),
        "camera device": ("/dev/video77", "There is no camera /dev/video77"),
        "scheme": ("ftp://127.0.0.1/a.mp4", "streams begin with"),
        "nobody there": ("http://127.0.0.1:9/a.mp4", "Cannot read the video http"),
    }


def test_bad_sources_are_one_sentence(tmp_path):
    for name, (source, said) in bad_sources(tmp_path).items():
        with pytest.raises(OVDError, match=said) as error:
            VideoSource(str(source))
        assert str(error.value).endswith(".") and "\n" not in str(error.value), name


def test_passwords_are_not_repeated():
    with pytest.raises(OVDError, match="Cannot read the video rtsp://127.0.0.1:9/a@b") as error:
        VideoSource("rtsp://me:secret@127.0.0.1:9/a@b")
    assert "secret" not in str(error.value)


def test_frames_of_too_many_pixels(tmp_path):
    path = write_clip(tmp_path / "a.mp4", moving(2))
    with pytest.raises(OVDError, match="MAX_PIXELS = 6000"):
        VideoSource(str(path), max_pixels=6000)
    assert len(read(path, max_pixels=64 * 96)[0]) == 2


@pytest.mark.parametrize("codec", ["libx264", "mpeg4"])
@pytest.mark.parametrize("size", [(64, 96), (63, 95), (1, 1), (2, 200)])
def test_what_is_written_is_read_again(tmp_path, monkeypatch, codec, size):
    if codec == "mpeg4":
        monkeypatch.setattr(av, "codecs_available", {"mpeg4"})
    rng = np.random.default_rng(0)
    colours = [rng.integers(0, 256, 3) for _ in range(8)]
    times = [0.0, 0.04, 0.08, 0.3, 0.34, 0.341, 0.5, 9.0]
    path = tmp_path / "a.mp4"
    with VideoWriter(path, Fraction(25), Fraction(1, 90_000)) as writer:
        for colour, seconds in zip(colours, times):
            writer.write(np.full((*size, 3), colour, np.uint8), seconds)
    images, video = read(path)
    height, width = size
    assert [image.seconds for image in images] == pytest.approx(times, abs=2e-4)
    for image, colour in zip(images, colours):
        assert image.pixels.shape == (height + height % 2, width + width % 2, 3)
        assert np.abs(image.pixels.mean(axis=(0, 1)) - colour).max() < 25


def test_frames_of_another_size_are_made_to_fit(tmp_path):
    path = tmp_path / "a.mp4"
    with VideoWriter(path, Fraction(25), Fraction(1, 25)) as writer:
        for k, size in enumerate([(60, 100), (200, 40), (30, 50), (1, 400)]):
            writer.write(np.full((*size, 3), 255, np.uint8), k / 25)
    images, _ = read(path)
    assert [image.pixels.shape for image in images] == [(60, 100, 3)] * 4
    shares = [float((image.pixels > 127).mean()) for image in images]
    assert shares == pytest.approx([1.0, 12 / 100, 1.0, 1 / 60], abs=0.02)


def test_a_video_that_cannot_be_written(tmp_path):
    writer = VideoWriter(tmp_path / "nowhere/a.mp4", Fraction(25), Fraction(1, 25))
    with pytest.raises(OVDError, match="Cannot write"), writer:
        writer.write(np.zeros((10, 10, 3), np.uint8), 0.0)


@pytest.mark.parametrize("path", ["a.mp4", "b/A.MKV", "rtsp://host/a", "http:/host/a.jpg"])
def test_predict_refuses_videos(path, tmp_path):
    with pytest.raises(OVDError, match="is a video, not an image: give it to `ovd video`"):
        refuse_videos([path])
    (tmp_path / "a.mp4").mkdir()
    refuse_videos(["a.jpg", "C:/a.jpg", tmp_path / "a.mp4", "/a/b:/c.png"])
