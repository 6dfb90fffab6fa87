"""Recurrent layers and their wrappers."""

import numpy as np
from keras import layers

from audit.formulas import conv
from audit.formulas import dense
from audit.formulas import hard_sigmoid
from audit.formulas import sigmoid
from audit.inputs import FILM
from audit.inputs import SEQUENCE
from audit.making import layer
from audit.making import masked
from audit.measuring import Case


def scan(step, x, state, every=False):
    outputs = []
    for t in range(x.shape[1]):
        state = step(x[:, t], *state)
        outputs.append(state[0])
    return np.stack(outputs, 1) if every else outputs[-1]


def simple_rnn(x, kernel, recurrent, bias, **kwargs):
    def step(x, h):
        return (np.tanh(x @ kernel + h @ recurrent + bias),)

    return scan(step, x, [np.zeros((len(x), len(recurrent)))], **kwargs)


def lstm_step(gates, c, act=sigmoid):
    i, f, g, o = np.split(gates, 4, -1)
    c = act(f) * c + act(i) * np.tanh(g)
    return act(o) * np.tanh(c), c


def lstm(x, kernel, recurrent, bias, act=sigmoid, **kwargs):
    def step(x, h, c):
        return lstm_step(x @ kernel + h @ recurrent + bias, c, act)

    zeros = np.zeros((len(x), len(recurrent)))
    return scan(step, x, [zeros, zeros], **kwargs)


def gru(x, kernel, recurrent, bias, reset_after=True, **kwargs):
    units = len(recurrent)
    bias = bias if reset_after else [bias, np.zeros(3 * units)]

    def step(x, h):
        inner = h @ recurrent + bias[1]
        outer = x @ kernel + bias[0]
        z, r = np.split(sigmoid((inner + outer)[:, : 2 * units]), 2, -1)
        if reset_after:
            past = r * inner[:, 2 * units :]
        else:
            past = (r * h) @ recurrent[:, 2 * units :]
        return (z * h + (1 - z) * np.tanh(outer[:, 2 * units :] + past),)

    return scan(step, x, [np.zeros((len(x), units))], **kwargs)


def conv_lstm(x, kernel, recurrent, bias):
    def step(x, h, c):
        gates = conv(x, kernel, bias, padding="same")
        return lstm_step(gates + conv(h, recurrent, padding="same"), c)

    zeros = np.zeros((*x[:, 0].shape[:-1], recurrent.shape[-2]))
    return scan(step, x, [zeros, zeros])


def bidirectional(x, *weights):
    a = lstm(x, *weights[:3], every=True)
    b = lstm(x[:, ::-1], *weights[3:], every=True)[:, ::-1]
    return np.concatenate([a, b], -1)


RECURRENT = {
    "SimpleRNN": layer(layers.SimpleRNN, simple_rnn, SEQUENCE, units=2),
    "LSTM": layer(
        layers.LSTM,
        lambda *a: lstm(*a, every=True),
        SEQUENCE,
        units=2,
        return_sequences=True,
    ),
    "LSTM, hard_sigmoid": layer(
        layers.LSTM,
        lambda *a: lstm(*a, act=hard_sigmoid),
        SEQUENCE,
        units=2,
        recurrent_activation="hard_sigmoid",
    ),
    "LSTM, mask": layer(
        layers.LSTM,
        lambda x, *w: np.concatenate([lstm(x[:1, :3], *w), lstm(x[1:], *w)]),
        SEQUENCE,
        units=2,
        call=masked,
    ),
    "GRU": layer(layers.GRU, gru, SEQUENCE, units=2),
    "GRU, reset before": layer(
        layers.GRU,
        lambda *a: gru(*a, reset_after=False),
        SEQUENCE,
        units=2,
        reset_after=False,
    ),
    "RNN of StackedRNNCells": Case(
        lambda: layers.RNN([layers.LSTMCell(2), layers.GRUCell(2)]),
        lambda x, *w: gru(lstm(x, *w[:3], every=True), *w[3:]),
        (SEQUENCE,),
    ),
    "Bidirectional": Case(
        lambda: layers.Bidirectional(layers.LSTM(2, return_sequences=True)),
        bidirectional,
        (SEQUENCE,),
    ),
    "TimeDistributed": Case(
        lambda: layers.TimeDistributed(layers.Dense(2)), dense, (SEQUENCE,)
    ),
    "ConvLSTM1D": layer(
        layers.ConvLSTM1D,
        conv_lstm,
        FILM[:, :, 0],
        filters=2,
        kernel_size=3,
        padding="same",
    ),
    "ConvLSTM2D": layer(
        layers.ConvLSTM2D,
        conv_lstm,
        FILM,
        filters=2,
        kernel_size=2,
        padding="same",
    ),
}
