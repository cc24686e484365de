"""The names of the places where a signal passes, in every layer of every family.

Shapes: B batch, H heads, N queries, M keys, D head width, E hidden width, C classes.
"""

AXES = {
    "logits": "BC",
    "hidden": "BNE",
    "attention.query": "BNE",
    "attention.key": "BNE",
    "attention.value": "BNE",
    "attention.scores": "BHNM",
    "attention.probs": "BHNM",
    "attention.context": "BHND",
    "attention.projection": "BNE",
    "attention.residual": "BNE",
    "attention.output": "BNE",
}
"""The sites and the axes of their signals.

hidden: X_0 (embeddings, after LayerNorm and dropout) and each layer's output, so one more than there are layers ·
query, key, value: outputs of the three projections · scores: Q Kᵀ/√D + mask · probs: softmax, before dropout ·
context: P V, each head · projection: W_O·context, before dropout, residual and LayerNorm (AO in arXiv:2302.11812) ·
residual: the sum of projection and residual, before LayerNorm (Y in the text of arXiv:2211.11014) ·
output: after projection, residual and LayerNorm (Y in its released code)."""

FACTORS = ("attention.query_factor", "attention.key_factor", "attention.mask")
"""The factors of the scores, which can be captured but not replaced: scores = query_factor · key_factorᵀ + mask.

query_factor: the quantized query, scaled, (B, H, N, D) · key_factor: the quantized key, (B, G, M, D), G dividing H · both
after rotation by position, where there is one · mask: additive, broadcastable to (B, H, N, M); of zeros where there is none."""

MAPS = {"attention.scores", "attention.probs"}
"""The sites that are as large as the attention map."""

CORE_SITES = {*MAPS, *FACTORS, "attention.context"}
"""The sites that exist only where attention is opened."""

FUSED = {"attention.query", "attention.key", "attention.value"}
"""The sites that some families compute in one layer."""

INPUT_SITES = {"attention.residual"}
"""The sites whose signal is what goes into their module, not what comes out."""


def check_site(site: str) -> str:
    """The site itself; raises ValueError for a name that is none."""
    if site not in AXES:
        raise ValueError(f"unknown site {site!r}; sites: {', '.join(AXES)}")
    return site
