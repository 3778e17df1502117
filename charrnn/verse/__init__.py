"""Verse in form, by construction: what a verse must be, how it can be carried through, and the constraints that see to it."""
