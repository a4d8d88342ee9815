"""Night, rain and fog as image formation: one function per physical effect, composed into the five weather domains.

Every effect takes an image (H, W, 3), RGB, either uint8 (sRGB encoded) or float32 (linear radiance, 1 = white on a
clear day), and returns the same kind. Depth is (H, W) in meters, inf for the sky. Effects move nothing, so boxes stay
valid. Randomness comes from the given generator alone.
"""

from soma_det.weather.domains import DOMAIN_EFFECTS, apply_weather

__all__ = ["DOMAIN_EFFECTS", "apply_weather"]
