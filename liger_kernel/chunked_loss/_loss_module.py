"""What the modules of the losses share: the constructor's arguments are attributes and go to the Function."""

from torch import nn


class LossModule(nn.Module):
    """A subclass begins its constructor with `super().__init__(locals())`."""

    def __init__(self, arguments):
        super().__init__()
        self._option_names = tuple(name for name in arguments if name not in ("self", "__class__"))
        for name in self._option_names:
            setattr(self, name, arguments[name])

    def options(self):
        """The constructor's arguments as they are now, by the names under which the Function takes them."""
        return {name: getattr(self, name) for name in self._option_names}

    def extra_repr(self):
        return ", ".join(f"{name}={value!r}" for name, value in self.options().items())
