"""`apply_liger_kernel_to_<model>` for every row of the table, and the entry points that trainers call."""

import inspect
import logging

import transformers
from packaging import version

from .patching.engine import apply, revert  # noqa: F401
from .patching.report import patch_report  # noqa: F401
from .patching.table import MODEL_TYPES, MODELS

logger = logging.getLogger("liger_kernel")

transformer_version = version.parse(transformers.__version__)
MIN_SUPPORTED_TRANSFORMERS_VERSION = version.parse("4.57.0")
IS_TRANSFORMERS_V5_OR_LATER = transformer_version >= version.parse("5.0.0")
if transformer_version < MIN_SUPPORTED_TRANSFORMERS_VERSION:
    raise ImportError(
        f"liger_kernel patches models of transformers {MIN_SUPPORTED_TRANSFORMERS_VERSION} and newer, but "
        f"{transformer_version} is installed: pip install -U transformers"
    )

_DOCS = {
    "rope": "rotary position embedding",
    "cross_entropy": "cross entropy on the logits",
    "fused_linear_cross_entropy": "the head fused with its loss: no logits in training",
    "rms_norm": "RMS normalisation",
    "swiglu": "the MLP's gated SiLU",
    "geglu": "the MLP's gated GELU",
}


def _make(row):
    flags = row.flags
    parameters = [
        inspect.Parameter(name, inspect.Parameter.POSITIONAL_OR_KEYWORD, default=default, annotation=bool)
        for name, default in flags.items()
    ]
    parameters.append(inspect.Parameter("model", inspect.Parameter.POSITIONAL_OR_KEYWORD, default=None))
    signature = inspect.Signature(parameters, return_annotation=None)

    def apply_liger_kernel(*args, **kwargs):
        bound = signature.bind(*args, **kwargs)
        given = dict(bound.arguments)
        model = given.pop("model", None)
        chosen = {name: bool(given.get(name, default)) for name, default in flags.items()}
        apply(row, chosen, model, asked_for=[name for name, value in given.items() if value])

    apply_liger_kernel.__name__ = apply_liger_kernel.__qualname__ = f"apply_liger_kernel_to_{row.name}"
    apply_liger_kernel.__signature__ = signature
    switches = "".join(
        f"\n    {name} ({default}): {_DOCS.get(name, name)}" for name, default in flags.items()
    )
    apply_liger_kernel.__doc__ = f"""Replace layers of {row.name} models ({row.modeling}) by kernels.

    model: the model to patch; nothing that other models share changes. Without it the classes of the
    modelling module are patched, for models made afterwards; `revert({row.name!r})` undoes that.
{switches}

    None means False. Raises ValueError if both cross entropies are on, and for a flag passed as True that
    matches nothing.
    """
    return apply_liger_kernel


for _row in MODELS.values():
    globals()[f"apply_liger_kernel_to_{_row.name}"] = _make(_row)
del _row

MODEL_TYPE_TO_APPLY_LIGER_FN = {
    model_type: globals()[f"apply_liger_kernel_to_{row.name}"] for model_type, row in MODEL_TYPES.items()
}
_APPLY = dict(MODEL_TYPE_TO_APPLY_LIGER_FN)


def _apply_liger_kernel(model_type, **kwargs):
    """Patches the classes of a model type, for models made afterwards. Keywords that the type's function
    lacks are dropped; an unknown type changes nothing and gives one warning; a kernel that matches nothing is
    part of one warning."""
    _dispatch(model_type, None, kwargs)


def _apply_liger_kernel_to_instance(model, **kwargs):
    """Patches one model, by its config's model_type; else as `_apply_liger_kernel`. HF Trainer calls this
    (use_liger_kernel=True)."""
    _dispatch(getattr(getattr(model, "config", None), "model_type", None), model, kwargs)


def _dispatch(model_type, model, kwargs):
    function = MODEL_TYPE_TO_APPLY_LIGER_FN.get(model_type)
    if function is None:
        logger.warning(
            "no kernels for model type %r: nothing is patched. Known: %s",
            model_type,
            ", ".join(sorted(MODEL_TYPES)),
        )
        return
    kwargs = {name: value for name, value in kwargs.items() if name in inspect.signature(function).parameters}
    if function is not _APPLY.get(model_type):  # a program has put its own function into the dictionary
        function(**kwargs, **({} if model is None else {"model": model}))
        return
    row = MODEL_TYPES[model_type]
    kwargs.pop("model", None)
    apply(row, {name: bool(kwargs.get(name, default)) for name, default in row.flags.items()}, model)
