"""Attention, of many heads and of one."""

import numpy as np
from keras import layers

from audit.formulas import attend
from audit.formulas import softmax
from audit.inputs import SEQUENCE
from audit.inputs import SEQUENCE2
from audit.making import layer
from audit.making import listed


def multi_head(q, v, *weights, where=True, both=False):
    wq, bq, wk, bk, wv, bv, wo, bo = weights

    def heads(x, w, b):
        return np.einsum("btd,dhk->bhtk", x, w) + b[:, None]

    repeats = wq.shape[1] // wk.shape[1]
    queries = heads(q, wq, bq)
    keys = np.repeat(heads(v, wk, bk), repeats, 1)
    values = np.repeat(heads(v, wv, bv), repeats, 1)
    mixed, scores = attend(queries, keys, values, where)
    output = np.einsum("bhtk,hkd->btd", mixed, wo) + bo
    return (output, scores) if both else output


def attention(q, v, kernel=lambda q, k: q @ np.swapaxes(k, 1, 2), where=True):
    return softmax(np.where(where, kernel(q, v), -1e300)) @ v


def additive(q, k):
    return np.tanh(q[:, :, None] + k[:, None])


CAUSAL = np.tril(np.ones((5, 4), bool))
_HEADS = {
    "MultiHeadAttention": (
        layers.MultiHeadAttention,
        {"num_heads": 2, "key_dim": 2},
    ),
    "GroupQueryAttention": (
        layers.GroupQueryAttention,
        {"num_query_heads": 4, "num_key_value_heads": 2, "head_dim": 2},
    ),
}

ATTENTION = {}
for _name, (_kind, _kwargs) in _HEADS.items():
    ATTENTION |= {
        _name: layer(_kind, multi_head, SEQUENCE, SEQUENCE2, **_kwargs),
        f"{_name}, causal": layer(
            _kind,
            lambda *a: multi_head(*a, where=CAUSAL),
            SEQUENCE,
            SEQUENCE2,
            call=lambda made, q, v: made(q, v, use_causal_mask=True),
            **_kwargs,
        ),
        f"{_name}, scores": layer(
            _kind,
            lambda *a: multi_head(*a, both=True),
            SEQUENCE,
            SEQUENCE2,
            call=lambda made, q, v: made(q, v, return_attention_scores=True),
            **_kwargs,
        ),
        f"{_name}, dropout": layer(
            _kind,
            lambda *a: multi_head(*a, where=CAUSAL),
            SEQUENCE,
            SEQUENCE2,
            dropout=0.3,
            call=lambda made, q, v: made(q, v, use_causal_mask=True),
            **_kwargs,
        ),
    }
ATTENTION |= {
    "Attention": layer(
        layers.Attention, attention, SEQUENCE, SEQUENCE2, call=listed
    ),
    "Attention, scale, causal": layer(
        layers.Attention,
        lambda q, v, s: attention(
            q, v, lambda q, k: s * (q @ np.swapaxes(k, 1, 2)), CAUSAL
        ),
        SEQUENCE,
        SEQUENCE2,
        use_scale=True,
        call=lambda made, q, v: made([q, v], use_causal_mask=True),
    ),
    "Attention, concat": layer(
        layers.Attention,
        lambda q, v, w: attention(q, v, lambda *a: w * additive(*a).sum(-1)),
        SEQUENCE,
        SEQUENCE2,
        score_mode="concat",
        call=listed,
    ),
    "AdditiveAttention": layer(
        layers.AdditiveAttention,
        lambda q, v, w: attention(q, v, lambda *a: additive(*a) @ w),
        SEQUENCE,
        SEQUENCE2,
        call=listed,
    ),
}
