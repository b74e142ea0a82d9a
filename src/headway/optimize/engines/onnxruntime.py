"""ONNX Runtime on the CPU, float32: the module as `torch.onnx` exports it, with every optimisation of its graph."""

from __future__ import annotations

import contextlib
import io
import logging
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from headway.core.cache import StepCache
from headway.core.errors import BadInput, Lacking, need_extra
from headway.core.module_model import ModuleModel
from headway.core.module_workload import Inputs
from headway.optimize.engines.base import Repeat

FILE = "model.onnx"


def make(model: ModuleModel, variant: str, threads: int) -> list[OnnxRuntime]:
    if variant:
        raise BadInput(f"onnxruntime has no variant {variant!r} here", "write onnxruntime")
    return [OnnxRuntime(model, threads, StepCache())]


class OnnxRuntime:
    """Exported once, into the step cache. `threads` share an operation; operations run one after the other."""

    name, bits = "onnxruntime", 32.0

    def __init__(self, model: ModuleModel, threads: int, cache: StepCache) -> None:
        try:
            import onnx
            import onnxruntime
            import onnxscript
        except ModuleNotFoundError as error:
            raise need_extra(str(error.name), "onnx") from None
        if not all(isinstance(value, Tensor) for value in model.sample):
            raise BadInput(f"{model.name} takes inputs that are no tensors", "ONNX takes tensors only")
        self.version = onnxruntime.__version__
        versions = [torch.__version__, onnx.__version__, onnxscript.__version__]
        shapes = [[str(value.dtype), *value.shape] for value in model.sample]
        key = cache.key("onnx", model.fingerprint(), shapes, versions)
        folder = cache.folder(key, lambda folder: export(model, folder / FILE))
        self.size_bytes = sum(path.stat().st_size for path in folder.glob(f"{FILE}*"))
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads, options.inter_op_num_threads = threads, 1
        options.log_severity_level = 3
        self.session: Any = onnxruntime.InferenceSession(
            str(folder / FILE), options, providers=["CPUExecutionProvider"]
        )
        self.names = [given.name for given in self.session.get_inputs()]

    def repeat(self, inputs: Inputs) -> Repeat:
        fed = self._fed(inputs)
        return lambda: self.session.run(None, fed)

    def run(self, inputs: Inputs) -> Any:
        """A tensor, or a list of them where the module returns several."""
        found = [torch.from_numpy(array) for array in self.session.run(None, self._fed(inputs))]
        return found[0] if len(found) == 1 else found

    def _fed(self, inputs: Inputs) -> Mapping[str, Any]:
        return {name: value.contiguous().numpy() for name, value in zip(self.names, inputs, strict=True)}


def export(model: ModuleModel, path: Path) -> None:
    """Write the module as ONNX; the batch may vary, and the length of sequences of token ids and masks.

    Raises `Lacking` for what the exporter cannot trace.
    """
    # One item would be taken for a constant.
    sample = tuple(torch.cat([value, value]) if value.shape[0] == 1 else value for value in model.sample)
    axes = [range(1 if value.is_floating_point() else min(2, value.dim())) for value in sample]
    free = tuple(dict.fromkeys(which, torch.export.Dim.AUTO) for which in axes)
    quiet = logging.getLogger("torch.onnx")
    level = quiet.level
    quiet.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
            warnings.simplefilter("ignore")
            torch.onnx.export(model.module(), sample, path, dynamo=True, dynamic_shapes=free, verbose=False)
    except torch.onnx.OnnxExporterError as error:
        reason = str(error).strip().splitlines()[0]
        raise Lacking(f"{model.name} cannot be exported to ONNX: {reason}", "leave onnxruntime out") from error
    finally:
        quiet.setLevel(level)
