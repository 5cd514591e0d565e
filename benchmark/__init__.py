"""Benchmarks: `python -m benchmark.run`, `.sweep`, `.host_overhead`, `.train_step`; pages from their results:
`.readme_table`, `.operators_page`, `.performance_page`."""
