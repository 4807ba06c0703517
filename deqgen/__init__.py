"""deqgen: deep equilibrium models for generation.

Mental model, in five lines:
1. A deep equilibrium model returns the fixed point of a cell, z = cell(z, injection).
2. ``solvers`` finds it, ``gradients`` differentiates through it, ``models`` define the cell.
3. ``teachers`` turn noise into images in many evaluations; ``data`` stores these pairs.
4. ``training`` distils pairs into a model that needs one pass; ``generate`` samples by seed.
5. ``evaluation`` says how close its images are to the data, and names what it measured with.
"""

import sys

import deqgen_solvers as solvers
from deqgen import data, evaluation, gradients, layers, models, teachers, training
from deqgen.citation import cite
from deqgen.layers import DEQ
from deqgen.models import GET, DEQUNet, ViT, create_model, list_models
from deqgen.sampling import generate

# So that `from deqgen.solvers import Anderson` works as the attribute `deqgen.solvers` does, and so
# that no module below it is ever loaded a second time under the other name.
for _name in [name for name in sys.modules if name.split(".")[0] == "deqgen_solvers"]:
    sys.modules[_name.replace("deqgen_solvers", "deqgen.solvers", 1)] = sys.modules[_name]

__all__ = [
    "DEQ",
    "GET",
    "DEQUNet",
    "ViT",
    "cite",
    "create_model",
    "data",
    "evaluation",
    "generate",
    "gradients",
    "layers",
    "list_models",
    "models",
    "solvers",
    "teachers",
    "training",
]
