"""Models of transformers, tiny and random: convert, run, train, save and load with no change of user code."""

from __future__ import annotations

import copy

import pytest
import torch

import evoprune_kernels as ek
from evoprune_kernels.inference.trace import difference
from evoprune_kernels.nn import SparseConv1D
from tests.nn.layers import use_references

transformers = pytest.importorskip("transformers")


@pytest.fixture(autouse=True)
def _kernels(monkeypatch):
    use_references(monkeypatch)


def bert():
    config = transformers.BertConfig(
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=2,
        num_attention_heads=4,
        vocab_size=100,
    )
    return transformers.BertForMaskedLM(config)


def llama():
    config = transformers.LlamaConfig(
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        vocab_size=100,
    )
    return transformers.LlamaForCausalLM(config)


def gpt2():
    config = transformers.GPT2Config(n_embd=64, n_layer=2, n_head=4, vocab_size=100, n_positions=64)
    return transformers.GPT2LMHeadModel(config)


#: model, linear layers that are swapped, and one that is not, with the reason
MODELS = {
    "bert": (bert, 2 * 6 + 1, ("cls.predictions.decoder", "tied to")),
    "llama": (llama, 2 * 7 + 1, ("model.embed_tokens", "Embedding is not a linear layer")),
    "gpt2": (gpt2, 2 * 4, ("lm_head", "tied to 'transformer.wte'")),
}
PATTERNS = [("2:4", None), ("block:16x16", 0.5)]


@pytest.fixture(params=MODELS, ids=str)
def built(request):
    make, count, skipped = MODELS[request.param]
    return make().eval(), count, skipped


def tokens():
    return torch.randint(0, 100, (2, 9))


@pytest.mark.parametrize("pattern, sparsity", PATTERNS, ids=["2to4", "block"])
def test_convert_run_and_export(built, pattern, sparsity):
    model, count, (name, reason) = built
    names = {n: id(p) for n, p in model.named_parameters()}
    report = ek.convert(model, pattern, sparsity=sparsity)
    assert len(report.swapped) == count and reason in report.skipped[name], str(report)
    assert {n: id(p) for n, p in model.named_parameters()} == names
    x = tokens()
    dense = ek.export(copy.deepcopy(model))
    with torch.no_grad():
        expected = dense(input_ids=x).logits
        assert difference(model(input_ids=x).logits, expected) < 1e-5
    assert any(layer.kernel for layer in sparse_layers(model))
    ek.export(model)
    with torch.no_grad():
        assert torch.equal(model(input_ids=x).logits, expected)


def sparse_layers(model):
    return [m for m in model.modules() if isinstance(m, ek.SparseLinear | SparseConv1D)]


def test_save_and_load(built, tmp_path):
    model, count, _ = built
    ek.convert(model, "2:4")
    model.save_pretrained(tmp_path)
    loaded = type(model).from_pretrained(tmp_path).eval()
    assert not sparse_layers(loaded)  # a checkpoint is plain tensors that anyone reads
    x = tokens()
    with torch.no_grad():
        expected = loaded(input_ids=x).logits
        assert difference(model(input_ids=x).logits, expected) < 1e-5
    ek.convert(loaded, "2:4")
    assert len(sparse_layers(loaded)) == count
    for ours, theirs in zip(model.parameters(), loaded.parameters(), strict=True):
        assert torch.equal(ours, theirs)


def test_train_and_evaluate(built):
    """A step of any optimizer changes what the next evaluation computes; the zeros stay under ek.optim."""
    model, _, _ = built
    ek.convert(model, "2:4")
    groups = ek.optim.prunable_groups(model, prune=ek.PruneConfig("2:4", importance="magnitude"))
    optimizer = ek.optim.AdamW(groups, lr=1e-2)
    x = tokens()
    with torch.no_grad():
        before = model(input_ids=x).logits
    model.train()
    for _ in range(2):
        optimizer.zero_grad()
        model(input_ids=x, labels=x).loss.backward()
        optimizer.step()
    model.eval()
    with torch.no_grad():
        after = model(input_ids=x).logits
        assert difference(after, before) > 1e-3
        assert difference(after, ek.export(model, inplace=False)(input_ids=x).logits) < 1e-5


def test_bfloat16(built):
    model, _, _ = built
    ek.convert(model.bfloat16(), "2:4")
    assert all(layer.kernel for layer in sparse_layers(model))
    x = tokens()
    with torch.no_grad():
        expected = ek.export(model, inplace=False)(input_ids=x).logits
        assert difference(model(input_ids=x).logits, expected) < 5e-2


def test_generate():
    model = gpt2().eval()
    ek.convert(model, "2:4")
    prompt = torch.tensor([[1, 2, 3]])
    options = {"max_new_tokens": 5, "do_sample": False, "pad_token_id": 0}
    ours = model.generate(prompt, **options)
    assert torch.equal(ours, ek.export(model, inplace=False).generate(prompt, **options))


@pytest.mark.slow
def test_optimize_for_inference(built):
    model, count, _ = built
    ek.convert(model, "2:4")
    report = ek.optimize_for_inference(model, {"input_ids": tokens()}, rounds=5, max_seconds=0.2)
    assert sum(layer.dense_us is not None for layer in report.layers) == count
    assert len(sparse_layers(model)) >= len(report.swapped)
