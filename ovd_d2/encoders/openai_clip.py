"""OpenAI's CLIP (package openai-clip, module ``clip``): loading, and its text encoder.

Letters: L sentences, T tokens, D embedding width.

A model is named ("ViT-B/32", downloaded by ``clip.load``, which checks its sha256) or given as a
file: ``.safetensors``, a state dict for ``torch.load(weights_only=True)``, or OpenAI's TorchScript
archive. Of an archive only the weights are used.
"""

import logging
import socket
import warnings
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType

import torch
from torch import Tensor, nn

from ovd_d2.errors import OVDError
from ovd_d2.files.digests import file_digest

logger = logging.getLogger(__name__)

_INSTALL = "pip install 'openai-clip==1.0.1' 'setuptools<81'"
_DOWNLOAD_TIMEOUT = 30.0  # seconds without an answer
_BATCH = 256


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
        raise OVDError(
            f"'{name_or_file}' is neither a file nor an openai-clip model; "
            f"known models: {', '.join(published.values())}"
        )
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
        raise OVDError(
            f"'{name_or_file}' is neither a file nor an openai-clip model; "
            f"known models: {', '.join(clip.available_models())}"
        )
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


class OpenAIClipTextEncoder:
    """The text tower of an OpenAI CLIP model, as a ``TextEncoder``.

    Padding behind the end-of-text token is left out: attention is causal, so it cannot change the
    feature, and class names use a tenth of the 77 positions.

    Args:
        model: a ``clip.model.CLIP`` in eval mode; its image tower is not used.
        encoder_id: its id.
    """

    def __init__(self, model: nn.Module, encoder_id: str) -> None:
        self.model = model
        self.encoder_id = encoder_id
        self.dim = model.text_projection.shape[1]

    @classmethod
    def from_spec(cls, name_or_file: str, device: str = "cpu") -> "OpenAIClipTextEncoder":
        """Loads the model ``name_or_file``, see ``load_openai_clip``."""
        return cls(load_openai_clip(name_or_file, device), encoder_id(name_or_file))

    @torch.no_grad()
    def encode(self, texts: list[str]) -> Tensor:
        """Embeds L sentences: (L, D) fp32 on the CPU, rows of L2 norm 1."""
        if not texts:
            return torch.zeros(0, self.dim)
        tokens = self._tokenize(texts)
        lengths = tokens.argmax(dim=1) + 1  # the end-of-text token has the largest id
        order = lengths.argsort()  # sentences of one length together: the least padding
        device = self.model.text_projection.device
        features = torch.empty(len(texts), self.dim)
        for rows in order.split(_BATCH):
            batch = tokens[rows, : lengths[rows].max()].to(device)
            features[rows] = self._encode_tokens(batch).cpu()
        return nn.functional.normalize(features, dim=1)

    def _tokenize(self, texts: list[str]) -> Tensor:
        """(L, 77) int64 token ids."""
        clip = import_clip()
        length = self.model.context_length
        try:
            return clip.tokenize(texts, length).long()
        except RuntimeError:
            tokens = clip.tokenize(texts, length, truncate=True).long()
            logger.warning("Some texts are longer than CLIP's %d tokens and were cut.", length)
            return tokens

    def _encode_tokens(self, tokens: Tensor) -> Tensor:
        """(L, T) token ids, T <= 77 -> (L, D), not normalised; as ``CLIP.encode_text``."""
        model, length = self.model, tokens.shape[1]
        x = model.token_embedding(tokens) + model.positional_embedding[:length]
        x = x.permute(1, 0, 2)  # the blocks want (T, L, width)
        mask = model.build_attention_mask()[:length, :length].to(x)
        for block in model.transformer.resblocks:
            y = block.ln_1(x)
            x = x + block.attn(y, y, y, need_weights=False, attn_mask=mask)[0]
            x = x + block.mlp(block.ln_2(x))
        x = model.ln_final(x.permute(1, 0, 2))
        ends = tokens.argmax(dim=1)
        return x[torch.arange(len(x), device=x.device), ends] @ model.text_projection


def _published_digests() -> dict[str, str]:
    """Sha256 -> model name; the digest is the second last part of each published address."""
    urls = import_clip().clip._MODELS
    return {url.split("/")[-2]: name for name, url in urls.items()}


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
        elif _is_torchscript(path):
            content = torch.jit.load(str(path), map_location="cpu").state_dict()
        else:
            content = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # each reader has its own exceptions for damaged files
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise OVDError(
            f"cannot read CLIP weights from {path} ({reason}); give OpenAI's .pt file, "
            "a state dict saved with torch.save, or .safetensors"
        ) from error
    for key in ("state_dict", "model"):
        if isinstance(content, dict) and isinstance(content.get(key), dict):
            content = content[key]
    if not isinstance(content, dict):
        raise OVDError(f"{path} holds a {type(content).__name__}, not a state dict of CLIP weights")
    return {str(key).removeprefix("module."): value for key, value in content.items()}


def _is_torchscript(path: Path) -> bool:
    if not zipfile.is_zipfile(path):
        return False
    with zipfile.ZipFile(path) as archive:
        return any(name.endswith("/constants.pkl") for name in archive.namelist())


def _model_from_weights(clip: ModuleType, weights: dict[str, Tensor], source: str) -> nn.Module:
    """A CLIP with exactly these weights; ``clip`` itself would round them to fp16."""
    for key in ("input_resolution", "context_length", "vocab_size"):  # only in OpenAI's archives
        weights.pop(key, None)
    try:
        model = clip.model.build_model(dict(weights)).float()
        model.load_state_dict(weights)
    except (KeyError, RuntimeError, AttributeError, AssertionError, ZeroDivisionError) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise OVDError(
            f"{source} does not hold the weights of an OpenAI CLIP model ({reason}); "
            "give a ViT or ResNet CLIP with both towers"
        ) from error
    if model.vocab_size != len(clip.clip._tokenizer.encoder):
        raise OVDError(
            f"{source} has {model.vocab_size} tokens, OpenAI's tokenizer "
            f"{len(clip.clip._tokenizer.encoder)}; give a CLIP trained with that tokenizer"
        )
    return model
