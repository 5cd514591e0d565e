"""What the gated MLP modules share: their projections, and the activation that a config names."""

from torch import nn


def gate_up_down(module, config, intermediate_size=None, bias=False):
    """Gives `module` the attributes and the three projections of Hugging Face's gated MLPs."""
    inner = config.intermediate_size if intermediate_size is None else intermediate_size
    module.config, module.hidden_size, module.intermediate_size = config, config.hidden_size, inner
    module.gate_proj = nn.Linear(config.hidden_size, inner, bias=bias)
    module.up_proj = nn.Linear(config.hidden_size, inner, bias=bias)
    module.down_proj = nn.Linear(inner, config.hidden_size, bias=bias)


def activation(config, supported):
    """What `supported` holds for the config's activation: `hidden_activation` where the config has it, else
    `hidden_act`. Raises ValueError, with the names that are supported, for another one."""
    key = "hidden_activation" if getattr(config, "hidden_activation", None) is not None else "hidden_act"
    name = getattr(config, key, None)
    if name not in supported:
        *names, last = map(repr, supported)
        allowed = f"{', '.join(names)} or {last}"
        raise ValueError(f"{key} of {type(config).__name__} is {name!r}, expected {allowed}")
    return supported[name]
