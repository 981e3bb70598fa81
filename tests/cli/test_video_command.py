"""``ovd video``: as a process, stopped and continued, live, and what bad input says."""

import http.server
import json
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
import warm_processes
from PIL import Image

pytest.importorskip("av")
pytest.importorskip("trackers")

from clips import moving, write_clip
from random_models import make_pixels
from test_video_files import bad_sources

OVD = str(Path(sys.executable).with_name("ovd"))


@pytest.fixture
def ovd(capsys):
    """``ovd`` in this process: (exit code, stdout, stderr)."""
    from ovd_d2.cli import app

    def run(*words):
        with pytest.raises(SystemExit) as ended:
            app.main([str(word) for word in words])
        printed = capsys.readouterr()
        return ended.value.code, printed.out, printed.err

    return run


@pytest.fixture(scope="module")
def clip(tmp_path_factory):
    return write_clip(tmp_path_factory.mktemp("clips") / "clip.mp4", moving(12), rate=10)


def names(folder):
    return sorted(path.name for path in folder.iterdir()) if folder.exists() else []


def test_options_reach_the_video(ovd, clip, exported, tmp_path):
    code, out, err = ovd(
        "video", clip, "--model", exported, "--vocab", "cat, dog", "--out", tmp_path / "a",
        "--every", 2, "--start", 0.1, "--end", 0.9, "--max-frames", 3, "--score-threshold", 0,
        "--topk", 3, "--tile", 64, "--overlap", 0.5, "--device", "cpu", "--batch-size", 2,
    )  # fmt: skip
    assert (code, err) == (0, "")
    assert names(tmp_path / "a") == ["clip.jsonl", "clip.mp4"]
    rows = [json.loads(line) for line in (tmp_path / "a/clip.jsonl").read_text().splitlines()]
    assert [row["frame"] for row in rows] == [1, 3, 5]
    assert {d["name"] for row in rows for d in row["detections"]} <= {"cat", "dog"}
    assert "3 frames, 0.50 s" in out and "clip.mp4" in out and "clip.jsonl" in out
    code, out, err = ovd("video", clip, "--model", exported, "--out", tmp_path / "b", "--no-track",
                         "--no-picture", "--score-threshold", 0, "--max-frames", 1)  # fmt: skip
    assert (code, err) == (0, "") and names(tmp_path / "b") == ["clip.jsonl"]
    (row,) = [json.loads(line) for line in (tmp_path / "b/clip.jsonl").read_text().splitlines()]
    assert row["detections"] and all("track" not in d for d in row["detections"])


def write_examples(folder):
    Image.fromarray(make_pixels(96, 120)).save(folder / "a.png")
    content = {"my mug": [{"image": str(folder / "a.png"), "box": [10, 20, 60, 80]}], "cat": None}
    (folder / "mugs.json").write_text(json.dumps(content))
    return folder / "mugs.json"


def found_in(folder):
    lines = (folder / "clip.jsonl").read_text().splitlines()
    return [row["name"] for line in lines for row in json.loads(line)["detections"]]


def test_examples_and_negatives(ovd, clip, exported, tmp_path):
    rest = ("--vocab", "dog", "--max-frames", 1, "--no-track", "--no-picture",
            "--score-threshold", 0, "--device", "cpu")  # fmt: skip
    added = {
        "words": (),
        "examples": ("--examples", write_examples(tmp_path)),
        "negatives": ("--negatives", "zebra crossing"),
    }
    found = {}
    for case, words in added.items():
        code, _, err = ovd("video", clip, "--model", exported, "--out", tmp_path / case, *rest,
                           *words)  # fmt: skip
        assert (code, err) == (0, "")
        found[case] = found_in(tmp_path / case)
    assert set(found["words"]) == {"dog"}
    assert set(found["examples"]) == {"my mug", "cat", "dog"}
    assert set(found["negatives"]) <= {"dog"}
    assert len(found["negatives"]) < len(found["words"])


