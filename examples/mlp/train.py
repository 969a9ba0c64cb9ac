"""Train the classifier of this example and write `digits.bin`, which the guest embeds.

    python examples/mlp/train.py

Data: scikit-learn's digits, 1797 pictures of 8 x 8 pixels from 0 to 16 (UCI ML hand-written digits).
A quarter is held out; the guest measures accuracy on it. Seeded: the same file on the same versions.

    bytes     what, little-endian
    64 * 64   f32 weights of the hidden layer, [in, out]
    64        f32 biases of the hidden layer
    64 * 10   f32 weights of the output layer
    10        f32 biases of the output layer
    450 * 64  u8 pictures
    450       u8 labels
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split
from sklearn.neural_network import MLPClassifier

OUT = Path(__file__).with_name("digits.bin")
HIDDEN = 64
SEED = 0


def main() -> None:
    """Train, write the file, say how good it is."""
    pictures, labels = load_digits(return_X_y=True)
    x_train, x_test, y_train, y_test = train_test_split(
        pictures, labels, test_size=0.25, random_state=SEED, stratify=labels
    )
    model = MLPClassifier((HIDDEN,), alpha=1e-2, max_iter=400, random_state=SEED)
    model.fit(x_train / 16, y_train)
    parts = [part for pair in zip(model.coefs_, model.intercepts_, strict=True) for part in pair]
    blob = b"".join(part.astype("<f4").tobytes() for part in parts)
    blob += x_test.astype(np.uint8).tobytes() + y_test.astype(np.uint8).tobytes()
    OUT.write_bytes(blob)
    print(f"{len(y_test)} test pictures, accuracy {model.score(x_test / 16, y_test):.4f}, {len(blob)} bytes")


if __name__ == "__main__":
    main()
