"""Kinds of work of operators and kernels, by their names in torch's profiler."""

from __future__ import annotations

import re

__all__ = ["HOST", "classify_kernel"]

HOST = "Python, autograd, dispatch"
"""Kind of the time between kernels: Python interpreter, autograd bookkeeping, dispatch."""

_KINDS = {
    "matrix products, convolutions": r"aten::(_?(add|sparse_)?(b|bad)?mm|addmv|mv|dot|vdot|linear|matmul|einsum|"
    r"_addmm_activation|baddbmm|addbmm|bilinear|.*conv.*|.*scaled_dot_product.*|mkldnn_.*linear.*)",
    "search, gather": r"numba::(geometry|data)\..*|aten::(gather|index.*|_index_put.*|scatter.*|take.*|embedding.*|"
    r"topk|kthvalue|sort|argsort|nonzero.*|_?unique.*|searchsorted|bucketize|grid_sampler.*|_?cdist.*|masked_select|"
    r"masked_scatter|repeat_interleave|bincount)(_backward)?_?",
    "fused layers": r"numba::layers\..*",
    "normalisation": r"aten::.*(batch|layer|group|instance|rms)_?norm.*",
    "reductions, pooling": r"aten::(sum|mean|max|min|a(rg)?max|a(rg)?min|std|var|var_mean|prod|any|all|cum.*|norm|"
    r"linalg_vector_norm|_?(log_)?softmax.*|logsumexp|.*pool.*|count_nonzero|nan_to_num)",
    "memory, layout": r"aten::(empty.*|zeros.*|ones.*|full.*|fill_|zero_|copy_|clone|to|_to_copy|contiguous|cat|stack|"
    r"pad|constant_pad_nd|slice.*|select.*|narrow|view.*|_?reshape.*|_unsafe_view|transpose|t|permute|expand.*|"
    r"as_strided.*|detach.*|squeeze.*|unsqueeze.*|flatten|unflatten|split.*|chunk|unbind|resize_?|set_|alias|"
    r"lift_fresh|repeat|tile|flip|roll|resolve_.*|movedim|.*upsample.*|arange|_local_scalar_dense|item|is_.*)|detach",
    "element by element": r"aten::.*",
    "other kernels": r"numba::.*",
    "compiled by torch": r"CompiledFunction(Backward)?|## Call CompiledFxGraph.*|Torch-Compiled Region.*|triton_.*",
}
_PATTERNS = [(kind, re.compile(pattern)) for kind, pattern in _KINDS.items()]


def classify_kernel(name: str) -> str:
    """Return the kind of an operator (`aten::addmm`) or of our kernels (`numba::geometry.trees._build`), else `HOST`.

    It is the first kind whose pattern matches the whole name. An operator that only calls another has its own kind.
    """
    return next((kind for kind, pattern in _PATTERNS if pattern.fullmatch(name)), HOST)
