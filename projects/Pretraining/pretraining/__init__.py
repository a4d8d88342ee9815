"""Self-supervised pretraining of a small ViT on images without labels."""
