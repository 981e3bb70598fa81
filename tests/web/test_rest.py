import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from PIL import Image
from small_uploads import LIMITS, encoded, png

from ovd_d2.web.limits import BusyError


def predict(client, content=None, **fields):
    return client.post("/v1/predict", files={"file": content or png()}, data=fields)


def test_health_and_models(client):
    assert client.get("/healthz").json()["status"] == "ok"
    first, second = client.get("/v1/models").json()["models"]
    assert (first["name"], second["name"]) == ("random", "random_2")
    assert first["topk"] == 20 and first["classes"] == 3 and first["reads_captions"] is False


def test_predict(client, served):
    found = predict(client, names="dog, red mug", threshold=0.05, topk=4).json()
    rows = served["random"].detect(png(), "dog, red mug", 0.05, 4).rows()
    assert len(rows) == 4 and found["model"] == "random"
    assert (found["width"], found["height"]) == (120, 96)
    assert found["names"] == [row[1] for row in rows]
    np.testing.assert_allclose(found["scores"], [row[2] for row in rows])
    np.testing.assert_allclose(found["boxes"], [row[3] for row in rows])
    other = predict(client, names="dog, red mug", threshold=0.05, topk=4, model="random_2").json()
    assert other == {**found, "model": "random_2"}


def test_names_compete_or_are_alone(client, served):
    found = {
        alone: predict(client, names="dog", threshold=0, topk=1, alone=alone).json()["scores"][0]
        for alone in ("true", "false")
    }
    assert found["true"] > found["false"] + 0.01
    assert found["true"] == served["random"].detect(png(), "dog", 0.0, alone=True).rows()[0][2]
    assert found["false"] == served["random"].detect(png(), "dog", 0.0).rows()[0][2]


def test_without_names_it_looks_for_what_it_was_trained_on(client):
    assert set(predict(client, threshold=0).json()["names"]) <= {"cat", "red mug", "traffic light"}


BIG = encoded(np.zeros((1000, 1001, 3), np.uint8))


@pytest.mark.parametrize(
    ("content", "fields", "status", "sentence"),
    [
        (b"text", {}, 415, "Cannot use the image upload"),
        (png()[:300], {}, 415, "Cannot use the image upload"),
        (BIG, {}, 413, "1001 x 1000 pixels, more than 1000000"),
        (b"x" * (LIMITS.bytes + (1 << 18)), {}, 413, "send a smaller file"),
        (b"x" * (LIMITS.bytes + 1), {}, 413, "more than 1048576 bytes"),
        (None, {"names": "a" * 41}, 413, "use at most 40"),
        (None, {"names": ",".join(map(str, range(21)))}, 413, "21 names: give at most 20"),
        (None, {"names": "a\x01"}, 422, "control characters"),
        (None, {"threshold": "nan"}, 422, "The field threshold cannot be used"),
        (None, {"threshold": "2"}, 422, "The field threshold cannot be used"),
        (None, {"topk": "0"}, 422, "The field topk cannot be used"),
        (None, {"model": "x"}, 404, "There is no model 'x': use random, random_2"),
    ],
)
def test_bad_input_is_one_sentence(client, content, fields, status, sentence):
    answer = predict(client, content, **fields)
    assert answer.status_code == status, answer.text
    assert set(answer.json()) == {"error"}
    assert sentence in answer.json()["error"] and "\n" not in answer.json()["error"]


def test_a_form_is_wanted(client):
    answer = client.post("/v1/predict", json={"file": "x"})
    assert answer.status_code == 415 and "multipart/form-data" in answer.json()["error"]
    answer = client.post("/v1/predict", files={"other": b"x"})
    assert answer.status_code == 422 and "field file" in answer.json()["error"]


def test_ground_of_a_model_that_reads_no_captions(client):
    answer = client.post("/v1/ground", files={"file": png()}, data={"caption": "a cat"})
    assert answer.status_code == 422 and "reads no captions" in answer.json()["error"]


def test_busy(client, served, monkeypatch):
    def busy(*_, **__):
        raise BusyError("Too many.")

    monkeypatch.setattr(served["random"], "detect", busy)
    answer = predict(client)
    assert (answer.status_code, answer.json()) == (503, {"error": "Too many."})
    assert answer.headers["retry-after"] == "2"


def test_a_long_body_without_its_length(client):
    def body():
        yield b'--x\r\ncontent-disposition: form-data; name="file"; filename="a.png"\r\n\r\n'
        for _ in range(40):
            yield b"0" * (1 << 16)

    headers = {"content-type": "multipart/form-data; boundary=x"}
    answer = client.post("/v1/predict", content=body(), headers=headers)
    assert answer.status_code == 413, answer.text


def test_documented(client):
    paths = client.get("/openapi.json").json()["paths"]
    assert set(paths) == {"/healthz", "/v1/models", "/v1/predict", "/v1/ground"}
    assert client.get("/docs").status_code == 404  # that page would come from elsewhere


@pytest.mark.parametrize("path", ["/healthz", "/v1/models", "/v1/predict", "/v1/ground"])
def test_whatever_the_schema_allows_is_answered(client, path):
    schemathesis = pytest.importorskip("schemathesis")
    schema = schemathesis.openapi.from_dict(client.get("/openapi.json").json())
    (operation,) = schema[path].values()
    seen = set()

    @settings(max_examples=40, suppress_health_check=list(HealthCheck), deadline=None)
    @given(case=operation.as_strategy())
    def check(case):
        sent = case.as_transport_kwargs(base_url="http://testserver")
        sent.pop("cookies", None)
        answer = client.request(**sent)
        assert answer.status_code < 500, answer.text
        assert answer.json()
        seen.add(answer.status_code)

    check()
    assert seen and (path.startswith("/v1/") or seen == {200})


def test_exif_turns_the_frame(client, tmp_path):
    image = Image.new("RGB", (120, 96))
    exif = image.getexif()
    exif[274] = 6
    image.save(tmp_path / "a.jpg", exif=exif)
    found = predict(client, (tmp_path / "a.jpg").read_bytes()).json()
    assert (found["width"], found["height"]) == (96, 120)
