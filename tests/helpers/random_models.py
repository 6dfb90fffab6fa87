"""Small random models with losses and data, from plain descriptions.

A problem is a dict of numbers and strings, so that the printed form of one that
fails can be copied into a test.
"""

import keras
import numpy as np
from hypothesis import strategies as st
from keras import layers
from keras import regularizers

STEPS, WIDTH, SIDE, WORDS = 3, 2, 4, 5


def _recurrent(kind, **kwargs):
    return lambda: kind(WIDTH, return_sequences=True, **kwargs)


def _attention(dropout=0.0, **call):
    # With dropout Keras multiplies itself; without, it calls a kernel of the
    # backend.
    layer = layers.MultiHeadAttention(2, 2, dropout=dropout)
    return lambda x: layer(x, x, **call)


def _residual():
    dense = layers.Dense(WIDTH, "tanh")
    return lambda x: layers.Add()([x, dense(x)])


def _gate():
    dense = layers.Dense(WIDTH, "sigmoid")
    return lambda x: layers.Multiply()([x, dense(x)])


def _merge(kind, width=WIDTH):
    left, right = layers.Dense(width), layers.Dense(width)
    return lambda x: kind([left(x), right(x)])


def _twice():
    """A layer whose weights are used twice."""
    first, dense = layers.Dense(WIDTH), layers.Dense(WIDTH, "tanh")
    return lambda x: dense(dense(first(x)))


