"""P2P: from recorded gameplay to a model that plays."""

__version__ = "0.1.0"
