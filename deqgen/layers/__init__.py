"""Building blocks that models are made of.

``DEQ`` is the equilibrium layer: any cell, any solver, any gradient estimator.
``Block`` is a pre-norm transformer block whose QKV takes an additive input, as GET's do;
``ResidualBlock`` the same of convolutions.
``PatchEmbedding`` and ``PatchDecoder`` lead from images to tokens and back.
One mask (``VariationalDropout``) and one value of normalised weights (``fixed_weights``) a solve.
Positions are fixed; a class is a row added to QKV; no layer draws from the global generator.
"""

from deqgen.layers.attention import Attention, Block, BlockList, Mlp, attend
from deqgen.layers.convolution import ResidualBlock, ResidualBlocks
from deqgen.layers.deq import DEQ
from deqgen.layers.dropout import VariationalDropout
from deqgen.layers.embeddings import (
    LabelEmbedding,
    NoiseLevelEmbedding,
    check_label,
    check_sigma,
    noise_features,
    sincos_positions,
)
from deqgen.layers.errors import LabelError, NoiseLevelError, ShapeError
from deqgen.layers.initial import Generators, normal_start
from deqgen.layers.initialization import initialize_transformer
from deqgen.layers.normalization import (
    fixed_weights,
    remove_norm,
    spectral_norm,
    weight_norm,
)
from deqgen.layers.patches import PatchDecoder, PatchEmbedding, grid_side, unpatchify

__all__ = [
    "DEQ",
    "Attention",
    "Block",
    "BlockList",
    "Generators",
    "LabelEmbedding",
    "LabelError",
    "Mlp",
    "NoiseLevelEmbedding",
    "NoiseLevelError",
    "PatchDecoder",
    "PatchEmbedding",
    "ResidualBlock",
    "ResidualBlocks",
    "ShapeError",
    "VariationalDropout",
    "attend",
    "check_label",
    "check_sigma",
    "fixed_weights",
    "grid_side",
    "initialize_transformer",
    "noise_features",
    "normal_start",
    "remove_norm",
    "sincos_positions",
    "spectral_norm",
    "unpatchify",
    "weight_norm",
]