_SAME = {"padding": "same"}
ANY = {
    "dense": lambda: layers.Dense(
        WIDTH,
        "tanh",
        kernel_regularizer=regularizers.L2(0.125),
        bias_initializer="ones",
    ),
    "activity": lambda: layers.Dense(
        WIDTH, activity_regularizer=regularizers.L2(0.25)
    ),
    "activity layer": lambda: layers.ActivityRegularization(l2=0.25),
    "batch": layers.BatchNormalization,
    "layer": layers.LayerNormalization,
    "rms": layers.RMSNormalization,
    "group": lambda: layers.GroupNormalization(WIDTH // 2),
    "dropout": lambda: layers.Dropout(0.5),
    "noise": lambda: layers.GaussianNoise(0.5),
    "relu": layers.ReLU,
    "elu": layers.ELU,
    "prelu": layers.PReLU,
    "gelu": lambda: layers.Activation("gelu"),
    # Keras' layer takes no mask of steps.
    "softmax": lambda: layers.Activation("softmax"),
    "residual": _residual,
    "gate": _gate,
    "twice": _twice,
    "concatenate": lambda: _merge(layers.Concatenate(), WIDTH // 2),
    "average": lambda: _merge(layers.Average()),
    "subtract": lambda: _merge(layers.Subtract()),
}
SEQUENCES = ANY | {
    "conv": lambda: layers.Conv1D(WIDTH, 2, **_SAME),
    "causal": lambda: layers.Conv1D(WIDTH, 2, padding="causal"),
    "depthwise": lambda: layers.DepthwiseConv1D(2, **_SAME),
    "separable": lambda: layers.SeparableConv1D(WIDTH, 2, **_SAME),
    "rnn": _recurrent(layers.SimpleRNN),
    "gru": _recurrent(layers.GRU),
    "lstm": _recurrent(layers.LSTM),
    "backwards": _recurrent(layers.GRU, go_backwards=True),
    "both ways": lambda: layers.Bidirectional(_recurrent(layers.LSTM)()),
    "distributed": lambda: layers.TimeDistributed(layers.Dense(WIDTH)),
    "attention": _attention,
    "causal attention": lambda: _attention(use_causal_mask=True),
    "multiplied attention": lambda: _attention(dropout=0.5),
    "max": lambda: layers.MaxPooling1D(2, 1, **_SAME),
    "mean": lambda: layers.AveragePooling1D(2, 1, **_SAME),
    "masking": layers.Masking,
}
IMAGES = ANY | {
    "conv": lambda: layers.Conv2D(WIDTH, 2),
    "strides": lambda: layers.Conv2D(WIDTH, 2, strides=2, **_SAME),
    "dilated": lambda: layers.Conv2D(WIDTH, 2, dilation_rate=2, **_SAME),
    "depthwise": lambda: layers.DepthwiseConv2D(2, **_SAME),
    "separable": lambda: layers.SeparableConv2D(WIDTH, 2, **_SAME),
    "transposed": lambda: layers.Conv2DTranspose(WIDTH, 2),
    "max": lambda: layers.MaxPooling2D(2, 1, **_SAME),
    "mean": lambda: layers.AveragePooling2D(2, 1, **_SAME),
    "padding": layers.ZeroPadding2D,
    "upsampling": layers.UpSampling2D,
}

# These make a vector of a sequence or an image, except for "steps", which keeps
# every step.
ENDS = {
    "vectors": ["none"],
    "sequences": ["flatten", "mean", "max", "gru", "steps"],
    "images": ["flatten", "mean", "max"],
}
POOLS = {"vectors": ANY, "sequences": SEQUENCES, "images": IMAGES}

# Losses, with the activation of the outputs for them, and targets.
_LOSSES = {
    "MeanSquaredError": ("linear", "numbers"),
    "MeanAbsoluteError": ("linear", "numbers"),
    "Huber": ("linear", "numbers"),
    "LogCosh": ("linear", "numbers"),
    "CosineSimilarity": ("linear", "numbers"),
    "Poisson": ("softplus", "counts"),
    "MeanSquaredLogarithmicError": ("softplus", "counts"),
    "BinaryCrossentropy": ("sigmoid", "binary"),
    "BinaryFocalCrossentropy": ("sigmoid", "binary"),
    "Hinge": ("tanh", "binary"),
    "SquaredHinge": ("tanh", "binary"),
    "KLDivergence": ("softmax", "one hot"),
    "CategoricalCrossentropy": ("softmax", "one hot"),
    "CategoricalHinge": ("softmax", "one hot"),
    "SparseCategoricalCrossentropy": ("softmax", "labels"),
}
REDUCTIONS = ["sum_over_batch_size", "sum", "mean_with_sample_weight"]


@st.composite
def problems(draw):
    kind = draw(st.sampled_from([*POOLS, "tokens"]))
    pool = "sequences" if kind == "tokens" else kind
    names = st.lists(st.sampled_from(sorted(POOLS[pool])), max_size=3)
    rows = draw(st.integers(1, 7))
    head = st.fixed_dictionaries(
        {
            "loss": st.sampled_from(sorted(_LOSSES)),
            "reduction": st.sampled_from(REDUCTIONS),
            "units": st.integers(2, 3),
            # TensorFlow rounds other factors to float32.
            "factor": st.integers(1, 16).map(lambda n: n / 8),
        }
    )
    return {
        "kind": kind,
        "layers": draw(names),
        "end": draw(st.sampled_from(ENDS[pool])),
        "siamese": draw(st.booleans()),
        "mask": draw(st.booleans()),
        "frozen": draw(st.booleans()),
        "heads": draw(st.lists(head, min_size=1, max_size=2)),
        "weights": draw(st.sampled_from(["none", "positive", "zeros"])),
        "rows": rows,
        "batch_size": draw(st.integers(1, rows)),
        "seed": draw(st.integers(0, 2**16)),
    }


def shape_of(problem):
    return {
        "vectors": (WIDTH,),
        "sequences": (STEPS, WIDTH),
        "tokens": (STEPS,),
        "images": (SIDE, SIDE, WIDTH),
    }[problem["kind"]]


def _end(problem):
    n = 2 if problem["kind"] == "images" else 1
    return {
        "none": layers.Identity,
        "steps": layers.Identity,
        "flatten": layers.Flatten,
        "gru": lambda: layers.GRU(WIDTH),
        "mean": getattr(layers, f"GlobalAveragePooling{n}D"),
        "max": getattr(layers, f"GlobalMaxPooling{n}D"),
    }[problem["end"]]()


def build(problem):
    """A compiled model."""
    kind = problem["kind"]
    pool = POOLS["sequences" if kind == "tokens" else kind]
    tokens = kind == "tokens"
    inputs = [
        keras.Input(shape_of(problem), dtype="int32" if tokens else None)
        for _ in range(1 + problem["siamese"])
    ]
    chain = [pool[name]() for name in problem["layers"]]
    if tokens:
        mask = problem["mask"]
        chain.insert(0, layers.Embedding(WORDS, WIDTH, mask_zero=mask))
    elif kind == "sequences" and problem["mask"]:
        chain.insert(0, layers.Masking())
    chain.append(_end(problem))
    if problem["frozen"]:
        for layer in chain[:1]:
            if isinstance(layer, layers.Layer):
                layer.trainable = False
    features = []
    for x in inputs:
        for layer in chain:
            x = layer(x)
        features.append(x)
    x = layers.Subtract()(features) if len(features) > 1 else features[0]
    heads = problem["heads"]
    outputs = [
        layers.Dense(head["units"], _LOSSES[head["loss"]][0])(x)
        for head in heads
    ]
    single = len(heads) == 1
    losses = [
        getattr(keras.losses, head["loss"])(reduction=head["reduction"])
        for head in heads
    ]
    model = keras.Model(inputs, outputs[0] if single else outputs)
    model.compile(
        loss=losses[0] if single else losses,
        loss_weights=[head["factor"] for head in heads],
    )
    random = np.random.RandomState(problem["seed"])
    for v in model.variables:
        if "float" in v.dtype:
            low = 0.5 if "variance" in v.name else -1.0
            v.assign(random.uniform(low, 1.0, v.shape))
    return model


def _targets(random, head, shape):
    kind, units = _LOSSES[head["loss"]][1], head["units"]
    labels = random.randint(0, units, shape)
    return {
        "numbers": lambda: random.normal(size=(*shape, units)),
        "counts": lambda: random.poisson(2.0, (*shape, units)).astype(float),
        "binary": lambda: random.randint(0, 2, (*shape, units)).astype(float),
        "one hot": lambda: np.eye(units)[labels],
        "labels": lambda: labels,
    }[kind]()


def draw_data(problem):
    """Arguments `x`, `y` and `sample_weight` of `fit` and `evaluate`."""
    random = np.random.RandomState(problem["seed"] + 1)
    shape = (problem["rows"], *shape_of(problem))
    steps = problem["end"] == "steps"
    rows = (problem["rows"], STEPS) if steps else (problem["rows"],)
    x = []
    for _ in range(1 + problem["siamese"]):
        if problem["kind"] == "tokens":
            a = random.randint(0, WORDS, shape)
            # A mean over nothing is not a number.
            a[:, 0] = np.maximum(a[:, 0], 1)
        else:
            a = random.normal(size=shape)
            if problem["kind"] == "sequences" and problem["mask"]:
                a[random.uniform(size=shape[:2]) < 0.3] = 0.0
                a[:, 0] = 1.0
        x.append(a)
    y = [_targets(random, head, rows) for head in problem["heads"]]
    kind = problem["weights"]
    weights = None
    if kind != "none":
        values = [0.0, 0.5, 1.0, 2.5] if kind == "zeros" else [0.5, 1.0, 2.5]
        weights = [random.choice(values, size=rows) for _ in y]
    if len(y) == 1:
        y, weights = y[0], weights and weights[0]
    return {"x": x, "y": y, "sample_weight": weights}
