"""Videos frame by frame: which frames, and what is found."""

import pytest
import torch
from clips import SIZE, StubPredictor, moving, write_clip
from random_models import assert_same

from ovd_d2.errors import OVDError
from ovd_d2.inference import OpenVocabPredictor
from ovd_d2.inference.video import FrameChoice, track_video
from ovd_d2.inference.video_files import VideoSource

pytest.importorskip("av")
pytest.importorskip("trackers")


@pytest.fixture(scope="module")
def clip(tmp_path_factory):
    """30 frames, 10 a second."""
    return write_clip(tmp_path_factory.mktemp("clips") / "clip.mp4", moving(30), rate=10)


def test_every_frame_with_its_objects_and_their_ids(clip):
    predictor = StubPredictor(batch_size=4)
    frames = list(track_video(predictor, clip))
    assert predictor.batches == [4] * 7 + [2]
    assert [frame.number for frame in frames] == list(range(30))
    assert [frame.seconds for frame in frames] == pytest.approx([k / 10 for k in range(30)])
    wanted = list(moving(30))
    for frame, image in zip(frames, wanted):
        assert frame.image.shape == image.shape
        found = frame.instances
        assert found.image_size == SIZE and found.pred_classes.tolist() == [0, 1]
        ids = [-1, -1] if frame.number == 0 else [1, 2]
        assert found.track_ids.tolist() == ids
    boxes = torch.stack([frame.instances.pred_boxes.tensor[0] for frame in frames])
    assert boxes[1:, 0].diff().tolist() == pytest.approx([2.0] * 28, abs=1)


@pytest.mark.parametrize(
    ("options", "wanted"),
    [
        ({"every": 4}, range(0, 30, 4)),
        ({"start": 1.25}, range(13, 30)),
        ({"end": 0.5}, range(5)),
        ({"start": 1.05, "end": 2.0, "every": 3}, range(11, 20, 3)),
        ({"max_frames": 7}, range(7)),
        ({"start": 9.0}, range(0)),
    ],
)
def test_which_frames(clip, options, wanted):
    frames = list(track_video(StubPredictor(), clip, **options))
    assert [frame.number for frame in frames] == list(wanted)
    with VideoSource(str(clip)) as video:
        assert FrameChoice(**options).expected(video) == pytest.approx(len(wanted), abs=1)


def test_without_ids_and_in_tiles(clip):
    predictor = StubPredictor()
    (frame,) = track_video(predictor, clip, max_frames=1, track=False, tile=60, overlap=0.5)
    assert not frame.instances.has("track_ids")
    (plain,) = track_video(predictor, clip, max_frames=1, track=False)
    assert_same(frame.instances, plain.instances)


def test_as_the_predictor_says(clip, config, checkpoint):
    predictor = OpenVocabPredictor(config, checkpoint, device="cpu", batch_size=2)
    frames = list(track_video(predictor, clip, max_frames=4, track=False))
    for frame in frames:
        wanted = predictor.predict(frame.image, input_format="RGB")
        assert_same(frame.instances, wanted, tolerance=1e-3)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"every": 0}, "every is 0"), ({"start": -1}, "start is -1"),
        ({"start": 2.0, "end": 1.0}, "end is 1; it must be after start, 2"),
        ({"max_frames": 0}, "max_frames is 0"), ({"end": float("nan")}, "end is nan"),
    ],
)  # fmt: skip
def test_bad_arguments(clip, options, said):
    with pytest.raises(OVDError, match=said):
        track_video(StubPredictor(), clip, **options)


def test_label_maps_are_refused(clip, label_map_model):
    predictor = OpenVocabPredictor.from_pretrained(label_map_model, device="cpu")
    with pytest.raises(OVDError, match="label maps; videos need"):
        next(track_video(predictor, clip))