@pytest.mark.slow
def test_examples_as_a_process(clip, tmp_path):
    words = ["--examples", str(write_examples(tmp_path)), "--negatives", "dog, wolf",
             "--max-frames", "1", "--no-track", "--score-threshold", "0"]  # fmt: skip
    done = warm_processes.run(
        [sys.executable, "-m", "ovd_d2.cli.app", "video", str(clip), "--out", "out", *words],
        cwd=tmp_path, capture_output=True, text=True, timeout=400,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert found_in(tmp_path / "out") and {"my mug", "cat"} >= set(found_in(tmp_path / "out"))


BAD = {
    "every": (["{clip}", "--every", "0"], "--every"),
    "end": (["{clip}", "--start", "2", "--end", "1"], "end is 1; it must be after start"),
    "tile": (["{clip}", "--tile", "8"], "tile is 8"),
    "overlap": (["{clip}", "--overlap", "0.1"], "there is no tile"),
    "models": (["{clip}", "--model", "a", "--config-file", "b"], "exclude each other"),
    "weights": (["{clip}", "--weights", "b"], "--weights needs"),
    "model": (["{clip}", "--model", "maxi"], "no model 'maxi'"),
    "vocabulary": (["{clip}", "--vocab", "cat,cat"], "occurs twice"),
    "examples": (["{clip}", "--examples", "{clip}"], "clip.mp4"),
    "seen by": (["{clip}", "--examples", "{clip}", "--seen-by", "me"], "'me'"),
    "negatives": (["{clip}", "--vocab", "cat", "--negatives", "cat"], "cat"),
    "thresholds": (["{clip}", "--thresholds", "none.json"], "none.json"),
    "label maps": (["{clip}", "--model", "{labels}"], "videos need one that finds boxes"),
}  # fmt: skip


@pytest.mark.parametrize("case", BAD)
def test_bad_options_are_one_sentence(ovd, clip, label_map_model, tmp_path, case):
    words, said = BAD[case]
    filled = [word.format(clip=clip, labels=label_map_model) for word in words]
    code, out, err = ovd("video", *filled, "--out", tmp_path / "out")
    assert (code, out) == (2, "") and said in err and "Traceback" not in err
    assert not (tmp_path / "out").exists()


def test_bad_sources_are_one_sentence(ovd, exported, tmp_path):
    for source, said in bad_sources(tmp_path).values():
        code, out, err = ovd("video", source, "--model", exported, "--out", tmp_path / "out")
        assert (code, out) == (2, "") and err.startswith("error: ") and said in err
        assert err.count("\n") == 1 and not (tmp_path / "out").exists()


def test_a_video_that_ends_early_is_spoken_about(ovd, exported, tmp_path):
    content = write_clip(tmp_path / "a.avi", moving(30), codec="mjpeg").read_bytes()
    (tmp_path / "b.avi").write_bytes(content[: len(content) // 2])
    code, out, err = ovd(
        "video", tmp_path / "b.avi", "--model", exported, "--out", tmp_path / "out"
    )
    assert code == 0 and "note: the video should have about 30 such frames, but ends earlier" in err
    assert names(tmp_path / "out") == ["b.jsonl", "b.mp4"]


def test_predict_says_where_videos_go(ovd, clip, tmp_path):
    code, _, err = ovd("predict", clip, "--out", tmp_path / "out")
    assert code == 2 and err == f"error: {clip} is a video, not an image: give it to `ovd video`.\n"


def test_predict_in_tiles(ovd, exported, tmp_path):
    Image.fromarray(make_pixels(150, 200)).save(tmp_path / "a.png")
    words = ("predict", tmp_path / "a.png", "--model", exported, "--score-threshold", 0,
             "--json", "-", "--no-pictures")  # fmt: skip
    whole, tiles, one = (
        json.loads(ovd(*words, *more)[1])["annotations"]
        for more in ([], ["--tile", "100", "--overlap", "0.3"], ["--tile", "200"])
    )
    assert one == whole and len(tiles) > len(whole)
    code, _, err = ovd(*words, "--overlap", "0.3")
    assert code == 2 and "there is no tile" in err


@pytest.mark.slow
def test_the_packaged_model_stopped_by_ctrl_c_and_continued(ovd, tmp_path):
    clip, out = write_clip(tmp_path / "clip.mp4", moving(40)), tmp_path / "out"
    words = ["video", str(clip), "--out", str(out), "--device", "cpu", "--batch-size", "1"]
    journal = out / "clip.jsonl.parts/frames.jsonl"
    process = warm_processes.start([OVD, *words], stderr=subprocess.PIPE, text=True)
    while not journal.exists() or journal.read_bytes().count(b"\n") < 3:
        assert process.poll() is None
        time.sleep(0.01)
    process.send_signal(signal.SIGINT)
    said = process.communicate(timeout=60)[1]
    assert process.returncode == 130 and "--resume continues" in said and "Traceback" not in said
    assert names(out) == ["clip.jsonl.parts"]
    code, _, err = ovd(*words)
    assert code == 2 and "add --resume" in err
    done = journal.read_bytes().count(b"\n")
    code, printed, _ = ovd(*words, "--resume")
    assert code == 0 and f"40 frames ({done} of them by an earlier run)" in printed
    assert names(out) == ["clip.jsonl", "clip.mp4"]


class Endless(http.server.BaseHTTPRequestHandler):
    """A stream that never ends, at the speed of a camera."""

    content = b""

    def do_GET(self):
        self.send_response(200)
        self.send_header("Content-Type", "video/mp2t")
        self.end_headers()
        try:
            while True:
                for at in range(0, len(self.content), 4096):
                    self.wfile.write(self.content[at : at + 4096])
                    time.sleep(0.02)
        except OSError:
            pass

    def log_message(self, *_):
        pass


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_live_stream_ends_with_a_signal_and_whole_outputs(tmp_path, number):
    Endless.content = write_clip(tmp_path / "a.ts", moving(50, (192, 192))).read_bytes()
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Endless)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    out = tmp_path / "out"
    words = [OVD, "video", f"http://127.0.0.1:{server.server_port}/live.ts", "--out", str(out)]
    process = warm_processes.start(words, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    journal = out / "live.jsonl.parts/frames.jsonl"
    while not journal.exists() or journal.read_bytes().count(b"\n") < 5:
        assert process.poll() is None, process.communicate()
        time.sleep(0.01)
    process.send_signal(number)
    printed, said = process.communicate(timeout=60)
    server.shutdown()
    assert process.returncode == 0 and "Traceback" not in said, said
    assert names(out) == ["live.jsonl", "live.mp4"]
    rows = [json.loads(line) for line in (out / "live.jsonl").read_text().splitlines()]
    assert len(rows) >= 5 and f"{len(rows)} frames" in printed
    import av

    with av.open(str(out / "live.mp4")) as video:
        assert sum(1 for _ in video.decode(video=0)) == len(rows)
