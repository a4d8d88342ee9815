"""SynthDrive: procedural driving scenes with depth, for trying the whole pipeline without downloading anything."""

from synthdrive.canvas import Light
from synthdrive.generate import DOMAINS, generate, make_image
from synthdrive.scene import Scene, render_scene
from synthdrive.traffic import CLASSES

__all__ = ["CLASSES", "DOMAINS", "Light", "Scene", "generate", "make_image", "render_scene"]
