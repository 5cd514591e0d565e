"""The registry that downstream programs look through for replaced implementations."""

IMPL_REGISTRY = {}  # name -> object with .module_path; empty: nothing replaces the C kernels
