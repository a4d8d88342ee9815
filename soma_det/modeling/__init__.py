from soma_det.modeling.backbone.build import ViTPyramid, build_soma_vit_backbone
from soma_det.modeling.backbone.ibn_resnet import build_ibn_resnet_backbone, build_ibn_resnet_fpn_backbone
from soma_det.modeling.meta_arch.rcnn import AdaptedRCNN

__all__ = [
    "AdaptedRCNN",
    "ViTPyramid",
    "build_ibn_resnet_backbone",
    "build_ibn_resnet_fpn_backbone",
    "build_soma_vit_backbone",
]
