"""Style transfer: an image, optimized within bounds through a frozen network.

A photograph gets the textures of another one. It keeps its features in the
deepest layer, and takes over the correlations of features in every layer (Gatys
et al. 2016). The network has random weights, which are sufficient for textures
and need no download. Both photographs come with scikit-learn. `bounds` keep
every pixel between black and white. `benchmarks/style.py` compares the time
with SciPy and TFP.

    KERAS_BACKEND=jax python examples/style_transfer.py
"""

import argparse
import pathlib

import keras
import matplotlib.pyplot as plt
import numpy as np
import sklearn.datasets
from keras import ops

import kormos

STYLE = 10.0


def photographs(height):
    """Two photographs, `(1, height, 1.5 * height, 3)`, from 0 to 1."""
    photos = sklearn.datasets.load_sample_images().images
    size = height, height * 3 // 2
    for photo in photos:
        resized = ops.image.resize(photo.astype("float32") / 255, size)
        yield ops.convert_to_numpy(resized)[None]


def extractor(shape):
    """A frozen network; its outputs are the features of each layer."""
    inputs = x = keras.Input(shape)
    features = []
    for filters in (16, 32, 64):
        layer = keras.layers.Conv2D(
            filters, 3, activation="relu", kernel_initializer="he_normal"
        )
        x = layer(x)
        features.append(x)
        x = keras.layers.AveragePooling2D(2)(x)
    model = keras.Model(inputs, features)
    model.trainable = False
    return model


def gram(features):
    """The correlations of a layer's channels."""
    channels = features.shape[-1]
    rows = ops.reshape(features, (-1, channels))
    return ops.matmul(ops.transpose(rows), rows) / rows.shape[0]


def main(quick=False, out="out"):
    keras.utils.set_random_seed(0)
    content, style = photographs(32 if quick else 96)
    network = extractor(content.shape[1:])
    goal = network(content)[-1]
    textures = [gram(features) for features in network(style)]
    image = keras.Variable(content, name="image")

    def loss():
        found = network(image)
        size = ops.mean(goal**2)
        result = ops.mean((found[-1] - goal) ** 2) / size
        for features, texture in zip(found, textures, strict=True):
            difference = ops.mean((gram(features) - texture) ** 2)
            result = result + STYLE * difference / ops.mean(texture**2)
        return result

    frames, losses = {0: np.array(content[0])}, []
    iterations = 8 if quick else 300

    def watch(iteration, logs):
        losses.append(logs["loss"])
        if iteration in (10, 50, iterations):
            frames[iteration] = ops.convert_to_numpy(image)[0]
            print(f"{iteration:4d} iterations: loss {logs['loss']:.4f}")

    result = kormos.minimize(
        loss,
        [image],
        "l-bfgs-b",
        bounds={"image": (0.0, 1.0)},
        options={"ftol": 0.0, "gtol": 0.0},
        max_iterations=iterations,
        callback=watch,
    )
    pixels = ops.convert_to_numpy(image)
    print(f"{result}\npixels from {pixels.min():.2f} to {pixels.max():.2f}")

    images = {"style": style[0]}
    images |= {f"{count} iterations": frame for count, frame in frames.items()}
    plt.style.use("tableau-colorblind10")
    figure, axes = plt.subplots(2, 3, figsize=(9, 4.6), layout="constrained")
    for axis, (title, frame) in zip(axes.flat, images.items(), strict=False):
        axis.imshow(frame)
        axis.set_title(title)
    for axis in axes.flat[:5]:
        axis.axis("off")
    axes.flat[5].semilogy(np.arange(1, len(losses) + 1), losses)
    axes.flat[5].set(xlabel="iteration", ylabel="loss")
    axes.flat[5].grid(color="0.9")
    path = pathlib.Path(out) / "style_transfer.png"
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=120)
    print(f"Plot: {path}")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="for tests")
    parser.add_argument("--out", default="out", help="folder of the plot")
    main(**vars(parser.parse_args()))
