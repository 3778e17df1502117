"""Character-level recurrent neural networks.

Importing this imports nothing else, so that `charrnn --help` answers at once.
"""

__version__ = "0.1.0"
