"""Property tests must not hang on how busy the machine is."""

from __future__ import annotations

from hypothesis import HealthCheck, settings

settings.register_profile("p2p", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("p2p")
