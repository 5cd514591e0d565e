"""What swiglu and geglu share in Python: fakes, samples, benchmark cases."""

import torch

from ._spec import Case, Sample, T


def promoted(a, b):
    """The dtype of the product: torch's promotion of the two inputs' dtypes."""
    return torch.promote_types(a.dtype, b.dtype)


def fake_fwd(a, b, *multipliers):
    return a.new_empty(a.shape, dtype=promoted(a, b))


def fake_bwd(dc, a, b, *multipliers):
    return a.new_empty(a.shape), b.new_empty(b.shape)


def fake_bwd_(dc, a, b, *multipliers):
    return None


def sample(*shape, **options):
    name = "x".join(map(str, shape)) + "".join(f"-{k}_{v}" for k, v in options.items())
    return Sample(name, {"a": T(shape), "b": T(shape), **options})


BASE = sample(3, 5, 48)
SAMPLES = (
    BASE,
    *(
        sample(*s)
        for s in [
            (0, 8),
            (2, 0),
            (1, 1),
            (3, 1),
            (7, 33),
            (2, 1023),
            (3, 1024),
            (2, 1025),
            (5, 4099),
            (2, 3, 5, 16),
        ]
    ),
    Sample("large", {"a": T((4, 257), scale=50.0), "b": T((4, 257))}),  # both tails of the activation
    Sample("mixed-dtypes", {"a": T((3, 129)), "b": T((3, 129), "w")}),
)
ERRORS = (
    (r"b has shape \(5, 48\), expected \(3, 5, 48\), as a", {"b": T((5, 48))}),
    (r"a has dtype int64, expected float32", {"a": T((3, 5, 48), "index", grad=False, high=9)}),
)


def cases():
    def case(n_rows, n_cols, id):
        n = n_rows * n_cols
        return Case(id, sample(n_rows, n_cols), 3 * n, 8 * n)

    return {"cpu": (case(2048, 5632, "5632"),), "cuda": (case(16384, 14336, "14336"),)}
