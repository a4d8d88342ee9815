from soma_det.modeling.backbone.build import build_soma_hierarchical_backbone, build_soma_vit_backbone
from soma_det.modeling.backbone.ibn_resnet import build_ibn_resnet_backbone, build_ibn_resnet_fpn_backbone
from soma_det.modeling.backbone.pyramid import MultiBlockPyramid, SimplePyramid
from soma_det.modeling.backbone.timm_vit import TimmViT
from soma_det.modeling.meta_arch.lw_detr import AdaptedLwDETR
from soma_det.modeling.meta_arch.rcnn import AdaptedRCNN, AdaptedRetinaNet

__all__ = ["AdaptedLwDETR", "AdaptedRCNN", "AdaptedRetinaNet", "MultiBlockPyramid", "SimplePyramid", "TimmViT"]
__all__ += ["build_ibn_resnet_backbone", "build_ibn_resnet_fpn_backbone", "build_soma_hierarchical_backbone"]
__all__ += ["build_soma_vit_backbone"]
