"""The PEP 517 backend: setuptools', except that torch is asked for only where the interpreter has none."""

from setuptools import build_meta as _setuptools
from setuptools.build_meta import *  # noqa: F401,F403

from build_tools.torch_location import MINIMUM, find_torch


def _torch_if_missing():
    torch = find_torch()
    return [] if torch and torch.new_enough else ["torch>={}.{}".format(*MINIMUM)]


def get_requires_for_build_wheel(config_settings=None):
    return _setuptools.get_requires_for_build_wheel(config_settings) + _torch_if_missing()


def get_requires_for_build_editable(config_settings=None):
    return _setuptools.get_requires_for_build_editable(config_settings) + _torch_if_missing()
