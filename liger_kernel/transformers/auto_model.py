"""`AutoModelForCausalLM` that patches the model it loads."""

import inspect

from transformers import AutoConfig, AutoModelForCausalLM

from . import monkey_patch


class AutoLigerKernelForCausalLM(AutoModelForCausalLM):
    """`AutoModelForCausalLM` whose models run our kernels.

    Takes the same arguments and, besides, the flags of the model's `apply_liger_kernel_to_*` function (rope,
    rms_norm, swiglu, ...). The
    model is patched after loading, alone: other models of its type, loaded before or later, are Hugging
    Face's. An unknown model type gives the plain model and one warning.
    """

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path, *model_args, **kwargs):
        config = kwargs.get("config")
        if not hasattr(config, "model_type"):
            options = {k: v for k, v in kwargs.items() if k != "config"}
            name = config if config is not None else pretrained_model_name_or_path
            config, _ = AutoConfig.from_pretrained(name, return_unused_kwargs=True, **options)
        flags, kwargs = _split(config, kwargs)
        model = super().from_pretrained(pretrained_model_name_or_path, *model_args, **kwargs)
        return _patched(model, flags)

    @classmethod
    def from_config(cls, config, **kwargs):
        flags, kwargs = _split(config, kwargs)
        return _patched(super().from_config(config, **kwargs), flags)


def _split(config, kwargs):
    """(the flags of the config's model type, the arguments that are Hugging Face's)."""
    function = monkey_patch.MODEL_TYPE_TO_APPLY_LIGER_FN.get(getattr(config, "model_type", None))
    names = inspect.signature(function).parameters if function else ()
    return {k: v for k, v in kwargs.items() if k in names}, {
        k: v for k, v in kwargs.items() if k not in names
    }


def _patched(model, flags):
    monkey_patch._apply_liger_kernel_to_instance(model=model, **flags)
    return model
