"""Models as fixed programs: torch.export and ONNX, at any batch size."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from deqgen.models import GenerativeModel, create_model, export_onnx, export_program

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")

SMALL: dict[str, dict[str, Any]] = {
    "GET-N/4": {"image_size": 16, "width": 32, "heads": 2},
    "ViT-N/4": {"image_size": 16, "width": 32, "heads": 2, "depth": 2},
    "DEQ-UNet-T": {"image_size": 16, "width": 16, "scales": 2, "groups": 4},
}


def model_of(name: str, classes: int | None) -> GenerativeModel:
    model = create_model(name, num_classes=classes, **SMALL[name])
    with torch.no_grad():  # the last map of a new model is zero
        for parameter in model.parameters():
            noise = torch.randn(parameter.shape, generator=torch.Generator().manual_seed(1))
            parameter.add_(0.05 * noise)
    return model.eval()


def inputs(classes: int | None, batch: int) -> tuple[Tensor, ...]:
    noise = torch.randn(batch, 3, 16, 16, generator=torch.Generator().manual_seed(2))
    return (noise,) if classes is None else (noise, torch.arange(batch) % classes)


@torch.no_grad()
def wanted(model: GenerativeModel, given: tuple[Tensor, ...], solver: str = "picard") -> Tensor:
    return model(*given, max_steps=3, tol=None, solver=solver).image


@pytest.mark.parametrize("classes", [None, 10])
@pytest.mark.parametrize("name", SMALL)
@pytest.mark.parametrize("solver", ["picard", "anderson"])
def test_an_exported_program_at_another_batch_size(
    name: str, classes: int | None, solver: str
) -> None:
    model = model_of(name, classes)
    program = export_program(model, max_steps=3, solver=solver).module()
    for batch in (1, 5):
        given = inputs(classes, batch)
        image = wanted(model, given, solver)
        torch.testing.assert_close(program(*given), image, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("classes", [None, 10])
@pytest.mark.parametrize("name", SMALL)
def test_an_onnx_file_in_onnxruntime(name: str, classes: int | None, tmp_path: Path) -> None:
    onnx, runtime = pytest.importorskip("onnx"), pytest.importorskip("onnxruntime")
    model = model_of(name, classes)
    path = export_onnx(model, tmp_path / "new" / "model.onnx", max_steps=3)
    assert [p.name for p in path.parent.iterdir()] == ["model.onnx"]
    assert [o.version for o in onnx.load(path).opset_import if o.domain == ""] == [18]
    session = runtime.InferenceSession(path, providers=["CPUExecutionProvider"])
    for batch in (1, 4):
        given = inputs(classes, batch)
        named = dict(zip(("noise", "label"), (t.numpy() for t in given), strict=False))
        (image,) = session.run(["image"], named)
        torch.testing.assert_close(
            torch.from_numpy(image), wanted(model, given), atol=1e-4, rtol=1e-4
        )


def test_exporting_leaves_the_model_as_it_was(tmp_path: Path) -> None:
    model = model_of("GET-N/4", None).train()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    export_program(model)
    assert model.training
    assert all(torch.equal(before[name], t) for name, t in model.state_dict().items())


def test_what_cannot_be_exported(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"ends in \.onnx"):
        export_onnx(model_of("GET-N/4", None), tmp_path / "model.pt")
    with pytest.raises(ValueError, match=r"float32, this one is in torch\.bfloat16"):
        export_onnx(model_of("GET-N/4", None).bfloat16(), tmp_path / "model.onnx")
    denoiser = create_model("GET-N/4", noise_level=True, **SMALL["GET-N/4"])
    with pytest.raises(ValueError, match="noise level"):
        export_program(denoiser)
    with pytest.raises(ValueError, match="max_steps must be at least 1"):
        export_program(model_of("GET-N/4", None), max_steps=0)
