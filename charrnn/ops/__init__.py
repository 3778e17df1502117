"""Pure functions of tensors: the recurrences, their derivatives and the backends that run them. Knows nothing of charrnn."""
