"""What is replaced in which Hugging Face model: one row a model, plain data (no torch, no transformers).

A row names classes of the model's modelling module. The engine replaces a layer by a subclass of the Hugging
Face class whose `forward` is ours, so construction, weights, checkpoints and isinstance stay Hugging Face's.
"""

from dataclasses import dataclass, field


@dataclass(frozen=True)
class Layer:
    """A layer class that gets another forward.

    flag: the keyword that switches it. cls: the Hugging Face class. source: `module:class` under
    liger_kernel.transformers, which gives the forward. attributes: what that forward reads and the Hugging
    Face instance lacks; renamed: {name it reads: instance's name}.
    activations: types of the instance's activation that the forward computes; other instances are left alone.
    """

    flag: str
    cls: str
    source: str
    attributes: dict = field(default_factory=dict)
    renamed: dict = field(default_factory=dict)
    activations: tuple = ()


@dataclass(frozen=True)
class Rope:
    """cls: the attention class whose forward calls the module's global function `function`."""

    cls: str
    function: str = "apply_rotary_pos_emb"


@dataclass(frozen=True)
class Head:
    """cls: the class with `get_output_embeddings()` and `loss_function`. softcap: the config's attribute,
    where logits are capped."""

    cls: str
    softcap: str | None = None


@dataclass(frozen=True)
class Model:
    """name: as in apply_liger_kernel_to_<name>. module: the Hugging Face folder. model_types: the config's
    model_type values."""

    name: str
    layers: tuple
    rope: Rope | None
    head: Head | None
    module: str | None = None
    model_types: tuple = ()
    off: tuple = ("cross_entropy",)

    @property
    def modeling(self):
        folder = self.module or self.name
        return f"transformers.models.{folder}.modeling_{folder}"

    @property
    def flags(self):
        """The switches and their defaults, in the order of the signature."""
        names = ["rope"] if self.rope else []
        names += ["cross_entropy", "fused_linear_cross_entropy"] if self.head else []
        names += dict.fromkeys(layer.flag for layer in self.layers)
        return {name: name not in self.off for name in names}


def RMSNorm(cls, offset=0.0, casting="llama", in_place=True, eps="variance_epsilon"):
    attributes = dict(offset=offset, casting_mode=casting, in_place=in_place, row_mode=None)
    renamed = {} if eps == "variance_epsilon" else {"variance_epsilon": eps}
    return Layer("rms_norm", cls, "rms_norm:LigerRMSNorm", attributes, renamed)


def SwiGLU(cls, source="swiglu:LigerSwiGLUMLP"):
    return Layer("swiglu", cls, source, activations=("SiLU", "SiLUActivation"))


def GEGLU(cls):
    return Layer(
        "geglu", cls, "geglu:LigerGEGLUMLP", activations=("GELUTanh", "PytorchGELUTanh", "NewGELUActivation")
    )


def _llama_like(name, prefix):
    layers = (RMSNorm(f"{prefix}RMSNorm"), SwiGLU(f"{prefix}MLP"))
    return Model(name, layers, Rope(f"{prefix}Attention"), Head(f"{prefix}ForCausalLM"))


_ROWS = (
    _llama_like("llama", "Llama"),
    _llama_like("mistral", "Mistral"),
    _llama_like("qwen2", "Qwen2"),
    _llama_like("qwen3", "Qwen3"),  # q_norm and k_norm are Qwen3RMSNorm too
    Model(
        "gemma",
        layers=(RMSNorm("GemmaRMSNorm", offset=1.0, casting="gemma", eps="eps"), GEGLU("GemmaMLP")),
        rope=Rope("GemmaAttention"),
        head=Head("GemmaForCausalLM"),
    ),
    Model(
        "gemma2",
        # the norm's output is added to the residual, which in-place work would destroy
        layers=(
            RMSNorm("Gemma2RMSNorm", offset=1.0, casting="gemma", in_place=False, eps="eps"),
            GEGLU("Gemma2MLP"),
        ),
        rope=Rope("Gemma2Attention"),
        head=Head("Gemma2ForCausalLM", softcap="final_logit_softcapping"),
    ),
    Model(
        "phi3",
        layers=(RMSNorm("Phi3RMSNorm"), SwiGLU("Phi3MLP", "swiglu:LigerPhi3SwiGLUMLP")),
        rope=Rope("Phi3Attention"),
        head=Head("Phi3ForCausalLM"),
    ),
)

MODELS = {row.name: row for row in _ROWS}
MODEL_TYPES = {model_type: row for row in _ROWS for model_type in row.model_types or (row.name,)}
