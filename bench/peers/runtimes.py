"""Inference runtimes: onnxruntime and OpenVINO with dense weights, DeepSparse with pruned ones.

A stack is one graph: ``y_i = x W_i^T`` for every layer, so that one call goes over all of them; what a runtime costs a
call is then shared by the layers, in its favour. Thread pools: one thread means none (onnxruntime), its workers do not
spin into the next contender's time, and none is pinned.
"""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

import numpy
import torch
from torch import Tensor

from bench.peers.adapter import Adapter, Job, Stack, needs


def onnx_graph(layers: list[Tensor], tokens: int, *, inline: bool) -> Any:
    """A model of Gemm nodes, as torch exports ``nn.Linear``; weights inside it, or to be given by the caller."""
    from onnx import TensorProto, helper, numpy_helper

    rows, columns = layers[0].shape
    weights, nodes, outputs = [], [], []
    for i, layer in enumerate(layers):
        if inline:
            weight = numpy_helper.from_array(layer.numpy(), f"w{i}")
        else:
            weight = TensorProto(
                name=f"w{i}",
                data_type=TensorProto.FLOAT,
                dims=[rows, columns],
                data_location=TensorProto.EXTERNAL,
            )
            weight.external_data.add(key="location", value="memory")
        weights.append(weight)
        nodes.append(helper.make_node("Gemm", ["x", f"w{i}"], [f"y{i}"], transB=1))
        outputs.append(helper.make_tensor_value_info(f"y{i}", TensorProto.FLOAT, [tokens, rows]))
    inputs = [helper.make_tensor_value_info("x", TensorProto.FLOAT, [tokens, columns])]
    graph = helper.make_graph(nodes, "layers", inputs, outputs, weights)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)], ir_version=8)


def build_onnxruntime(job: Job) -> Stack:
    """``onnxruntime.InferenceSession`` with bound inputs and outputs."""
    import onnxruntime

    tokens, rows = job.x.shape[0], job.layers[0].shape[0]
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads, options.inter_op_num_threads = job.threads, 1
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    options.log_severity_level = 3
    names = [f"w{i}" for i in range(len(job.layers))]
    values = [onnxruntime.OrtValue.ortvalue_from_numpy(layer.numpy()) for layer in job.layers]
    options.add_external_initializers(names, values)
    session = onnxruntime.InferenceSession(
        onnx_graph(job.layers, tokens, inline=False).SerializeToString(),
        options,
        providers=["CPUExecutionProvider"],
    )
    y = [torch.empty(tokens, rows) for _ in names]
    binding = session.io_binding()
    binding.bind_cpu_input("x", job.x.numpy())
    for i, tensor in enumerate(y):
        binding.bind_output(f"y{i}", "cpu", 0, numpy.float32, (tokens, rows), tensor.data_ptr())

    def run() -> None:
        session.run_with_iobinding(binding)

    def rows_of_first() -> Tensor:
        run()
        return y[0]

    return Stack(run, rows_of_first)


def build_openvino(job: Job) -> Stack:
    """One OpenVINO model in float32, one stream."""
    import openvino
    from openvino import opset13

    x = opset13.parameter(list(job.x.shape), numpy.float32, name="x")
    products = [
        opset13.matmul(x, opset13.constant(layer.numpy(), shared_memory=True), False, True)
        for layer in job.layers
    ]
    model = openvino.Model([opset13.result(product) for product in products], [x], "layers")
    compiled = openvino.Core().compile_model(
        model,
        "CPU",
        {
            "INFERENCE_NUM_THREADS": job.threads,
            "NUM_STREAMS": 1,
            "INFERENCE_PRECISION_HINT": "f32",
            "ENABLE_CPU_PINNING": False,
        },
    )
    request = compiled.create_infer_request()
    request.set_input_tensor(openvino.Tensor(job.x.numpy(), shared_memory=True))

    def rows_of_first() -> Tensor:
        request.infer()
        return torch.from_numpy(request.get_output_tensor(0).data.copy())

    return Stack(request.infer, rows_of_first)


def build_deepsparse(job: Job) -> Stack:
    """DeepSparse's engine on an ONNX file; its evaluation licence allows comparison, not publication of a product."""
    import deepsparse
    import onnx

    layers = [layer.roll(i, 0) for i, layer in enumerate(job.layers)]  # no two are equal
    with tempfile.TemporaryDirectory() as folder:
        path = str(Path(folder) / "layers.onnx")
        onnx.save(onnx_graph(layers, job.x.shape[0], inline=True), path)
        engine = deepsparse.Engine(path, batch_size=job.x.shape[0], num_cores=job.threads)
    x = [job.x.numpy()]
    return Stack(
        lambda: engine.run(x, val_inp=False),
        lambda: torch.from_numpy(numpy.array(engine.run(x, val_inp=False)[0])),
    )


ONNXRUNTIME = Adapter(
    "onnxruntime dense",
    "dense",
    build_onnxruntime,
    needs("onnxruntime", "onnx"),
    package="onnxruntime",
)
OPENVINO = Adapter("OpenVINO dense", "dense", build_openvino, needs("openvino"), package="openvino")
DEEPSPARSE = Adapter(
    "DeepSparse", "sparse", build_deepsparse, needs("deepsparse", "onnx"), package="deepsparse"
)
