"""Options of sampling as hypothesis draws them: all kinds, and few values of each, so that they meet."""

from __future__ import annotations

from hypothesis import strategies as st

from charrnn.options import SamplingOptions

options_of_all_kinds = st.builds(
    SamplingOptions,
    temperature=st.sampled_from([0.0, 5e-324, 1e-3, 0.8, 1.0, 50.0]),
    top_k=st.none() | st.integers(1, 15),
    top_p=st.none() | st.floats(1e-6, 1),
    min_p=st.none() | st.floats(0, 1),
    repetition_penalty=st.sampled_from([0.5, 1.0, 1.3, 1e6]),
    repetition_window=st.integers(1, 5),
    no_repeat_ngram=st.integers(0, 3),
)
