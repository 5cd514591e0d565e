"""The loss that the patched heads compute, and their outputs."""
