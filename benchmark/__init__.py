"""Benchmarks: `python -m benchmark.run` (operators), `.host_overhead`, `.train_step`, `.readme_table`."""
