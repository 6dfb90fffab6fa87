"""Dense layers and embeddings, and layers that return their inputs."""

import numpy as np
from keras import layers
from keras import ops

from audit.formulas import dense
from audit.inputs import IMAGE
from audit.inputs import SEQUENCE
from audit.inputs import TOKENS
from audit.inputs import VOLUME
from audit.inputs import X
from audit.making import layer
from audit.measuring import Case

CORE = {
    "Dense": layer(
        layers.Dense,
        lambda *a: np.tanh(dense(*a)),
        X,
        units=3,
        activation="tanh",
    ),
    "EinsumDense": layer(
        layers.EinsumDense,
        lambda x, k, b: np.einsum("abc,cde->abde", x, k) + b,
        SEQUENCE,
        equation="abc,cde->abde",
        output_shape=(None, 2, 3),
        bias_axes="de",
    ),
    "Embedding": layer(
        layers.Embedding,
        lambda i, w: w[i],
        TOKENS,
        input_dim=5,
        output_dim=3,
    ),
    "ReversibleEmbedding": layer(
        layers.ReversibleEmbedding,
        lambda x, w: 2.5 * np.tanh(x @ w.T / 2.5),
        SEQUENCE,
        input_dim=5,
        output_dim=3,
        logit_soft_cap=2.5,
        call=lambda made, x: made(x, reverse=True),
    ),
    **{
        f"{kind.__name__} at inference": layer(kind, lambda x: x, a, rate=0.3)
        for kind, a in (
            (layers.Dropout, X),
            (layers.AlphaDropout, X),
            (layers.GaussianDropout, X),
            (layers.SpatialDropout1D, SEQUENCE),
            (layers.SpatialDropout2D, IMAGE),
            (layers.SpatialDropout3D, VOLUME),
        )
    },
    "GaussianNoise at inference": layer(
        layers.GaussianNoise, lambda x: x, X, stddev=0.3
    ),
    "Identity": layer(layers.Identity, lambda x: x, X),
    "Masking": layer(layers.Masking, lambda x: x, SEQUENCE),
    "Lambda": Case(lambda: layers.Lambda(ops.sin), np.sin, (X,)),
}
