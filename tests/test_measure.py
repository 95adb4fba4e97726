"""measure: interleaving, quantiles and ratios on a fake clock; nothing here depends on real time."""

from __future__ import annotations

import gc
import json
import types

import pytest
import torch

from evoprune_kernels import measure


class FakeClock:
    """Time passes only when a contender says so."""

    def __init__(self):
        self.now = 0.0
        self.calls = []

    def __call__(self):
        return self.now

    def contender(self, name, durations):
        """A callable that takes ``durations[i]`` seconds in its i-th call (the last one repeats)."""
        remaining = list(durations)

        def call():
            self.calls.append(name)
            self.now += remaining.pop(0) if len(remaining) > 1 else remaining[0]

        return call


def test_samples_and_ratio_are_per_round():
    clock = FakeClock()
    contenders = {"a": clock.contender("a", [2, 4, 6]), "b": clock.contender("b", [1, 1, 2])}
    result = measure.interleave(contenders, rounds=3, warmup=0, clock=clock)
    assert result.samples == {"a": (2, 4, 6), "b": (1, 1, 2)}
    assert result.ratio("a", "b").median == 3.0  # of 2, 4, 3, not of the medians (4 / 1)
    assert result.ratio("b", "a").median == pytest.approx(1 / 3)
    assert result.timing("a") == measure.Timing(
        median=4, p20=pytest.approx(2.8), p80=pytest.approx(5.2), min=2, rounds=3
    )


def test_every_round_runs_all_and_the_order_is_shuffled():
    clock = FakeClock()
    contenders = {name: clock.contender(name, [1]) for name in "abc"}
    measure.interleave(contenders, rounds=20, warmup=0, seed=1, clock=clock)
    rounds = [tuple(clock.calls[i : i + 3]) for i in range(0, 60, 3)]
    assert all(set(r) == set("abc") for r in rounds)
    assert len(set(rounds)) > 2
    again = FakeClock()
    measure.interleave(
        {n: again.contender(n, [1]) for n in "abc"}, rounds=20, warmup=0, seed=1, clock=again
    )
    assert again.calls == clock.calls


def test_warmup_is_not_timed_and_calls_divide():
    clock = FakeClock()
    call = clock.contender("a", [100, 3])
    result = measure.interleave({"a": call}, rounds=2, warmup=1, calls=4, clock=clock)
    assert result.samples == {"a": (3, 3)}
    assert len(clock.calls) == 1 + 2 * 4


def test_min_sample_raises_the_calls_of_the_fast_one_only():
    clock = FakeClock()
    contenders = {"fast": clock.contender("fast", [0.001]), "slow": clock.contender("slow", [1.0])}
    result = measure.interleave(contenders, rounds=1, warmup=1, min_sample=0.01, clock=clock)
    assert 10 <= clock.calls.count("fast") - 1 <= 12
    assert clock.calls.count("slow") - 1 == 1
    assert result.samples["fast"][0] == pytest.approx(0.001)


def test_max_seconds_cuts_but_not_below_min_rounds():
    clock = FakeClock()
    result = measure.interleave(
        {"a": clock.contender("a", [1.0])},
        rounds=100,
        warmup=0,
        max_seconds=0.5,
        min_rounds=4,
        clock=clock,
    )
    assert result.timing("a").rounds == 4


def test_before_is_untimed():
    clock = FakeClock()

    def flush():
        clock.now += 50

    result = measure.interleave(
        {"a": clock.contender("a", [2])}, rounds=2, warmup=0, before=flush, clock=clock
    )
    assert result.samples == {"a": (2, 2)}


def test_before_by_name():
    clock = FakeClock()
    contenders = {name: clock.contender(name, [1]) for name in "ab"}
    before = {"b": clock.contender("before b", [9])}
    result = measure.interleave(contenders, rounds=3, warmup=0, before=before, clock=clock)
    assert result.samples == {"a": (1, 1, 1), "b": (1, 1, 1)}
    order = "".join(clock.calls)
    assert order.count("before bb") == 3 and clock.calls.count("before b") == 3


