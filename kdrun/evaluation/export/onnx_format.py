"""Self-describing ONNX files: written, quantised, and read back for predictions."""

from __future__ import annotations

import importlib.util
import io
import json
import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from kdrun import __version__
from kdrun.errors import CheckpointError, ConfigError, RunError, one_line
from kdrun.evaluation.deployed import Card
from kdrun.files import read_json, sha256_of

if TYPE_CHECKING:
    from torch import Tensor, nn

KEY = "kdrun"  # metadata key of the card
LIBRARIES = {"onnx": ("onnx", "onnxruntime", "onnxscript"), "read": ("onnxruntime",)}
WEIGHTED = ["MatMul", "Gemm"]  # dynamic quantisation of convolutions is several times slower than float32


def require(what: str) -> None:
    """Raise ConfigError unless the packages of the `export` extra are installed."""
    missing = [name for name in LIBRARIES[what] if importlib.util.find_spec(name) is None]
    if missing:
        raise ConfigError(f"ONNX files need {', '.join(missing)}: pip install 'kdrun[export]'.")


def write_onnx(model: nn.Module, card: Card, path: Path, opset: int | None) -> None:
    """Write `model` from RGB in [0, 1], [N, 3, S, S], to logits [N, K] with any N, and `card` in the metadata.

    Raises RunError if PyTorch's exporter cannot trace the network.
    """
    import onnx
    import torch
    from torch.nn.attention import SDPBackend, sdpa_kernel

    side = card.input_size
    example = torch.rand(2, 3, side, side)
    try:
        # The exporter cannot handle the transposed result of the fused attention kernel (Swin).
        with quiet(), sdpa_kernel(SDPBackend.MATH):
            program = torch.onnx.export(
                model,
                (example,),
                dynamo=True,
                opset_version=opset,
                input_names=["image"],
                output_names=["logits"],
                external_data=False,
                verbose=False,
                dynamic_shapes=({0: torch.export.Dim("batch")},),
            )
    except Exception as error:  # the exporter raises many types, each with pages of text
        raise RunError(f"{card.network} cannot be exported to ONNX ({one_line(error.__cause__ or error)}).") from error
    assert program is not None
    if not program.model_proto.graph.input[0].type.tensor_type.shape.dim[0].dim_param:
        raise RunError(
            f"{card.network} cannot be exported to ONNX: its forward fixes the number of images, as len(x) does; "
            "x.shape[0] does not."
        )
    onnx.save(program.model_proto, path)
    write_card(path, card)


def write_card(path: Path, card: Card) -> None:
    """Write `card` into the file's metadata: complete for kdrun, and by name for other programs."""
    import onnx

    proto = onnx.load(path)
    del proto.metadata_props[:]
    told = {
        KEY: json.dumps({"version": __version__, **asdict(card)}),
        "class_names": json.dumps(card.class_names),
        "image_size": str(card.input_size),
        "mean": json.dumps(card.mean),
        "std": json.dumps(card.std),
        "input": "RGB in [0, 1], NCHW float32; mean and std are applied inside",
        "output": "logits",
    }
    onnx.helper.set_model_props(proto, told)
    onnx.save(proto, path)


@contextmanager
def quiet() -> Iterator[None]:
    """Silence the exporter and the quantiser, which print pages of advice about their own options."""
    level = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings(), redirect_stdout(io.StringIO()), redirect_stderr(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(level)


def quantise_static(source: Path, target: Path, card: Card, batches: list[np.ndarray]) -> None:
    """Quantise to INT8 in QDQ form, weights per channel, activations by the smallest and largest value over `batches`
    of images.

    The classifier's and every other MatMul and convolution are quantised; normalisation at the input stays float32.
    """
    from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType, quantize_static
    from onnxruntime.quantization.shape_inference import quant_pre_process

    class Reader(CalibrationDataReader):
        def __init__(self) -> None:
            self.left = iter(batches)

        def get_next(self) -> Any:
            images = next(self.left, None)
            return None if images is None else {"image": images}

    ready = target.with_suffix(".ready.onnx")
    with quiet():
        quant_pre_process(source, ready, skip_symbolic_shape=True)
        quantize_static(
            ready,
            target,
            Reader(),
            quant_format=QuantFormat.QDQ,
            per_channel=True,
            activation_type=QuantType.QUInt8,
            weight_type=QuantType.QInt8,
        )
    ready.unlink()
    write_card(target, card)


def quantise_dynamic(source: Path, target: Path, card: Card) -> None:
    """Quantise only the weights of `WEIGHTED` to INT8; the scales of their activations are measured at each call."""
    import onnx
    from onnxruntime.quantization import QuantType, quantize_dynamic

    proto = onnx.load(source)
    del proto.graph.value_info[:]  # weights get transposed, which would contradict the recorded shapes
    with quiet():
        quantize_dynamic(proto, target, op_types_to_quantize=WEIGHTED, weight_type=QuantType.QInt8, per_channel=True)
    write_card(target, card)


def check_unchanged(path: Path) -> None:
    """Raise CheckpointError for an exported file that does not match the JSON next to it."""
    for place in sorted(path.parent.glob("*.json")):
        if not path.name.startswith(place.stem):
            continue
        try:
            forms = read_json(place).get("forms")
        except CheckpointError:
            continue
        for form in forms if isinstance(forms, list) else []:
            mine = isinstance(form, dict) and form.get("file") == path.name and form.get("sha256")
            if mine and form["sha256"] != sha256_of(path):
                raise CheckpointError(
                    f"{path} has changed since {place.name} was written: export it again, or remove {place.name}."
                )


class OnnxNetwork:
    """Exported file under ONNX Runtime. Raises CheckpointError if it cannot be loaded, or is not from kdrun."""

    def __init__(self, path: Path, threads: int | None = None):
        require("read")
        check_unchanged(path)
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.log_severity_level = 3
        options.intra_op_num_threads = threads or 0  # 0: ONNX Runtime's default
        try:
            self.session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
        except Exception as error:  # onnxruntime's errors share no public base class
            raise CheckpointError(f"{path} cannot be loaded as an ONNX file ({one_line(error)[:160]}).") from error
        self.path, self.card = path, self._read_card(path)

    def _read_card(self, path: Path) -> Card:
        try:
            told = json.loads(self.session.get_modelmeta().custom_metadata_map[KEY])
            card = Card.read(told)
        except (KeyError, ValueError, TypeError) as error:
            raise CheckpointError(
                f"{path} lacks class names, mean, std and image size, which only files of kdrun export have."
            ) from error
        classes = self.session.get_outputs()[0].shape[-1]
        if isinstance(classes, int) and classes != len(card.class_names):
            raise CheckpointError(f"{path} names {len(card.class_names)} classes but returns {classes} logits.")
        return card

    def run(self, image: np.ndarray) -> np.ndarray:
        """Map RGB in [0, 1], [N, 3, S, S], to logits [N, K]."""
        return np.asarray(self.session.run(None, {self.session.get_inputs()[0].name: image})[0])

    def logits(self, pixels: np.ndarray) -> Tensor:
        """Map uint8 [N, S, S, 3], prepared according to `card`, to logits [N, K]."""
        import torch

        return torch.from_numpy(self.run(self.card.unit(pixels).numpy()))
