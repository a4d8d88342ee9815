from soma_det.modeling.backbone import ViTPyramid, build_soma_vit_backbone

__all__ = ["ViTPyramid", "build_soma_vit_backbone"]
