"""Checkpoints that survive being killed, and that run no code when they are opened."""

import glob
import logging
import os
import pickle
import re
import zipfile
from typing import Any

import torch
from detectron2.checkpoint import DetectionCheckpointer
from detectron2.checkpoint.c2_model_loading import align_and_update_state_dicts
from detectron2.utils import comm
from fvcore.common.checkpoint import _IncompatibleKeys, _strip_prefix_if_present
from torch import nn

from ovd_d2.checkpoint import check_trusted, load_weights, read_weights_file, state_dict_in
from ovd_d2.errors import OVDError
from ovd_d2.files.atomic import PARTIAL_SUFFIX, atomic_write

logger = logging.getLogger(__name__)

# What opening a broken pickle, or loading the state of another run's parts, may raise.
_BROKEN = (ValueError, LookupError, TypeError, AttributeError, RuntimeError, EOFError,
           ImportError, pickle.PickleError)  # fmt: skip
_PERIODIC = re.compile(r"model_(\d{7})\.pth")


def find_damage(path: str) -> str | None:
    """Reads a checkpoint of ours whole and compares it with the checksums stored inside it.

    Args:
        path: a file written by ``torch.save`` (a zip archive with a CRC-32 for every tensor).

    Returns:
        None for an intact file, else what is wrong with it.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            broken = archive.testzip()
    except (OSError, zipfile.BadZipFile, EOFError, NotImplementedError) as error:
        return f"{type(error).__name__}: {error}"
    return f"the checksum of its part {broken} is wrong" if broken else None


class AtomicCheckpointer(DetectionCheckpointer):
    """Detectron2's checkpointer with atomic saves, verified resuming and no code on loading.

    * ``save`` replaces a file only by a complete, flushed one.
    * resuming takes the newest checkpoint that verifies, and names in the log those that do not.
    * weights must be of the model, see :mod:`ovd_d2.checkpoint.fit`; how many of its tensors were
      found is logged.
    * ``.pth`` is read with ``weights_only=True``, ``.safetensors`` is read, ``.pkl`` is refused
      unless trusted (:func:`check_trusted`).
    """

    def __init__(
        self,
        model: nn.Module,
        save_dir: str = "",
        *,
        whole: bool = False,
        **kwargs: Any,
    ) -> None:
        """
        Args:
            model: what to save and to load.
            save_dir: folder of the checkpoints.
            whole: weights must be complete (to evaluate or predict), not just a place to start
                training from. Resuming always asks for that.
            kwargs: ``save_to_disk`` and further parts with a state dict, see Detectron2's.
        """
        super().__init__(model, save_dir, **kwargs)
        self.whole = whole
        self._resuming = False
        self._path = ""

    def save(self, name: str, **kwargs: Any) -> None:
        """Writes ``name``.pth and tags it as the last checkpoint.

        Args:
            name: file name without ending.
            kwargs: further entries: tensors, numbers, strings and containers of them.

        Raises:
            OVDError: the file cannot be written; an older file of that name is unharmed.
        """
        if not self.save_dir or not self.save_to_disk:
            return
        data = {"model": self.model.state_dict()}
        data.update({key: part.state_dict() for key, part in self.checkpointables.items()})
        data.update(kwargs)
        path = os.path.join(self.save_dir, f"{name}.pth")
        logger.info("Saving checkpoint to %s", path)
        try:
            with atomic_write(path) as file:
                torch.save(data, file)
            self.tag_last_checkpoint(f"{name}.pth")
        except (OSError, RuntimeError) as error:
            raise OVDError(
                f"Cannot write the checkpoint {path} ({error}): make room or repair OUTPUT_DIR, "
                "then go on with --resume."
            ) from error

    def tag_last_checkpoint(self, last_filename_basename: str) -> None:
        """Names the checkpoint that resuming tries first."""
        with atomic_write(os.path.join(self.save_dir, "last_checkpoint")) as file:
            file.write(last_filename_basename.encode())

    def candidates(self) -> list[str]:
        """Checkpoints to resume from, best first: the tagged one, then the others by age."""
        files = glob.glob(os.path.join(glob.escape(self.save_dir), "model_*.pth"))
        files.sort(key=lambda path: (os.stat(path).st_mtime_ns, path), reverse=True)
        tagged = os.path.basename(self.get_checkpoint_file())
        files.sort(key=lambda path: os.path.basename(path) != tagged)
        return files

    def has_checkpoint(self) -> bool:
        """Whether there is anything to resume from, damaged or not."""
        return bool(self.save_dir and self.candidates())

    def newest_intact(self) -> str:
        """The first of :meth:`candidates` that verifies.

        Raises:
            OVDError: none does.
        """
        damaged = []
        for path in self.candidates():
            damage = find_damage(path)
            if damage is None:
                if damaged:
                    logger.warning("Falling back to the checkpoint %s.", path)
                return path
            logger.warning("The checkpoint %s is damaged (%s).", path, damage)
            damaged.append(path)
        raise OVDError(
            f"No checkpoint in {self.save_dir} is intact ({', '.join(damaged)}): start again "
            "without --resume or with another OUTPUT_DIR."
        )

    def resume_or_load(self, path: str, *, resume: bool = True) -> dict[str, Any]:
        """Goes on from the newest intact checkpoint of ``save_dir``, or loads weights alone.

        Args:
            path: weights (``MODEL.WEIGHTS``) for when there is nothing to resume from.
            resume: whether to look for checkpoints at all.

        Returns:
            what the file holds beyond model and checkpointables.
        """
        if resume and self.has_checkpoint():
            if comm.is_main_process():
                self._remove_partial_files()
            self._resuming = True
            try:
                return self.load(self.newest_intact())
            finally:
                self._resuming = False
        if resume:
            logger.warning(
                "--resume: OUTPUT_DIR %s holds no checkpoint, so everything starts at the "
                "beginning, from %s.",
                self.save_dir, f"the weights {path}" if path else "random weights",
            )  # fmt: skip
        return self.load(path, checkpointables=[])

    def _remove_partial_files(self) -> None:
        pattern = os.path.join(glob.escape(self.save_dir), f".model_*{PARTIAL_SUFFIX}")
        for path in glob.glob(pattern):
            os.unlink(path)

    def prune(self, keep: int) -> None:
        """Deletes all but the ``keep`` newest of the periodic checkpoints; 0 keeps all."""
        if not (keep and self.save_dir and self.save_to_disk):
            return
        periodic = [
            path
            for path in glob.glob(os.path.join(glob.escape(self.save_dir), "model_*.pth"))
            if _PERIODIC.fullmatch(os.path.basename(path))
        ]
        periodic.sort(key=lambda path: (os.stat(path).st_mtime_ns, path))
        for path in periodic[:-keep]:
            os.unlink(path)

    def load(self, path: str, *args: Any, **kwargs: Any) -> dict[str, Any]:
        """Loads a checkpoint or plain weights.

        Raises:
            OVDError: missing or unreadable file, a pickle that is not trusted, or weights of
                another network; none at all where they must be whole.
        """
        if not path and self.whole:
            raise OVDError("MODEL.WEIGHTS is empty: name the checkpoint to evaluate.")
        check_trusted(path or "")
        self._path = path
        try:
            return super().load(path, *args, **kwargs)
        except OVDError:
            raise
        except (OSError, AssertionError) as error:
            raise OVDError(
                f"Cannot read the weights {path} ({error}): check MODEL.WEIGHTS."
            ) from error
        except _BROKEN as error:
            text = " ".join(f"{type(error).__name__}: {error}".split())
            raise OVDError(
                f"Cannot load {path} ({text}): it is of another network or run."
            ) from error
        finally:
            self._parsed_url_during_load = None

    def _load_file(self, filename: str) -> dict[str, Any]:
        check_trusted(filename)
        if filename.endswith(".pyth"):  # pycls: Detectron2 would call torch.load by its defaults
            weights = self._torch_load(filename).get("model_state", {})
            weights = {k: v for k, v in weights.items() if not k.endswith("num_batches_tracked")}
            loaded = {"model": weights, "__author__": "pycls", "matching_heuristics": True}
        else:
            loaded = super()._load_file(filename)
        return {**loaded, "model": state_dict_in(loaded, filename)}

    def _torch_load(self, f: str) -> dict[str, Any]:
        content = read_weights_file(f)
        if not isinstance(content, dict):
            state_dict_in(content, f)  # says what is wrong
        return content

    def _load_model(self, checkpoint: dict[str, Any]) -> _IncompatibleKeys:
        state = checkpoint.pop("model")
        if checkpoint.get("matching_heuristics", False):
            state = align_and_update_state_dicts(
                self.model.state_dict(), state, checkpoint.get("__author__") == "Caffe2"
            )
        _strip_prefix_if_present(state, "module.")  # saved from a wrapped model
        fit = load_weights(self.model, state, self._path)
        if self._resuming:
            fit.check_whole("resume with the config of that run, or choose another OUTPUT_DIR")
            absent = [key for key in self.checkpointables if key not in checkpoint]
            if absent:
                raise OVDError(
                    f"{self._path} holds weights alone, there is no run to resume: leave out "
                    "--resume and set MODEL.WEIGHTS to it."
                )
        elif self.whole:
            fit.check_whole()
        else:
            fit.check_start()
        logger.info("%s.", fit.summary())
        unused = [] if self.whole else list(fit.unused)
        return _IncompatibleKeys(list(fit.missing), unused, list(fit.wrong))
