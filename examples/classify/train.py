"""Train the network of this example; write `digits.onnx` and `digits.bin`, which the guest embeds.

    python examples/classify/train.py

Data: scikit-learn's digits, 1797 pictures of 8 x 8 pixels from 0 to 16 (UCI ML hand-written digits).
A quarter is held out; the guest measures accuracy on it. The rest is shown to the network shifted by up to a
pixel. Seeded, on one thread: the same files on the same versions.

    digits.onnx   pictures u8 [n, 1, 8, 8] -> scores f32 [n, 10], which sum to 1
    digits.bin    450 * 64 u8 pictures, then 450 u8 labels
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import numpy.typing as npt
import onnx
import torch
from onnx import TensorProto, helper, numpy_helper
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split
from torch import nn

FOLDER = Path(__file__).parent
CHANNELS = (12, 24)
EPOCHS, BATCH = 40, 64
SEED = 0
OPSET, IR = 17, 8
"""Old enough for every ONNX Runtime in use."""


def network() -> nn.Sequential:
    """Two convolutions, halved, and one layer over what is left."""
    first, second = CHANNELS
    return nn.Sequential(
        nn.Conv2d(1, first, 3, padding=1),
        nn.ReLU(),
        nn.Conv2d(first, second, 3, padding=1),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Flatten(),
        nn.Linear(second * 16, 10),
    )


def shifted(pictures: torch.Tensor, random: torch.Generator) -> torch.Tensor:
    """Each picture moved by -1, 0 or 1 pixel in both directions; what comes in is blank."""
    padded = nn.functional.pad(pictures, (1, 1, 1, 1))
    moves = torch.randint(0, 3, (len(pictures), 2), generator=random)
    return torch.stack([p[:, y : y + 8, x : x + 8] for p, (y, x) in zip(padded, moves.tolist(), strict=True)])


def train(pictures: npt.NDArray[np.uint8], labels: npt.NDArray[np.uint8]) -> nn.Sequential:
    """Fit a network."""
    torch.set_num_threads(1)
    torch.manual_seed(SEED)
    random = torch.Generator().manual_seed(SEED)
    model = network()
    optimiser = torch.optim.AdamW(model.parameters(), lr=3e-3, weight_decay=1e-2)
    steps = EPOCHS * -(-len(pictures) // BATCH)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, 1e-2, total_steps=steps)
    x = torch.from_numpy(pictures.reshape(-1, 1, 8, 8).astype(np.float32) / 16)
    y = torch.from_numpy(labels.astype(np.int64))
    for _ in range(EPOCHS):
        for rows in torch.randperm(len(x), generator=random).split(BATCH):
            loss = nn.functional.cross_entropy(model(shifted(x[rows], random)), y[rows], label_smoothing=0.05)
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
            schedule.step()
    return model.eval()


def export(model: nn.Sequential) -> onnx.ModelProto:
    """The network as ONNX, from bytes to probabilities."""
    weights = {name: value.numpy() for name, value in model.state_dict().items()}
    weights["6.weight"] = weights["6.weight"].T.copy()
    constants = {**weights, "sixteenth": np.float32(1 / 16)}
    nodes = [
        helper.make_node("Cast", ["pictures"], ["levels"], to=TensorProto.FLOAT),
        helper.make_node("Mul", ["levels", "sixteenth"], ["ink"]),
        helper.make_node("Conv", ["ink", "0.weight", "0.bias"], ["a"], pads=[1, 1, 1, 1]),
        helper.make_node("Relu", ["a"], ["b"]),
        helper.make_node("Conv", ["b", "2.weight", "2.bias"], ["c"], pads=[1, 1, 1, 1]),
        helper.make_node("Relu", ["c"], ["d"]),
        helper.make_node("MaxPool", ["d"], ["e"], kernel_shape=[2, 2], strides=[2, 2]),
        helper.make_node("Flatten", ["e"], ["f"]),
        helper.make_node("Gemm", ["f", "6.weight", "6.bias"], ["logits"]),
        helper.make_node("Softmax", ["logits"], ["scores"], axis=1),
    ]
    graph = helper.make_graph(
        nodes,
        "digits",
        [helper.make_tensor_value_info("pictures", TensorProto.UINT8, ["n", 1, 8, 8])],
        [helper.make_tensor_value_info("scores", TensorProto.FLOAT, ["n", 10])],
        [numpy_helper.from_array(np.asarray(value), name) for name, value in constants.items()],
    )
    found = helper.make_model(graph, opset_imports=[helper.make_opsetid("", OPSET)], ir_version=IR)
    onnx.checker.check_model(found, full_check=True)
    return found


def main() -> None:
    """Train, write the files, say how good it is."""
    pictures, labels = (part.astype(np.uint8) for part in load_digits(return_X_y=True))
    x_train, x_test, y_train, y_test = train_test_split(
        pictures, labels, test_size=0.25, random_state=SEED, stratify=labels
    )
    model = train(x_train, y_train)
    with torch.no_grad():
        logits = model(torch.from_numpy(x_test.reshape(-1, 1, 8, 8).astype(np.float32) / 16))
    accuracy = float((logits.argmax(1).numpy() == y_test).mean())
    raw = export(model).SerializeToString(deterministic=True)
    (FOLDER / "digits.onnx").write_bytes(raw)
    (FOLDER / "digits.bin").write_bytes(x_test.tobytes() + y_test.tobytes())
    print(f"{len(y_test)} test pictures, accuracy {accuracy:.4f}, {len(raw)} bytes of ONNX")


if __name__ == "__main__":
    main()
