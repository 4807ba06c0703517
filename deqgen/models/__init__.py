"""Architectures: one file each, one interface for all.

``create_model("GET-T/2", num_classes=10)`` builds one by name; ``list_models("GET*")`` lists them.
A model is called as ``model(noise, label)`` and returns a :class:`GeneratorOutput`, training or
not. Its frozen ``config`` says everything that is needed to build it again. ``save_model`` and
``load_model`` keep weights in safetensors and the config in JSON beside them. With
``noise_level=True`` a GET or DEQ-UNet denoises, and ``ModelDenoiser`` makes a teacher of it.
"""

from deqgen.models.denoiser import ModelDenoiser
from deqgen.models.deq_unet import DEQUNet, DEQUNetConfig
from deqgen.models.equilibrium import EquilibriumModel
from deqgen.models.errors import ModelFileError, UnknownModelError
from deqgen.models.files import load_model, save_model
from deqgen.models.get import GET, GETConfig
from deqgen.models.protocol import (
    GenerativeModel,
    GeneratorOutput,
    ModelConfig,
    parameter_count,
)
from deqgen.models.registry import Preset, create_model, list_models, register_model
from deqgen.models.vit import ViT, ViTConfig

__all__ = [
    "GET",
    "DEQUNet",
    "DEQUNetConfig",
    "EquilibriumModel",
    "GETConfig",
    "GenerativeModel",
    "GeneratorOutput",
    "ModelConfig",
    "ModelDenoiser",
    "ModelFileError",
    "Preset",
    "UnknownModelError",
    "ViT",
    "ViTConfig",
    "create_model",
    "list_models",
    "load_model",
    "parameter_count",
    "register_model",
    "save_model",
]
