"""Patching of Hugging Face models: one table (`table.py`), one engine (`engine.py`), one generic head
(`fused_head.py`).

Adding a model is one row of the table. Nothing here imports Hugging Face transformers before a model is
patched.
"""
