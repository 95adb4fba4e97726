"""Pattern names and the choice of a format."""

from __future__ import annotations

import pytest
import torch

from evoprune_kernels import formats
from evoprune_kernels.formats import NM, Block, Channel, Unstructured, parse_pattern


@pytest.mark.parametrize(
    "text, pattern",
    [
        ("2:4", NM(2, 4)),
        ("2:4v16", NM(2, 4, 16)),
        ("block:16x1", Block(16, 1)),
        ("unstructured", Unstructured()),
        ("channel", Channel()),
    ],
)
def test_names_round_trip(text, pattern):
    assert parse_pattern(text) == pattern
    assert str(pattern) == text
    assert parse_pattern(pattern) is pattern


@pytest.mark.parametrize(
    "text", ["", "2-4", "2:4:8", "block:16", "block:16x", "nm", "-1:4", " 2:4", "2:4\n"]
)
def test_unknown_names_are_quoted(text):
    with pytest.raises(ValueError, match="unknown pattern") as error:
        parse_pattern(text)
    assert repr(text) in str(error.value)


@pytest.mark.parametrize("text", ["0:4", "5:4", "2:33", "2:4v8", "block:0x4", "block:4x257"])
def test_numbers_out_of_range(text):
    with pytest.raises(ValueError, match=text.removeprefix("block:").rpartition("v")[2]):
        parse_pattern(text)


def test_no_format_for_channel():
    with pytest.raises(ValueError, match="no packed format for the pattern 'channel'"):
        formats.pack(torch.eye(4), "channel")
