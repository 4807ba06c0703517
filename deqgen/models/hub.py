"""Models as folders: on disk, and on the Hugging Face Hub.

A folder holds ``model.safetensors``, ``config.json`` and a model card, ``README.md``. The first two
are those of :mod:`deqgen.models.files` under the Hub's names; nothing in them can run code.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar, cast

import torch
from huggingface_hub import ModelCard, PyTorchModelHubMixin, constants, snapshot_download
from huggingface_hub.errors import (
    HfHubHTTPError,
    LocalEntryNotFoundError,
    OfflineModeIsEnabled,
)

from deqgen.atomic import write_text
from deqgen.models.errors import ModelFileError

if TYPE_CHECKING:
    from deqgen.models.protocol import GenerativeModel

T = TypeVar("T", bound="Pretrained")

# files.py and card.py need the base class of all models, which is built on this file; so they are
# imported where they are used.


class Pretrained(PyTorchModelHubMixin):
    """``save_pretrained``, ``from_pretrained`` and ``push_to_hub`` of every model.

    The mixin keeps the arguments of ``__init__``, casts half precision to float32 and forgives
    missing weights. Here the folder is what :func:`deqgen.models.load_model` checks and reads.
    """

    def save_pretrained(
        self,
        save_directory: str | Path,
        *,
        config: Any = None,
        repo_id: str | None = None,
        push_to_hub: bool = False,
        model_card_kwargs: dict[str, Any] | None = None,
        **push_to_hub_kwargs: Any,
    ) -> str | None:
        """Write weights, config and model card to a folder.

        Each file appears whole or not at all. A card that is there already is left as it is.

        Args:
            save_directory: made if need be.
            config: not to be given: a model is saved with its own config.
            repo_id: name on the Hub; default: that of the folder. For ``push_to_hub`` only.
            push_to_hub: upload as well.
            model_card_kwargs: arguments of :meth:`generate_model_card`.
            push_to_hub_kwargs: arguments of ``push_to_hub``.

        Returns:
            The address of the commit if it was uploaded, else None.

        Raises:
            UnsavableError: (a TypeError) the config holds what JSON cannot, such as a callback;
                nothing has been written then.
            TypeError: ``config`` is given.
        """
        from deqgen.models.files import HUB_CONFIG, HUB_WEIGHTS, write_model

        if config is not None:
            raise TypeError("save_pretrained takes no config: a model is saved with its own.")
        folder = Path(save_directory)
        card = self.generate_model_card(**(model_card_kwargs or {}))
        model = cast("GenerativeModel", self)
        write_model(model, folder / HUB_WEIGHTS, folder / HUB_CONFIG)
        (folder / HUB_WEIGHTS).with_suffix(".json").unlink(missing_ok=True)  # of other weights
        if not (folder / "README.md").exists():
            write_text(folder / "README.md", str(card))
        if not push_to_hub:
            return None
        options = {"model_card_kwargs": model_card_kwargs, **push_to_hub_kwargs}
        return str(self.push_to_hub(repo_id or folder.resolve().name, **options))

    @classmethod
    def from_pretrained(
        cls: type[T],
        pretrained_model_name_or_path: str | Path,
        *,
        force_download: bool = False,
        token: str | bool | None = None,
        cache_dir: str | Path | None = None,
        local_files_only: bool = False,
        revision: str | None = None,
        device: torch.device | str = "cpu",
        **overrides: Any,
    ) -> T:
        """Load a model from a folder, a file or the Hub, in evaluation mode and its own dtype.

        ``GenerativeModel.from_pretrained`` finds the architecture; a class of its own, such as
        ``GET``, refuses another one.

        Args:
            pretrained_model_name_or_path: a folder that ``save_pretrained`` wrote, a
                ``.safetensors`` file that ``save_model`` wrote, or a name on the Hub. What exists
                here is read here, without the network.
            force_download: fetch again what has been fetched before.
            token: of the Hub; default: the one that ``hf auth login`` stored.
            cache_dir: where files of the Hub are kept.
            local_files_only: use what has been fetched before, and no network.
            revision: branch, tag or commit on the Hub.
            device: where the weights go.
            overrides: fields of the config in place of the saved ones, for example
                ``max_steps=12`` or ``solver=Anderson(memory=8)``. The weights must still fit.

        Raises:
            FileNotFoundError: a file of the folder is missing.
            ModelFileError: (a ValueError) the Hub gives nothing of this name or cannot be reached,
                a file is damaged, its model is no ``cls``, or weights and config do not fit.
            TypeError: an override that the model does not have, or of the wrong type.
            ValueError: an override out of its range.
        """
        from deqgen.models.files import load_as

        path = Path(pretrained_model_name_or_path)
        if not path.exists():
            path = _fetched(
                os.fspath(pretrained_model_name_or_path),
                force_download=force_download,
                token=token,
                cache_dir=cache_dir,
                local_files_only=local_files_only,
                revision=revision,
            )
        wanted = cast("type[GenerativeModel]", cls)
        return cast(T, load_as(wanted, path, device, overrides))

    def generate_model_card(self, *args: Any, **kwargs: Any) -> ModelCard:
        """The card that :meth:`save_pretrained` writes.

        Args:
            args: none.
            kwargs: ``notes``, a text for the card, such as data and quality; the others go into the
                card's metadata: ``license="mit"``, ``datasets=["cifar10"]``.
        """
        from deqgen.models.card import model_card

        return model_card(cast("GenerativeModel", self), *args, **kwargs)


def _fetched(name: str, **options: Any) -> Path:
    """The folder in the Hub's cache with the files of one commit."""
    from deqgen.models.files import HUB_CONFIG, HUB_WEIGHTS

    try:
        return Path(snapshot_download(name, allow_patterns=[HUB_WEIGHTS, HUB_CONFIG], **options))
    except (OSError, ValueError) as error:
        raise ModelFileError(f"{name!r} is no file or folder here, {_missing(error)}") from error


def _missing(error: OSError | ValueError) -> str:
    """Why there is nothing from the Hub either, and what to do."""
    cause = error.__cause__
    if not isinstance(error, LocalEntryNotFoundError) or isinstance(cause, HfHubHTTPError):
        return f"and the Hub gave nothing for it: {' '.join(str(error).split())}"
    # The Hub has not answered, and what its library says of that is long.
    hub = f"the Hugging Face Hub at {constants.ENDPOINT}"
    if cause is None:
        why, remedy = f"and local_files_only=True keeps from asking {hub}", "Leave it out"
    elif isinstance(cause, OfflineModeIsEnabled):
        why, remedy = f"and HF_HUB_OFFLINE keeps from asking {hub}", "Unset it"
    else:
        reason = " ".join(str(cause).split()) or type(cause).__name__
        why, remedy = f"and {hub} could not be reached: {reason}", "Check the network"
    return (
        f"no whole copy was fetched before, {why}. {remedy}, or give the path of a model that is "
        "here; `deqgen list --kind embedded` names those that come with deqgen."
    )
