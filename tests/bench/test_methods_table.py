"""Tables and pictures of records whose numbers are known."""

from __future__ import annotations

import json
import math

import pytest

from bench.methods import plot, table

RECORD = {
    "arms": {
        "magnitude": {"0.9": [0.950, 0.960, 0.955], "0.974": [0.84, 0.86, 0.85], "0.5": [0.97]},
        "evolution": {"0.9": [0.952, 0.958, 0.957], "0.974": [0.95, 0.952, 0.951]},
    },
    "dense": [0.975, 0.977],
}


def cells(text):
    """Rows of cells of the Markdown table, without the rule."""
    lines = [line for line in text.splitlines() if line.startswith("|")]
    return [[c.strip() for c in line.strip("|").split("|")] for line in [lines[0], *lines[2:]]]


def test_values_of_the_table():
    assert cells(table.markdown(RECORD)) == [
        ["arm", "seeds", "50%", "90%", "97.4%"],
        ["magnitude", "1-3", "97.00%", "95.50% (95.00-96.00)", "85.00% (84.00-86.00)"],
        ["evolution", "3", "-", "95.57% (95.20-95.80)", "**95.10% (95.00-95.20)**"],
    ]


def test_sentence_under_the_table():
    text = table.markdown(RECORD).splitlines()[-1]
    assert "accuracy, mean over the seeds (min-max)" in text
    assert text.endswith("Dense: 97.60% (97.50-97.70), 2 seeds.")


def test_loss_and_standard_deviation():
    record = {
        "metric": "loss",
        "arms": {"a": {"0.6": [1.60, 1.62]}, "b": {"0.6": [2.0, 2.2]}},
        "dense": [2.006],
    }
    text = table.markdown(record, "std")
    assert cells(text)[1:] == [
        ["a", "2", "**1.610 (std 0.014)**"],
        ["b", "2", "2.100 (std 0.141)"],
    ]
    assert "loss in nats" in text and text.endswith("Dense: 2.006, 1 seed.")


def test_other_axes_are_numbers():
    record = {"axis": "eps", "arms": {"a": {0.0: [0.9], 0.03125: [0.5], 2.0: [0.1]}}}
    assert cells(table.markdown(record))[0] == ["arm", "seeds", "0", "0.03125", "2"]


def test_a_record_survives_json():
    record = {"arms": {"a": {0.5: [0.25, 0.75], 0.974: [0.5]}}}
    assert table.markdown(json.loads(json.dumps(record))) == table.markdown(record)


def test_an_arm_of_a_name_with_a_bar_stays_one_cell():
    text = table.markdown({"arms": {"|w|": {0.5: [0.5]}}})
    assert r"\|w\|" in text and text.splitlines()[1].count("|") == 4


@pytest.mark.parametrize(
    ("a", "b", "winner"),
    [
        ([0.9, 0.92], [0.8, 0.82], "a"),
        ([0.8, 0.82], [0.9, 0.92], "b"),
        ([0.9, 0.95], [0.88, 0.89], None),  # gap 0.04, spread 0.05
        ([0.75, 1.0], [0.5, 0.75], None),  # the gap is the spread
        ([0.9, 0.9], [0.9, 0.9], None),
        ([0.9], [0.5], None),  # one seed: no spread is known
        ([0.9, 0.91], [0.5], None),
    ],
)
def test_best_needs_a_gap_beyond_the_spread(a, b, winner):
    assert table.best({"a": a, "b": b}, "accuracy") == winner
    other = {"a": "b", "b": "a", None: None}
    assert table.best({"a": a, "b": b}, "loss") == other[winner]


def test_best_of_three_must_beat_each():
    sure = {"a": [0.9, 0.91], "b": [0.8, 0.81], "c": [0.7, 0.71]}
    assert table.best(sure, "accuracy") == "a"
    assert (
        table.best({**sure, "c": [0.6, 0.95]}, "accuracy") is None
    )  # c is worse on average, but it varies
    assert table.best({"a": [0.9, 0.91]}, "accuracy") is None


def test_spread():
    assert table.spread([1.0, 4.0, 2.5]) == 3.0
    assert table.spread([1.0, 3.0], "std") == pytest.approx(math.sqrt(2))
    assert table.spread([1.0], "std") == table.spread([1.0]) == 0.0
    with pytest.raises(ValueError, match="got 'iqr'"):
        table.spread([1.0], "iqr")


@pytest.mark.parametrize(
    ("record", "message"),
    [
        ({"arms": {}}, "at least one arm, got none"),
        ({"arms": {"a": {0.5: []}}}, r"a at sparsity 0\.5: expected at least one value"),
        ({"arms": {"a": {0.5: [math.nan]}}}, r"a at sparsity 0\.5: expected finite values"),
        ({"arms": {"a": {1.0: [0.1]}}}, r"a: expected a sparsity in \[0, 1\), got 1\.0"),
        ({"arms": {"a": {"0.5": [1], "0.50": [1]}}}, "a: expected each sparsity once"),
        ({"arms": {"a": {0.5: [1]}}, "metric": "f1"}, "got 'f1'"),
        ({"arms": {"a": {0.5: [1]}}, "dense": [math.inf]}, "dense: expected finite values"),
    ],
)
def test_records_that_are_refused(record, message):
    with pytest.raises(ValueError, match=message):
        table.markdown(record)


# ---- the picture ----
@pytest.fixture
def axes():
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots()
    yield axes
    pyplot.close(figure)


def test_lines_and_bands_show_the_record(axes):
    plot.lines(axes, table.read(RECORD))
    magnitude, evolution, dense = axes.get_lines()
    assert [line.get_label() for line in axes.get_lines()] == ["magnitude", "evolution", "dense"]
    assert list(magnitude.get_xdata()) == pytest.approx([0.5, 0.1, 0.026])  # kept shares
    assert list(magnitude.get_ydata()) == pytest.approx([97.0, 95.5, 85.0])
    assert list(evolution.get_ydata()) == pytest.approx([100 * 2.867 / 3, 95.1])
    assert list(dense.get_ydata()) == pytest.approx([97.6, 97.6])
    low, high = (f([y for _, y in axes.collections[0].get_paths()[0].vertices]) for f in (min, max))
    assert (low, high) == (pytest.approx(84.0), pytest.approx(97.0))
    assert [t.get_text() for t in axes.get_xticklabels()] == ["50%", "90%", "97.4%"]
    assert axes.get_xscale() == "log" and axes.xaxis_inverted()
    assert axes.get_ylabel() == "accuracy, %"


def test_a_loss_against_sigma_is_a_plain_axis(axes):
    record = {"axis": "sigma", "metric": "loss", "arms": {"a": {0.0: [1.0], 0.5: [2.0, 3.0]}}}
    plot.lines(axes, table.read(record))
    (line,) = axes.get_lines()
    assert list(line.get_xdata()) == [0.0, 0.5] and list(line.get_ydata()) == [1.0, 2.5]
    assert axes.get_xscale() == "linear" and axes.get_ylabel() == "loss, nats"


def test_draw_writes_a_png(tmp_path):
    target = plot.draw(RECORD, tmp_path / "folder" / "a.png", "MNIST")
    assert target.read_bytes()[:4] == b"\x89PNG"


def test_a_wrong_record_leaves_no_picture(tmp_path):
    with pytest.raises(ValueError, match="at least one arm"):
        plot.draw({"arms": {}}, tmp_path / "a.png")
    assert not (tmp_path / "a.png").exists()
