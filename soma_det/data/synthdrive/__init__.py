"""SynthDrive: procedural driving scenes with depth, for trying the whole pipeline without downloading anything."""

from soma_det.data.synthdrive.canvas import Light
from soma_det.data.synthdrive.generate import DOMAINS, generate, make_picture
from soma_det.data.synthdrive.scene import Scene, render_scene
from soma_det.data.synthdrive.traffic import CLASSES

__all__ = ["CLASSES", "DOMAINS", "Light", "Scene", "generate", "make_picture", "render_scene"]
