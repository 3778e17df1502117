"""The network that looks at a picture, and what its vector becomes."""

from __future__ import annotations

import torch
from torch.nn import functional as F

from charrnn.layers.vision import Standardization


def test_a_picture_is_standardised_alike_in_training_and_afterwards_whatever_stands_beside_it() -> None:
    generator = torch.Generator().manual_seed(1)
    seen = Standardization(3)
    kinds = torch.tensor([[5.0, 1.0, 0.0], [9.0, 1.5, 0.0]])  # batches of one kind each, as captions of like length are
    for step in range(400):
        batch = kinds[step % 2] + torch.randn(1, 16, 3, generator=generator)
        trained = seen(batch)
    plain = seen.eval()(batch)
    torch.testing.assert_close(trained, plain, atol=1e-4, rtol=1e-4)
    # The two kinds stand apart, as by a batch alone they would not.
    both = seen(torch.cat([kinds[0].expand(1, 16, 3), kinds[1].expand(1, 16, 3)], dim=1))[0]
    assert float((both[16:, 0] - both[:16, 0]).min()) > 1.5


def test_the_gradient_of_a_standardised_vector_is_that_of_batch_normalisation() -> None:
    x = (torch.randn(1, 32, 4, generator=torch.Generator().manual_seed(2), dtype=torch.float64) * 0.5 + 2).requires_grad_()
    weight = torch.randn(32, 4, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    seen = Standardization(4).double()
    for _ in range(200):
        seen(x)
    (found,) = torch.autograd.grad((seen(x)[0] * weight).sum(), x)
    normed = F.batch_norm(x[0], None, None, training=True)
    (expected,) = torch.autograd.grad((normed * weight).sum(), x)
    torch.testing.assert_close(found, expected, atol=1e-4, rtol=1e-4)
