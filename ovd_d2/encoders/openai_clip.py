"""OpenAI's CLIP (package openai-clip, module ``clip``): loading, and both sides.

Letters: N images, L sentences, T tokens, F feature width, D embedding width.

A model is named ("ViT-B/32", downloaded by ``clip.load``, which checks its sha256) or given as a
file: ``.safetensors``, a state dict for ``torch.load(weights_only=True)``, or OpenAI's TorchScript
archive. Of an archive only the weights are read; its code is not.
"""

import functools
import socket
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType

import torch
from torch import Tensor, nn

from ovd_d2.encoders.image_text_model import ImagePreprocessing, ImageTextModel, logit_facts
from ovd_d2.encoders.registry import EncoderScheme
from ovd_d2.encoders.text_encoder import BatchedTextEncoder
from ovd_d2.errors import OVDError, reason
from ovd_d2.files.digests import file_digest
from ovd_d2.files.torchscript import is_torchscript, read_torchscript_tensors
from ovd_d2.layers.recompute import recomputed

_INSTALL = "pip install 'openai-clip==1.0.1' 'setuptools<81'"
_DOWNLOAD_TIMEOUT = 30.0  # seconds without an answer


def encoder_id(name_or_file: str) -> str:
    """The id of a model, named or in a file, without loading it.

    Files whose sha256 is one that OpenAI published get the model's name; other weights are
    "openai-clip@DIGEST".

    Raises:
        OVDError: neither a known model nor a file, or package ``clip`` is missing.
    """
    published = _published_digests()
    path = Path(name_or_file)
    if name_or_file in published.values():
        digest = next(key for key, name in published.items() if name == name_or_file)
    elif path.is_file():
        digest = file_digest(path)
    else:
        raise _unknown(name_or_file)
    name = f":{published[digest]}" if digest in published else ""
    return f"openai-clip{name}@{digest[:12]}"


def load_openai_clip(name_or_file: str, device: str = "cpu") -> nn.Module:
    """A ``clip.model.CLIP`` in fp32, in eval mode, without gradients, on ``device``.

    Raises:
        OVDError: unknown name, no network for a named model, or a file that holds no CLIP.
    """
    clip = import_clip()
    if name_or_file in clip.available_models():
        model = _download(clip, name_or_file)
    elif Path(name_or_file).is_file():
        model = _model_from_weights(clip, _read_weights(Path(name_or_file)), name_or_file)
    else:
        raise _unknown(name_or_file)
    return model.float().eval().requires_grad_(False).to(device)


def import_clip() -> ModuleType:
    """Module ``clip`` of the package openai-clip.

    Raises:
        OVDError: it is not installed, or another package's ``clip`` is.
    """
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="pkg_resources is deprecated")
            import clip
    except ImportError as error:
        raise OVDError(f"openai-clip cannot be imported ({error}); run: {_INSTALL}") from error
    if not hasattr(clip, "tokenize"):
        raise OVDError(
            f"the installed package 'clip' is not OpenAI's; run: pip uninstall clip && {_INSTALL}"
        )
    return clip


class OpenAIClipTextEncoder(BatchedTextEncoder):
    """The text tower of an OpenAI CLIP model, as a ``TextEncoder``.

    Padding behind the end-of-text token is left out: attention is causal, so it cannot change the
    feature, and class names use a tenth of the 77 positions.

    Args:
        model: a ``clip.model.CLIP``, or a module with the parts of its text side; its image tower
            is not used. Without a ``text_projection`` (None) features have the transformer's width.
        encoder_id: its id.
        checkpoint: activations inside blocks are computed again in the backward pass.
    """

    def __init__(self, model: nn.Module, encoder_id: str, checkpoint: bool = False) -> None:
        self.model = model
        self.checkpoint = checkpoint
        self.encoder_id = encoder_id
        of_dim = model.ln_final.weight if model.text_projection is None else model.text_projection
        self.dim = of_dim.shape[-1]
        self.max_tokens = model.context_length

    def token_counts(self, texts: list[str]) -> Tensor:
        """(L,) int64, with start and end of text."""
        encode = import_clip().clip._tokenizer.encode
        return torch.tensor([len(encode(text)) + 2 for text in texts])

    def features(self, texts: list[str]) -> Tensor:
        """See ``BatchedTextEncoder``."""
        tokens = import_clip().tokenize(texts, self.max_tokens, truncate=True).long()
        ends = tokens.argmax(dim=1)  # the end-of-text token has the largest id
        longest = max(ends.tolist(), default=0) + 1
        return self._encode_tokens(tokens[:, :longest].to(self.model.positional_embedding.device))

    def _encode_tokens(self, tokens: Tensor) -> Tensor:
        """(L, T) token ids, T <= 77 -> (L, D), not normalised; as ``CLIP.encode_text``."""
        model, length = self.model, tokens.shape[1]
        x = model.token_embedding(tokens) + model.positional_embedding[:length]
        x = x.permute(1, 0, 2)  # the blocks want (T, L, width)
        mask = model.build_attention_mask()[:length, :length].to(x)
        for block in model.transformer.resblocks:
            call = functools.partial(_block, block, mask=mask)
            x = recomputed(call, x, of=block) if self.checkpoint else call(x)
        x = model.ln_final(x.permute(1, 0, 2))
        ends = tokens.argmax(dim=1)
        x = x[torch.arange(len(x), device=x.device), ends]
        return x if model.text_projection is None else x @ model.text_projection


