"""Colors (RGB, 0 to 255) that painters share."""

import numpy as np

GLASS = (52, 62, 72)
TIRE = (26, 26, 28)
DARK = (38, 38, 41)
CHROME = (176, 180, 184)
HEADLAMP = (236, 238, 232)
TAIL = (168, 20, 22)
AMBER = (236, 150, 36)
PLATE = (226, 226, 218)

HEAD_LIGHT = ((1.0, 0.93, 0.8), 1.0, "head")
TAIL_LIGHT = ((1.0, 0.08, 0.05), 0.22, "tail")
SIGN_GLOW = (0.9, 0.5, 0.1)  # radiance of lit destination signs
CABIN_GLOW = (0.42, 0.36, 0.26)  # of a bus cabin

CAR_COLORS = (
    (228, 229, 228), (236, 236, 233), (168, 171, 175), (118, 122, 128), (66, 69, 74), (32, 33, 37), (44, 45, 50),
    (152, 28, 32), (186, 40, 36), (34, 62, 122), (52, 96, 150), (96, 128, 156), (52, 84, 66), (112, 82, 60),
    (196, 182, 148), (214, 166, 42), (206, 96, 34), (92, 36, 52),
)  # fmt: skip
CLOTHES = (
    (40, 44, 58), (30, 30, 34), (62, 66, 74), (112, 116, 122), (34, 58, 104), (68, 104, 158), (148, 38, 40),
    (198, 60, 48), (212, 196, 168), (226, 224, 218), (74, 98, 66), (122, 92, 60), (232, 176, 46), (150, 84, 130),
    (40, 122, 122), (232, 128, 50),
)  # fmt: skip
TROUSERS = ((38, 44, 62), (52, 62, 92), (28, 28, 31), (84, 84, 86), (120, 104, 82), (70, 60, 52), (58, 66, 58))
SKIN = ((236, 194, 164), (218, 170, 136), (188, 136, 100), (142, 98, 70), (96, 66, 48))
HAIR = ((30, 24, 22), (58, 40, 28), (98, 66, 38), (176, 138, 82), (132, 130, 128), (22, 20, 22))


def pick(rng: np.random.Generator, colors) -> tuple:
    """One of the colors."""
    return colors[int(rng.integers(len(colors)))]


def vary(rng: np.random.Generator, color, spread: float = 10.0) -> tuple:
    """The color, changed a little in brightness and hue."""
    changed = np.asarray(color) + rng.normal(0.0, spread) + rng.normal(0.0, spread / 3.0, 3)
    return tuple(np.clip(changed, 4.0, 250.0))


def mix(one, other, share: float) -> tuple:
    """The color between two, `share` of the way from one to the other."""
    return tuple(a + (b - a) * share for a, b in zip(one, other))


def darker(color, factor: float = 0.7) -> tuple:
    """The color at this fraction of its brightness."""
    return tuple(channel * factor for channel in color)
