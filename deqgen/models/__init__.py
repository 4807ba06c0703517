"""Architectures: one file each, one interface for all.

``create_model("GET-T/2", num_classes=10)`` builds one by name; ``list_models("GET*")`` lists them.
A model is called as ``model(noise, label)`` and returns a :class:`GeneratorOutput`, training or
not. Its frozen ``config`` says everything that is needed to build it again. ``save_model`` and
``load_model`` keep weights in safetensors and the config in JSON beside them; ``save_pretrained``,
``from_pretrained`` and ``push_to_hub`` do so as folders, for the Hugging Face Hub; ``open_model``
finds either, the newest weights of a training run, and the trained models that ship with the
package (``embedded_models``). ``convert_get`` reads the released checkpoints of locuslab/get;
``export_onnx`` writes a fixed program. With ``noise_level=True`` a GET or DEQ-UNet denoises, and
``ModelDenoiser`` makes a teacher of it.
"""

from deqgen.models.denoiser import ModelDenoiser
from deqgen.models.deq_unet import DEQUNet, DEQUNetConfig
from deqgen.models.embedded import embedded_models
from deqgen.models.equilibrium import EquilibriumConfig, EquilibriumModel
from deqgen.models.errors import ModelFileError, UnknownModelError, UnsavableError
from deqgen.models.export import export_onnx, export_program
from deqgen.models.files import load_model, save_model
from deqgen.models.get import GET, GETConfig
from deqgen.models.official import convert_get
from deqgen.models.opening import open_model
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
    "EquilibriumConfig",
    "EquilibriumModel",
    "GETConfig",
    "GenerativeModel",
    "GeneratorOutput",
    "ModelConfig",
    "ModelDenoiser",
    "ModelFileError",
    "Preset",
    "UnknownModelError",
    "UnsavableError",
    "ViT",
    "ViTConfig",
    "convert_get",
    "create_model",
    "embedded_models",
    "export_onnx",
    "export_program",
    "list_models",
    "load_model",
    "open_model",
    "parameter_count",
    "register_model",
    "save_model",
]
