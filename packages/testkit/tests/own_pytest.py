"""How tests start a pytest of their own."""

LIGHT = tuple(
    part
    for plugin in ("langsmith_plugin", "hydra_pytest", "jaxtyping", "anyio", "cacheprovider")
    for part in ("-p", f"no:{plugin}")
)
"""Options that leave plugins out which cost seconds of every start and which none of these tests needs."""
