"""The networks of a model."""

from sims_kit.model.tabnet import TabNet


def members(network) -> list[TabNet]:
    """The networks of an ensemble, or the network itself."""
    return list(getattr(network, "members", [network]))