def _block(block: nn.Module, x: Tensor, mask: Tensor) -> Tensor:
    """A ``ResidualAttentionBlock`` of CLIP on (T, L, width), with a (T, T) mask of its own."""
    y = block.ln_1(x)
    x = x + block.attn(y, y, y, need_weights=False, attn_mask=mask)[0]
    return x + block.mlp(block.ln_2(x))


def vit_features(visual: nn.Module, images: Tensor) -> Tensor:
    """(N, F) of CLIP's ``VisionTransformer``: the class token before the projection."""
    projection, visual.proj = visual.proj, None
    try:
        return visual(images)
    finally:
        visual.proj = projection


def resnet_features(visual: nn.Module, images: Tensor) -> Tensor:
    """(N, F) of CLIP's ``ModifiedResNet``: the mean over the map that is pooled by attention."""
    pool, visual.attnpool = visual.attnpool, nn.Identity()
    try:
        return visual(images).mean(dim=(2, 3))
    finally:
        visual.attnpool = pool


def _build_text(name_or_file: str, device: str) -> OpenAIClipTextEncoder:
    return OpenAIClipTextEncoder(load_openai_clip(name_or_file, device), encoder_id(name_or_file))


def _build_image_text(name_or_file: str, device: str) -> ImageTextModel:
    encoder = _build_text(name_or_file, device)
    model, visual = encoder.model, encoder.model.visual
    before_projection = vit_features if hasattr(visual, "proj") else resnet_features
    return ImageTextModel(
        encoder, model.encode_image, ImagePreprocessing(visual.input_resolution), device,
        backbone_features=lambda pixels: before_projection(visual, pixels), **logit_facts(model),
    )  # fmt: skip


def _published_digests() -> dict[str, str]:
    """Sha256 -> model name; the digest is the second last part of each published address."""
    urls = import_clip().clip._MODELS
    return {url.split("/")[-2]: name for name, url in urls.items()}


def _unknown(name_or_file: str) -> OVDError:
    return OVDError(
        f"'{name_or_file}' is neither a file nor an openai-clip model; "
        f"known models: {', '.join(_published_digests().values())}"
    )


def _download(clip: ModuleType, name: str) -> nn.Module:
    try:
        with _socket_timeout(_DOWNLOAD_TIMEOUT):
            model, _ = clip.load(name, device="cpu")
    except (OSError, RuntimeError) as error:  # no network; checksum of the download
        raise OVDError(
            f"openai-clip model '{name}' could not be downloaded ({error}); fetch its file where "
            "there is a network and name it instead: openai-clip:/path/to/file.pt"
        ) from error
    return model


@contextmanager
def _socket_timeout(seconds: float) -> Iterator[None]:
    before = socket.getdefaulttimeout()
    socket.setdefaulttimeout(seconds)
    try:
        yield
    finally:
        socket.setdefaulttimeout(before)


def _read_weights(path: Path) -> dict[str, Tensor]:
    """The state dict in ``path``; see the top of this file for the formats."""
    try:
        if path.suffix == ".safetensors":
            from safetensors.torch import load_file

            content = load_file(path)
        elif is_torchscript(path):
            content = read_torchscript_tensors(path)
        else:
            content = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # each reader has its own exceptions for damaged files
        raise OVDError(
            f"cannot read CLIP weights from {path} ({reason(error)}); give OpenAI's .pt file, "
            "a state dict saved with torch.save, or .safetensors"
        ) from error
    for key in ("state_dict", "model"):
        if isinstance(content, dict) and isinstance(content.get(key), dict):
            content = content[key]
    if not isinstance(content, dict):
        raise OVDError(f"{path} holds a {type(content).__name__}, not a state dict of CLIP weights")
    return {str(key).removeprefix("module."): value for key, value in content.items()}


def _model_from_weights(clip: ModuleType, weights: dict[str, Tensor], source: str) -> nn.Module:
    """A CLIP with exactly these weights; ``clip`` itself would round them to fp16."""
    for key in ("input_resolution", "context_length", "vocab_size"):  # only in OpenAI's archives
        weights.pop(key, None)
    masks = [key for key in weights if key.rpartition(".")[2] == "attn_mask"]  # made anew
    for key in masks:
        del weights[key]
    try:
        model = clip.model.build_model(dict(weights)).float()
        model.load_state_dict(weights)
    except (KeyError, RuntimeError, AttributeError, AssertionError, ZeroDivisionError) as error:
        raise OVDError(
            f"{source} does not hold the weights of an OpenAI CLIP model ({reason(error)}); "
            "give a ViT or ResNet CLIP with both towers"
        ) from error
    if model.vocab_size != len(clip.clip._tokenizer.encoder):
        raise OVDError(
            f"{source} has {model.vocab_size} tokens, OpenAI's tokenizer "
            f"{len(clip.clip._tokenizer.encoder)}; give a CLIP trained with that tokenizer"
        )
    return model


SCHEME = EncoderScheme(encoder_id, _build_text, _build_image_text)
