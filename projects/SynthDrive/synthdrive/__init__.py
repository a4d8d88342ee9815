"""SynthDrive: procedural driving scenes with depth, to try the whole pipeline without any download."""

from synthdrive.canvas import Light
from synthdrive.generate import DOMAINS, generate, make_image
from synthdrive.scene import Scene, render_scene
from synthdrive.traffic import CLASSES

__all__ = ["CLASSES", "DOMAINS", "Light", "Scene", "generate", "make_image", "render_scene"]
