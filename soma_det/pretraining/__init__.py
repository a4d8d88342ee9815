"""Self-supervised pretraining of a small ViT on pictures without labels (tools/pretrain_vit.py)."""
