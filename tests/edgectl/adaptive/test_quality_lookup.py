"""The quick look-up, held against the table it was made of."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgectl.adaptive.quality_lookup import QualityLookup
from rl.quality import BadQualityTable, QualityTable
from tests.fakes.small_quality import small_table

SPLITS = (1, 2, 4, 8, 16)
SEVERAL = small_table(lambda split, loss: 40.0 + 300.0 * loss**2 / split + split, sigmas=(0.0, 2.0, 5.0))
SINGLE = small_table(lambda split, loss: 40.0 + 100.0 * loss / split)
HOLED = small_table(lambda split, loss: math.nan if (split, loss) == (4, 0.1) else 50.0 + split)


@pytest.mark.parametrize("table", [SEVERAL, SINGLE], ids=["several sigmas", "one sigma"])
@given(loss=st.floats(-0.5, 1.5), sigma=st.floats(-1.0, 9.0))
def test_it_says_what_the_table_says(table: QualityTable, loss: float, sigma: float) -> None:
    lookup = QualityLookup(table)
    splits, count = np.array(SPLITS, np.float64), len(SPLITS)
    np.testing.assert_allclose(lookup.ppl(loss, sigma), table.ppl(loss, splits, sigma), rtol=1e-12)
    places = np.full(count, loss), splits, np.full(count, sigma)
    np.testing.assert_allclose(lookup.gain(*places), table.gain(*places), rtol=1e-9, atol=1e-12)


def test_what_is_no_number_stays_where_it_was_measured() -> None:
    lookup = QualityLookup(HOLED)
    assert np.isfinite(lookup.ppl(0.0, 0.0)).all()
    assert np.isfinite(lookup.ppl(0.3, 0.0)).all()
    assert [math.isnan(value) for value in lookup.ppl(0.1, 0.0)] == [False, False, True, False, False]
    with pytest.raises(BadQualityTable, match=r"no perplexity near loss 0\.1"):
        lookup.gain(np.full(2, 0.1), np.array([1.0, 2.0]), np.zeros(2))


def test_a_split_that_was_not_measured_is_not_guessed() -> None:
    with pytest.raises(KeyError):
        QualityLookup(SINGLE).gain(np.zeros(1), np.array([3.0]), np.zeros(1))
