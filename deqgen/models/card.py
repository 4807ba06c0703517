"""The model card: what a folder of weights says about itself."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from huggingface_hub import ModelCard, ModelCardData

if TYPE_CHECKING:
    from deqgen.models.protocol import GenerativeModel

_PAPERS = {"GET": "2401.08639", "ViT": "2401.08639"}

_TEXT = """---
{metadata}
---

# {architecture}, {size}x{size}, {classes}

A model that turns noise into images in one pass, made with **deqgen**, deep equilibrium models for
generation{paper}.

```python
from deqgen import generate
from deqgen.models import GenerativeModel

model = GenerativeModel.from_pretrained("path or name of this folder")
images = generate(model, seeds=range(4){labels})  # (4, {channels}, {size}, {size}), about [-1, 1]
```

| | |
|---|---|
| parameters | {parameters:,} |
| dtype | {dtype} |
{fields}

{notes}
"""

_NO_NOTES = (
    "This card was written by the program, which knows what the network is and not how it was made "
    "or how good it is. Whoever trained it can say so here."
)


def model_card(model: GenerativeModel, *, notes: str = _NO_NOTES, **data: Any) -> ModelCard:
    """Describe a model in Markdown, with metadata for the Hub in front.

    Args:
        model: what the card is about; its weights are not read.
        notes: Markdown for the end of the card.
        data: entries of the metadata, for example ``license="mit"``, ``datasets=["cifar10"]``.
    """
    from deqgen.models.protocol import parameter_count

    config = model.saved_config()
    classes = config.num_classes
    paper = _PAPERS.get(model.architecture)
    fields = "\n".join(f"| {name} | `{value}` |" for name, value in vars(config).items())
    text = _TEXT.format(
        metadata=_metadata(data, conditional=classes is not None),
        architecture=model.architecture,
        size=config.image_size,
        channels=config.channels,
        classes=f"{classes} classes" if classes else "unconditional",
        labels=", labels=0" if classes else "",
        paper=f" ([arXiv {paper}](https://arxiv.org/abs/{paper}))" if paper else "",
        parameters=parameter_count(model),
        dtype=", ".join(sorted({str(p.dtype).removeprefix("torch.") for p in model.parameters()})),
        fields=fields,
        notes=notes,
    )
    return ModelCard(text)


def _metadata(data: dict[str, Any], *, conditional: bool) -> str:
    known: dict[str, Any] = {
        "library_name": "deqgen",
        "tags": ["deep-equilibrium-model", "image-generation", "one-step"],
    }
    if not conditional:
        known["pipeline_tag"] = "unconditional-image-generation"
    metadata: str = ModelCardData(**{**known, **data}).to_yaml()
    return metadata
