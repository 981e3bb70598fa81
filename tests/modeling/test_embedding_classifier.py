from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from ovd_d2.errors import OVDError
from ovd_d2.modeling.classifiers import EmbeddingClassifier

GOLDEN = Path(__file__).parents[1] / "golden" / "rkd" / "classifier.npz"


def golden_classifier(data, bias: bool) -> EmbeddingClassifier:
    classifier = EmbeddingClassifier(
        64, 32, logit_scale=50.0, background="zero", bias_init=-4.6 if bias else None
    )
    with torch.no_grad():
        classifier.projection.weight.copy_(torch.from_numpy(data["param.linear.weight"]))
        classifier.projection.bias.copy_(torch.from_numpy(data["param.linear.bias"]))
    classifier.set_class_embeddings(torch.from_numpy(data["zs_text_embeddings"]))
    return classifier


@pytest.mark.parametrize("bias", [True, False])
def test_logits_match_public_code(bias):
    data = np.load(GOLDEN)
    logits = golden_classifier(data, bias)(torch.from_numpy(data["x"]))
    expected = torch.from_numpy(data["logits" if bias else "logits_nobias"])
    torch.testing.assert_close(logits, expected, rtol=1e-5, atol=1e-5 * expected.abs().max())


def test_gradients_match_public_code():
    data = np.load(GOLDEN)
    classifier = golden_classifier(data, bias=True)
    x = torch.from_numpy(data["x"]).requires_grad_()
    (classifier(x) * torch.from_numpy(data["upstream"])).sum().backward()
    for name, gradient in (
        ("grad_x", x.grad),
        ("grad.linear.weight", classifier.projection.weight.grad),
        ("grad.linear.bias", classifier.projection.bias.grad),
        ("grad.cls_bias", classifier.bias.grad),
    ):
        expected = torch.from_numpy(data[name])
        atol = 1e-5 * float(expected.abs().max())
        torch.testing.assert_close(gradient, expected, rtol=1e-5, atol=atol, msg=name)


def test_swapped_vocabulary_matches_public_code():
    data = np.load(GOLDEN)
    classifier = golden_classifier(data, bias=True)
    before = {k: v.clone() for k, v in classifier.state_dict().items()}
    classifier.set_class_embeddings(torch.from_numpy(data["alt_text_embeddings"]))
    logits = classifier(torch.from_numpy(data["x"]))
    expected = torch.from_numpy(data["logits_alt"])
    torch.testing.assert_close(logits[:, :-1], expected, rtol=1e-5, atol=3e-4)
    after = classifier.state_dict()
    assert before.keys() == after.keys()
    assert all(torch.equal(before[k], after[k]) for k in before)


def test_learned_background_is_a_unit_vector_among_the_classes():
    """ViLD: z(r) = [cos(e_r, t_1..K), cos(e_r, e_bg)] / 0.01."""
    torch.manual_seed(0)
    classifier = EmbeddingClassifier(8, 4, logit_scale=100.0)
    embeddings = torch.randn(3, 4) * 7
    classifier.set_class_embeddings(embeddings)
    x = torch.randn(5, 8)
    e = classifier.projection(x)
    for region in range(5):
        for column in range(4):
            other = classifier.background if column == 3 else embeddings[column]
            cosine = F.cosine_similarity(e[region], other, dim=0)
            torch.testing.assert_close(
                classifier(x)[region, column], 100 * cosine, rtol=1e-4, atol=1e-4
            )


@pytest.mark.parametrize(
    "embeddings, message",
    [
        (torch.ones(3, 5), "EMBED_DIM"),
        (torch.ones(4), "EMBED_DIM"),
        (torch.tensor([[1.0, float("nan"), 0, 0]]), "nan"),
    ],
)
def test_bad_embeddings_are_refused_and_change_nothing(embeddings, message):
    classifier = EmbeddingClassifier(8, 4)
    classifier.set_class_embeddings(torch.eye(4), "minilm@1")
    with pytest.raises(OVDError, match=message):
        classifier.set_class_embeddings(embeddings, "minilm@1")
    assert torch.equal(classifier.class_embeddings, torch.eye(4))


def test_another_encoder_is_refused_by_name():
    classifier = EmbeddingClassifier(8, 4)
    classifier.set_class_embeddings(torch.eye(4), "minilm@1")
    with pytest.raises(OVDError, match="clip@2.*minilm@1"):
        classifier.set_class_embeddings(torch.eye(4), "clip@2")
    classifier.set_class_embeddings(torch.eye(4), "file:abc")  # tells nothing: accepted
    assert classifier.encoder_id == "minilm@1"


def test_checkpoint_of_another_encoder_is_refused_by_name():
    trained, configured = EmbeddingClassifier(8, 4), EmbeddingClassifier(8, 4)
    trained.set_class_embeddings(torch.eye(4), "clip@2")
    configured.set_class_embeddings(torch.eye(4), "minilm@1")
    with pytest.raises(OVDError, match="clip@2.*minilm@1"):
        configured.load_state_dict(trained.state_dict())


def test_checkpoint_does_not_replace_the_vocabulary():
    trained, configured = EmbeddingClassifier(8, 4), EmbeddingClassifier(8, 4)
    trained.set_class_embeddings(torch.eye(4)[:2], "minilm@1")
    configured.set_class_embeddings(torch.eye(4), "minilm@1")
    configured.load_state_dict(trained.state_dict())
    assert torch.equal(configured.projection.weight, trained.projection.weight)
    assert torch.equal(configured.class_embeddings, torch.eye(4))


def test_checkpoint_without_encoder_id_loads():
    classifier = EmbeddingClassifier(8, 4)
    classifier.set_class_embeddings(torch.eye(4), "minilm@1")
    state = {k: v for k, v in classifier.state_dict().items() if k != "encoder_id_bytes"}
    classifier.load_state_dict(state)
    assert classifier.encoder_id == "minilm@1"


def test_unknown_background_is_refused():
    with pytest.raises(OVDError, match="MODEL.OPEN_VOCAB.BACKGROUND"):
        EmbeddingClassifier(8, 4, background="none")


def test_logits_stay_fp32_under_autocast():
    classifier = EmbeddingClassifier(8, 4)
    classifier.set_class_embeddings(torch.eye(4))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        logits = classifier(torch.randn(2, 8))
    assert logits.dtype == torch.float32
