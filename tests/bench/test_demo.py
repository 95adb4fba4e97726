"""The demo end to end in seconds, and its parts by value."""

from __future__ import annotations

import argparse
import dataclasses
import json

import pytest
import torch

from bench import char_gpt, demo, digits
from bench import text as texts
from bench.demo_train import Plan, train
from bench.gate import GateError

CONFIG = char_gpt.GPTConfig(len(texts.SYMBOLS), context=24, layers=2, width=32, heads=2)


def test_the_cache_changes_no_logit():
    model = char_gpt.CharGPT(CONFIG).eval()
    tokens = torch.randint(CONFIG.vocabulary, (3, 20))
    whole = model(tokens)
    cache = char_gpt.Cache(CONFIG, 3)
    parts = [model(tokens[:, :7], cache)] + [
        model(tokens[:, i : i + 1], cache) for i in range(7, 20)
    ]
    torch.testing.assert_close(torch.cat(parts, 1), whole, atol=1e-5, rtol=1e-5)


def test_a_character_does_not_see_the_next_ones():
    model = char_gpt.CharGPT(CONFIG).eval()
    tokens = torch.randint(CONFIG.vocabulary, (1, 12))
    changed = tokens.clone()
    changed[0, 8:] = (changed[0, 8:] + 1) % CONFIG.vocabulary
    torch.testing.assert_close(model(tokens)[:, :8], model(changed)[:, :8])
    assert not torch.equal(model(tokens)[:, 8], model(changed)[:, 8])


def test_generating_takes_the_likeliest_character():
    model = char_gpt.CharGPT(CONFIG).eval()
    prompt = torch.randint(CONFIG.vocabulary, (2, 5))
    new = char_gpt.generate(model, prompt, 6)
    seen = torch.cat((prompt, new), 1)
    assert torch.equal(model(seen)[:, 4:-1].argmax(-1), new)


def test_context_is_a_limit_with_a_message():
    model = char_gpt.CharGPT(CONFIG)
    with pytest.raises(ValueError, match="holds 24 characters, got 25"):
        model(torch.zeros(1, 25, dtype=torch.int64))


def test_text_round_trip_and_unknown_characters():
    assert texts.decode(texts.encode("if x:\n\treturn 'é'")) == "if x:\n    return '?'"


def test_text_of_a_folder_holds_out_whole_files(tmp_path):
    for i in range(10):
        (tmp_path / f"{i}.txt").write_text(str(i) * 2000)
    text = texts.load(str(tmp_path))
    training, held_out = (set(texts.decode(t)) for t in (text.training, text.validation))
    assert text.files == 10 and training and held_out and not training & held_out


def test_text_too_short_is_an_error(tmp_path):
    (tmp_path / "a.txt").write_text("short")
    with pytest.raises(ValueError, match="expected at least 10000 characters"):
        texts.load(str(tmp_path))


@pytest.fixture(scope="module")
def small_text():
    return texts.load(limit=200_000)


@pytest.mark.parametrize(("pattern", "sparsity"), [("2:4", None), ("block:16x16", 0.5)])
def test_training_prunes_and_the_control_stays_dense(small_text, pattern, sparsity):
    plan = Plan(pattern, sparsity, width=32, layers=1, heads=2, context=16, rows=2, steps=20)
    seen = []
    trained = train(plan, small_text, lambda run, step, loss: seen.append((run, step)))
    assert len(seen) == 2 * plan.steps - plan.start
    assert set(trained.masks) == {f"blocks.0.{n}.weight" for n in ("qkv", "proj", "up", "down")}
    pruned, control = (
        dict(trained.pruned.named_parameters()),
        dict(trained.control.named_parameters()),
    )
    for name, mask in trained.masks.items():
        assert mask.double().mean().item() == pytest.approx(0.5, abs=0.01)
        assert not pruned[name][~mask].any()
        assert control[name].count_nonzero() > 0.99 * control[name].numel()
    assert pruned["head.weight"].count_nonzero() == pruned["head.weight"].numel()
    assert trained.history["pruned"].sparsity[-1][1] == pytest.approx(0.5, abs=0.01)


def test_control_and_pruned_are_one_run_until_the_first_mask(small_text):
    """With pruning that never begins to bite, the fork goes on exactly as the run that it left."""
    plan = Plan("block:16x16", 0.0, width=32, layers=1, heads=2, context=16, rows=2, steps=20)
    trained = train(plan, small_text, lambda *_: None)
    assert trained.loss["pruned"] == trained.loss["dense_control"]


def test_logits_beyond_the_law_are_refused():
    masked = char_gpt.CharGPT(CONFIG).eval()
    other = char_gpt.CharGPT(CONFIG).eval()
    tokens = torch.zeros(1, 4, dtype=torch.int64)
    assert demo.check_logits(masked, masked, tokens)["sparse_error"] >= 0.0
    with pytest.raises(GateError, match="logits differ from fp64"):
        demo.check_logits(masked, other, tokens)


def test_demo_quick_end_to_end(tmp_path, capsys):
    target, picture = tmp_path / "demo.json", tmp_path / "demo.png"
    arguments = ["--quick", "--no-digits", "--json", str(target), "--png", str(picture)]
    assert demo.main(arguments) == 0
    record = json.loads(target.read_text())
    results = record["results"]
    assert set(results["loss"]) == {"before_pruning", "pruned", "dense_control"}
    assert results["sparsity"] == pytest.approx(0.75, abs=0.02)
    assert results["logits"]["sparse_error"] <= results["logits"]["allowed"]
    for job in results["speed"].values():
        assert job["dense"]["characters_per_second"] > 0 < job["sparse"]["characters_per_second"]
        assert "dense (A/A)" in job
    assert picture.read_bytes()[:4] == b"\x89PNG"
    out = capsys.readouterr().out
    assert "held-out loss" in out and "speed-up" in out and demo.PROMPT in out


def test_digits_quick_end_to_end(tmp_path, capsys):
    target = tmp_path / "digits.json"
    assert digits.main(["--quick", "--json", str(target)]) == 0
    results = json.loads(target.read_text())["results"]
    assert set(results["accuracy"]) == {"dense", "pruned"}
    assert all(0.0 <= score <= 1.0 for scores in results["accuracy"].values() for score in scores)
    assert results["logits"]["sparse_error"] <= results["logits"]["allowed"]


def test_digits_learn():
    data = digits.load_data()
    model = digits.train(None, 0, 200, 64, data)
    assert digits.accuracy(model, *data) > 0.8


@pytest.mark.parametrize(
    ("fits", "options", "steps"),
    [
        (1000, [], Plan.steps),
        (90, [], 90),
        (90, ["--steps", "700"], 700),
        (1000, ["--seconds", "300"], 1000),
    ],
)
def test_steps_are_as_asked_or_as_the_time_allows(monkeypatch, fits, options, steps):
    def fit(plan, text, seconds):
        return dataclasses.replace(plan, steps=fits)

    monkeypatch.setattr(demo, "fit_to_time", fit)
    parser = argparse.ArgumentParser()
    demo.add_arguments(parser)
    assert demo.final_plan(parser.parse_args(options), None).steps == steps


def test_the_steps_that_fit_the_time_are_counted_by_training_steps(small_text):
    plan = Plan("block:16x16", 0.5, width=32, layers=1, heads=2, context=16, rows=2)
    assert demo.fit_to_time(plan, small_text, seconds=0.0).steps == 60  # never fewer
    assert demo.fit_to_time(plan, small_text, seconds=1e6).steps > plan.steps
