"""Modules that own parameters and call the pure functions of `ops`."""