def test_every_sample_waits_for_the_device_before_and_after():
    """Calls only queue work; ``synchronize`` lets its time pass. A sample without the wait would be 0."""
    clock = FakeClock()
    queued = []

    def contender(name, duration):
        return lambda: (queued.append(duration), clock.calls.append(name))

    def synchronize():
        clock.calls.append("wait")
        clock.now += sum(queued)
        queued.clear()

    def flush():
        queued.append(50)  # untimed work is waited for before the sample begins

    result = measure.interleave(
        {"a": contender("a", 3), "b": contender("b", 1)},
        rounds=4, warmup=1, calls=2, before=flush, synchronize=synchronize, clock=clock,
    )  # fmt: skip
    assert result.samples == {"a": (3,) * 4, "b": (1,) * 4}
    assert clock.calls[:6] == ["wait", "a", "wait", "wait", "b", "wait"]  # the warm-up
    timed = clock.calls[6:]
    assert len(timed) == 2 * 4 * 4
    for start in range(0, len(timed), 4):
        first, name, again, last = timed[start : start + 4]
        assert first == last == "wait" and name == again in ("a", "b")


def test_min_sample_counts_the_time_of_the_device():
    clock = FakeClock()
    queued = []

    def synchronize():
        clock.now += 0.001 * len(queued)
        queued.clear()

    calls = []
    call = lambda: (queued.append(1), calls.append(1))  # noqa: E731
    measure.interleave(
        {"a": call}, rounds=1, warmup=1, min_sample=0.01, synchronize=synchronize, clock=clock
    )
    assert 10 <= len(calls) - 1 <= 12


def test_the_synchronizer_is_that_of_the_device(monkeypatch):
    assert measure.synchronizer() is None
    assert measure.synchronizer(torch.device("cpu")) is None
    waited = []
    fake = types.SimpleNamespace(synchronize=waited.append)
    monkeypatch.setattr(torch, "cuda", fake)
    first, second = torch.device("cuda:0"), torch.device("cuda:1")
    measure.synchronizer(torch.device("cpu"), first, second, first)()
    assert waited == [first, second]
    with pytest.raises(ValueError, match=r"torch\.meta\.synchronize, got meta"):
        measure.synchronizer(torch.device("meta"))


def test_the_cache_is_that_of_the_device(monkeypatch):
    cpu = torch.device("cpu")
    assert measure.cache_bytes(cpu) == measure.last_level_cache_bytes()
    properties = types.SimpleNamespace(L2_cache_size=50 << 20)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: properties)
    assert measure.cache_bytes(torch.device("cuda:0")) == 50 << 20


def test_control_tells_the_noise():
    clock = FakeClock()
    contenders = measure.add_control({"dense": clock.contender("dense", [1.0])}, "dense")
    assert list(contenders) == ["dense", "dense (A/A)"]
    result = measure.interleave(contenders, rounds=4, warmup=0, clock=clock)
    assert result.noise("dense") == 0
    noisy = measure.Measurement({"d": (1.0, 1.0, 1.0), "d (A/A)": (1.1, 1.1, 1.1)})
    assert noisy.noise("d") == pytest.approx(0.1)


def test_collector_is_restored_after_an_error():
    def fails():
        raise RuntimeError("in a contender")

    assert gc.isenabled()
    with pytest.raises(RuntimeError, match="in a contender"):
        measure.interleave({"a": fails}, warmup=0)
    assert gc.isenabled()


def test_bad_arguments_are_named():
    with pytest.raises(ValueError, match="got 0 and 25"):
        measure.interleave({})
    with pytest.raises(ValueError, match="got 1 and 0"):
        measure.interleave({"a": lambda: None}, rounds=0)
    with pytest.raises(KeyError, match=r"'b'.*\['a'\]"):
        measure.add_control({"a": lambda: None}, "b")
    with pytest.raises(KeyError, match=r"'b'.*\['a'\]"):
        measure.Measurement({"a": (1.0,)}).timing("b")


def test_threads_restores():
    before = torch.get_num_threads()
    with measure.threads(1):
        assert torch.get_num_threads() == 1
    assert torch.get_num_threads() == before


def test_machine_info_is_plain_and_anonymous():
    import platform

    info = measure.machine_info()
    assert info["torch"] == torch.__version__ and info["cpu"] and info["threads"] >= 1
    assert json.loads(json.dumps(info)) == info
    assert platform.node() not in info.values()


def test_cache_size_is_read_from_the_system(tmp_path):
    for index, size in enumerate(["32K", "512K", "8M", "nonsense"]):
        (tmp_path / f"index{index}").mkdir()
        (tmp_path / f"index{index}" / "size").write_text(size + "\n")
    assert measure.last_level_cache_bytes(tmp_path) == 8 << 20
    assert measure.last_level_cache_bytes(tmp_path / "none") == measure.DEFAULT_CACHE_BYTES
