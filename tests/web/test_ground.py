"""The tab and the endpoint for captions, of a random DetCLIP beside a model that reads none."""

from pathlib import Path

import pytest
import torch
from small_uploads import LIMITS, png
from test_page_calls import call, uploaded

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def client(served, tmp_path_factory):
    from detectron2.modeling import build_model
    from fastapi.testclient import TestClient

    from ovd_d2.config_file import load_config
    from ovd_d2.inference.predictor import OpenVocabPredictor
    from ovd_d2.web.served_model import ServedModel
    from ovd_d2.web.server import build_app, check_packages

    folder = tmp_path_factory.mktemp("detclip")
    cfg = load_config(
        str(ROOT / "configs/mini/detclip_boxes.yaml"),
        ["MODEL.TIMM.WEIGHTS", "", "MODEL.DEVICE", "cpu", "MODEL.DETCLIP.SCORE_THRESH_TEST", "0.0",
         "MODEL.OPEN_VOCAB.VOCABULARY", "cat, chair"],
    )  # fmt: skip
    torch.save({"model": build_model(cfg).state_dict()}, folder / "model_final.pth")
    predictor = OpenVocabPredictor(
        cfg, folder / "model_final.pth", device="cpu", score_threshold=0.0, input_format="RGB"
    )
    models = {"random": served["random"], "reader": ServedModel("reader", predictor, LIMITS)}
    check_packages()
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("GRADIO_TEMP_DIR", str(folder))
        with TestClient(build_app(models, LIMITS, folder)) as made:
            made.models, made.folder = models, folder
            yield made


def test_endpoint(client):
    ask = {"caption": "a cat on a red chair", "threshold": 0, "model": "reader", "topk": 50}
    found = client.post("/v1/ground", files={"file": png()}, data=ask).json()
    assert set(found["names"]) == {"cat", "red chair"} and len(found["boxes"]) == 50
    assert found["scores"] == sorted(found["scores"], reverse=True)
    ask["caption"] = "and"
    answer = client.post("/v1/ground", files={"file": png()}, data=ask)
    assert answer.status_code == 422 and "no noun phrase" in answer.json()["error"]


def test_tab(client):
    ok, output = call(client, uploaded(client, png()), "a cat on a red chair", 0.0)
    assert ok, output
    assert "red chair" in output["data"][1]
    coco = client.get("/gradio_api/file=" + output["data"][2]["value"]["path"]).json()
    assert coco["info"]["caption"] == "a cat on a red chair" and coco["info"]["model"] == "reader"


@pytest.mark.parametrize("names, offered", [(["reader"], False), (["reader", "random"], True)])
def test_names_alone_are_offered_where_names_compete(client, names, offered):
    """DetCLIP scores name by name."""
    from fastapi.testclient import TestClient

    from ovd_d2.web.server import build_app

    app = build_app({name: client.models[name] for name in names}, LIMITS, client.folder)
    parts = TestClient(app).get("/config").json()["components"]
    (box,) = (part["props"] for part in parts if part["props"].get("elem_id") == "alone")
    assert box["visible"] is offered
